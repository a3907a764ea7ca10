"""Kills a run at a hundred moments of all its stages, takes it up again each time, and compares its bytes.

A training of two networks with a moving average, hard batches and loader processes, pseudo-labels, ensemble,
post-processing, submission and report; then masks, tables and tiles of rasters by its networks. Half of the moments are
changes of the run's folder (just before a file is opened, renamed or removed), half are times. The moments follow from
``--seed``. With ``--fault`` something else happens there: SIGTERM (which must end it within 30 s), a disk that is full,
at once or in the middle of a file, or one that can no longer be written (each must be told in one line), or a clock
that is set back by a minute, an hour or a day (the command goes on for a few changes, is killed, and taken up again
with that clock; ``maskloom status`` must tell no time that cannot be). Runs on the CPU. Fails where something differs
from an undisturbed run or is left behind, and where faults did not happen: in a stage, or more than a few of them.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from common import left_behind
from fault_works import HERE, STUCK_SECONDS, Process, Work, compared, remove, works

FAULTS = ("kill", "term", "full", "torn", "readonly", "clock")
TERM_SECONDS = 30.0
"""Schedulers kill what has not ended so long after SIGTERM."""
NEGATIVE = re.compile(r"(^|[\s(])-\d")
"""A time below 0 in words."""
TRIES = 4
"""Times that a time is aimed at, all but the first from the beginning and half as late each; a change is twice."""
MOST_LEFT = 3000
"""Bytes that a disk which fills up has left are fewer."""
SET_BACK = (60.0, 3_600.0, 86_400.0)
"""Seconds by which a clock is set back, by turns, each time from where it was."""
MOST_CHANGES = 12
"""Changes of the folder for which a command goes on with a clock that was set back are fewer."""
MISSED_SHARE = 0.05
"""Of the moments: of a full disk, say, the last ones have nothing behind them that is written."""
OUTCOME = {"kill": -signal.SIGKILL, "term": 143, "full": 2, "torn": 2, "readonly": 2, "clock": -signal.SIGKILL}
SIGNALS = {"kill": signal.SIGKILL, "clock": signal.SIGUSR1}
"""At times; SIGTERM for all others."""
WORDS = {"full": "the disk is full", "torn": "the disk is full", "readonly": "cannot be written"}


@dataclass(frozen=True, kw_only=True)
class Event:
    """A change of the folder, or the beginning of a stage."""

    seconds: float
    """Since the command was started."""
    key: str
    stage: str


@dataclass(frozen=True, kw_only=True)
class Moment:
    """When something is to happen: at a change of the folder, or so many seconds after the start of a stage."""

    work: str
    stage: str
    at: float
    """When it came in the undisturbed run, by which moments are ordered."""
    key: str = ""
    place: int = 0
    """Of the event among the first ones of their kind."""
    delay: float = 0.0


@dataclass(kw_only=True)
class Landing:
    """What came of a moment."""

    moment: Moment
    landed: bool
    where: str
    """The last stage that was said to begin, and the event."""
    code: int | None = None
    seconds: float = 0.0
    """From the fault to the end of the process."""
    wrong: str = ""


def undisturbed(work: Work, out: Path, folder: Path) -> tuple[list[Event], dict[str, int]]:
    """Runs the work to its end; returns its events in order, and the place of each kind's first."""
    process = Process(work, out, folder, {})
    if code := process.end():
        raise SystemExit(f"{work.name}: the undisturbed run ended with {code}: {process.error()}")
    said, order, events = process.stages(), {}, []
    for place, event in enumerate(process.events()):
        key, at = event["key"], event["at"] - process.began
        now = next((name for began, name in reversed(said) if began <= at), "")
        order.setdefault(key, place)
        events.append(Event(seconds=at, key=key, stage=work.stage_of(key.partition(" ")[2]) or now))
    ends = [began for began, _ in said[1:]] + [max((event.seconds for event in events), default=0.0)]
    events += [
        Event(seconds=began, key=f"{max(end - began, 0.0)}", stage=f"> {name}")
        for (began, name), end in zip(said, ends, strict=True)
    ]
    return events, order


def draw(work: Work, events: Sequence[Event], order: dict[str, int], count: int, rng: Any) -> list[Moment]:
    """Returns so many moments, spread over all stages: changes of the folder and times by turns."""
    spans = {event.stage[2:]: event for event in events if event.stage.startswith("> ")}
    changes: dict[str, list[Event]] = {}
    for event in events:
        if not event.stage.startswith("> "):
            changes.setdefault(event.stage, []).append(event)
    moments: list[Moment] = []
    turns = [(kind, stage) for kind, stages in (("change", changes), ("time", spans)) for stage in stages]
    while len(moments) < count:
        for place in rng.permutation(len(turns)).tolist():
            kind, stage = turns[place]
            if kind == "change":
                event = changes[stage][int(rng.integers(len(changes[stage])))]
                moments.append(
                    Moment(work=work.name, stage=stage, at=event.seconds, key=event.key, place=order[event.key])
                )
            else:
                span = spans[stage]
                delay = float(rng.random()) * float(span.key)
                moments.append(Moment(work=work.name, stage=stage, at=span.seconds + delay, delay=round(delay, 3)))
    return sorted(moments[:count], key=lambda moment: moment.at)


