"""Markers and ledgers of a run: when a stage counts as finished, and what of it is damaged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from maskloom.errors import UserError
from maskloom.files import write_json, write_text
from maskloom.integrity import Damaged, write_sealed
from maskloom.run_directory import FORMAT, RunDirectory
from test_integrity import flip

STAGE = "oof/unet"


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """A run with one finished stage of three files."""
    run = RunDirectory(tmp_path / "run")
    write_sealed(run.facts, {"format": FORMAT})
    run.finish(STAGE, "mark", files_of(run), 1.5)
    return run


def files_of(run: RunDirectory) -> list[Path]:
    files = [run.oof("unet") / "scores.json", run.oof_map("unet", "a"), run.oof_map("unet", "folder/b")]
    for path in files:
        if not path.exists():
            write_text(path, f"content of {path.name}")
    return files


def test_a_finished_stage_is_known_by_its_marker(run: RunDirectory) -> None:
    marker = run.finished(STAGE)
    assert marker is not None and marker["fingerprint"] == "mark" and marker["seconds"] == 1.5
    assert run.stages() == [STAGE] and run.damaged(STAGE) == run.damaged(STAGE, thorough=True) == []
    run.check(files_of(run))
    run.oof_map("unet", "a").unlink()
    assert run.finished(STAGE) is None and run.damaged(STAGE) == []
    with pytest.raises(Damaged, match=r"a\.map: is gone"):
        run.check([run.oof_map("unet", "a")])


def test_the_outcome_follows_from_what_came_out(run: RunDirectory) -> None:
    outcomes = [run.finish(STAGE, "mark", files_of(run), 9)]
    for path in files_of(run):
        path.touch()
    outcomes.append(run.finish(STAGE, "mark", files_of(run), 1))
    flip(run.oof_map("unet", "a"))
    outcomes.append(run.finish(STAGE, "mark", files_of(run), 1))
    outcomes.append(run.finish(STAGE, "another", files_of(run), 1))
    assert outcomes[0] == outcomes[1] and len(set(outcomes)) == 3
    log = run.fold("unet", 0) / "log.jsonl"
    told = []
    for text in ("12.5 seconds", "13.5 seconds"):
        write_text(log, text)
        told.append(run.finish("train/unet/fold0", "mark", [log], 1))
    assert told[0] == told[1], "how long it took is no outcome"


def test_a_flipped_bit_is_damage_where_it_is_read_or_where_it_shows(run: RunDirectory) -> None:
    path = run.oof_map("unet", "folder/b")
    flip(path, quietly=True)
    assert run.damaged(STAGE) == [] and run.damaged(STAGE, thorough=True) == [path]
    with pytest.raises(Damaged, match=r"folder/b\.map: is damaged"):
        run.checked(path)
    path.touch()
    assert run.damaged(STAGE) == [path]


def test_a_damaged_marker_is_named_and_its_files_stay_known(run: RunDirectory) -> None:
    marker = run.marker(STAGE)
    write_text(marker, marker.read_text().replace('"mark"', '"merk"'))
    assert run.finished(STAGE) is None and run.damaged(STAGE) == [marker]
    flip(run.oof_map("unet", "a"))
    assert run.damaged(STAGE) == [marker, run.oof_map("unet", "a")]
    write_text(marker, "{")
    assert run.finished(STAGE) is None and marker in run.damaged(STAGE)
    with pytest.raises(Damaged):
        run.read_marker(STAGE)


def test_a_damaged_ledger_is_mended_from_whole_files(run: RunDirectory) -> None:
    whole = run.sums(STAGE).read_text()
    assert not run.mend_ledger(STAGE)
    flip(run.sums(STAGE))
    with pytest.raises(Damaged, match=r"unet\.sums: is damaged"):
        run.check(files_of(run))
    assert run.mend_ledger(STAGE) and run.sums(STAGE).read_text() == whole
    run.sums(STAGE).unlink()
    assert run.mend_ledger(STAGE) and run.sums(STAGE).read_text() == whole
    flip(run.sums(STAGE))
    for path in files_of(run):
        flip(path)
    assert not run.mend_ledger(STAGE) and set(run.damaged(STAGE)) == set(files_of(run))


def test_a_stage_of_an_earlier_version_has_no_checksums_and_passes(run: RunDirectory) -> None:
    names = [path.relative_to(run.root).as_posix() for path in files_of(run)]
    write_json(run.marker(STAGE), {"stage": STAGE, "fingerprint": "mark", "files": names, "seconds": 1})
    run.sums(STAGE).unlink()
    flip(files_of(run)[0])
    assert run.finished(STAGE) is not None and run.damaged(STAGE, thorough=True) == [] and not run.mend_ledger(STAGE)
    run.check(files_of(run))


def test_a_changed_file_can_be_accepted(run: RunDirectory) -> None:
    write_text(run.folds, "id,group,fold\na,a,0\n")
    before = run.finish("folds", "mark", [run.folds], 2)
    assert not run.accept("folds", run.folds)
    write_text(run.folds, "id,group,fold\na,a,1\n")
    assert run.damaged("folds") == [run.folds] and run.accept("folds", run.folds) and run.damaged("folds") == []
    marker = run.finished("folds")
    assert marker is not None and marker["outcome"] != before and marker["seconds"] == 2
    write_text(run.folds, "id,group,fold\na,a,2\n")
    assert not run.accept("folds", run.folds, "of other data") and run.accept("folds", run.folds, "mark")


def test_a_changed_file_beside_a_damaged_one_is_not_accepted(run: RunDirectory) -> None:
    block = run.root / "blocks" / "a.png"
    write_text(run.folds, "id,group,fold\na,a,0\n")
    write_text(block, "0")
    run.finish("folds", "mark", [run.folds, block], 2)
    write_text(run.folds, "id,group,fold\na,a,1\n")
    write_text(block, "1")
    with pytest.raises(UserError, match="damaged, too; move the table"):
        run.accept("folds", run.folds)


def test_what_a_training_leaves_beside_its_results_passes(run: RunDirectory) -> None:
    fold = run.fold("unet", 0)
    for path in (fold / "last.safetensors", fold / "checkpoint.safetensors", fold / "epochs" / "0003.safetensors"):
        write_text(path, "x")
    run.finish("train/unet/fold0", "mark", [fold / "last.safetensors"], 1)
    run.check([fold / "checkpoint.safetensors", fold / "epochs" / "0003.safetensors"])
    with pytest.raises(Damaged, match="lacks checksums"):
        run.check([fold / "best.safetensors"])


def test_a_marker_of_files_elsewhere_is_damaged(run: RunDirectory) -> None:
    write_sealed(run.marker("survey"), {"files": ["../thesis.tex"], "fingerprint": "mark"})
    with pytest.raises(Damaged, match="files elsewhere"):
        run.read_marker("survey")


def test_an_attempt_keeps_what_its_ledger_knows(run: RunDirectory) -> None:
    folder = run.oof("other")
    run.begin("oof/other", folder, "mark")
    write_text(folder / "a", "1")
    run.ledger("oof/other").add(folder / "a")
    run.begin("oof/other", folder, "mark")
    assert run.ledger("oof/other").is_sound(folder / "a")
    assert run.damaged("oof/other") == []
    flip(folder / "a")
    assert run.damaged("oof/other") == [folder / "a"]
    for spoil in ('{"fingerprint": "another"}', "{"):
        write_text(folder / "a", "1")
        run.ledger("oof/other").add(folder / "a")
        write_text(folder / "attempt.json", spoil)
        run.begin("oof/other", folder, "mark")
        assert [path.name for path in folder.iterdir()] == ["attempt.json"] and not run.sums("oof/other").exists()


def test_decisions_hold_only_with_their_recipe(run: RunDirectory) -> None:
    with pytest.raises(UserError, match="found one without an ensemble"):
        run.decision()
    write_text(run.recipe, "name: a\n")
    run.decide("decided")
    assert run.decision() == "decided"
    flip(run.recipe, quietly=True)
    with pytest.raises(Damaged, match=r"recipe\.yaml: is not the recipe"):
        run.decision()
    write_json(run.decided, {"fingerprint": "of an earlier version"})
    assert run.decision() == "of an earlier version"
    run.facts.write_text(json.dumps({"format": FORMAT, "checksum": "0"}))
    with pytest.raises(Damaged, match=r"run\.json: is damaged"):
        RunDirectory.existing(run.root)


@pytest.mark.parametrize(
    ("path", "stage"),
    [
        ("folds.csv", "folds"),
        ("blocks/scene/r0c0.png", "folds"),
        ("members/unet/folds.csv", "folds/unet"),
        ("members/unet/fold1/snapshots/2.safetensors", "train/unet/fold1"),
        ("oof/unet/maps/a/b.map", "oof/unet"),
        ("pseudo/0/choices.csv", "pseudo/0"),
        ("data/survey.json", "survey"),
        ("data/registration/a.json", "register"),
        ("data/alignment/a.json", "align"),
        ("data/source.json", None),
        ("ensemble/errors.json", "ensemble"),
        ("ensemble/postprocess_counts.json", "postprocess"),
        ("ensemble/decided.json", None),
        ("predictions/rows/000000.csv", "predict"),
        ("submission.partial.csv.gz", "submit"),
        ("report.html", "report"),
        ("recipe.yaml", None),
        ("../elsewhere/folds.csv", None),
    ],
)
def test_every_file_has_its_stage(path: str, stage: str | None) -> None:
    assert RunDirectory(Path("run")).stage_of(Path("run") / path) == stage
