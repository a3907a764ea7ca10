"""Kills a small run at ten moments, starts it again each time, and compares its bytes with an uninterrupted run.

Every stage is killed once just after it began, training also in the middle of an epoch, with a moving average and
loader workers active. Weights, out-of-fold maps and submission must be identical. Runs on the CPU.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import studio_with_test

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


def killed(data: Path, run: Path, stage: str, seconds: float) -> str:
    """Returns where the run was when it was killed so long after the stage began."""
    process = subprocess.Popen(command(data, run), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if line.split()[:2] == [">", stage]:
            time.sleep(seconds)
            running = process.poll() is None
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            log = run / "members" / "unet" / stage.rpartition("/")[2] / "log.jsonl"
            epochs = log.read_text().count('"event": "epoch"') if stage.startswith("train") and log.is_file() else ""
            return (
                f"{stage} +{seconds} s"
                + (f", after {epochs} epoch(s)" if epochs != "" else "")
                + ("" if running else " (the run had ended)")
            )
    process.wait()
    return f"{stage}: not reached"


def digests(run: Path) -> dict[str, str]:
    """Returns the checksums of what must be identical."""
    patterns = ("members/**/last.safetensors", "members/**/best.safetensors", "oof/**/*.map", "submission.csv.gz",
                "ensemble/*", "predictions/masks/*.png")  # fmt: skip
    paths = sorted(path for pattern in patterns for path in run.glob(pattern))
    return {path.relative_to(run).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = studio_with_test(folder / "data", size=(96, 144))
        finish(data, folder / "whole")
        moments = [killed(data, folder / "killed", stage, seconds) for stage, seconds in MOMENTS]
        finish(data, folder / "killed")
        whole, resumed = digests(folder / "whole"), digests(folder / "killed")
        left = sorted(str(path) for path in (folder / "killed").rglob(".partial-*"))
    different = sorted(key for key in whole.keys() | resumed.keys() if whole.get(key) != resumed.get(key))
    print(json.dumps({"benchmark": "kill_and_resume", "moments": moments, "files_compared": len(whole),
                      "different": different, "left_behind": left}, indent=1))  # fmt: skip
    sys.exit(bool(different or left))


if __name__ == "__main__":
    main()
