"""New scenes of several files: by table and by layout, registered as in training, and what of it is refused by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from tiny_scenes import SIDE, Known, maps_of, write_run

from maskloom.contests.dstl import open_dstl
from maskloom.contests.dstl.stand_in import write_stand_in
from maskloom.contests.dstl.third import BANDS, REGISTRATION
from maskloom.data.band_registration import registered
from maskloom.data.record_images import read_record_image
from maskloom.data.sources.base import DataSettings
from maskloom.errors import UserError
from maskloom.files import read_json
from maskloom.inference import blocks as blocks_room
from maskloom.progress import Silent
from maskloom.rasters.writing import write_geotiff
from maskloom.records import BandFile, Record
from maskloom.registry import open_scenes
from maskloom.stages import scene_registration
from maskloom.stages import scenes as stage
from maskloom.stages.claims import Claims
from maskloom.stages.images import Prediction
from maskloom.stages.registration import moved_bands

SIZE = (120, 160)
SHIFTS = {"a": (1.3, -0.7), "b": (-0.6, 1.8)}
"""(x, y) by which the second file of a scene lies off, in its own pixels."""
RECIPE: dict[str, Any] = {"channels": 4, "registration": {"pairs": [{"file": 0, "image_band": 1, "band": 0}]}}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks_room, "SIDES", (SIDE,))
    monkeypatch.setattr(stage, "PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(scene_registration, "PAUSE_SECONDS", 0.01)


class Heard(Silent):
    """Keeps what it hears."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.stages: list[tuple[str, bool]] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def stage(self, name: str, *, cached: bool) -> None:
        self.stages.append((name, cached))


def ground(seed: int, x: float = 0.0, y: float = 0.0) -> np.ndarray:
    """A smooth field, periodic, moved by (x, y), as uint8 of SIZE."""
    fy, fx = np.fft.fftfreq(SIZE[0])[:, None], np.fft.fftfreq(SIZE[1])[None, :]
    spectrum = np.fft.fft2(np.random.default_rng(seed).normal(size=SIZE)) / np.maximum(np.hypot(fy, fx), 0.02) ** 1.5
    values = np.fft.ifft2(spectrum * np.exp(-2j * np.pi * (fx * x + fy * y))).real
    values = (values - values.mean()) / values.std()
    return np.clip(np.rint(128 + 40 * values), 1, 255).astype(np.uint8)


def write_files(folder: Path, name: str, *, flat: bool = False) -> None:
    """A file of three bands, and one of one band that lies off (or, ``flat``, shows nothing)."""
    folder.mkdir(exist_ok=True)
    seed = ord(name[0])
    write_geotiff(folder / f"{name}.tif", np.stack([ground(seed), ground(seed), ground(seed + 1)]), None)
    moved = np.full(SIZE, 7, np.uint8) if flat else ground(seed, *SHIFTS[name])
    write_geotiff(folder / f"{name}_more.tif", moved[None], None)


def write_table(folder: Path, names: str, *, resampling: str = "") -> Path:
    path = folder / "scenes.csv"
    rows = [f"{name},{name}.tif,{name}_more.tif,{resampling}\n" for name in names]
    path.write_text("id,image,band,resampling\n" + "".join(rows))
    return path


def record_of(folder: Path, name: str, **band: Any) -> Record:
    further = BandFile(path=folder / f"{name}_more.tif", **band)
    return Record(id=name, image=folder / f"{name}.tif", size=SIZE, bands=(further,))


def predicted(tmp_path: Path, scenes: Path, *, known: Any = None, recipe: Any = RECIPE, **options: Any) -> Prediction:
    asked = known or Known(channels=4, first=3)
    return stage.predict_scenes(
        write_run(tmp_path / "run", **recipe), scenes, out=tmp_path / options.pop("out", "out"), opened=lambda: asked,
        progress=options.pop("progress", Silent()), **({"to": "geotiff", "probabilities": True} | options),
    )  # fmt: skip


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as dataset:
        return dataset.read()


