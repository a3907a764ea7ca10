"""The doors: what users type, and that each of their mistakes is one line and exit code 2."""

from __future__ import annotations

import errno
import json
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from typer.testing import CliRunner

from maskloom.cli import app, main
from small import SMALL


def run(*arguments: str | Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """Returns the exit code of the command line in this process."""
    monkeypatch.setattr(sys, "argv", ["maskloom", *map(str, arguments)])
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def write_pair(folder: Path, name: str, *, size: tuple[int, int] = (32, 48)) -> None:
    """Writes one image with a mask of a rectangle."""
    generator = np.random.default_rng(abs(hash(name)) % 2**32)
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(folder / "images" / f"{name}.png"), generator.integers(0, 255, (*size, 3), np.uint8))
    mask = np.zeros(size, np.uint8)
    mask[8:20, 8:30] = 255
    cv2.imwrite(str(folder / "masks" / f"{name}.png"), mask)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder of four good pairs."""
    for name in "abcd":
        write_pair(tmp_path / "data", name)
    return tmp_path / "data"


def no_such_folder(data: Path) -> Path:
    return data / "nowhere"


def no_masks(data: Path) -> Path:
    for path in (data / "masks").iterdir():
        path.rename(path.with_name("other_" + path.name))
    return data


def mask_of_another_size(data: Path) -> Path:
    cv2.imwrite(str(data / "masks" / "b.png"), np.zeros((10, 10), np.uint8))
    return data


def truncated_jpeg(data: Path) -> Path:
    good = cv2.imencode(".jpg", np.random.default_rng(0).integers(0, 255, (32, 48, 3), np.uint8))[1].tobytes()
    (data / "images" / "b.png").unlink()
    (data / "images" / "b.jpg").write_bytes(good[: len(good) // 2])
    return data


def text_named_png(data: Path) -> Path:
    (data / "images" / "b.png").write_text("not a picture")
    return data


def huge_header(data: Path) -> Path:
    body = b"IHDR" + struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    (data / "images" / "b.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk)
    return data


def unexpected_values(data: Path) -> Path:
    (data / "classes.yaml").write_text("classes: {background: 0, object: 255}\n")
    mask = np.zeros((32, 48), np.uint8)
    mask[3:9] = 77
    cv2.imwrite(str(data / "masks" / "b.png"), mask)
    return data


def classes_as_a_list(data: Path) -> Path:
    (data / "classes.yaml").write_text("- background\n- object\n")
    return data


def nan_tiff(data: Path) -> Path:
    pixels = np.zeros((32, 48, 3), np.float32)
    pixels[4, 4] = np.nan
    (data / "images" / "b.png").unlink()
    tifffile.imwrite(data / "images" / "b.tif", pixels, photometric="rgb")
    return data


def duplicate_ids(data: Path) -> Path:
    cv2.imwrite(str(data / "images" / "b.jpg"), np.zeros((32, 48, 3), np.uint8))
    return data


def escaping_id(data: Path) -> Path:
    table = data / "table.csv"
    rows = "".join(f"{name},images/{name}.png,masks/{name}.png\n" for name in "abc")
    table.write_text(f"id,image,mask\n{rows}../d,images/d.png,masks/d.png\n")
    return table


BAD: list[tuple[Callable[[Path], Path], str]] = [
    (no_such_folder, "no such"),
    (no_masks, "mask"),
    (mask_of_another_size, "10×10"),
    (truncated_jpeg, "b.jpg"),
    (text_named_png, "b.png"),
    (huge_header, "100000"),
    (unexpected_values, "77"),
    (classes_as_a_list, "found a list without it; write for instance classes: [background object]"),
    (nan_tiff, "b.tif"),
    (duplicate_ids, "'b'"),
    (escaping_id, "../d"),
]


@pytest.mark.parametrize(("spoil", "named"), BAD, ids=[spoil.__name__ for spoil, _ in BAD])
def test_bad_data_is_one_line_and_nothing_is_left(
    spoil: Callable[[Path], Path], named: str, data: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    spoiled, out = spoil(data), tmp_path / "run"
    code = run("fit", "default", "--data", spoiled, "--run", out, "--set", "scale=smoke", "--device", "cpu",
               monkeypatch=monkeypatch)  # fmt: skip
    errors = capsys.readouterr().err
    assert code == 2, errors
    last = errors.strip().splitlines()[-1]
    assert last.startswith("error: ") and named in last.replace("_", "").replace(",", "").replace(" ", " "), last
    assert "Traceback" not in errors
    assert not (out / "members").exists()


def test_a_misspelt_key_is_answered_with_the_right_one(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("base: default\nmetrik: dice\n")
    assert run("fit", recipe, "--data", data, "--run", tmp_path / "run", monkeypatch=monkeypatch) == 2
    assert "did you mean 'metric'?" in capsys.readouterr().err
    assert run("fit", "default", "--data", data, "--set", "members.0.training.epoch=1", "--run", tmp_path / "run",
               monkeypatch=monkeypatch) == 2  # fmt: skip
    assert "did you mean 'epochs'?" in capsys.readouterr().err
    assert run("fit", "defualt", "--data", data, monkeypatch=monkeypatch) == 2
    assert "did you mean 'default'?" in capsys.readouterr().err


def test_a_fold_table_with_an_unknown_id_is_refused(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "folds.csv"
    table.write_text("id,group,fold\na,a,0\nb,b,1\nc,c,0\nzebra,d,1\n")
    settings = ["--set", "scale=smoke", "--set", f"folds.table={table}"]
    code = run(
        "fit",
        "default",
        "--data",
        data,
        "--run",
        tmp_path / "run",
        "--device",
        "cpu",
        *settings,
        monkeypatch=monkeypatch,
    )
    assert code == 2 and "zebra" in capsys.readouterr().err


def test_a_pickled_checkpoint_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    import maskloom
    from maskloom.errors import UserError

    path = tmp_path / "model.pth"
    torch.save({"weight": torch.ones(1)}, path)
    with pytest.raises(UserError, match="pickle"):
        maskloom.load_bundle(path)


def test_damaged_records_are_left_out_on_request(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text_named_png(data)
    write_pair(data, "e")
    out = tmp_path / "run"
    settings = [word for setting in SMALL for word in ("--set", setting)]
    code = run("fit", "default", "--data", data, "--run", out, *settings, "--skip-bad", "--device", "cpu",
               "--workers", "0", monkeypatch=monkeypatch)  # fmt: skip
    assert code == 0, capsys.readouterr().err
    assert "b.png" in (out / "report.html").read_text(encoding="utf-8")
    assert "b," not in (out / "folds.csv").read_text(encoding="utf-8")


def test_help_needs_no_heavy_library() -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from maskloom.cli import app; "
        "result = CliRunner().invoke(app, ['--help']); heavy = {'torch', 'timm', 'cv2', 'pydantic', 'numpy', 'rich'}; "
        "print(sorted(heavy & set(sys.modules)), result.exit_code)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert result.stdout.strip() == "[] 0"


def test_every_command_is_documented() -> None:
    commands = [
        "fit", "predict", "evaluate", "status", "verify", "compare", "score", "convert", "inspect", "import-weights",
        "report", "recipes", "demo",
    ]  # fmt: skip
    assert [each.name or each.callback.__name__ for each in app.registered_commands if each.callback] == commands
    listed = " ".join(CliRunner().invoke(app, ["--help"]).output.split())
    for command, each in zip(commands, app.registered_commands, strict=True):
        assert each.callback is not None
        first = (each.callback.__doc__ or "").split("\n\n")[0]
        assert f" {command} {' '.join(first.split())}" in listed, "the whole first sentence"


def test_evaluate_prints_json(finished_run: Path) -> None:
    result = CliRunner().invoke(app, ["evaluate", str(finished_run), "--json"])
    values = json.loads(result.stdout)
    assert {"metric", "oof", "members"} <= set(values)
    assert {"mean", "std", "folds"} <= set(values["oof"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("fit default", "maskloom fit: missing option '--data'; see `maskloom fit --help`"),
        ("fit default --data x --nonsense", "maskloom fit: no such option: --nonsense; see `maskloom fit --help`"),
        ("fitt default", "maskloom: no such command 'fitt'. Did you mean 'fit'?; see `maskloom --help`"),
        ("--nonsense", "maskloom: no such option: --nonsense; see `maskloom --help`"),
        ("predict run photos --out x --to gif", "'gif' is not one of 'png', "),
        ("fit default --data x --workers -1", "invalid value for '--workers'"),
        ("compare a b --against", "maskloom: option '--against' requires an argument"),
        ("evaluate", "maskloom evaluate: missing argument 'run'"),
    ],
)
def test_a_mistake_in_a_call_is_one_line(
    words: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*words.split(), monkeypatch=monkeypatch) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: maskloom") and said in line and "--help`" in line


def test_no_word_at_all_shows_the_help(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch=monkeypatch) in (0, 2)
    shown = capsys.readouterr()
    assert "inspect" in shown.out + shown.err and "error:" not in shown.err


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("data:\n", "data: expected a mapping"),
        ("data: abc\n", "found 'abc'"),
        ("base: 5\n", "base: expected the name of a recipe, found 5"),
        ("base: [default]\n", "base: expected the name"),
        ("scale: smok\n", "did you mean 'smoke'?"),
        ("data: {limitt: 3}\n", "did you mean 'limit'?"),
    ],
)
def test_recipe_files_of_the_wrong_kind(
    content: str, named: str, data: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(content)
    assert run("fit", recipe, "--data", data, "--run", tmp_path / "run", monkeypatch=monkeypatch) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and named in line
    assert not (tmp_path / "run").exists()


def test_what_cannot_be_read_is_one_line(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder.yaml").mkdir()
    assert run("fit", tmp_path / "folder.yaml", "--data", data, monkeypatch=monkeypatch) == 2
    assert "Is a directory" in capsys.readouterr().err

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(data / "images"))

    monkeypatch.setattr("maskloom.data.sources.folder.os.scandir", refuse)
    assert run("fit", "default", "--data", data, monkeypatch=monkeypatch) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"error: {data}/images: Permission denied; check the path and its permissions"


def test_a_disk_that_can_only_be_read_is_told_as_what_cannot_be_written(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(tmp_path / "old"))

    monkeypatch.setattr("maskloom.data.sources.folder.os.scandir", refuse)
    assert run("fit", "default", "--data", data, monkeypatch=monkeypatch) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {tmp_path}/old: cannot be written (Read-only file system); make the disk writable")


def test_all_data_settings_at_once_are_refused(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("fit", "default", "--data", data, "--set", "data={skip_bad: true}", monkeypatch=monkeypatch) == 2
    assert "--set data.KEY=VALUE" in capsys.readouterr().err


def test_a_folder_of_other_files_is_refused_untouched(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mine"
    out.mkdir()
    (out / "letter.txt").write_text("")
    assert run("fit", "default", "--data", data, "--run", out, "--set", "scale=smoke", monkeypatch=monkeypatch) == 2
    assert "found other files" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["letter.txt"]


def test_a_run_on_a_table_remembers_the_folder_its_paths_are_in(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import maskloom
    from maskloom.errors import UserError

    table = data / "table.csv"
    table.write_text("image,mask\n" + "".join(f"images/{name}.png,masks/{name}.png\n" for name in "abcd"))
    monkeypatch.setattr("maskloom.fitting.run_pipeline", lambda *_: None)
    with pytest.raises(UserError, match="without an ensemble"):
        maskloom.fit("default", table, run=tmp_path / "run", settings=["scale=smoke"], device="cpu")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["data"] == str(data.resolve())


def test_two_tables_are_scored_with_a_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "table.csv"
    table.write_text("img,rle_mask\na.jpg,3 2\n")
    assert run("score", table, table, monkeypatch=monkeypatch) == 2
    assert "--size HEIGHTxWIDTH" in capsys.readouterr().err
    assert run("score", table, table, "--size", "2x4", "--foreground", "--json", monkeypatch=monkeypatch) == 0
    assert json.loads(capsys.readouterr().out)["dice"] == 1
    for wrong in ("2", "0x4", "axb"):
        assert run("score", table, table, "--size", wrong, monkeypatch=monkeypatch) == 2
        assert capsys.readouterr().err.startswith("error: ")


def test_photos_in_place_of_masks_are_refused(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    masks, photos, out = data / "masks", data / "images", tmp_path / "out"
    for command in (("score", masks, photos), ("score", photos, masks), ("convert", photos, out)):
        assert run(*command, monkeypatch=monkeypatch) == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert f"{photos}/a.png: expected a mask" in line and "different colours side by side, as in a photo" in line
        assert not out.exists()
    assert run("score", masks, photos, "--foreground", monkeypatch=monkeypatch) == 0
    assert run("convert", photos, out, "--foreground", monkeypatch=monkeypatch) == 0


def test_a_disk_that_fills_up_is_one_line_and_the_run_goes_on_later(
    studio: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    command = ["fit", "default", "--data", studio, "--run", out, "--device", "cpu", "--workers", "0"]
    command += [part for setting in SMALL for part in ("--set", setting)]

    def full(_: int) -> None:
        if (out / "members").exists():  # while the first network trains
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as limited:
        limited.setattr(os, "fsync", full)
        assert run(*command, monkeypatch=monkeypatch) == 2
    errors = capsys.readouterr().err
    assert (
        "fold0" in errors.splitlines()[-1]
        and "the disk is full" in errors.splitlines()[-1]
        and "Traceback" not in errors
    )
    assert (out / "members").exists() and not list(out.rglob(".partial-*"))
    assert run(*command, monkeypatch=monkeypatch) == 0
    assert (out / "report.html").is_file()