def disturbed(
    work: Work,
    out: Path,
    folder: Path,
    moment: Moment,
    order: dict[str, int],
    fault: str,
    circumstances: dict[str, float],
) -> Landing:
    """Lets the fault happen at that moment, under what else ``faulty.py`` is told, and returns what came of it."""
    spec = {"do": fault, "order": order, "at": moment.place if moment.key else 10**9}
    spec |= {"run": str(work.run or out), **circumstances}
    process = Process(work, out, folder, spec)
    struck = 0.0
    if not moment.key and process.reached(moment.stage):
        time.sleep(moment.delay)
        struck = time.time()
        process.process.send_signal(SIGNALS.get(fault, signal.SIGTERM))
    code, ended = process.end(), time.time()
    if fault == "clock" and code == -signal.SIGUSR1:  # came when all was done, and Python had let go of its signals
        code = 0
    found = process.events()
    struck = found[0]["at"] if found else struck
    said = process.stages()
    where = (said[-1][1] if said else "start") + (f", {found[0]['key']}" if found else f" +{moment.delay} s")
    landed = code == OUTCOME[fault] or (fault == "clock" and bool(found))
    landing = Landing(moment=moment, landed=landed, where=where, code=code)
    landing.seconds = round(ended - struck, 3) if struck else 0.0
    error = process.error()
    if "Traceback" in error:
        landing.wrong = error[-1500:]
    elif fault in WORDS and landing.landed and WORDS[fault] not in error:
        landing.wrong = f"said {error[:300]!r}"
    elif code not in (0, OUTCOME[fault]):
        landing.wrong = f"exit code {code}: {error[:300]}"
    elif fault == "term" and landing.seconds > TERM_SECONDS:
        landing.wrong = f"ended {landing.seconds} s after SIGTERM"
    elif fault == "clock" and landed:
        told = [event for event in found if event["key"] == "status"]
        told.append(told_after(work, out, folder, circumstances["behind"] + circumstances["set_back"]))
        landing.wrong = "; ".join(dict.fromkeys(line for each in told for line in impossible(each)))
    left = left_behind(out)
    if fault in ("term", "full", "torn") and left and not landing.wrong:
        landing.wrong = f"left behind: {left}"
    return landing


def told_after(work: Work, out: Path, folder: Path, behind: float) -> dict[str, Any]:
    """Returns what ``maskloom status`` tells once the process is gone, by a clock that is so far behind."""
    run, spec = work.run or out, folder / "status.json"
    spec.write_text(json.dumps({"root": str(out), "behind": behind, "do": "clock", "at": 10**9}))
    asked = [sys.executable, str(HERE / "faulty.py"), str(spec), "status", str(run)]
    text, values = (subprocess.run([*asked, *more], capture_output=True, text=True) for more in ((), ("--json",)))
    if text.returncode or values.returncode:
        return {"status": {}, "texts": [], "error": (text.stderr + values.stderr)[:500]}
    return {"status": json.loads(values.stdout), "texts": text.stdout.splitlines()}


def impossible(told: dict[str, Any]) -> Iterator[str]:
    """Yields what cannot be of what a status tells: negative times, and ends that are further away than works last."""
    if "error" in told:
        yield f"status: {told['error']}"
    yield from (f"status says {text!r}" for text in told["texts"] if NEGATIVE.search(text))
    status = told["status"]
    for name, stage in [("run", status), *((stage["name"], stage) for stage in status.get("stages", ()))]:
        times = {key: stage.get(key) for key in ("seconds", "left")}
        times["ends"] = None if stage.get("ends") is None else stage["ends"] - status["at"]
        for key, seconds in times.items():
            if seconds is not None and not 0 <= seconds < STUCK_SECONDS:
                yield f"status: {name} {key} {seconds} s"


