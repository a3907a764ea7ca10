"""Kills nodes of a Ray cluster in the middle of `fit` and `predict`, then its head, and compares every byte.

Three nodes are begun on this machine by ``ray start`` (see ``cluster_nodes``). A training of two networks in two folds
with pseudo-labels, masks, tables and rasters are computed by one process first, then on the cluster: once while a node
that is at work is killed with all its processes (and, in every other case, comes back meanwhile), once while the head
is, after which the nodes are started again and the same command. The moments follow from ``--seed``. Needs
``maskloom[cluster]``. Fails where a kill struck nothing, a command ended otherwise than it should, a file differs from
the one process's, a record or an epoch is missing or there twice, or anything is left behind.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from cluster_nodes import Node, Nodes
from common import ended, studio, studio_with_test
from fault_works import RESULTS, Process, Work, compared, prediction, recipe_file, remove, stage_of_run, write_scenes

from maskloom.executors.fence import FENCE_SECONDS
from maskloom.heartbeat import Beat, read_beats, state_of

WORKS = ("fit", "png", "rle", "coco", "geotiff")
FAULTS = ("node", "head")
STUCK_SECONDS = 1200.0
LOST = "the head of the cluster"
"""What the one line says where the head is lost."""
MISSED = "nothing was at work on a node to be killed"
IDLE = "nothing had to be done again"
TRIES = 3
"""Moments that are aimed at, each earlier than the one before."""
AGAIN, JOINED = "is done again", "has joined"
"""What is said of a task whose worker was lost, and of a node that is new."""


@dataclass(frozen=True, kw_only=True)
class Moment:
    """When a kill comes: so far in a stage, or as soon as anything later is under way."""

    stage: str
    share: float
    pick: int
    """Decides which of the nodes that are at work is killed."""


@dataclass(kw_only=True)
class Case:
    """One command that was disturbed, and what came of it."""

    work: str
    fault: str
    on: str
    moment: Moment
    struck: str = ""
    """What was killed, and what it was at."""
    comes_back: bool = False
    """Whether a node that was killed is started again while the command goes on."""
    again: list[str] = field(default_factory=list)
    """What was said of tasks that the same command had done again."""
    joined: int = 0
    """Nodes that it took in."""
    told: str = ""
    """The line that the command ended with where the head was lost."""
    seconds_to_end: float = 0.0
    """From the kill to the end of the command."""
    seconds: float = 0.0
    """Of the whole work, its second command included."""
    files: int = 0
    wrong: list[str] = field(default_factory=list)


# What is computed ----------------------------------------------------------------------------------------------------


def works(folder: Path) -> dict[str, Work]:
    """Returns what is disturbed, by name; the first one's results are what the others predict with."""
    data = studio_with_test(folder / "data", size=(96, 144))
    recipe = recipe_file(folder, data)
    scenes = folder / "scenes"
    write_scenes(scenes, [(300, 320)] * 16)  # so many that it takes some seconds
    photos = studio(folder / "photos", size=(192, 288), objects=10, views=16) / "train"
    run, device = folder / "alone" / "fit", ["--device", "cpu"]
    longer = ["--set", "members.*.training.epochs=8", "--set", "members.*.training.checkpoint_seconds=1"]
    fit = Work(
        name="fit",
        command=lambda out: ["fit", str(recipe), "--data", str(data), "--run", str(out), *device, "--workers", "0",
                             *longer],
        results=RESULTS,
        stage_of=stage_of_run,
    )  # fmt: skip

    found = [
        fit,
        prediction("png", run, photos),
        prediction("rle", run, photos, chunk=4),
        prediction("coco", run, photos, chunk=4),
        prediction("geotiff", run, scenes, "--probabilities", "--uncertainty", side=32),
    ]
    return {work.name: work for work in found}


def on(work: Work, address: str) -> Work:
    """Returns the work with its networks on the cluster."""
    return replace(work, command=lambda out: [*work.command(out), "--on", address])


def stages_of(work: Work) -> tuple[str, ...]:
    """Returns the stages in which workers are busy."""
    if work.name != "fit":
        return ("predict",)
    return ("train/unet/fold0", "train/unet/fold1", "oof/unet", "train/pupil/fold0", "oof/pupil")


def draw(work: Work, rng: np.random.Generator) -> Moment:
    """Returns when a kill comes."""
    stages = stages_of(work)
    stage, share = stages[int(rng.integers(len(stages)))], round(float(rng.uniform(0.1, 0.8)), 2)
    return Moment(stage=stage, share=share, pick=int(rng.integers(1000)))


# One case ------------------------------------------------------------------------------------------------------------


def beats(run: Path) -> list[Beat]:
    """Returns what the processes that are at the run say."""
    return [beat for beat in read_beats(run)[0] if state_of(beat, time.time()) == "working"]


