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
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from common import differences, digests, left_behind, studio_with_test

HERE = Path(__file__).parent
FAULTS = ("kill", "term", "full", "torn", "readonly", "clock")
TERM_SECONDS = 30.0
"""Schedulers kill what has not ended so long after SIGTERM."""
STUCK_SECONDS = 600.0
NEGATIVE = re.compile(r"(^|[\s(])-\d")
"""A time below 0 in words."""
TRIES = 4
"""Times that a time is aimed at, all but the first from the beginning and half as late each; a change is twice."""
RESULTS = ("members/**/*.safetensors", "oof/**/*", "pseudo/**/*", "ensemble/*", "predictions/**/*", "folds.csv",
           "submission*", "data/survey.json")  # fmt: skip
"""Patterns of what a training leaves that must be the same."""
SCENES = ((200, 290), (250, 180))
"""Heights and widths of rasters, at most 320."""
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
class Work:
    """A command that can be taken up again: what it is, where it writes, and which of that must be the same."""

    name: str
    command: Callable[[Path], list[str]]
    """Arguments of the command line that write into a folder."""
    results: tuple[str, ...]
    """Patterns of files."""
    stage_of: Callable[[str], str]
    """The stage to which a changed file belongs, by its name within the folder."""
    spec: dict[str, Any] = field(default_factory=dict)
    run: Path | None = None
    """The run whose status tells of it; None: the folder itself."""

    def digests(self, out: Path) -> dict[str, str]:
        """Returns the checksums of what must be identical."""
        return digests(out, self.results)


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


# Works ---------------------------------------------------------------------------------------------------------------


