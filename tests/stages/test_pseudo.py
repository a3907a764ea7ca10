"""A round with networks whose answer betrays which fold they are of: nobody learns from a network that saw too much."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from maskloom.config import parse
from maskloom.data.folds import FoldRow, FoldTable
from maskloom.data.image_io import write_png
from maskloom.data.input_policy import InputPolicy
from maskloom.data.mask_coding import MaskCoding
from maskloom.data.sources.base import DataSource
from maskloom.data.statistics import survey
from maskloom.data.truth import read_truth
from maskloom.errors import BadFile, UserError
from maskloom.files import write_json
from maskloom.models import bundle
from maskloom.models.encoders import NetworkSettings
from maskloom.models.segmenter import Normalisation, Segmenter
from maskloom.progress import Silent
from maskloom.recipe import Recipe
from maskloom.records import IGNORE, MaskFile, Record, Task
from maskloom.run_directory import RunDirectory
from maskloom.stages import pseudo as stage
from maskloom.stages.context import Context
from maskloom.stages.fold_tables import leaf_parts
from maskloom.stages.pseudo import choose_pseudo_labels, pseudo_records, read_choices
from maskloom.stages.pseudo_report import labelled_examples, summaries
from maskloom.stages.pseudo_views import check_pseudo, teacher_notes, teachers_of, views_among, views_of

BINARY = Task(kind="binary", classes=("car",))
LAYERS = Task(kind="multilabel", classes=("car", "road"))
THREE = Task(kind="multiclass", classes=("ground", "car", "road"))
SIZE = (32, 48)
MARKS = {"a": 0, "b": 10, "c": 20}
"""Of each teacher the first column of its folds' marks."""


class Marking(nn.Module):
    """Takes the red channel for the probability, and marks one column of the last row by which it can be known."""

    def __init__(self, column: int, num_maps: int) -> None:
        super().__init__()
        self.column, self.num_maps = column, num_maps
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, images: Tensor) -> Tensor:
        red = images[:, :1].clone()
        red[:, :, -1] = 0
        red[:, :, -1, self.column] = 1
        if self.num_maps == 1:
            return red.logit(eps=1e-3)
        maps = torch.cat([red, torch.full_like(red, 0.1), 1 - red][: self.num_maps], dim=1)
        return maps.logit(eps=1e-3) if self.num_maps == 2 else maps.log()


def member(name: str, **values: Any) -> dict[str, Any]:
    return {
        "name": name, "network": {"weights": "none"}, "input": {"mode": "full"},
        "loss": {"terms": [{"kind": "bce"}]}, "training": {}, **values,
    }  # fmt: skip


def recipe(*members: dict[str, Any], rounds: Any = None, **more: Any) -> Recipe:
    rounds = [{"members": ["pupil"], "minimum_confidence": 0.5}] if rounds is None else rounds
    chosen = members or (member("a"), member("pupil"))
    inference = {"views": "none", "precision": "float32"}
    values = {"name": "r", "metric": "dice", "members": list(chosen), "pseudo": rounds, "inference": inference}
    return parse(Recipe, values | more)


