"""The recipe of the 22nd place: as published, what it leaves, and end to end on small drawn streets."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from streets import SIZE, coloured, fill, rows_by_pixel, score_by_pixels

import maskloom
from maskloom import registry
from maskloom.contests.signate import open_signate, validate
from maskloom.contests.signate.class_table import ALL, read_annotation
from maskloom.contests.signate.colours import CATEGORIES, SCORED
from maskloom.contests.signate.deliver import write_submission
from maskloom.contests.signate.scoring import score_files
from maskloom.contests.signate.stand_in import SIZE as PUBLISHED_SIZE
from maskloom.contests.signate.stand_in import TEST_ANNOTATIONS, write_stand_in
from maskloom.contests.signate.twentysecond import FOLDS, mixed, signate_22nd
from maskloom.data.image_io import image_size, read_image
from maskloom.data.input_policy import place
from maskloom.data.sources.base import DataSettings, DataSource
from maskloom.encodings.probability_maps import read_map
from maskloom.errors import UserError
from maskloom.files import write_json
from maskloom.losses.terms import balanced, build_loss
from maskloom.models.segmenter import Normalisation, build_segmenter
from maskloom.progress import Silent
from maskloom.records import MaskFile, Record, Task
from maskloom.run_directory import RunDirectory
from maskloom.stages.context import Context
from maskloom.stages.evaluation import evaluation
from maskloom.stages.reporting import write_report
from maskloom.stages.rows import rows_of
from maskloom.training.schedules import learning_rate_factor

CODING = ALL.coding()


def described(count: int = 14) -> DataSource:
    """Returns photos of the contest whose files do not exist: for what only looks at names, sizes and attributes."""
    records = tuple(
        Record(
            id=f"train_{number:04d}",
            image=Path(f"train_{number:04d}.jpg"),
            size=PUBLISHED_SIZE,
            truth=MaskFile(path=Path(f"train_{number:04d}.png")),
            attributes={"route": "AB"[number % 2], "timeofday": ("day", "night")[number // 2 % 2]},
        )
        for number in range(count)
    )
    task = Task(kind="multiclass", classes=CATEGORIES)
    return DataSource(layout="signate", root=Path("signate"), task=task, coding=CODING, records=records)


def test_the_recipe_is_what_is_published() -> None:
    recipe = signate_22nd(described(), device="cpu")
    (member,) = recipe.members
    assert (member.network.architecture, member.network.encoder, member.network.width) == ("unet_resnet", "resnet34", 1)
    assert member.network.upsampling is None  # nearest
    assert place(PUBLISHED_SIZE, member.input).padded == (1216, 1984) and member.input.mode == "full"
    assert recipe.folds == FOLDS and (FOLDS.count, FOLDS.seed) == (7, 42)
    assert (FOLDS.stratify, FOLDS.attributes) == ("attributes", ("route", "timeofday"))
    assert (member.optimiser.kind, member.optimiser.lr, member.optimiser.weight_decay) == ("adam", 1e-4, 0)
    assert (member.training.batch_size, member.training.epochs, member.training.early_stopping) == (3, 200, 10)
    assert member.keep == "best" and recipe.inference.views == "none" and member.augment.horizontal_flip == 0.5


def test_the_rate_falls_on_a_plateau_of_the_published_kind() -> None:
    """× 0.3 after more than 3 validations without a gain of a thousandth of the best, never below 1e-6."""
    (member,) = signate_22nd(described(), device="cpu").members

    def rate(scores: Sequence[float]) -> float:
        factor = learning_rate_factor(member.schedule, 10, 200, steps_per_epoch=1, scores=scores)
        return member.optimiser.lr * factor

    assert rate([0.5, 0.5004, 0.5003, 0.5]) == pytest.approx(1e-4)
    assert rate([0.5, 0.5004, 0.5003, 0.5, 0.5]) == pytest.approx(3e-5)
    assert rate([0.5, 0.5004, 0.5006, 0.5, 0.5]) == pytest.approx(1e-4)
    assert rate([0.5] * 100) == pytest.approx(1e-6)


def test_the_loss_mixes_cross_entropy_and_log_jaccard() -> None:
    """Two classes and four pixels by hand; at a share of 0 it is cross-entropy alone."""
    task = Task(kind="multiclass", classes=("a", "b"))
    probabilities = np.array([0.8, 0.6, 0.3, 0.4])  # of class a
    labels = np.array([0, 0, 1, 1])
    logits = torch.tensor(np.log([probabilities, 1 - probabilities]), dtype=torch.float32).view(1, 2, 2, 2)
    cross_entropy = -np.log([0.8, 0.6, 0.7, 0.6]).mean()
    jaccard = (1.4 / (2 + 0.7), 1.3 / (2 + 0.6))

    def loss(share: float) -> float:
        return float(build_loss(mixed(share, 2), task)(logits, torch.tensor(labels, dtype=torch.uint8).view(1, 2, 2)))

    assert loss(0) == pytest.approx(cross_entropy, abs=1e-6)
    assert loss(1) == pytest.approx(-np.log(jaccard).mean(), abs=1e-6)
    assert loss(0.3) == pytest.approx(0.7 * loss(0) + 0.3 * loss(1), abs=1e-6)


def without_attributes(source: DataSource) -> DataSource:
    return replace(source, records=tuple(replace(record, attributes={"route": "A"}) for record in source.records))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda source: replace(source, task=Task(kind="binary", classes=("car",))), "found a binary task"),
        (without_attributes, "for the folds of signate_22nd, found none of timeofday"),
        (lambda source: replace(source, records=source.records[:6]), "at least 7 photos .* found 6"),
    ],
)
def test_other_data_is_refused(change: Callable[[DataSource], DataSource], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        signate_22nd(change(described()), device="cpu")


def test_the_smoke_scale_keeps_folds_and_network() -> None:
    full, smoke = (signate_22nd(described(), device="cpu", scale=scale) for scale in ("full", "smoke"))
    assert smoke.folds == full.folds and smoke.members[0].loss == full.members[0].loss
    assert smoke.members[0].network.architecture == "unet_resnet" and smoke.members[0].training.epochs == 2


PAGE = Path(__file__).parents[3] / "docs" / "signate-system.md"
WAYS = [
    tuple("".join(forms) for forms in re.findall(r"""--set (?:'([^']+)'|([^\s]+))""", code))
    for code in re.findall(r"`(--set [^`]+)`", PAGE.read_text(encoding="utf-8"))
]
"""The settings of each way that the page names."""


