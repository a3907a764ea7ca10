"""A fold of a whole run, trained by two processes that make the job from the run's folder by themselves."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import maskloom
from maskloom.config import load_yaml, parse
from maskloom.errors import UserError
from maskloom.executors.tasks import Here
from maskloom.models.bundle import load_bundle
from maskloom.progress import Silent
from maskloom.recipe import Recipe
from maskloom.registry import open_source
from maskloom.run_directory import RunDirectory
from maskloom.stages.context import Context
from maskloom.stages.train import evenly_spread, train_fold, validation_score

CPU = torch.device("cpu")


def test_a_fold_is_trained_by_two_processes(
    finished_run: Path, studio: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDirectory(tmp_path / "run")
    shutil.copytree(finished_run, run.root)
    recipe = parse(Recipe, load_yaml(run.recipe))
    (member,) = recipe.members
    context = Context(
        run=run, recipe=recipe, source=open_source(studio, recipe.data), device=CPU, progress=Silent(), workers=0
    )
    shutil.rmtree(run.fold(member.name, 0))

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the processes do that themselves")

    with monkeypatch.context() as patch:
        patch.setattr("maskloom.stages.train.build_segmenter", refuse)
        patch.setattr("maskloom.stages.train.count_classes", refuse)
        files = train_fold(context, member, 0, fingerprint="by two", devices=(CPU, CPU))
    assert {file.name for file in files} >= {"best.safetensors", "last.safetensors", "log.jsonl"}
    assert all(file.is_file() for file in files)
    begin, *epochs = map(json.loads, (run.fold(member.name, 0) / "log.jsonl").read_text().splitlines())
    assert begin["processes"] == 2
    # What each of them counted on its part of the images gives the score of all.
    _, validation_ids = context.fold_tables().of(member.name).split(0)
    validation = evenly_spread(context.records(set(validation_ids)), member.validation_images)
    assert len(validation) > 2
    last = load_bundle(run.bundle(member.name, 0, "last"))
    assert validation_score(context, member, last, validation) == pytest.approx(epochs[-1]["score"], abs=1e-3)

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):  # an actor can be interrupted in the middle of it, too
        validation_score(context.at(Here(go_on=stop)), member, last, validation)


def test_devices_of_one_network_are_not_stated_beside_workers(studio: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--devices-per-network 2: expected no --on"):
        maskloom.fit("default", studio, run=tmp_path / "run", on="local", devices_per_network=2)
    assert not (tmp_path / "run").exists()
