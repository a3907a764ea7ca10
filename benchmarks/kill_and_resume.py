"""Kills a small run at ten moments, starts it again each time, and compares its bytes with an uninterrupted run.

Every stage is killed once just after it began, training also in the middle of an epoch, with a moving average and
loader workers active. Weights, out-of-fold maps and submission must be identical. Runs on the CPU. Fails where a kill
came too late or not at all, where nothing was compared, and where anything differs or is left behind.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from common import differences, digests, left_behind, studio_with_test

MOMENTS = (
    ("survey", 0.0),
    ("folds", 0.0),
    ("train/unet/fold0", 3.0),
    ("train/unet/fold0", 9.0),
    ("train/unet/fold1", 6.0),
    ("oof/unet", 0.6),
    ("ensemble", 0.0),
    ("predict", 0.5),
    ("submit", 0.0),
    ("report", 0.0),
)
"""Stage and seconds after its beginning."""
RESULTS = ("members/**/last.safetensors", "members/**/best.safetensors", "oof/**/*.map", "submission.csv.gz",
           "ensemble/*", "predictions/masks/*.png")  # fmt: skip
"""Patterns of the files that must be identical."""
EPOCH = '"event": "epoch"'
"""What the log of a training says once for each epoch."""


def command(data: Path, run: Path) -> list[str]:
    settings = (
        "members.*.training.epochs=3",
        "members.*.training.images_per_epoch=48",
        "members.*.training.batch_size=4",
        "members.*.training.ema_decay=0.9",
        "members.*.training.accumulation=2",
        "members.*.training.checkpoint_seconds=1",
        "members.*.training.validate_every=1",
        "members.*.input.size=[96,144]",
        "folds.count=2",
    )
    changes = [part for text in settings for part in ("--set", text)]
    base = [sys.executable, "-m", "maskloom", "fit", "default", "--data", str(data), "--run", str(run)]
    return [*base, "--device", "cpu", "--workers", "2", "--set", "scale=smoke", *changes]


def finish(data: Path, run: Path) -> None:
    """Runs the command to its end."""
    subprocess.run(command(data, run), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@dataclass(frozen=True, slots=True)
class Kill:
    """One attempt: where the run was, and whether it was killed there."""

    moment: str
    landed: bool


def killed(arguments: Sequence[str], run: Path, stage: str, seconds: float) -> Kill:
    """Returns where the run was when it was killed so long after the stage began; drains what the run says."""
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    with process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.split()[:2] == [">", stage]:
                time.sleep(seconds)
                process.kill()  # does nothing to a process that has ended
                landed = process.wait() == -signal.SIGKILL
                log = run / "members" / "unet" / stage.rpartition("/")[2] / "log.jsonl"
                moment = f"{stage} +{seconds} s"
                if stage.startswith("train") and log.is_file():
                    moment += f", after {log.read_text().count(EPOCH)} epoch(s)"
                return Kill(moment + ("" if landed else " (the run had ended)"), landed)
    return Kill(f"{stage}: not reached", landed=False)


def failures(
    kills: Sequence[Kill], whole: Mapping[str, str], resumed: Mapping[str, str], left: Sequence[str]
) -> list[str]:
    """Returns what is wrong, in words; nothing where every kill landed and both runs gave the same files."""
    found = [f"no kill: {kill.moment}" for kill in kills if not kill.landed]
    return found + differences(whole, resumed) + [f"left behind: {path}" for path in left]


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = studio_with_test(folder / "data", size=(96, 144))
        finish(data, folder / "whole")
        run = folder / "killed"
        kills = [killed(command(data, run), run, stage, seconds) for stage, seconds in MOMENTS]
        finish(data, run)
        whole, resumed, left = digests(folder / "whole", RESULTS), digests(run, RESULTS), left_behind(run)
    wrong = failures(kills, whole, resumed, left)
    print(json.dumps({"benchmark": "kill_and_resume", "moments": [kill.moment for kill in kills],
                      "files_compared": len(whole), "wrong": wrong}, indent=1))  # fmt: skip
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
