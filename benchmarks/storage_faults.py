"""Cuts the line to an S3 store for a minute in the middle of `fit` and `predict`, and compares every byte.

Data and runs lie in the bucket of a server on loopback (moto's), which commands reach through a relay. The relay is cut
once per command, by turns so that connections are refused and so that nothing is heard any more; when, follows from
``--seed``: at one of the requests that the same command makes undisturbed. Results must be those of runs on a disk.
Needs ``maskloom[s3]`` and ``moto[server]``. Fails where a cut was not noticed, a command did not end well, a file
differs, or something is left behind.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from common import ended, studio_with_test
from fault_works import RESULTS, Process, Work, compared, prediction, recipe_file, remove, stage_of_run, write_scenes

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from buckets import BUCKET, ENVIRONMENT, Line, Requests, client, emptied, serving

WORKS = ("fit", "png", "rle", "geotiff")
KINDS = ("refused", "silent")
NOTICED = ("no answer", "waiting for it")
"""What is said, in one line, of a store that is away."""


@dataclass(kw_only=True)
class Case:
    """One command whose line was cut, and what came of it."""

    work: str
    kind: str
    request: int
    """The cut came after so many of those that the command makes."""
    of: int
    """How many those are."""
    stage: str = ""
    """The last that was said to begin before the cut."""
    cut_seconds: float = 0.0
    seconds: float = 0.0
    undisturbed_seconds: float = 0.0
    files: int = 0
    wrong: list[str]


# What is computed ----------------------------------------------------------------------------------------------------


def works(folder: Path, root: str, run: str) -> dict[str, Work]:
    """Returns what is done, with data and, for predictions, the run below these places: folders or URLs."""
    device = ["--device", "cpu"]
    recipe = folder / "recipe.yaml"

    def predicted(to: str, source: str, *more: str) -> Work:
        return prediction(to, run, f"{root}/{source}", *more, chunk=4, side=96)

    fit = Work(
        name="fit",
        command=lambda out: ["fit", str(recipe), "--data", f"{root}/data", "--run", run, *device, "--workers", "2"],
        results=RESULTS,
        stage_of=stage_of_run,
    )
    found = [fit, predicted("png", "data/train"), predicted("rle", "data/train"),
             predicted("geotiff", "scenes", "--probabilities")]  # fmt: skip
    return {work.name: work for work in found}


def publish(folder: Path, address: str) -> None:
    """Puts all files below a folder's data and scenes into the bucket; gives them the times of their objects.

    By these, images without truth are known again: where they differ, so does what a run says of what it came from.
    """
    store = client(address)
    for top in ("data", "scenes"):
        for path in sorted((folder / top).rglob("*")):
            if path.is_file():
                store.put_object(Bucket=BUCKET, Key=path.relative_to(folder).as_posix(), Body=path.read_bytes())
    for page in store.get_paginator("list_objects_v2").paginate(Bucket=BUCKET):
        for found in page["Contents"]:
            changed = found["LastModified"].timestamp()
            os.utime(folder / found["Key"], (changed, changed))


def fetched(address: str, run: str, folder: Path) -> None:
    """Writes what lies at a run's URL into a folder."""
    store, prefix = client(address), run.removeprefix(f"s3://{BUCKET}/") + "/"
    remove(folder)
    for page in store.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix):
        for found in page.get("Contents", ()):
            path = folder / found["Key"].removeprefix(prefix)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(store.get_object(Bucket=BUCKET, Key=found["Key"])["Body"].read())


# One case ------------------------------------------------------------------------------------------------------------


def away(work: Work, out: Path, folder: Path, requests: Requests) -> tuple[Process, int]:
    """Returns the command, begun with an empty cache, and how many requests there were before."""
    os.environ["MASKLOOM_CACHE"] = str(folder / "cache")
    remove(folder / "cache")
    remove(out)
    before = len(requests.seen)
    return Process(work, out, folder, work.spec), before