def is_reached(moment: Moment, process: Process, found: Sequence[Beat], stages: Sequence[str]) -> bool:
    """Returns whether the moment has come, by what the processes say and by the stages that the command named."""
    later = stages[stages.index(moment.stage) + 1 :]
    named = {stage for _, stage in process.stages()}
    if named.intersection(later):
        return True
    at = [beat for beat in found if beat.stage == moment.stage and beat.total]
    if moment.stage == "predict":  # of which workers have small parts
        at = [beat for beat in at if not beat.shard]
    return any(beat.done >= moment.share * beat.total for beat in at)


def at_work(work: Work, found: Sequence[Beat], nodes: Nodes) -> list[tuple[Node, str]]:
    """Returns the nodes whose workers are at work, and at what: of a prediction, all that have any."""
    if work.name == "fit":
        busy = sorted((beat for beat in found if beat.shard and beat.total), key=lambda beat: beat.pid)
        places = [(nodes.at(beat.pid), f"{beat.stage} {beat.done}/{beat.total}") for beat in busy]
        return [(node, what) for node, what in places if node is not None]
    far = next((f"{beat.stage} {beat.done}/{beat.total}" for beat in found if beat.total and not beat.shard), "")
    return [(node, far) for node in nodes.nodes if far and node.workers()]


def strike(
    case: Case, process: Process, work: Work, run: Path, nodes: Nodes, since: float
) -> tuple[Node | None, float]:
    """Returns the node that was killed when its moment had come, and when; None where the command ended before."""
    while process.process.poll() is None and time.time() - process.began < STUCK_SECONDS:
        found = [beat for beat in beats(run) if beat.began >= since]
        if is_reached(case.moment, process, found, stages_of(work)):
            busy = at_work(work, found, nodes)
            if case.fault == "head":
                busy = [(nodes.head, what) for _, what in busy]
            else:
                busy = [(node, what) for node, what in busy if node is not nodes.head]
            if busy:
                node, what = busy[case.moment.pick % len(busy)]
                struck = time.time()
                case.struck = f"{node.name} ({node.kill()} processes), {what}"
                return node, struck
        time.sleep(0.1)
    return None, time.time()


def disturbed(case: Case, work: Work, out: Path, folder: Path, nodes: Nodes, whole: dict[str, str]) -> None:
    """Has the work computed on the cluster while a node or its head is killed; notes what came of it."""
    target = out if work.name == "fit" else folder / "alone" / "fit"  # where processes say where they are
    address = nodes.client if case.on == "client" else "ray"
    away, began = on(work, address), time.time()
    process = Process(away, out, folder, {})
    node, struck = strike(case, process, work, target, nodes, began)
    if node is None:
        case.wrong.append(MISSED)
    elif case.comes_back:
        node.start()
    code = ended_with(process)
    case.seconds_to_end = round(time.time() - struck, 1)
    case.again = [line for _, line in process.said if AGAIN in line]
    case.joined = sum(JOINED in line for _, line in process.said)
    if case.fault == "head" and node is not None and code:  # the other nodes may just finish what they have
        case.told = process.error()
        lines = case.told.splitlines()
        if code != 2 or len(lines) != 1 or LOST not in lines[0]:
            case.wrong.append(f"lost the head: exit code {code}: {last_words(process)}")
        nodes.heal()
        process = Process(away, out, folder, {})
        code = ended_with(process)
    if code:
        case.wrong.append(f"exit code {code}: {last_words(process)}")
    else:
        if "Traceback" in process.error():
            case.wrong.append(f"said {process.error()[:1000]}")
        case.wrong += compared(work, out, whole) + list(not_once(work, out))
    case.seconds = round(time.time() - began, 1)
    case.files = len(work.digests(out))
    if not nodes.workers_gone(FENCE_SECONDS):
        case.wrong.append("workers are left on the nodes")
    if case.fault == "node" and node is not None and not case.again:
        case.wrong.append(IDLE)


def tried(case: Case, work: Work, folder: Path, nodes: Nodes, whole: dict[str, str]) -> Case:
    """Returns the case, disturbed; where the command ended before its moment, another one whose moment is earlier."""
    moment, stages = case.moment, stages_of(work)
    for number in range(TRIES):
        place = stages.index(moment.stage) >> number
        case = replace(case, moment=replace(moment, stage=stages[place], share=moment.share / 2**number), wrong=[])
        out = folder / f"{case.fault}-{work.name}"
        remove(out)
        nodes.heal()
        disturbed(case, work, out, folder, nodes, whole)
        if case.wrong not in ([MISSED], [IDLE]):
            break
    return case


def ended_with(process: Process) -> int:
    """Returns the exit code; kills what does not come to an end."""
    with suppress(subprocess.TimeoutExpired):
        process.process.wait(STUCK_SECONDS)
    process.process.kill()
    return process.end()


def last_words(process: Process) -> str:
    return " | ".join(line for _, line in process.said)[-1500:]


