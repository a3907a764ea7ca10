"""The benchmark that kills a run: what it calls a failure."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import kill_and_resume

    return kill_and_resume


def says(text: str, then: str = "") -> list[str]:
    """Returns a command that names a stage as ``fit`` does, and goes on."""
    return [sys.executable, "-c", f"import sys, time; print({text!r}, file=sys.stderr, flush=True); {then}"]


def test_a_kill_lands_in_a_running_stage_or_does_not(benchmark: ModuleType, tmp_path: Path) -> None:
    landed = benchmark.killed(says("> train/unet/fold0", "time.sleep(60)"), tmp_path, "train/unet/fold0", 0.0)
    assert landed == benchmark.Kill("train/unet/fold0 +0.0 s", landed=True)
    ended = benchmark.killed(says("> report"), tmp_path, "report", 0.5)
    assert ended == benchmark.Kill("report +0.5 s (the run had ended)", landed=False)
    assert benchmark.killed(says("= report"), tmp_path, "report", 0.0) == benchmark.Kill("report: not reached", False)


def test_what_a_failure_is(benchmark: ModuleType) -> None:
    good = [benchmark.Kill("a +0 s", True)]
    late = benchmark.Kill("b: not reached", False)
    assert benchmark.failures(good, {"x": "1"}, {"x": "1"}, []) == []
    assert benchmark.failures([*good, late], {"x": "1"}, {"x": "1"}, []) == ["no kill: b: not reached"]
    assert benchmark.failures(good, {}, {}, []) == ["no files were compared"]
    assert benchmark.failures(good, {"x": "1", "y": "1"}, {"x": "2", "z": "1"}, [".partial-1"]) == [
        "differs: x", "differs: y", "differs: z", "left behind: .partial-1",
    ]  # fmt: skip