def test_a_table_is_registered_as_in_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "scenes"
    for name in "ab":
        write_files(folder, name)
    heard = Heard()
    scenes = write_table(folder, "ab")
    assert predicted(tmp_path, scenes, progress=heard).num_written == 2
    for name, (x, y) in SHIFTS.items():
        record = record_of(folder, name)
        places, problems = registered(record, scene_registration.RegistrationSettings(**RECIPE["registration"]))
        assert not problems
        expected = read_record_image(replace(record, bands=moved_bands(record, places)))[..., 3]
        assert np.array_equal(read(tmp_path / f"out/{name}.probabilities.tif")[0], expected)
        stored = read_json(tmp_path / f"out/registration/{name}.json")["files"]["0"]
        assert stored["moved"][2::3] == pytest.approx([x, y], abs=0.1) and stored["correlation"] > 0.8
        (note,) = (text for text in heard.notes if text.startswith(f"{name}: "))
        assert f"{name}_more.tif is registered by a shift of (" in note and f"{stored['correlation']:.3f}" in note
    assert heard.stages == [("register", False), ("predict", False)]
    again = Heard()
    monkeypatch.setattr(scene_registration, "registered", None)  # is not asked again
    known = Known(channels=4)
    assert predicted(tmp_path, scenes, progress=again, known=known).num_written == 2
    assert again.stages[0] == ("register", True) and again.notes == [] and known.num_asked == 0


def test_without_registration_files_stay_as_they_lie(tmp_path: Path) -> None:
    folder = tmp_path / "scenes"
    write_files(folder, "a")
    predicted(tmp_path, write_table(folder, "a", resampling="nearest"), recipe={"channels": 4})
    assert np.array_equal(read(tmp_path / "out/a.probabilities.tif"), read(folder / "a_more.tif"))
    assert not (tmp_path / "out/registration").exists()


def test_files_that_the_caller_moved_stay_there(tmp_path: Path) -> None:
    folder = tmp_path / "scenes"
    write_files(folder, "a")
    moved = (1.0, 0.0, 2.0, 0.0, 1.0, -1.0)
    bands = {"a": (BandFile(path=folder / "a_more.tif", moved=moved),)}
    predicted(tmp_path, folder, bands=bands)
    expected = read_record_image(record_of(folder, "a", moved=moved))[..., 3]
    assert np.array_equal(read(tmp_path / "out/a.probabilities.tif")[0], expected)
    with pytest.raises(UserError, match="expected none beside a table"):
        predicted(tmp_path, write_table(folder, "a"), bands=bands, out="other")


def test_what_does_not_converge_is_refused_by_name_or_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "scenes"
    write_files(folder, "a")
    write_files(folder, "b", flat=True)
    scenes = write_table(folder, "ab")
    with pytest.raises(UserError, match=r"scene 'b' cannot be predicted: .*b_more\.tif cannot be registered") as caught:
        predicted(tmp_path, scenes)
    assert "\n" not in str(caught.value) and not list(tmp_path.glob("out/*.tif"))
    for heard in (Heard(), Heard()):
        done = predicted(tmp_path, scenes, skip_bad=True, progress=heard)
        assert done.num_written == 1 and [problem.path.name for problem in done.bad] == ["b.tif"]
        assert [note.split(": scene ")[1][:3] for note in heard.notes if note.startswith("left out: ")] == ["'b'"]
    assert not (tmp_path / "out/b.tif").exists()

    heard = Heard()
    leave = RECIPE | {"registration": RECIPE["registration"] | {"failed": "leave"}}
    assert predicted(tmp_path, scenes, recipe=leave, progress=heard, out="left").num_written == 2
    assert sum("b: left as it lies: " in note for note in heard.notes) == 1
    assert np.array_equal(read(tmp_path / "left/b.probabilities.tif"), read(folder / "b_more.tif"))
    assert read_json(tmp_path / "left/registration/b.json")["files"] == {}


def test_changed_files_and_damaged_results_are_registered_again(tmp_path: Path) -> None:
    folder = tmp_path / "scenes"
    write_files(folder, "a")
    scenes = write_table(folder, "a")
    predicted(tmp_path, scenes)
    stored = tmp_path / "out/registration/a.json"
    whole = stored.read_text()
    for damage in ("{", "[]", whole.replace('"files"', '"other"')):
        stored.write_text(damage)
        predicted(tmp_path, scenes)
        assert stored.read_text() == whole
    write_geotiff(folder / "a_more.tif", ground(ord("a"), 0.4, 0.9)[None], None)
    predicted(tmp_path, scenes)
    assert read_json(stored)["files"]["0"]["moved"][2::3] == pytest.approx([0.4, 0.9], abs=0.1)