def disturbed(case: Case, work: Work, out: Path, folder: Path, requests: Requests, line: Line, seconds: float) -> None:
    """Runs the command and cuts its line when it has made so many requests."""
    process, before = away(work, out, folder, requests)
    while len(requests.seen) - before < case.request and process.process.poll() is None:
        time.sleep(0.001)
    if process.process.poll() is None:
        line.cut(is_silent=case.kind == "silent")
        struck, said = time.time(), process.stages()
        case.stage = said[-1][1] if said else "start"
        time.sleep(seconds)
        line.mend()
        case.cut_seconds = round(time.time() - struck, 1)
        if process.process.poll() is not None:
            case.wrong.append("the command ended while the line was cut")
    else:
        case.wrong.append("the command ended before the line was cut")
    code = process.end()
    case.seconds = round(time.time() - process.began, 1)
    words = [text for _, text in process.said]
    if code:
        case.wrong.append(f"exit code {code}: {' | '.join(words)[-1500:]}")
    elif "Traceback" in process.error():
        case.wrong.append(f"said {process.error()[:1000]}")
    if case.kind == "refused" and not any(all(part in text for part in NOTICED) for text in words):
        case.wrong.append("nothing was said of the cut")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=65.0, help="for which the line is cut")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--works", default=",".join(WORKS), help="only these")
    parser.add_argument("--kinds", default=",".join(KINDS), help="only these")
    parser.add_argument("--out", type=Path, default=Path("storage-faults"), help="folder of data, runs and the report")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ.update(ENVIRONMENT)
    folder = options.out.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    data = studio_with_test(folder / "data", size=(96, 144))
    recipe_file(folder, data)
    write_scenes(folder / "scenes")
    alone, url = folder / "alone", f"s3://{BUCKET}"
    names = list(dict.fromkeys(["fit", *options.works.split(",")]))
    here, there = works(folder, str(folder), str(alone / "fit")), works(folder, url, f"{url}/runs/first")
    cases, whole = list[Case](), dict[str, dict[str, str]]()
    rng = np.random.default_rng(options.seed)
    with serving() as (address, requests):
        emptied()
        publish(folder, address)
        for name in names:
            out = alone / name
            remove(out)
            finish(here[name], out, folder)
            whole[name] = here[name].digests(out)
        line = Line(address)
        os.environ["AWS_ENDPOINT_URL"] = line.address
        for name in names:
            work, out = there[name], folder / "there" / name
            began = time.time()
            process, before = away(work, out, folder, requests)
            if code := process.end():
                raise SystemExit(f"{name} at a URL: exit code {code}: {process.error()}")
            took, count = time.time() - began, len(requests.seen) - before
            if name not in options.works.split(","):
                continue
            for number, kind in enumerate(options.kinds.split(",") * options.rounds):
                request = int(count * rng.uniform(0.2, 0.9))
                case = Case(work=name, kind=kind, request=request, of=count, wrong=[])
                case.undisturbed_seconds = round(took, 1)
                run = f"{url}/runs/{kind}{number}"
                now = works(folder, url, run)["fit"] if name == "fit" else work
                disturbed(case, now, out, folder, requests, line, options.seconds)
                result = out
                if name == "fit":
                    result = folder / "there" / "fetched"
                    fetched(address, run, result)
                case.files = len(work.digests(result))
                case.wrong += [] if case.wrong else compared(work, result, whole[name])
                cases.append(case)
                print(json.dumps(asdict(case)), file=sys.stderr, flush=True)
        line.close()
    report = summary(cases, options)
    (folder / "report.json").write_text(json.dumps(report, indent=1))
    (folder / "report.md").write_text(table(cases))
    print(table(cases))
    print(json.dumps({key: value for key, value in report.items() if key != "cases"}))
    return int(bool(report["wrong"]))


def finish(work: Work, out: Path, folder: Path) -> None:
    """Runs the command undisturbed."""
    process = Process(work, out, folder, work.spec)
    if code := process.end():
        raise SystemExit(f"{work.name}: exit code {code}: {process.error()}")


def summary(cases: Sequence[Case], options: argparse.Namespace) -> dict[str, Any]:
    """Returns the report."""
    return {
        "benchmark": "storage_faults",
        "seed": options.seed,
        "cuts": len(cases),
        "shortest_cut_seconds": min((case.cut_seconds for case in cases), default=0.0),
        "files_compared": sum(case.files for case in cases),
        "wrong": [f"{case.work}, {case.kind}: {line}" for case in cases for line in case.wrong]
        or ["nothing was cut"] * (not cases),
        "cases": [asdict(case) for case in cases],
    }


def table(cases: Sequence[Case]) -> str:
    """Returns the cases as a table of Markdown."""
    lines = ["| work | the line | after request | in stage | cut for | took | undisturbed | files alike |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    for case in cases:
        alike = "; ".join(case.wrong) or f"{case.files} of {case.files}"
        lines.append(
            f"| {case.work} | {case.kind} | {case.request} of {case.of} | {case.stage} | {case.cut_seconds} s | "
            f"{case.seconds} s | {case.undisturbed_seconds} s | {alike} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    ended(main)
