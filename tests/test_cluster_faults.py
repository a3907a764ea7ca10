"""The benchmarks that kill nodes and cut lines: when a kill comes, and what counts as wrong; without Ray or a store."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from test_faults_campaign import load


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return load("cluster_faults", monkeypatch)


STAGES = ("train/unet/fold0", "oof/unet")


@pytest.mark.parametrize(
    ("named", "done", "is_reached"), [([], 3, False), ([], 4, True), (["oof/unet"], 0, True), (["folds"], 0, False)]
)
def test_a_kill_comes_in_its_stage_or_after_it(
    faults: ModuleType, named: list[str], done: int, is_reached: bool
) -> None:
    process: Any = SimpleNamespace(stages=lambda: [(0.0, name) for name in named])
    beat: Any = SimpleNamespace(stage=STAGES[0], done=done, total=10)
    moment = faults.Moment(stage=STAGES[0], share=0.4, pick=0)
    assert faults.is_reached(moment, process, [beat], STAGES) == is_reached


def test_the_small_parts_of_workers_are_not_the_prediction(faults: ModuleType) -> None:
    process: Any = SimpleNamespace(stages=list)
    moment = faults.Moment(stage="predict", share=0.5, pick=0)
    part: Any = SimpleNamespace(stage="predict", done=4, total=4, shard="chunk 3")
    whole: Any = SimpleNamespace(stage="predict", done=5, total=10, shard="")
    assert not faults.is_reached(moment, process, [part], ("predict",))
    assert faults.is_reached(moment, process, [part, whole], ("predict",))


def test_a_command_that_ends_before_its_moment_is_aimed_at_earlier(
    faults: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    aimed = []

    def miss(case: Any, *_: Any) -> None:
        aimed.append((case.moment.stage, case.moment.share))
        case.wrong.append(faults.MISSED)

    monkeypatch.setattr(faults, "disturbed", miss)
    nodes: Any = SimpleNamespace(heal=lambda: None)
    moment = faults.Moment(stage="train/unet/fold1", share=0.8, pick=0)
    case = faults.Case(work="fit", fault="node", on="ray", moment=moment)
    found = faults.tried(case, SimpleNamespace(name="fit"), tmp_path, nodes, {})
    assert aimed == [("train/unet/fold1", 0.8), ("train/unet/fold0", 0.4), ("train/unet/fold0", 0.2)]
    assert found.wrong == [faults.MISSED]


def test_what_is_there_twice_is_wrong(faults: ModuleType, tmp_path: Path) -> None:
    rle, fit = SimpleNamespace(name="rle"), SimpleNamespace(name="fit")
    for ids, wrong in (("ab", []), ("aab", ["predictions.csv.gz: a is there 2 times"])):
        with gzip.open(tmp_path / "predictions.csv.gz", "wt") as stream:
            stream.write("\n".join(["id,rle", *(f"{name},1 1" for name in ids)]))
        assert list(faults.not_once(rle, tmp_path)) == wrong
    log, ledger = tmp_path / "members/unet/fold0/log.jsonl", tmp_path / "stages/oof.sums"
    for path in (log, ledger):
        path.parent.mkdir(parents=True)
    log.write_text("".join(json.dumps({"event": "epoch", "epoch": epoch}) + "\n" for epoch in (0, 1, 1)))
    ledger.write_text('1 2 3 4 "a b"\n1 2 3 4 "a c"\n1 2 3 5 "a b"\n')
    found = list(faults.not_once(fit, tmp_path))
    assert found == [
        "fit: epochs of members/unet/fold0/log.jsonl: {0: 1, 1: 2}", 'fit: "a b" is 2 times in oof.sums'
    ]  # fmt: skip


def test_nothing_killed_is_wrong(faults: ModuleType) -> None:
    options: Any = SimpleNamespace(seed=0, nodes=3)
    assert faults.summary([], options)["wrong"] == ["nothing was killed"]
    moment = faults.Moment(stage="predict", share=0.5, pick=0)
    case = faults.Case(work="png", fault="node", on="ray", moment=moment, struck="node1 (4 processes), predict 1/2")
    assert faults.summary([case], options)["wrong"] == []
    bad = replace(case, wrong=["differs: a"])
    assert faults.summary([case, bad], options)["wrong"] == ["png, node, ray: differs: a"]
    assert "| predict 1/2 |" in faults.table([case]) and "differs: a" in faults.table([bad])


def test_a_cut_that_nobody_noticed_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    storage = load("storage_faults", monkeypatch)
    options: Any = SimpleNamespace(seed=0)
    assert storage.summary([], options)["wrong"] == ["nothing was cut"]
    case = storage.Case(work="fit", kind="silent", request=3, of=9, cut_seconds=65.0, files=2, wrong=[])
    found = storage.summary([case], options)
    assert found["wrong"] == [] and found["shortest_cut_seconds"] == 65.0
    assert "| fit | silent | 3 of 9 |" in storage.table([case]) and "2 of 2" in storage.table([case])