def not_once(work: Work, out: Path) -> Iterator[str]:
    """Yields what is there twice, or not at all, of what is counted: epochs, rows of tables, files in ledgers."""
    if work.name == "fit":
        for log in sorted(out.glob("members/*/*/log.jsonl")):
            events = [json.loads(line) for line in log.read_text().splitlines()]
            epochs = Counter(event["epoch"] for event in events if event.get("event") == "epoch")
            if not epochs or set(epochs.values()) != {1}:
                yield f"fit: epochs of {log.relative_to(out)}: {dict(epochs)}"
        for ledger in sorted(out.glob("stages/**/*.sums")):
            names = Counter(line.split(" ", 4)[-1] for line in ledger.read_text().splitlines())
            yield from (f"fit: {name} is {count} times in {ledger.name}" for name, count in names.items() if count > 1)
        return
    for table in out.glob("predictions.csv.gz"):
        with gzip.open(table, "rt") as stream:
            yield from _twice(table.name, [row["id"] for row in csv.DictReader(stream)])
    for table in out.glob("predictions.json"):
        yield from _twice(table.name, [image["id"] for image in json.loads(table.read_text())["images"]])
    written = out / ".images" / "written.txt"
    if work.name == "png" and written.is_file():
        num_masks, num_lines = len(list(out.glob("*.png"))), len(set(written.read_text().split()))
        if num_lines < num_masks:
            yield f"png: {num_masks} masks, of which {num_lines} are known"


def _twice(name: str, ids: Sequence[object]) -> Iterator[str]:
    yield from (f"{name}: {key} is there {count} times" for key, count in Counter(ids).items() if count > 1)


# All of them ---------------------------------------------------------------------------------------------------------


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1, help="of all works and faults, at other moments each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--works", default=",".join(WORKS), help="only these")
    parser.add_argument("--faults", default=",".join(FAULTS), help="only these")
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--port", type=int, default=23400, help="the first of those that the nodes use")
    parser.add_argument("--out", type=Path, default=Path("cluster-faults"), help="folder of data, runs and the report")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # sums of several threads are equal only for equal numbers of threads
    folder = options.out.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    known = works(folder)
    chosen = [known[name] for name in options.works.split(",")]
    whole = {}
    for work in {work.name: work for work in (known["fit"], *chosen)}.values():
        out = folder / "alone" / work.name
        if work.name != "fit" or not (out / "report.html").is_file():
            remove(out)
            process = Process(work, out, folder, {})
            if code := process.end():
                raise SystemExit(f"{work.name} alone: exit code {code}: {last_words(process)}")
        whole[work.name] = work.digests(out)
    rng, cases = np.random.default_rng(options.seed), list[Case]()
    with (
        tempfile.TemporaryDirectory(prefix="r") as name,  # names of Ray's sockets must be short
        Nodes(Path(name), count=options.nodes, port=options.port) as nodes,
    ):
        os.environ.update(nodes.environment)
        for number, work in enumerate(chosen * options.rounds):
            for place, fault in enumerate(options.faults.split(",")):
                case = Case(
                    work=work.name,
                    fault=fault,
                    on=("ray", "client")[(number + place) % 2],
                    moment=draw(work, rng),
                    comes_back=fault == "node" and number % 2 == 1,
                )
                cases.append(tried(case, work, folder, nodes, whole[work.name]))
                print(json.dumps(asdict(cases[-1])), file=sys.stderr, flush=True)
    report = summary(cases, options)
    (folder / "report.json").write_text(json.dumps(report, indent=1))
    (folder / "report.md").write_text(table(cases))
    print(table(cases))
    print(json.dumps({key: value for key, value in report.items() if key != "cases"}))
    return int(bool(report["wrong"]))


def summary(cases: Sequence[Case], options: argparse.Namespace) -> dict[str, Any]:
    """Returns the report."""
    return {
        "benchmark": "cluster_faults",
        "seed": options.seed,
        "nodes": options.nodes,
        "kills": len(cases),
        "tasks_repeated": sum(len(case.again) for case in cases),
        "files_compared": sum(case.files for case in cases),
        "wrong": [f"{case.work}, {case.fault}, {case.on}: {line}" for case in cases for line in case.wrong]
        or ["nothing was killed"] * (not cases),
        "cases": [asdict(case) for case in cases],
    }


def table(cases: Sequence[Case]) -> str:
    """Returns the cases as a table of Markdown."""
    lines = ["| work | killed | through | it was at | done again | s to the end | files alike |"]
    lines.append("|---|---|---|---|---|---|---|")
    for case in cases:
        back = ", came back" if case.comes_back else ""
        way = "client port" if case.on == "client" else "the cluster"
        alike = "; ".join(case.wrong) or f"{case.files} of {case.files}"
        at = case.struck.partition(", ")[2]
        lines.append(
            f"| {case.work} | {case.fault}{back} | {way} | {at} | {len(case.again)} | {case.seconds_to_end} | {alike} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    ended(main)
