"""The same run in one process and on Ray with 1, 2 and 4 workers: equal bytes, and what handing tasks out costs.

A system of the Carvana challenge at smoke scale and a raster are computed in one process, then on Ray, which each
command starts for itself on this host alone; submissions, masks and rasters must be identical. Overhead is the time of
a task that does nothing; efficiency is that of tasks that wait instead of computing, so that a host with few cores can
show it. Every process has one thread. Needs ``maskloom[cluster]``. Fails where bytes differ.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
from common import ended, studio_with_test

from maskloom.executors.sites import Work, open_site
from maskloom.executors.tasks import Call, Executor, Here
from maskloom.progress import Silent
from maskloom.rasters.writing import write_geotiff

ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {"OMP_NUM_THREADS": "1"}
TASKS = 200
"""How many tasks that do nothing are timed together."""
ROUNDS = 9
"""So many times, since workers that have just begun are slow: the median counts."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--recipe", default="carvana_1st")
    parser.add_argument("--set", action="append", default=["scale=smoke"], dest="settings")
    parser.add_argument("--side", type=int, default=2048, help="of the raster, in pixels")
    parser.add_argument("--waiting", type=int, default=8, help="workers of the tasks that wait")
    parser.add_argument("--only", choices=("bytes", "tasks"), help="leave the other part out")
    options = parser.parse_args()
    same = True
    with tempfile.TemporaryDirectory() as folder:
        if options.only != "tasks":
            same = compare(Path(folder), options)
        if options.only != "bytes":
            for on in ("local", "ray"):
                time_tasks(Path(folder), on, options.waiting)
    return 0 if same else 1


# Bytes ---------------------------------------------------------------------------------------------------------------


def compare(folder: Path, options: argparse.Namespace) -> bool:
    """Prints seconds, and whether bytes are equal, for one process and for each number of workers."""
    data = studio_with_test(folder / "data", size=(128, 192), objects=7)  # as many as the recipe has folds
    raster = folder / "raster.tif"
    pixels = np.random.default_rng(0).integers(0, 256, (3, options.side, options.side), np.uint8)
    write_geotiff(raster, pixels, None)
    expected: dict[str, str] = {}
    same = True
    for workers in (0, *options.workers):
        run, out = folder / f"run{workers}", folder / f"out{workers}"
        settings = [part for text in options.settings for part in ("--set", text)]
        fit = ["fit", options.recipe, "--data", data, "--run", run, "--device", "cpu", "--workers", "0", *settings]
        predict = ["predict", run, raster, "--out", out, "--to", "geotiff", "--probabilities", "--device", "cpu"]
        on = ["--on", "ray", "--processes", workers] if workers else []
        seconds = [timed([*fit, *on]), timed([*predict, *on])]
        found = checksums(run, out)
        expected = expected or found
        equal = found == expected and len(found) > 2
        same &= equal
        line = {
            "benchmark": "on_ray",
            "workers": workers or "none",
            "fit_seconds": round(seconds[0], 1),
            "raster_seconds": round(seconds[1], 1),
            "files": len(found),
            "identical": equal,
        }
        print(json.dumps(line), flush=True)
    return same


def timed(arguments: list[object]) -> float:
    began = time.monotonic()
    command = [sys.executable, "-m", "maskloom", *map(str, arguments)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: exit code {done.returncode}\n{done.stderr}")
    return time.monotonic() - began


def checksums(run: Path, out: Path) -> dict[str, str]:
    """Returns the checksums of what users take away."""
    files = [*run.glob("submission*"), *(run / "predictions").rglob("*.png"), *out.glob("*.tif")]
    files += [*run.glob("members/*/fold*/last.safetensors"), *run.glob("oof/*/maps/**/*.map")]
    return {
        (path.relative_to(run) if path.is_relative_to(run) else path.relative_to(out)).as_posix(): hashlib.sha256(
            path.read_bytes()
        ).hexdigest()
        for path in sorted(files)
    }


# Tasks ---------------------------------------------------------------------------------------------------------------


def nothing(here: Here, shared: None) -> None:
    """A task of no work."""


def wait(here: Here, shared: None, seconds: float) -> None:
    """A task that takes time and no processor."""
    time.sleep(seconds)


def time_tasks(folder: Path, on: str, workers: int) -> None:
    """Prints what a task costs, and how well tasks that wait fill so many workers."""
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    each, count = 0.5, 8 * workers
    work = Work(run=folder, command="fit")
    with (
        open_site(on, device="cpu", processes=workers) as site,
        site.workers(work, Silent()) as executor,
    ):
        run_all(executor, wait, (0.1,), 2 * workers)  # all workers are there
        empty = [run_all(executor, nothing, (), TASKS) for _ in range(ROUNDS)]
        waited = run_all(executor, wait, (each,), count)
    line = {
        "benchmark": "tasks",
        "on": on,
        "workers": workers,
        "milliseconds_per_task": round(1000 * median(empty) / TASKS, 2),
        "milliseconds_at_most": round(1000 * max(empty) / TASKS, 2),
        "efficiency_of_waiting": round(each * count / workers / waited, 3),
    }
    print(json.dumps(line), flush=True)


def run_all(executor: Executor, function: object, arguments: tuple[float, ...], count: int) -> float:
    """Returns the seconds that so many tasks take."""
    shared = executor.share(None)
    began = time.monotonic()
    call = Call(name="task", function=function, shared=shared, arguments=arguments)  # type: ignore[arg-type]
    tickets = [executor.submit(call) for _ in range(count)]
    for ticket in tickets:
        executor.collect(ticket)
    return time.monotonic() - began


if __name__ == "__main__":
    sys.modules["on_ray"] = sys.modules["__main__"]  # by which workers find the tasks
    nothing.__module__ = wait.__module__ = "on_ray"
    ended(main)