def recipe_file(folder: Path, data: Path) -> Path:
    """Returns a recipe with every kind of stage, as small as it can be."""
    import yaml

    from maskloom.registry import plan

    settings = ["scale=smoke", "members.0.network.weights=none", "folds.count=2"]
    complete, _ = plan("default", data, settings=settings, device="cpu")
    values = complete.model_dump(mode="json")
    (member,) = values["members"]
    member["training"] |= {
        "epochs": 3, "images_per_epoch": 24, "batch_size": 4, "ema_decay": 0.9, "hard_negative_every": 3,
        "accumulation": 2, "checkpoint_seconds": 0.5, "validate_every": 1, "validate_from": 0.0, "progressive": 0.5,
        "soup": None,
    }  # fmt: skip
    member["network"] = {"architecture": "unet_scratch", "weights": "none", "width": 0.125}
    member["input"] |= {"size": [64, 128], "multiple": 64}
    pupil = member | {"name": "pupil", "training": member["training"] | {"epochs": 2, "hard_negative_every": None}}
    values |= {
        "name": "campaign",
        "scale": "full",
        "members": [member, pupil],
        "pseudo": [{"members": ["pupil"], "minimum_confidence": 0.0}],
        "postprocess": {"steps": [{"kind": "holes"}], "draws": 100},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def stage_of_run(name: str) -> str:
    """Returns the stage to which a file of a run belongs; "" for files of the run as a whole."""
    from maskloom.run_directory import RunDirectory

    if name.startswith("stages/"):
        return name.removeprefix("stages/").rpartition("/.partial")[0] or Path(name[7:]).with_suffix("").as_posix()
    root = Path("/run")
    return RunDirectory(root).stage_of(root / name) or ""


def works(folder: Path) -> list[Work]:
    """Returns what is disturbed; their data are written into the folder, a finished run of the first is in ``run``."""
    data = studio_with_test(folder / "data", size=(96, 144))
    recipe = recipe_file(folder, data)
    write_scenes(folder / "scenes")
    run, device = folder / "run", ["--device", "cpu"]
    fitted = Work(
        name="fit",
        command=lambda out: ["fit", str(recipe), "--data", str(data), "--run", str(out), *device, "--workers", "2"],
        results=RESULTS,
        stage_of=stage_of_run,
    )
    photos, scenes = data / "train", folder / "scenes"
    return [
        fitted,
        prediction("png", run, photos),
        prediction("rle", run, photos, chunk=4),
        prediction("coco", run, photos, chunk=4),
        prediction("geotiff", run, scenes, "--probabilities", "--uncertainty", side=96),
        prediction("geojson", run, scenes, side=96),
    ]


def prediction(to: str, run: Path | str, source: Path | str, *more: str, **spec: Any) -> Work:
    """Returns a prediction by a run's networks, with further options and what the spec is to say."""
    return Work(
        name=to,
        command=lambda out: [
            "predict", str(run), str(source), "--out", str(out), "--to", to, *more, "--device", "cpu"
        ],
        results=("[!.]*", "[!.]*/**/*"),
        stage_of=lambda name: f"predict {to}",
        spec=spec,
        run=run if isinstance(run, Path) else None,
    )  # fmt: skip


def write_scenes(folder: Path, sizes: Sequence[tuple[int, int]] = SCENES) -> None:
    """Writes small rasters of these heights and widths with a place on the ground."""
    import numpy as np

    from maskloom.rasters.georeference import Georeference
    from maskloom.rasters.writing import write_geotiff

    folder.mkdir(parents=True, exist_ok=True)
    place = Georeference("EPSG:32633", (2.0, 0.0, 500_000.0, 0.0, -2.0, 100_000.0))
    for number, size in enumerate(sizes):
        coarse = np.random.default_rng(number).integers(1, 256, (3, 20, 20))
        pixels = np.kron(coarse, np.ones((1, 16, 16)))[:, : size[0], : size[1]].astype(np.uint8)
        write_geotiff(folder / f"scene{number}.tif", pixels, place, nodata=0)


# One process ---------------------------------------------------------------------------------------------------------


class Process:
    """The command line with what is to happen to it, and the stages that it says."""

    def __init__(self, work: Work, out: Path, folder: Path, spec: dict[str, Any]) -> None:
        self.log = folder / "events.jsonl"
        self.log.unlink(missing_ok=True)
        (folder / "spec.json").write_text(json.dumps({"root": str(out), "log": str(self.log), **work.spec, **spec}))
        arguments = [sys.executable, str(HERE / "faulty.py"), str(folder / "spec.json"), *work.command(out)]
        self.began = time.time()
        self.process = subprocess.Popen(arguments, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        self.said: list[tuple[float, str]] = []
        self.changed = threading.Event()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said.append((time.time() - self.began, line.rstrip()))
            self.changed.set()
        self.changed.set()

    def stages(self) -> list[tuple[float, str]]:
        """Returns the stages that were begun, and when."""
        return [(at, line.split()[1]) for at, line in list(self.said) if line.startswith("> ")]

    def reached(self, stage: str) -> bool:
        """Waits until the stage begins, or is found finished; returns whether it did before the process ended."""
        deadline = time.monotonic() + STUCK_SECONDS
        while time.monotonic() < deadline:
            self.changed.clear()
            if any(line[:2] in ("> ", "= ") and line.split()[1] == stage for _, line in list(self.said)):
                return True
            if not self._reader.is_alive():
                return False
            self.changed.wait(1.0)
        return False

    def end(self) -> int:
        """Returns the exit code."""
        try:
            return self.process.wait(STUCK_SECONDS)
        finally:
            self.process.kill()
            self._reader.join()

    def error(self) -> str:
        """Returns the lines of errors and tracebacks."""
        lines = [line for _, line in self.said]
        first = next(
            (place for place, line in enumerate(lines) if line.startswith(("error: ", "Traceback"))), len(lines)
        )
        return "\n".join(lines[first:])

    def events(self) -> list[dict[str, Any]]:
        """Returns what the log says."""
        return [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []


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


def compared(work: Work, out: Path, whole: dict[str, str]) -> list[str]:
    """Returns what is wrong with a finished work."""
    wrong = [f"{work.name}: {line}" for line in differences(whole, work.digests(out))]
    wrong += [f"{work.name}: left behind {name}" for name in left_behind(out)]
    if work.name == "fit":
        from maskloom.api import verify

        wrong += [f"fit: {name} is {state}" for name, state in verify(out).bad.items()]
    return wrong


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


def remove(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)


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