def test_a_scene_that_another_process_is_at_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "scenes"
    write_files(folder, "a")
    take, refused = Claims.take, [2]

    def refuse_twice(self: Claims, number: int) -> bool:
        refused[0] -= 1
        return refused[0] < 0 and take(self, number)

    monkeypatch.setattr(Claims, "take", refuse_twice)
    assert predicted(tmp_path, write_table(folder, "a")).num_written == 1


def test_wrong_numbers_of_bands_and_missing_files(tmp_path: Path) -> None:
    folder = tmp_path / "scenes"
    for name in "ab":
        write_files(folder, name)
    scenes = write_table(folder, "ab")
    with pytest.raises(UserError, match=r"a\.tif: expected 6 band\(s\) for scene 'a' .* found 4 \(3 \+ 1 of 2 files\)"):
        predicted(tmp_path, scenes, recipe={"channels": 6})
    with pytest.raises(UserError, match=r"expected 4 band\(s\) for scene 'a' .* found 3; .* in a table with"):
        predicted(tmp_path, folder / "a.tif")
    few = RECIPE | {"registration": {"pairs": [{"file": 1, "image_band": 1, "band": 0}]}}
    with pytest.raises(UserError, match=r"scene 'a': registration\.pairs: expected a further file of 0 to 0"):
        predicted(tmp_path, scenes, recipe=few)
    (folder / "b_more.tif").unlink()
    with pytest.raises(UserError, match=r"b_more\.tif: no such file, but scene 'b' needs it"):
        predicted(tmp_path, scenes)
    done = predicted(tmp_path, scenes, skip_bad=True)
    assert done.num_written == 1 and [problem.path.name for problem in done.bad] == ["b_more.tif"]


def test_inputs_are_not_overwritten_and_hidden_names_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "scenes"
    write_files(folder, "a")
    (tmp_path / "scenes.csv").write_text("id,image,band\na,scenes/a.tif,scenes/a_more.tif\n")
    with pytest.raises(UserError, match="would overwrite a file that scenes are read from"):
        predicted(tmp_path, tmp_path / "scenes.csv", out="scenes")
    (tmp_path / "scenes.csv").write_text("id,image,band\n.blocks/a,scenes/a.tif,scenes/a_more.tif\n")
    with pytest.raises(UserError, match="without hidden parts"):
        predicted(tmp_path, tmp_path / "scenes.csv")


def test_a_folder_of_a_layout_gives_every_scene_with_its_files(tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_stand_in(data, images=3, test_images=1, scale=0.04, seed=5)
    recipe: dict[str, Any] = {"channels": len(BANDS.bands), "registration": REGISTRATION.model_dump(mode="json")}
    known, heard = Known(channels=len(BANDS.bands), first=3), Heard()
    done = predicted(
        tmp_path, data, known=known, recipe=recipe, layout=open_scenes, to="wkt", grid=data / "grid_sizes.csv",
        progress=heard,
    )  # fmt: skip
    source = open_dstl(data, DataSettings())
    records = [*source.records, *source.unlabelled]
    assert done.num_written == len(records) == 3 and source.unlabelled
    assert f"{data}: read as the layout dstl: 3 scenes, with truth or without" in heard.notes
    for record in records:
        places, _ = registered(record, REGISTRATION)
        expected = maps_of(read_record_image(replace(record, bands=moved_bands(record, places)))[..., 3:4])
        assert np.array_equal(read(tmp_path / f"out/{record.id}.probabilities.tif"), expected)

    (data / f"sixteen_band/{records[0].id}_M.tif").unlink()
    with pytest.raises(UserError, match=rf"{records[0].id}_M\.tif: no such file"):
        predicted(tmp_path, data, known=known, recipe=recipe, layout=open_scenes, out="other")
    done = predicted(tmp_path, data, known=known, recipe=recipe, layout=open_scenes, out="other", skip_bad=True)
    assert done.num_written == 2 and len(done.bad) == 1