def chain(
    work: Work,
    moments: Sequence[Moment],
    out: Path,
    folder: Path,
    whole: dict[str, str],
    order: dict[str, int],
    fault: str,
) -> tuple[list[Landing], list[str]]:
    """Disturbs one work at all the moments, one after the other, finishes it, and says what is wrong.

    What is taken up again has less to do, and may end before its moment: then it is compared, and begun anew for it.
    """
    landings, wrong, behind = [], [], 0.0
    for turn, moment in enumerate(moments):
        back = SET_BACK[turn % len(SET_BACK)] if fault == "clock" else 0.0
        for number in range(2 if moment.key else TRIES):
            aimed = replace(moment, delay=moment.delay / 2**number)
            scattered = (moment.place or round(1000 * moment.delay)) * 7919
            circumstances = {"behind": behind, "set_back": back, "changes": scattered % MOST_CHANGES}
            circumstances["bytes"] = (
                scattered % MOST_LEFT >> 6 * number
            )  # what follows may be shorter than what is left
            landing = disturbed(work, out, folder, aimed, order, fault, circumstances)
            print(f"  {landing.where}: {landing.wrong or landing.code}", file=sys.stderr, flush=True)
            if landing.code == 0:
                wrong += compared(work, out, whole)
                remove(out)
            if landing.landed or landing.wrong:
                break
        behind += back if landing.landed else 0.0
        landings.append(landing)
    process = Process(work, out, folder, {"do": "kill", "order": {}, "at": 10**9, "behind": behind})
    if code := process.end():
        return landings, [*wrong, f"{work.name}: could not be finished ({code}): {process.error()[:500]}"]
    return landings, wrong + compared(work, out, whole)


def main() -> int:
    import numpy as np

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--moments", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fault", choices=FAULTS, default="kill")
    parser.add_argument("--works", help="Only these, as in fit,geotiff.")
    parser.add_argument("--chain", type=int, default=20, help="Moments of one run, before it is finished and compared.")
    parser.add_argument("--out", type=Path, default=Path("campaign"), help="Folder of the data, the runs, the report.")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # sums of several threads are equal only for equal numbers of threads
    folder = options.out.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(options.seed)
    known = works(folder)
    chosen = [work for work in known if options.works is None or work.name in options.works.split(",")]
    landings: list[Landing] = []
    wrong: list[str] = []
    if known[0] not in chosen and not (folder / "run" / "report.html").is_file():
        undisturbed(known[0], folder / "run", folder)
    # Half of the moments are of the training and what follows from it.
    shares = {work.name: 1.0 if work.name != "fit" else max(len(chosen) - 1.0, 1.0) for work in chosen}
    for work in chosen:
        whole = folder / ("run" if work.name == "fit" else f"whole-{options.fault}-{work.name}")
        remove(whole)
        events, order = undisturbed(work, whole, folder)
        count = max(round(options.moments * shares[work.name] / sum(shares.values())), 1)
        moments = draw(work, events, order, count, rng)
        if options.fault in WORDS:  # a disk is full, or not to be written, when something is written
            moments = [moment for moment in moments if moment.key]
        num_chains = -(-len(moments) // options.chain)
        for number in range(num_chains):
            out = folder / f"{options.fault}-{work.name}-{number}"
            remove(out)
            found, bad = chain(
                work, moments[number::num_chains], out, folder, work.digests(whole), order, options.fault
            )
            landings += found
            wrong += bad + [f"{work.name}: {landing.where}: {landing.wrong}" for landing in found if landing.wrong]
            if not bad:
                remove(out)
    report = summary(landings, [*wrong, *missing(landings)], options.seed, options.fault)
    (folder / f"report-{options.fault}.json").write_text(json.dumps(report, indent=1))
    print(json.dumps({key: value for key, value in report.items() if key != "moments"}, indent=1))
    return int(bool(report["wrong"]))


def missing(landings: Sequence[Landing]) -> list[str]:
    """Returns in words what was not shown: stages in which nothing happened, and too many moments that were missed."""
    landed = {(landing.moment.work, landing.moment.stage) for landing in landings if landing.landed}
    aimed = dict.fromkeys((landing.moment.work, landing.moment.stage) for landing in landings)
    found = [f"{work}: nothing happened in stage {stage}" for work, stage in aimed if (work, stage) not in landed]
    num_missed = sum(not landing.landed for landing in landings)
    if num_missed > max(MISSED_SHARE * len(landings), 1):
        found.append(f"only {len(landings) - num_missed} of {len(landings)} faults happened")
    return found or ["there were no moments"] * (not landings)


def summary(landings: Sequence[Landing], wrong: Sequence[str], seed: int, fault: str) -> dict[str, Any]:
    """Returns the report: how many landed where, how long the process took to end, and what is wrong."""
    there = [landing for landing in landings if landing.landed]
    return {
        "benchmark": "campaign",
        "fault": fault,
        "seed": seed,
        "landed": len(there),
        "missed": len(landings) - len(there),
        "by_stage": dict(Counter(landing.where.split(",")[0].split(" +")[0] for landing in there)),
        "at_changes": sum(bool(landing.moment.key) for landing in there),
        "longest_seconds_to_end": max((landing.seconds for landing in there), default=0.0),
        "wrong": list(wrong),
        "moments": [asdict(landing) for landing in landings],
    }


if __name__ == "__main__":
    sys.exit(main())
