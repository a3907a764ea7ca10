"""The plan of the recipe ``modern``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from maskloom.config import parse, to_yaml
from maskloom.data.sources.base import DataSettings, DataSource
from maskloom.data.sources.folder import open_folder
from maskloom.errors import UserError
from maskloom.losses.terms import balanced, build_loss
from maskloom.models.encoders import resolve
from maskloom.recipe import Recipe
from maskloom.recipes import modern as plan
from maskloom.recipes import planning
from maskloom.recipes.modern import BUDGETS, modern, street_policy
from maskloom.records import Size


def folder(path: Path, *, classes: int = 3, splits: bool = True) -> DataSource:
    """Four images of 40×60 with this many exclusive classes (1: one foreground)."""
    generator = np.random.default_rng(0)
    for number in range(4):
        below = ("val" if number % 2 else "train") if splits else ""
        mask = np.arange(40 * 60, dtype=np.int64).reshape(40, 60) % max(classes, 2)
        for kind, pixels in (("images", generator.integers(0, 255, (40, 60, 3), np.uint8)), ("masks", mask)):
            (path / kind / below).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path / kind / below / f"{number}.png"), pixels.astype(np.uint8))
    names = "[thing]" if classes == 1 else str([f"class{number}" for number in range(classes)])
    (path / "classes.yaml").write_text(f"classes: {names}\n", encoding="utf-8")
    return open_folder(path, DataSettings())


def camvid(path: Path, size: Size = (360, 480)) -> DataSource:
    """367 images to learn from and 101 to validate."""
    source = folder(path)
    record = source.records[0]
    splits = [(number, "train" if number < 367 else "val") for number in range(468)]
    records = [
        replace(record, id=f"{split}/{number}", group=f"{number}", split=split, size=size) for number, split in splits
    ]
    return replace(source, records=tuple(records))


def on(monkeypatch: pytest.MonkeyPatch, precision: str) -> None:
    monkeypatch.setattr(planning, "fast_precision", lambda device: precision)


def test_images_are_seen_in_windows_or_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = camvid(tmp_path)
    for device, precision, expected in (
        ("cpu", "float32", ("resize", (360, 480), None)),
        ("cpu", "bf16", ("window", (256, 256), 512 * 512)),
        ("cuda", "bf16", ("resize", (360, 480), None)),
    ):
        on(monkeypatch, precision)
        recipe = modern(source, device=device)
        policy, inference = recipe.members[0].input, recipe.inference
        assert (policy.mode, policy.size, inference.whole_pixels) == expected, (device, precision)
    signate = [(1216, 1936)] * 3
    on_gpu, on_cpu = (street_policy(signate, BUDGETS[kind]) for kind in ("cuda", "cpu"))
    assert (on_gpu.mode, on_gpu.size, on_gpu.scale) == ("window", (768, 768), 1.0)
    assert on_cpu.mode == "window" and 1216 * 1936 * on_cpu.scale**2 == pytest.approx(1024 * 640)
    assert street_policy([(360, 480), (480, 360)], BUDGETS["cuda"]).mode == "window"


@pytest.mark.parametrize(
    ("size", "side"), [((240, 320), None), ((341, 500), None), ((342, 500), 256), ((427, 600), 320), ((512, 512), 384)]
)
def test_windows_of_small_images_have_three_quarters_of_the_shorter_side(size: Size, side: int | None) -> None:
    policy = street_policy([size] * 3, BUDGETS["cpu with bf16"])
    assert (policy.mode, policy.size) == (("resize", size) if side is None else ("window", (side, side)))
    assert policy.scale == 1.0


def test_one_image_that_is_small_is_seen_whole_with_the_others() -> None:
    policy = street_policy([(512, 512)] * 3 + [(64, 64)], BUDGETS["cpu with bf16"])
    assert (policy.mode, policy.size) == ("resize", (512, 512))


@pytest.mark.parametrize("count", [367, 50])
def test_a_training_by_windows_sees_as_much_as_one_by_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    on(monkeypatch, "bf16")
    source = camvid(tmp_path)
    source = replace(source, records=(*source.records[:count], *source.records[367:]))
    training = {}
    usual = BUDGETS["cpu with bf16"]
    for smallest in (256, None):
        budget = replace(usual, windows=replace(usual.windows, smallest_side=smallest))
        monkeypatch.setitem(BUDGETS, "cpu with bf16", budget)
        training[smallest] = modern(source, device="cpu").members[0].training
    windows, whole = training[256], training[None]
    assert windows.batch_size == whole.batch_size == 4 and windows.epochs == whole.epochs
    of_windows, of_images = windows.images_per_epoch or 0, whole.images_per_epoch or 0
    assert of_windows * 256**2 == pytest.approx(of_images * 360 * 480, rel=0.02)


def test_what_is_planned_for_exclusive_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on(monkeypatch, "float32")
    source = camvid(tmp_path)
    recipe = modern(source, device="cpu")
    member = recipe.members[0]
    assert recipe.metric == "iou" and recipe.inference.views == "flip_scales" and recipe.folds.kind == "auto"
    assert [term.kind for term in member.loss.terms] == ["cross_entropy", "dice"]
    assert member.loss.terms[0].class_weights == "root_frequency"
    assert (member.optimiser.lr, member.optimiser.encoder_lr_factor, member.schedule.peak) == (2e-3, 0.5, 0.15)
    assert member.augment == plan.STREET and member.training.ema_decay
    assert member.network.weights == "auto" and member.network.encoder == "tf_efficientnet_lite0"
    assert parse(Recipe, recipe.model_dump(mode="json")) == recipe and "root_frequency" in to_yaml(recipe)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_training_keeps_to_the_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str) -> None:
    on(monkeypatch, precision)
    monkeypatch.setattr(planning, "installed_file", lambda name: Path("weights.pth"))
    training = modern(camvid(tmp_path), device="cpu").members[0].training
    budget = BUDGETS[planning.kind_of("cpu")]
    pixels = 256 * 256 if precision == "bf16" else 360 * 480
    total = (budget.windows if precision == "bf16" else budget.whole).total_pixels
    small = round(training.progressive * training.epochs)
    seen = (small / 4 + training.epochs - small) * (training.images_per_epoch or 0) * pixels
    assert 0.9 * total < seen <= 1.02 * total


def test_a_long_training_has_the_usual_rate(tmp_path: Path) -> None:
    member = modern(camvid(tmp_path), device="cuda").members[0]
    assert member.training.epochs > plan.FEW_EPOCHS
    assert (member.optimiser.lr, member.optimiser.encoder_lr_factor, member.schedule.peak) == (1e-3, 1.0, 0.3)


@pytest.mark.parametrize("installed", [True, False])
def test_where_early_stages_must_learn_fewer_pixels_are_afforded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, installed: bool
) -> None:
    on(monkeypatch, "float32")
    monkeypatch.setattr(planning, "installed_file", lambda name: Path("weights.pth") if installed else None)
    member = modern(camvid(tmp_path), device="cpu").members[0]
    seen = member.training.epochs * (member.training.images_per_epoch or 0) * 360 * 480
    share = 1 if installed else 2 / 3
    assert 0.9 * share < seen / BUDGETS["cpu"].whole.total_pixels <= 1.02 * share
    assert bool(member.optimiser.frozen) == installed


@pytest.mark.parametrize("size", [(360, 480), (1216, 1936)])
def test_the_decoder_is_that_of_whole_images_or_of_windows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: Size
) -> None:
    on(monkeypatch, "float32")
    budget = replace(BUDGETS["cpu"], windows=replace(BUDGETS["cpu"].windows, decoder=(64, 32, 16, 16, 16)))
    monkeypatch.setitem(BUDGETS, "cpu", budget)
    member = modern(camvid(tmp_path, size), device="cpu").members[0]
    part = budget.whole if member.input.mode == "resize" else budget.windows
    assert (member.input.mode, member.network.decoder_channels) == (
        "resize" if size == (360, 480) else "window",
        part.decoder,
    )


def test_a_gpu_has_an_encoder_of_the_hub_and_more_folds(tmp_path: Path) -> None:
    source = replace(camvid(tmp_path), records=tuple(replace(each, split="") for each in camvid(tmp_path).records))
    recipe = modern(source, device="cuda")
    assert recipe.folds.count == 5
    network = recipe.members[0].network
    assert network.weights == "hub" and resolve(network.encoder).startswith("tu-")


def test_encoders_exist() -> None:
    for budget in BUDGETS.values():
        resolve(budget.encoder)


def test_other_tasks_are_taken(tmp_path: Path) -> None:
    source = folder(tmp_path, classes=1, splits=False)
    recipe = modern(source, device="cpu")
    assert source.task.kind == "binary" and recipe.metric == "dice" and recipe.folds.stratify == "area_dealt"
    assert [term.kind for term in recipe.members[0].loss.terms] == ["bce", "dice"]
    build_loss(recipe.members[0].loss, source.task)


def test_the_loss_fits_the_task(tmp_path: Path) -> None:
    source = folder(tmp_path)
    loss = modern(source, device="cpu").members[0].loss
    build_loss(balanced(loss, source.task, [(10, 5, 1)], [16]), source.task)


def test_smoke_changes_numbers_and_needs_no_weights(tmp_path: Path) -> None:
    source = camvid(tmp_path)
    full, smoke = modern(source, device="cuda"), modern(source, device="cuda", scale="smoke")
    for name in ("loss", "optimiser", "schedule", "augment"):
        assert getattr(full.members[0], name) == getattr(smoke.members[0], name)
    assert smoke.scale == "smoke" and smoke.members[0].network.weights == "none"
    assert full.inference == smoke.inference and full.folds == smoke.folds
    size = smoke.members[0].input.size
    assert size is not None and size[0] * size[1] < 96 * 128


def test_nothing_to_learn_from_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected images with masks"):
        modern(replace(folder(tmp_path), records=()), device="cpu")