def photo(path: Path, seed: int, *, sure: int = 250, left: int = 5) -> None:
    """Writes an image with an object of that probability in red and noise of its own in the other channels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*SIZE, 3)).astype(np.uint8)
    pixels[:, :, 0] = 255 - sure
    pixels[5:25, left : left + 20, 0] = sure
    write_png(path, pixels)


class Setting:
    """A run whose teachers are trained: six labelled cars of two views, and a folder of images without masks."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, complete: Recipe, task: Task = BINARY) -> None:
        self.folder, self.task = folder, task
        self.unlabelled: list[Record] = []
        self.loaded: list[str] = []
        run = RunDirectory(folder / "run")
        records = []
        for index in range(12):
            image, mask = folder / "train" / f"{index}.png", folder / "masks" / f"{index}.png"
            photo(image, index)
            write_png(mask, np.zeros(SIZE, np.uint8))
            truth = MaskFile(path=mask)
            records.append(Record(id=f"l{index}", image=image, size=SIZE, group=f"car{index // 2}", truth=truth))
        rows = tuple(FoldRow(record.id, record.group, index // 2 % 3) for index, record in enumerate(records))
        FoldTable(rows).to_csv(run.folds)
        coding = MaskCoding(kind="values", values=((0, 0),))  # knows nothing of pseudo-labels
        source = DataSource(layout="folder", root=folder, task=task, coding=coding, records=tuple(records))
        write_json(run.survey, survey(source).to_json())
        self.context = Context(
            run=run, recipe=complete, source=source, device=torch.device("cpu"), progress=Silent(), workers=0
        )
        monkeypatch.setattr(bundle, "load_bundle", self._load)

    def _load(self, path: Path) -> Segmenter:
        name, fold = path.parts[-3], int(path.parts[-2].removeprefix("fold"))
        self.loaded.append(f"{name}/fold{fold}")
        return Segmenter(
            network=Marking(MARKS[name] + fold, self.task.num_maps),
            normalisation=Normalisation(mean=(0.0,) * 3, std=(1.0,) * 3),
            policy=InputPolicy(mode="full", multiple=8),
            task=self.task,
            network_settings=NetworkSettings(),
        )

    def add(self, name: str, seed: int, *, group: str = "", copy_of: int | None = None, **look: int) -> None:
        path = self.folder / "test" / f"{name}.png"
        photo(path, seed, **look)
        if copy_of is not None:
            path.write_bytes((self.folder / "train" / f"{copy_of}.png").read_bytes())
        self.unlabelled.append(Record(id=name, image=path, size=SIZE, group=group))
        source = self.context.source
        values = {name: getattr(source, name) for name in source.__dataclass_fields__}
        self.context = self.context.with_source(DataSource(**values | {"unlabelled": tuple(self.unlabelled)}))

    def own_folds(self, name: str, folds: list[int]) -> None:
        """Gives a member folds of its own, by car."""
        rows = (FoldRow(f"l{index}", f"car{index // 2}", folds[index // 2]) for index in range(12))
        FoldTable(tuple(rows)).to_csv(self.context.run.member_folds(name))

    def chosen(self, fingerprint: str = "x") -> list[Path]:
        return choose_pseudo_labels(self.context, 0, fingerprint=fingerprint)

    def labels(self, pupil: str, fold: int) -> dict[str, np.ndarray]:
        source = self.context.source
        records = pseudo_records(self.context, 0, pupil, fold)
        return {record.id: read_truth(record, source.task, source.coding) for record in records}


def marked(labels: np.ndarray) -> set[int]:
    """Returns the columns of the last row that some network of the mean has marked."""
    return set(np.flatnonzero(labels[-1] != 0).tolist())


@pytest.fixture
def setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setting:
    return Setting(tmp_path, monkeypatch, recipe())


# --- leaks -----------------------------------------------------------------------------------------------------------


def test_fold_k_learns_from_the_fold_k_network_alone(setting: Setting) -> None:
    for index in range(4):
        setting.add(f"u{index}", 100 + index)
    setting.chosen()
    for fold in range(3):
        found = setting.labels("pupil", fold)
        assert found.keys() == {f"u{index}" for index in range(4)}
        for labels in found.values():
            assert marked(labels) == {MARKS["a"] + fold}
            assert (labels[5:25, 5:25] == 1).all() and labels[:-1].sum() == 400


def test_several_teachers_are_averaged_and_each_has_its_honest_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Teacher b has the pupil's folds in another order, c folds of its own that fit fold 0 alone."""
    folds = {"kind": "kfold", "count": 3}
    rounds = [{"members": ["pupil"], "minimum_confidence": 0, "ignore_below": 0}]
    made = recipe(member("a"), member("b", folds=folds), member("c", folds=folds), member("pupil"), rounds=rounds)
    setting = Setting(tmp_path, monkeypatch, made)
    setting.own_folds("b", [2, 0, 1, 2, 0, 1])
    setting.own_folds("c", [1, 0, 2, 1, 2, 0])
    setting.add("u", 100)
    check_pseudo(setting.context)
    networks = {view.fold: view.networks for view in views_of(setting.context, 0)}
    assert networks == {
        0: ("a/fold0", "b/fold2", "c/fold1"), 1: ("a/fold1", "b/fold0"), 2: ("a/fold2", "b/fold1"),
    }  # fmt: skip
    setting.chosen()
    assert set(setting.loaded) == {leaf for view in networks.values() for leaf in view}
    # Of two networks each marks with one half, which 127.5 rounds up to; of three none reaches it.
    assert marked(setting.labels("pupil", 0)["u"]) == set()
    assert marked(setting.labels("pupil", 1)["u"]) == {MARKS["a"] + 1, MARKS["b"] + 0}


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_no_network_that_may_label_was_trained_on_what_a_fold_validates(data: st.DataObject) -> None:
    """Any folds of any member: whoever labels has the whole validated groups in its own validation fold."""
    cars = [f"car{index}" for index in range(6)]

    def folds() -> list[int]:
        drawn = data.draw(
            st.lists(st.integers(-1, 2), min_size=6, max_size=6).filter(lambda found: len(set(found) - {-1}) > 1)
        )
        numbers = {old: new for new, old in enumerate(sorted(set(drawn) - {-1}))} | {-1: -1}
        return [numbers[fold] for fold in drawn]

    own = {"kind": "kfold", "count": 2}
    made = recipe(member("a"), member("b", folds=own), member("c", folds=own, start="b"), member("pupil", folds=own))
    tables = {name: dict(zip(cars, folds(), strict=True)) for name in ("b", "c", "pupil")}
    tables["a"] = tables["pupil"] if data.draw(st.booleans()) else dict(zip(cars, folds(), strict=True))
    with pytest.MonkeyPatch.context() as patch:
        records = tuple(
            Record(id=f"l{index}", image=Path("x"), size=SIZE, group=cars[index // 2]) for index in range(12)
        )
        source = DataSource(layout="folder", root=Path(), task=BINARY, coding=MaskCoding(), records=records)
        context = Context(
            run=RunDirectory(Path("nowhere")), recipe=made, source=source, device=torch.device("cpu"),
            progress=Silent(), workers=0,
        )  # fmt: skip

        def read(path: Path) -> FoldTable:
            name = path.parent.name if path.parent.name in tables else "a"
            return FoldTable(tuple(FoldRow(record.id, record.group, tables[name][record.group]) for record in records))

        patch.setattr(FoldTable, "from_csv", staticmethod(read))
        try:
            views = views_of(context, 0)
        except UserError as error:
            assert "never saw what fold" in str(error)
            return
    for view in views:
        validated = {car for car in cars if tables["pupil"][car] == view.fold}
        assert view.groups == validated and view.networks
        assert view.num_labelled == 2 * (6 - len(validated))
        for leaf in view.networks:
            name, fold = leaf_parts(leaf)
            for teacher in (name, "b") if name == "c" else (name,):
                trained = {car for car in cars if tables[teacher][car] != fold}
                assert not trained & validated


def test_views_of_a_validated_group_and_copies_and_look_alikes_are_left_out(setting: Setting) -> None:
    setting.add("new", 100)
    setting.add("view", 101, group="car1")  # fold 1 validates car1
    setting.add("copy", 102, copy_of=4)  # car2: fold 2
    alike = np.random.default_rng(0)
    setting.add("alike", 103, copy_of=7)  # car3: fold 0
    path = setting.folder / "test" / "alike.png"
    pixels = np.random.default_rng(7).integers(0, 256, (*SIZE, 3)).astype(np.uint8)
    pixels[:, :, 0] = 5
    pixels[5:25, 5:25, 0] = 250
    pixels[:, :, 1:] = np.clip(pixels[:, :, 1:] + alike.integers(-4, 5, (*SIZE, 2)), 0, 255)
    write_png(path, pixels)
    setting.chosen()
    names = [set(setting.labels("pupil", fold)) for fold in range(3)]
    assert names == [{"new", "view", "copy"}, {"new", "copy", "alike"}, {"new", "view", "alike"}]
    rows = {(row["id"], row["fold"]): row for row in read_choices(setting.context.run, 0)}
    assert rows["view", "1"]["why"] == "the fold validates its group car1"
    assert rows["copy", "2"]["why"] == "it is a copy of l4, which the fold validates"
    assert rows["alike", "0"]["reason"] == "look-alike" and "l7" in rows["alike", "0"]["why"]
    assert not (setting.context.run.root / "pseudo" / "0" / "pupil" / "fold1" / "view.png").exists()


# --- what is written -------------------------------------------------------------------------------------------------


def test_choices_are_told_with_their_reasons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = [{"members": ["pupil"], "number": 2, "minimum_confidence": 0.5, "band": 40}]
    setting = Setting(tmp_path, monkeypatch, recipe(rounds=rounds))
    for index, sure in enumerate((250, 240, 230, 150)):
        setting.add(f"u{index}", 100 + index, sure=sure)
    files = setting.chosen()
    assert all(path.is_file() for path in files)
    masks = setting.context.run.root / "pseudo" / "0"
    expected = [masks / "choices.csv", *masks.glob("images/*.json"), *masks.glob("pupil/fold*/*.png")]
    assert sorted(files) == sorted(expected) and len(files) == 1 + 4 + 3 * 2
    rows = [row for row in read_choices(setting.context.run, 0) if row["fold"] == "1"]
    assert [(row["id"], row["chosen"], row["reason"]) for row in rows] == [
        ("u0", "yes", "chosen"), ("u1", "yes", "chosen"), ("u2", "no", "beyond the number"), ("u3", "no", "unsure"),
    ]  # fmt: skip
    assert [record.id for record in pseudo_records(setting.context, 0, "pupil", 1)] == ["u0", "u1"]
    (_, first, _) = summaries(read_choices(setting.context.run, 0))
    assert (first.folds_of, first.fold, first.offered) == ("pupil", 1, 4)
    assert first.reasons == {"chosen": 2, "beyond the number": 1, "unsure": 1}
    assert first.least_confidence == float(rows[1]["confidence"])
    (shown, _) = labelled_examples(setting.context.run, setting.context.source, 0, 5)
    assert shown.id == "u1" and shown.labels.shape == SIZE and shown.image.shape == (*SIZE, 3)


def test_labels_are_read_whatever_the_coding_of_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for task in (LAYERS, THREE):
        setting = Setting(tmp_path / task.kind, monkeypatch, recipe(), task)
        setting.add("u", 100, left=9)
        setting.chosen()
        labels = setting.labels("pupil", 0)["u"]
        if task.kind == "multilabel":
            assert labels.shape == (2, *SIZE)
            assert (labels[0, 5:25, 9:29] == 1).all() and labels[0, :-1].sum() == 400 and not labels[1].any()
        else:
            assert labels.shape == SIZE  # classes 0 inside, 2 around it
            assert (labels[5:25, 9:29] == 0).all() and (labels[:5] == 2).all()


def test_unsure_pixels_are_stored_as_ignored(setting: Setting) -> None:
    setting.add("u", 100)
    path = setting.folder / "test" / "u.png"
    pixels = np.zeros((*SIZE, 3), np.uint8)
    pixels[:, 20:, 0] = 255
    pixels[:, 18:20, 0] = 120
    write_png(path, pixels)
    setting.chosen()
    labels = setting.labels("pupil", 0)["u"]
    assert (labels[:-1, 18:20] == IGNORE).all() and (labels[:-1, 20:] == 1).all() and not labels[:-1, :18].any()


def test_pupils_with_the_same_folds_share_masks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = recipe(
        member("a"), member("p", folds={"count": 3}), member("q"), member("r", folds={"count": 2}),
        rounds=[{"members": ["p", "q", "r"], "teachers": ["a"]}],
    )  # fmt: skip
    setting = Setting(tmp_path, monkeypatch, made)
    setting.own_folds("p", [0, 1, 2, 0, 1, 2])
    setting.own_folds("r", [0, 1, 2, 0, 1, -1])  # what it validates in fold 2 is a part of what a/fold2 does
    setting.add("u", 100)
    views = views_of(setting.context, 0)
    assert [view.name for view in views] == [f"{name}/fold{fold}" for name in ("p", "r") for fold in range(3)]
    setting.chosen()
    assert pseudo_records(setting.context, 0, "q", 1) == pseudo_records(setting.context, 0, "p", 1)
    assert marked(setting.labels("r", 2)["u"]) == {2}


# --- resuming and damage ---------------------------------------------------------------------------------------------


def test_a_killed_round_continues_and_a_lost_mask_is_made_again(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index in range(5):
        setting.add(f"u{index}", 100 + index)
    asked: list[str] = []
    original = stage.confidence

    def stop(*arguments: Any, **named: Any) -> float:
        asked.append("")
        if len(asked) > 7:
            raise KeyboardInterrupt
        return original(*arguments, **named)

    with monkeypatch.context() as killed:
        killed.setattr(stage, "confidence", stop)
        with pytest.raises(KeyboardInterrupt):
            setting.chosen()
    done = list((setting.context.run.root / "pseudo" / "0" / "images").glob("*.json"))
    assert 0 < len(done) < 5
    asked.clear()
    monkeypatch.setattr(stage, "confidence", lambda *a, **k: asked.append("") or original(*a, **k))
    files = setting.chosen()
    assert len(asked) == 3 * (5 - len(done))
    before = {path: path.read_bytes() for path in files}
    setting.loaded.clear()
    assert setting.chosen() == files and setting.loaded == []  # nothing is predicted twice
    files[3].unlink()
    assert setting.chosen() == files and {path: path.read_bytes() for path in files} == before
    asked.clear()
    setting.chosen("another fingerprint")
    assert len(asked) == 15


def test_damaged_images_stop_the_round_or_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for skip in (False, True):
        setting = Setting(tmp_path / str(skip), monkeypatch, recipe(data={"skip_bad": skip}))
        setting.add("good", 100)
        setting.add("cut", 101)
        path = setting.folder / "test" / "cut.png"
        path.write_bytes(path.read_bytes()[:-30])
        if not skip:
            with pytest.raises(BadFile, match="cut"):
                setting.chosen()
            continue
        setting.chosen()
        rows = [row for row in read_choices(setting.context.run, 0) if row["id"] == "cut"]
        assert {row["reason"] for row in rows} == {"damaged"} and len(rows) == 3


# --- rounds that cannot work -----------------------------------------------------------------------------------------


def test_nothing_to_choose_is_an_error_that_says_why(setting: Setting) -> None:
    setting.add("u0", 100, sure=150)
    setting.add("u1", 101, sure=160)
    with pytest.raises(UserError, match=r"pseudo\.0: .*fold 0 of pupil.*best confidence was 0\.\d+ \(u1\)"):
        setting.chosen()


def test_impossible_rounds_are_refused_before_anything_is_trained(setting: Setting) -> None:
    setting.own_folds("pupil", [0, 0, 1, 1, 1, 1])

    def problem(*members: dict[str, Any], rounds: Any = None) -> str:
        with pytest.raises(UserError) as caught:
            check_pseudo(replace(setting.context, recipe=recipe(*members, rounds=rounds)))
        return str(caught.value)

    assert "images without masks" in problem()
    setting.add("u", 100)
    check_pseudo(setting.context)
    learn = {"members": ["pupil"]}
    assert "did you mean 'pupil'" in problem(rounds=[{"members": ["pupl"]}])
    assert "only those that learn" in problem(member("pupil"))
    assert "learns in this round or later" in problem(
        member("a"), member("pupil"), member("b"), rounds=[learn | {"teachers": ["b"]}, {"members": ["b"]}]
    )
    assert "learns in an earlier round" in problem(rounds=[learn, learn])
    assert "give pupil and one of its teachers the same folds" in problem(
        member("a"), member("pupil", folds={"count": 2})
    )
    guided = member("second", guidance={"maps": ["a"]})
    assert "second is guided" in problem(
        member("a"), guided, member("pupil"), rounds=[learn | {"teachers": ["second"]}]
    )
    assert "from_weights expects pupil.start" in problem(rounds=[learn | {"train": "from_weights"}])
    started = member("pupil", start="a")
    assert "scratch expects no pupil.start, found a" in problem(member("a"), started)
    check_pseudo(
        replace(setting.context, recipe=recipe(member("a"), started, rounds=[learn | {"train": "from_weights"}]))
    )


def test_who_teaches_by_default() -> None:
    rounds = [{"members": ["p"]}, {"members": ["q"]}]
    made = recipe(member("a"), member("b", guidance={"maps": ["a"]}), member("p"), member("q"), rounds=rounds)
    assert teachers_of(made, 0) == ("a",)
    assert teachers_of(made, 1) == ("a", "p")


def test_the_table_opens_as_text(setting: Setting) -> None:
    setting.add("u", 100)
    (table, *_) = setting.chosen()
    assert next(csv.reader(table.read_text().splitlines())) == list(stage.COLUMNS)


# --- teachers of other folds -----------------------------------------------------------------------------------------


class Listening(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def told(setting: Setting) -> list[str]:
    listening = Listening()
    check_pseudo(replace(setting.context, progress=listening))
    return listening.notes


def test_a_teacher_that_labels_for_some_folds_only_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = recipe(member("a"), member("b", folds={"count": 3}), member("pupil"))
    setting = Setting(tmp_path, monkeypatch, made)
    setting.add("u", 100)
    setting.own_folds("b", [1, 0, 2, 1, 2, 0])  # has the pupil's fold 0 alone, as its fold 1
    (note,) = told(setting)
    assert note.startswith("pseudo.0: b labels nothing for pupil (fold 1, 2): each of its networks was trained on")
    setting.own_folds("b", [2, 0, 1, 2, 0, 1])  # the same folds in another order
    assert told(setting) == []


def test_a_teacher_that_labels_nothing_is_said_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    members = (member("a"), member("b", folds={"count": 3}), member("pupil"))
    setting = Setting(tmp_path, monkeypatch, recipe(*members))
    setting.add("u", 100)
    setting.own_folds("b", [0, 0, 1, 1, 2, 2])
    (note,) = told(setting)
    assert note.startswith("pseudo.0: b labels nothing for pupil: each of its networks")
    views = views_of(setting.context, 0)
    assert teacher_notes(setting.context.recipe, 0, views) == [note]
    context = setting.context
    damaged = Record(id="damaged", image=tmp_path / "none.png", size=SIZE, group="car0")  # left out of the tables
    records = [*context.source.records, damaged]
    assert views_among(context.recipe, context.fold_tables(), records, 0) == views
    asked = recipe(*members, rounds=[{"members": ["pupil"], "teachers": ["a", "b"]}])
    with pytest.raises(UserError, match=r"pseudo\.0\.teachers: expected a network of b that never saw .*, found none"):
        check_pseudo(replace(context, recipe=asked))
