"""Members whose folds keep several networks, and members that predict with the soup of their epochs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import maskloom
from maskloom.config import parse
from maskloom.data.image_io import read_image
from maskloom.encodings.probability_maps import read_map
from maskloom.errors import UserError
from maskloom.inference.merging import Merge
from maskloom.inference.predictor import InferenceSettings, Predictor
from maskloom.members import MemberSettings
from maskloom.models.bundle import load_bundle
from maskloom.run_directory import RunDirectory
from maskloom.stages.fold_tables import kept_bundle, leaf_name, leaf_parts
from small import SMALL

TWO = ["members.0.training.epochs=2", "inference.precision=float32"]
SNAPSHOTS = ["members.0.keep=snapshots", "members.0.schedule={kind: snapshots, num_cycles: 2}"]


def test_names_of_snapshots() -> None:
    assert leaf_name("unet", 3) == "unet/fold3" and leaf_name("unet", 3, 2) == "unet/fold3/2"
    assert leaf_parts("unet/fold3/2") == ("unet", 3) == leaf_parts("unet/fold3")
    assert kept_bundle("unet/fold3/2", "snapshots") == "snapshots/2" and kept_bundle("unet/fold3", "best") == "best"


def test_all_snapshots_of_a_fold_predict(tmp_path: Path, studio: Path) -> None:
    maskloom.fit("default", studio, run=tmp_path / "run", settings=[*SMALL, *TWO, *SNAPSHOTS], device="cpu", workers=0)
    run = RunDirectory(tmp_path / "run")
    tree = Merge.model_validate(json.loads(run.ensemble.read_text())["tree"])
    assert tree.leaves() == [f"unet/fold{fold}/{number}" for fold in range(2) for number in (1, 2)]
    rows = json.loads((run.oof("unet") / "scores.json").read_text())
    record_id, fold = next((name, row["fold"]) for name, row in rows.items())
    members = {f"n/{n}": load_bundle(run.bundle("unet", fold, f"snapshots/{n}")) for n in (1, 2)}
    settings = InferenceSettings(precision="float32")
    image = read_image(next((studio / "train").glob(f"**/{record_id}.jpg")))
    found = Predictor(Merge(children=tuple(members)), members, settings, torch.device("cpu"))(image)["result"]
    assert np.abs(found.astype(int) - read_map(run.oof_map("unet", record_id))).max() <= 1


def test_the_soup_predicts(tmp_path: Path, studio: Path) -> None:
    changes = ["members.0.keep=soup", "members.0.training.soup=2"]
    maskloom.fit("default", studio, run=tmp_path / "run", settings=[*SMALL, *TWO, *changes], device="cpu", workers=0)
    assert RunDirectory(tmp_path / "run").bundle("unet", 0, "soup").is_file()


@pytest.mark.parametrize(("keep", "said"), [("soup", "training.soup"), ("snapshots", "schedule.kind=snapshots")])
def test_what_is_not_kept_cannot_predict(keep: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        parse(MemberSettings, {"name": "a", "network": {}, "input": {}, "loss": {}, "training": {}, "keep": keep})