@pytest.fixture(scope="module")
def streets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fill(tmp_path_factory.mktemp("streets"), count=FOLDS.count, tests=1)


@pytest.mark.parametrize("settings", WAYS)
def test_every_way_on_the_page_is_understood(settings: tuple[str, ...], streets: Path) -> None:
    """Settings that do nothing are refused, so each does something; what is built of them later is built here, too."""
    usual, _ = registry.plan("signate_22nd", streets, settings=(), device="cpu")
    changed, source = registry.plan("signate_22nd", streets, settings=settings, device="cpu")
    small, _ = registry.plan("signate_22nd", streets, settings=("scale=smoke", *settings), device="cpu")
    assert changed != usual
    (member,) = small.members
    num_classes = len(source.task.classes)
    build_loss(balanced(member.loss, source.task, [[100] * num_classes], [100 * num_classes]), source.task)
    if changed.members[0].network != usual.members[0].network and member.network.traits is not None:
        plain = Normalisation(mean=(0,) * 3, std=(1,) * 3)
        build_segmenter(member.network, task=source.task, policy=member.input, normalisation=plain)


def test_every_way_is_found() -> None:
    assert len(WAYS) >= 24


def test_another_architecture_needs_its_own_encoder(streets: Path) -> None:
    with pytest.raises(UserError, match=r"encoder: expected wideresnet38 for unet_wideresnet38, found 'resnet34'"):
        registry.plan(
            "signate_22nd", streets, settings=["members.0.network.architecture=unet_wideresnet38"], device="cpu"
        )


