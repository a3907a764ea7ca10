"""Systems of several layers, end to end: maps and regions of earlier members, own folds, maps from outside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import maskloom
from maskloom.api import plan
from maskloom.encodings.probability_maps import read_map
from maskloom.errors import UserError
from maskloom.outputs.maps import write_probabilities
from maskloom.recipe import Recipe, merged
from maskloom.records import ProbabilityMap
from maskloom.stages.ensemble import load_ensemble
from maskloom.stages.prediction import decider
from small import SMALL


def with_members(studio: Path, *members: dict[str, Any], **changes: Any) -> Recipe:
    """Returns the default recipe at smoke scale with these members beside its own, which is called unet."""
    complete, _ = plan("default", studio, settings=SMALL, device="cpu")
    own = complete.members[0].model_dump(mode="json")
    everything = [own, *({**own, **member} for member in members)]
    return merged(complete, {"members": everything, **changes}, origin="test")


SECOND = {"name": "second", "guidance": {"maps": ["unet"]}, "folds": {"count": 3}, "views": "none"}
BOX = {"name": "box", "guidance": {"region": {"of": "unet", "threshold": 0.5, "minimum_area": 1}}}
EDGE = {
    "name": "edge",
    "guidance": {
        "region": {"of": "second", "kind": "contour", "threshold": 0.5, "minimum_area": 1, "window": 640, "context": 32}
    },
    "views": "none",
}
"""Windows of half the height: few to an image, whatever a network that has learnt nothing takes for the outline."""


@pytest.fixture(scope="module")
def layered(studio: Path, tmp_path_factory: pytest.TempPathFactory) -> maskloom.Run:
    """A finished run of four members: each but the first needs maps of another."""
    recipe = with_members(studio, SECOND, BOX, EDGE, postprocess={"steps": [{"kind": "small"}], "choose": "always"})
    return maskloom.fit(recipe, studio, run=tmp_path_factory.mktemp("layered") / "run", device="cpu", workers=0)


def test_every_layer_is_scored_over_its_own_folds(layered: maskloom.Run) -> None:
    scores = layered.evaluate()["members"]
    assert {name: len(score["folds"]) for name, score in scores.items()} == {
        "unet": 2,
        "second": 3,
        "box": 2,
        "edge": 2,
    }
    assert (layered.folder.root / "submission.csv.gz").is_file()
    assert (layered.folder.root / "ensemble" / "postprocess.json").is_file()


def test_new_images_go_through_all_layers_in_one_pass(layered: maskloom.Run, studio: Path, tmp_path: Path) -> None:
    ensemble = load_ensemble(layered.folder)
    assert set(ensemble.guiding) == {"unet", "second"}
    done = layered.predict(studio / "test", out=tmp_path / "out")
    assert done.num_written == 3


def test_a_changed_first_layer_repeats_what_it_guides(layered: maskloom.Run, studio: Path) -> None:
    heard: list[tuple[str, bool]] = []

    class Listener(maskloom.progress.Silent):  # type: ignore[name-defined]
        def stage(self, name: str, *, cached: bool) -> None:
            heard.append((name, cached))

    recipe = with_members(studio, SECOND, BOX, EDGE, postprocess={"steps": [{"kind": "small"}], "choose": "always"})
    maskloom.fit(recipe, studio, run=layered.folder.root, device="cpu", workers=0, progress=Listener())
    assert all(cached for name, cached in heard if name != "report")


def test_what_always_trains_cannot_guide(studio: Path, tmp_path: Path) -> None:
    complete = with_members(studio, {**SECOND, "folds": None})
    run = tmp_path / "first"
    table = run / "table.csv"
    run.mkdir()
    from maskloom.api import open_source
    from maskloom.data.sources.base import DataSettings

    records = open_source(studio, DataSettings()).records
    groups = sorted({record.group for record in records})
    fold = {group: number - 1 for number, group in enumerate(groups[:3])} | dict.fromkeys(groups[3:], 0)
    table.write_text("id,fold\n" + "".join(f"{record.id},{fold[record.group]}\n" for record in records))
    settings = complete.model_copy(
        update={"folds": complete.folds.model_copy(update={"table": table, "kind": "table"})}
    )
    with pytest.raises(UserError, match=r"second\.guidance: expected maps of unet for all 12 records"):
        maskloom.fit(settings, studio, run=tmp_path / "run", device="cpu", workers=0)


def test_maps_from_outside_join_the_ensemble(layered: maskloom.Run, studio: Path, tmp_path: Path) -> None:
    from maskloom.api import open_source
    from maskloom.data.sources.base import DataSettings

    source = open_source(studio, DataSettings())
    for record in source.records:
        values = read_map(layered.folder.oof_map("box", record.id))
        write_probabilities(tmp_path / "maps", ProbabilityMap(id=record.id, values=values), source.task)
    for record in source.unlabelled:
        values = np.zeros((1, *record.size), np.uint8)
        write_probabilities(tmp_path / "maps", ProbabilityMap(id=record.id, values=values), source.task)
    recipe = with_members(studio, outside=[{"name": "theirs", "folder": str(tmp_path / "maps")}])
    run = maskloom.fit(recipe, studio, run=tmp_path / "run", device="cpu", workers=0)
    scores = run.evaluate()
    assert scores["members"]["theirs"]["mean"] == layered.evaluate()["members"]["box"]["mean"]
    assert scores["weights"] == {"unet": 0.5, "theirs": 0.5}
    with pytest.raises(UserError, match=r"found maps from outside in it \(theirs\)"):
        run.predict(studio / "test", out=tmp_path / "out")
    (tmp_path / "maps" / f"{source.records[0].id}.png").unlink()
    with pytest.raises(UserError, match="expected the 8-bit map"):
        maskloom.fit(recipe, studio, run=tmp_path / "again", device="cpu", workers=0)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (({"name": "second", "guidance": {"maps": ["later"]}},), "listed before it or from outside"),
        (({"name": "again", "start": "other"},), "expected a member listed before it"),
        (({"name": "again", "start": "unet", "folds": {"count": 3}},), "other folds would leak"),
    ],
)
def test_members_need_earlier_ones(studio: Path, members: tuple[dict[str, Any], ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        with_members(studio, *members)


def test_weights_can_begin_at_an_earlier_member(studio: Path, tmp_path: Path) -> None:
    again = {"name": "again", "start": "unet", "optimiser": {"kind": "sgd", "lr": 1e-12, "weight_decay": 0.0}}
    recipe = with_members(studio, again)
    run = maskloom.fit(recipe, studio, run=tmp_path / "run", device="cpu", workers=0)
    first, second = (
        dict(maskloom.load_bundle(run.folder.bundle(name, 1, "last")).network.named_parameters())
        for name in ("unet", "again")
    )
    assert len(first) > 20 and first.keys() == second.keys()
    for name, values in first.items():
        assert np.allclose(values.detach(), second[name].detach(), atol=1e-6), name


def test_what_was_chosen_is_applied_to_new_images(layered: maskloom.Run) -> None:
    ensemble = load_ensemble(layered.folder)
    from maskloom.config import load_yaml, parse

    recipe = parse(Recipe, load_yaml(layered.folder.recipe), origin="run")
    from maskloom.records import Task

    task = Task(kind="binary", classes=("car",))
    values = np.zeros((1, 96, 144), np.uint8)
    values[0, 20:60, 20:90] = 255
    values[0, 2:4, 2:4] = 255  # four pixels: fewer than the 2000 of 1280 rows are at 96 (11)
    labels = decider(layered.folder, recipe, ensemble, task)({"result": values})
    assert labels[30, 30] == 1 and labels[3, 3] == 0


def test_rounds_of_pseudo_labels(studio: Path, tmp_path: Path) -> None:
    """Beside true labels, and before them as Carvana's 4th place did; each fold with labels of its own."""
    rounds = [
        {"members": ["beside"], "minimum_confidence": 0},
        {"members": ["before"], "teachers": ["unet"], "train": "pretrain_then_refine", "minimum_confidence": 0},
    ]
    recipe = with_members(studio, {"name": "beside"}, {"name": "before"}, pseudo=rounds)
    run = maskloom.fit(recipe, studio, run=tmp_path / "run", device="cpu", workers=0)
    assert set(run.evaluate()["members"]) == {"unet", "beside", "before"}
    assert (tmp_path / "run" / "pseudo" / "1" / "choices.csv").is_file()
    assert (tmp_path / "run" / "members" / "before" / "fold1" / "pretraining" / "last.safetensors").is_file()
    assert "pseudo-labels" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8").lower()
