"""Peak memory of ``maskloom predict`` with one network on 400 full-size photos against 40, as whole processes."""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from common import studio

LAUNCHER = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)
sys.exit(code)
"""
"""Started from a small process: a child's peak otherwise counts what its parent held when it was started."""


def peak_mib(run: Path, images: Path, out: Path) -> float:
    """Returns the largest resident memory of the command in MiB."""
    predict = [sys.executable, "-m", "maskloom", "predict", str(run), str(images), "--out", str(out), "--to", "png"]
    command = [sys.executable, "-c", LAUNCHER, *predict, "--device", "cpu"]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--few", type=int, default=40)
    parser.add_argument("--many", type=int, default=400)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        small = studio(folder / "small", size=(128, 192), objects=4, views=4)
        large = studio(folder / "large", size=(1280, 1918), objects=1, views=8)
        one_fold = folder / "folds.csv"
        names = sorted(path.stem for path in (small / "train").glob("*.jpg"))
        objects = sorted({name.partition("_")[0] for name in names})
        rows = [f"{name},{name.partition('_')[0]},{-(not name.startswith(objects[0]))}" for name in names]
        one_fold.write_text("id,group,fold\n" + "\n".join(rows) + "\n")
        settings = ["scale=smoke", f"folds.table={one_fold}", "inference.views=none", "members.0.input.size=[320,480]"]
        command = [
            sys.executable,
            "-m",
            "maskloom",
            "fit",
            "default",
            "--data",
            str(small),
            "--run",
            str(folder / "run"),
        ]
        changes = [part for text in settings for part in ("--set", text)]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        subprocess.run([*command, "--device", "cpu", *changes], check=True, **quiet)
        photos = sorted((large / "train").glob("*.jpg"))
        peaks = {}
        for count in (arguments.few, arguments.many):
            images = folder / f"images{count}"
            images.mkdir()
            for number in range(count):
                shutil.copy(photos[number % len(photos)], images / f"{number:04d}.jpg")
            peaks[count] = peak_mib(folder / "run", images, folder / f"out{count}")
    ratio = peaks[arguments.many] / peaks[arguments.few]
    print(json.dumps({"benchmark": "memory", "peak_mib": peaks, "ratio": round(ratio, 4)}))


if __name__ == "__main__":
    main()