@pytest.mark.parametrize("scale", ["scale=full", "scale=smoke"])
def test_settings_that_would_do_nothing_are_refused(streets: Path, tmp_path: Path, scale: str) -> None:
    idle = "members.0.input.prefer_class=0.5"
    with pytest.raises(UserError, match=r"^members\.0\.input\.prefer_class: it chooses windows, .* found 0\.5; leave"):
        registry.plan("signate_22nd", streets, settings=[scale, idle], device="cpu")
    (tmp_path / "recipe.yaml").write_text("base: signate_22nd\ninference: {crop_offsets: 5}\n")
    with pytest.raises(UserError, match=r"^inference\.crop_offsets: for members of windows"):
        registry.plan(tmp_path / "recipe.yaml", streets, settings=[scale], device="cpu")


class Hearing(Silent):
    """Remembers notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def delivered(
    data: Path, run: Path, labels: dict[str, np.ndarray], listener: Hearing, bad: Sequence[str] = (), **settings: object
) -> Path:
    """Returns what is written of these predicted labels by id."""
    source = open_signate(data, DataSettings.model_validate(settings))
    rows = [row for record_id, found in labels.items() for row in rows_of(record_id, found, source.task)]
    (run / "predictions" / "rows").mkdir(parents=True, exist_ok=True)
    with (run / "predictions" / "rows" / "000000.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows((row.record_id, row.class_name, *row.size, row.runs) for row in rows)
    write_json(
        run / "predictions" / "left_out.json",
        {each.id: {"path": each.image.name, "reason": "cut off"} for each in source.unlabelled if each.id in bad},
    )
    recipe = signate_22nd(described(), device="cpu")
    device = torch.device("cpu")
    return write_submission(
        Context(run=RunDirectory(run), recipe=recipe, source=source, device=device, progress=listener, workers=0)
    )


def test_the_submission_holds_four_categories_of_the_test_photos_in_their_order(tmp_path: Path) -> None:
    data, run, listener = fill(tmp_path / "data"), tmp_path / "run", Hearing()
    (data / "seg_train_annotations" / "train_0003.png").unlink()  # predicted, but no test photo
    rng = np.random.default_rng(0)
    predicted = {name: rng.integers(0, 20, SIZE).astype(np.uint8) for name in ("train_0003", "test_001", "test_000")}
    path = delivered(data, run, predicted, listener)
    assert path == run / "submission.json" and not listener.notes
    content = json.loads(path.read_text())
    assert list(content) == ["test_000.jpg", "test_001.jpg"]
    for name in ("test_000", "test_001"):
        expected = rows_by_pixel(predicted[name], CATEGORIES)
        assert content[f"{name}.jpg"] == {category: expected[category] for category in SCORED}
    for name, labels in predicted.items():
        colours = run / "predictions" / "colours" / f"{name}.png"
        assert np.array_equal(read_annotation(colours, CODING), labels)
        assert np.array_equal(read_image(colours), coloured(labels))


def test_a_photo_that_could_not_be_predicted_makes_it_partial(tmp_path: Path) -> None:
    data, run, listener = fill(tmp_path / "data"), tmp_path / "run", Hearing()
    labels = np.zeros(SIZE, np.uint8)
    path = delivered(data, run, {"test_001": labels}, listener, bad=["test_000"])
    assert path.name == "submission.partial.json" and list(json.loads(path.read_text())) == ["test_001.jpg"]
    assert listener.notes == ["the submission is partial: no predictions for 1 image(s): test_000"]
    assert delivered(data, run, {"test_000": labels, "test_001": labels}, listener).name == "submission.json"
    assert not path.exists()


def test_a_category_that_was_merged_is_absent_and_said(tmp_path: Path) -> None:
    data, listener = fill(tmp_path / "data", tests=1), Hearing()
    labels = np.broadcast_to(np.arange(SIZE[1]) % 3, SIZE).astype(np.uint8)  # background, car, lane
    path = delivered(data, tmp_path / "run", {"test_000": labels}, listener, classes=["lane", "car"])
    assert listener.notes == ["no class of the data is pedestrian, signal: absent in the submission, worth 0"]
    expected = rows_by_pixel(np.where(labels == 0, 255, labels - 1), ["car", "lane"])
    assert json.loads(path.read_text())["test_000.jpg"] == expected


def test_classes_are_sent_as_what_they_hold(tmp_path: Path) -> None:
    data, listener = fill(tmp_path / "data", tests=1), Hearing()
    (data / "class_table.yaml").write_text("bus: car\npedestrian: person\nsignal: lights\nsigns: lights\n")
    classes = open_signate(data, DataSettings()).task.classes
    labels = np.broadcast_to(np.arange(SIZE[1]) % len(classes), SIZE).astype(np.uint8)
    path = delivered(data, tmp_path / "run", {"test_000": labels}, listener)
    assert listener.notes == [
        "the class car holds bus, too: all of it is sent as car",
        "no class of the data is signal: absent in the submission, worth 0",
    ]
    names = [{"person": "pedestrian"}.get(name, name) for name in classes]
    expected = {name: rows for name, rows in rows_by_pixel(labels, names).items() if name in SCORED}
    assert json.loads(path.read_text())["test_000.jpg"] == expected and set(expected) == {"car", "pedestrian", "lane"}


def out_of_fold_score(data: Path, run: Path) -> float:
    """Returns the contest's score of a run's stored maps by its words: most probable classes against annotations."""
    truth, found = {}, {}
    for path in sorted((data / "seg_train_annotations").glob("*.png")):
        labels = read_map(RunDirectory(run).oof_map("unet", path.stem)).argmax(axis=0)
        for side, values in ((truth, read_annotation(path, CODING)), (found, labels)):
            rows = rows_by_pixel(values, CATEGORIES)
            side[path.stem] = {category: rows[category] for category in SCORED if category in rows}
    return score_by_pixels(truth, found)


def test_end_to_end(tmp_path: Path) -> None:
    """Fewer folds and epochs than the smoke scale has; the score is that of the words of the rule."""
    data, folder = tmp_path / "data", tmp_path / "run"
    write_stand_in(data, images=7, test_images=2, size=(96, 152), seed=5)
    few = ["folds.count=2", "members.0.training.epochs=1", "members.0.training.images_per_epoch=2"]
    run = maskloom.fit("signate_22nd", data, run=folder, settings=["scale=smoke", *few], device="cpu", workers=0)
    evaluated = evaluation(run.folder, registry.scorers())
    assert tuple(evaluated["oof"]["classes"]) == tuple(evaluated["pixels"]["classes"]) == CATEGORIES
    assert evaluated["contest"]["score"] == pytest.approx(out_of_fold_score(data, folder), abs=1e-6)
    shown = write_report(run.folder, registry.scorers()).read_text(encoding="utf-8")
    assert "The contest&#39;s score" in shown and f"{evaluated['contest']['score']:.4f}" in shown
    photos = sorted((data / "seg_test_images").iterdir())
    validate(folder / "submission.json", {path.name: image_size(path) for path in photos})

    truth = {}
    for path in sorted((data / TEST_ANNOTATIONS).iterdir()):
        rows = rows_by_pixel(read_annotation(path, CODING), CATEGORIES)
        truth[f"{path.stem}.jpg"] = {category: rows[category] for category in SCORED if category in rows}
    found = score_files(data / TEST_ANNOTATIONS, folder / "submission.json")
    predicted = json.loads((folder / "submission.json").read_text())
    assert found.mean == pytest.approx(score_by_pixels(truth, predicted), abs=1e-9)
    pictures = score_files(data / TEST_ANNOTATIONS, folder / "predictions" / "colours")
    assert pictures.images == pytest.approx(found.images, abs=1e-12)
    assert (folder / "report.html").is_file()
