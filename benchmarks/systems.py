"""Every published Carvana system at smoke scale, end to end: one line each, with its submission and its report.

    python benchmarks/systems.py [--data DIR] [--out runs/systems] [--cars 8] [NAME ...]

Runs lie in OUT/<name> and are continued where they stopped; a system that fails does not stop the others, and makes
the exit code 1. Without DIR, cars are generated. Of DIR the first cars are taken, as many as the largest system has
folds for and a few more: what is shown is that everything runs, not how well.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from common import ended

from maskloom import api
from maskloom.data.studio import write_studio
from maskloom.errors import UserError
from maskloom.runtime import num_cores

CARS = 8
"""Cars to learn from: the 1st place has 7 folds, and the search for post-processing steps wants 6."""
STUDIO = {"objects": CARS, "test_objects": 1, "views": 16, "size": (128, 192), "seed": 3}


def main(words: Sequence[str] | None = None) -> int:
    arguments = parsed(words)
    data = arguments.data or generated(arguments.out / "data")
    names = arguments.names or [name for name in api.builders() if name.startswith("carvana_")]
    began = time.monotonic()
    failed = [name for name in names if not ran(name, data, arguments.out / name, arguments.cars)]
    print(f"{len(names) - len(failed)} of {len(names)} systems in {time.monotonic() - began:.0f} s", flush=True)
    return 1 if failed else 0


def parsed(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="systems; all when none is named")
    parser.add_argument("--data", type=Path, help="a folder in the Carvana layout; generated when left out")
    parser.add_argument("--out", type=Path, default=Path("runs/systems"), help="folder of the runs")
    parser.add_argument("--cars", type=int, default=CARS, help="take the first so many cars")
    return parser.parse_args(words)


def generated(folder: Path) -> Path:
    """Returns a folder of generated cars with test photos and a sample submission."""
    write_studio(folder, **STUDIO, workers=num_cores())  # type: ignore[arg-type]
    return folder


def ran(name: str, data: Path, run: Path, cars: int) -> bool:
    """Returns whether the system ran to its end, in a process of its own; prints a line about it."""
    began = time.monotonic()
    settings = ["--set", "scale=smoke", "--set", f"data.limit={cars}"]
    command = ["fit", name, "--data", str(data), "--run", str(run), *settings, "--workers", "0"]
    done = subprocess.run([sys.executable, "-m", "maskloom", *command], capture_output=True, text=True, check=False)
    seconds = time.monotonic() - began
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines()
        print(
            f"{name:<14} {seconds:6.0f} s  FAILED  {said[-1] if said else f'exit code {done.returncode}'}", flush=True
        )
        return False
    print(f"{name:<14} {seconds:6.0f} s  {summary(run)}", flush=True)
    return True


def summary(run: Path) -> str:
    """Returns the score of a finished run, its number of networks, and where submission and report lie."""
    try:
        scores = api.open_run(run).evaluate()
    except UserError as error:
        return str(error)
    networks = len(list((run / "stages" / "train").rglob("*.json")))
    submission = next(iter(sorted(run.glob("submission*.csv.gz"))), None)
    return (
        f"dice {scores['oof']['mean']:.4f}  {networks} networks  {submission or 'no submission'}  {run / 'report.html'}"
    )


if __name__ == "__main__":
    ended(main)
