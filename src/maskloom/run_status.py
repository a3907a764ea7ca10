"""Where a run stands: its stages in order, which are finished, who is at the others, and when they are expected to end.

Everything is read from the run's folder: markers, what processes say of themselves, and the recipe as it lies there,
so that runs of other versions are read, too, and no network library is loaded. Changes nothing in the run.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from maskloom.config import load_yaml
from maskloom.data.fold_rows import read_rows
from maskloom.errors import UserError
from maskloom.files import read_json
from maskloom.heartbeat import MOST, read_beats, state_of
from maskloom.outputs.status_rows import RunStatus, StageState, StageStatus, Worker
from maskloom.run_directory import RunDirectory
from maskloom.run_lock import holder
from maskloom.training.tracking import read_log

REPEATED = ("report",)
"""Stages that every ``fit`` does anew."""
_UNREADABLE = (UserError, OSError, ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError)


def planned_stages(recipe: Mapping[str, Any], *, unlabelled: bool, submission: bool) -> list[str]:
    """Returns the stages that ``fit`` runs for a recipe (as plain values), in their order.

    ``unlabelled`` says whether the data has images without truth, ``submission`` whether its contest has a table. Where
    only the fold table will tell how many folds there are, ``train/<member>/fold*`` stands for all of them.
    """
    members = recipe["members"]
    names = ["register"] if recipe.get("registration") else []
    names += ["survey", *(["align"] if recipe.get("alignment") else []), "folds"]
    names += [*(f"folds/{member['name']}" for member in members if member.get("folds"))]
    names += [f"oof/{outside['name']}" for outside in recipe.get("outside", ())]
    for member in members:
        for number, settings in enumerate(recipe.get("pseudo", ())):
            if member["name"] in settings["members"]:
                names += [f"pseudo/{number}"] if f"pseudo/{number}" not in names else []
                break
        folds = _stated_folds(member.get("folds") or recipe["folds"])
        names += [f"train/{member['name']}/fold{fold}" for fold in folds]
        names.append(f"oof/{member['name']}")
    names.append("ensemble")
    names += ["postprocess"] if recipe.get("postprocess", {}).get("steps") else []
    if unlabelled:
        names += ["predict"] + ["submit"] * bool(submission and recipe["delivery"]["submission"])
    return [*names, "report"]


def _stated_folds(settings: Mapping[str, Any]) -> Sequence[int | str]:
    if settings["kind"] in ("kfold", "blocks") and not settings.get("table"):
        return range(settings["count"])
    return [0] if settings["kind"] in ("holdout", "given") else ["*"]


def read_status(run: RunDirectory, *, now: float | None = None) -> RunStatus:
    """Returns where the run stands at ``now`` (seconds since 1970; None: now)."""
    at = time.time() if now is None else now
    beats, problems = read_beats(run.root)
    workers = tuple(Worker(beat=beat, state=state_of(beat, at)) for beat in beats)
    fits = [worker for worker in workers if worker.beat.command == "fit"]
    planned = _names(run, fits, problems)
    took = _took(run, planned, problems)
    names = list(_with_folds(run, planned, took))
    took |= _took(run, [name for name in names if name not in planned], problems)
    working = sum(worker.state == "working" for worker in fits)
    stages = _expected(run, _stages(names, took, fits), at)
    if working == 1:
        stages = list(_dated(stages, at))
    unfinished = [stage for stage in stages if stage.state != "finished"]
    held_by = None if working else holder(run.root)
    if held_by is not None:
        problems.append(f"{held_by} works on it, and has not said where it is")
    is_running = working > 0 or held_by is not None
    is_finished = bool(stages) and not unfinished and not is_running and run.decided.is_file()
    return RunStatus(
        name=run.root.resolve().name,
        at=at,
        state="running" if is_running else "finished" if is_finished else "stopped",
        stages=tuple(stages),
        workers=workers,
        finished=run.marker(names[-1]).stat().st_mtime if is_finished else None,
        left=_left(unfinished, _num_learning(fits)),
        unknown=tuple(stage.name for stage in unfinished if stage.left is None),
        problems=tuple(problems),
    )


# Stages --------------------------------------------------------------------------------------------------------------


def _names(run: RunDirectory, fits: Sequence[Worker], problems: list[str]) -> list[str]:
    """Returns the stages as the latest ``fit`` announced them, else as the recipe says, else those finished."""
    announced = [worker for worker in fits if worker.beat.stages]
    if announced:
        latest = max(announced, key=lambda worker: (worker.state == "working", worker.beat.began))
        return list(dict.fromkeys(latest.beat.stages))
    try:
        recipe, source = load_yaml(run.recipe), read_json(run.source)
        stages = planned_stages(
            recipe, unlabelled=bool(source["unlabelled"]), submission=bool(source.get("submission"))
        )
        return list(dict.fromkeys(stages))
    except _UNREADABLE as error:
        if run.recipe.exists():
            problems.append(f"recipe.yaml or data/source.json cannot be read: {error}")
        problems.append("no recipe tells which stages follow: only finished ones are shown")
    folder = run.root / "stages"
    found = sorted(folder.rglob("*.json"), key=lambda path: (path.stat().st_mtime, path))
    return [path.relative_to(folder).with_suffix("").as_posix() for path in found]


def _with_folds(run: RunDirectory, names: Sequence[str], took: Mapping[str, float]) -> Iterator[str]:
    """Yields the names with ``fold*`` replaced by the folds of the table, once there is one."""
    for name in names:
        stem, _, last = name.rpartition("/")
        member = stem.removeprefix("train/")
        own = f"folds/{member}"
        if last != "fold*" or (own if own in names else "folds") not in took:
            yield name
        else:
            table = run.member_folds(member) if own in names else run.folds
            yield from (f"{stem}/fold{fold}" for fold in range(_num_folds(table)))


def _num_folds(table: Path) -> int:
    try:
        return 1 + max(int(row["fold"]) for _, row in read_rows(table, "fold table", ("fold",)))
    except _UNREADABLE:
        return 0


def _took(run: RunDirectory, names: Iterable[str], problems: list[str]) -> dict[str, float]:
    """Returns the seconds of those of the stages that are finished."""
    seconds = {name: _seconds(run, name, problems) for name in names}
    return {name: value for name, value in seconds.items() if value is not None}


def _seconds(run: RunDirectory, name: str, problems: list[str]) -> float | None:
    """Returns what a finished stage took; None for one whose marker, or a file that it names, is not there."""
    if any(part in ("", ".", "..") for part in name.split("/")) or not name.isprintable():
        return None
    marker = run.marker(name)
    try:
        if not marker.is_file():
            return None
        values = read_json(marker)
        seconds, files = float(values["seconds"]), values["files"]
        gone = next((file for file in files if not (run.root / file).exists()), None)
    except _UNREADABLE as error:
        problems.append(f"stage {name}: its marker cannot be read ({error}); fit does the stage again")
        return None
    if gone is not None:
        problems.append(f"stage {name}: {gone} is gone; fit does the stage again")
        return None
    return seconds if 0 <= seconds < MOST else 0.0


def _stages(names: Sequence[str], took: Mapping[str, float], fits: Sequence[Worker]) -> list[StageStatus]:
    """Returns the stages with their states, and who is at them."""
    working = [worker.beat for worker in fits if worker.state == "working"]
    reached = max((names.index(beat.stage) for beat in working if beat.stage in names), default=-1)
    found = []
    for number, name in enumerate(names):
        there = tuple(worker for worker in fits if worker.beat.stage == name and not worker.beat.cached)
        at_work = tuple(worker for worker in there if worker.state == "working")
        is_ahead = bool(working) and number > reached
        state: StageState = "waiting"
        if name in took and not (is_ahead and name in REPEATED):
            state, there = "finished", ()
        elif there:
            state = "running" if at_work else "stopped"
        found.append(
            StageStatus(
                name=name,
                state=state,
                seconds=took[name] if state == "finished" else None,
                workers=at_work or there,
                is_earlier=is_ahead and state == "finished",
            )
        )
    return found


# Expectations --------------------------------------------------------------------------------------------------------


def _expected(run: RunDirectory, stages: Sequence[StageStatus], at: float) -> list[StageStatus]:
    """Returns the stages with the time that unfinished ones are expected to take: trainings, from other folds."""
    whole: dict[str, list[float]] = {}
    for stage in stages:
        whole.setdefault(_kind(stage.name), []).extend(_whole(run, stage))
    found = []
    for stage in stages:
        left, alike = _stated(stage, at), whole[_kind(stage.name)]
        if left is None and alike and not stage.name.endswith("*"):
            spent = min((max(at - worker.beat.stage_began, 0.0) for worker in stage.workers), default=0.0)
            left = max(fmean(alike) - (spent if stage.state == "running" else 0.0), 0.0)
        found.append(replace(stage, left=None if stage.state == "finished" else left))
    return found


def _dated(stages: Sequence[StageStatus], at: float) -> Iterator[StageStatus]:
    """Yields the stages with their ends where one process does one after the other, as far as each is known."""
    ends: float | None = at
    for stage in stages:
        if stage.state != "finished":
            ends = None if ends is None or stage.left is None else ends + stage.left
            stage = replace(stage, ends=ends)
        yield stage


def _kind(name: str) -> str:
    """Returns what stages that take equally long have in common: the folds of a training; other stages are alone."""
    return name.rpartition("/")[0] if name.startswith("train/") else name


def _stated(stage: StageStatus, at: float) -> float | None:
    """Returns the seconds that its processes say are left; of one that is gone, those when it went."""
    left = [
        max((min(worker.beat.moved, at) if worker.state == "working" else at) + worker.beat.seconds_left - at, 0.0)
        for worker in stage.workers
        if worker.beat.seconds_left is not None
    ]
    return max(left, default=None)


def _whole(run: RunDirectory, stage: StageStatus) -> Iterable[float]:
    """Returns what the whole training of one fold takes, as far as it tells; sessions that were stopped included."""
    if not stage.name.startswith("train/"):
        return []
    if stage.seconds is not None:
        return [max(stage.seconds, _logged(run, stage.name))]
    found = []
    for beat in (worker.beat for worker in stage.workers):
        if beat.seconds_left is not None and beat.total > beat.first:
            here = max(beat.moved - beat.stage_began, 0.0) + beat.seconds_left
            found.append(here * beat.total / (beat.total - beat.first))
    return found


def _logged(run: RunDirectory, name: str) -> float:
    """Returns the seconds of a training in all its sessions, as its log says; 0 where it says nothing."""
    folder = run.root / "members" / name.removeprefix("train/")
    return sum(_last_seconds(place / "log.jsonl") for place in (folder / "pretraining", folder))


def _last_seconds(log: Path) -> float:
    try:
        seconds = float(read_log(log)[-1]["seconds"])
    except _UNREADABLE:
        return 0.0
    return seconds if 0 <= seconds < MOST else 0.0


def _num_learning(fits: Sequence[Worker]) -> int:
    """Returns how many processes share what waits: the workers, where there are any beside who hands tasks out."""
    working = [worker.beat for worker in fits if worker.state == "working"]
    return max(sum(bool(beat.shard) for beat in working) or len(working), 1)


def _left(unfinished: Sequence[StageStatus], num_processes: int) -> float | None:
    """Returns the seconds to the end of the stages of which something is known: what waits is shared by processes."""
    known = [stage for stage in unfinished if stage.left is not None]
    if not known:
        return None
    now = max((stage.left or 0.0 for stage in known if stage.state == "running"), default=0.0)
    return now + sum(stage.left or 0.0 for stage in known if stage.state != "running") / num_processes
