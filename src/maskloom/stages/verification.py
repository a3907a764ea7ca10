"""Whether every file of a run is still what it was when it was finished; reads all of them, and changes nothing.

Knows nothing about what the files hold.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from maskloom.errors import UserError
from maskloom.files import checksum, read_json
from maskloom.integrity import Damaged, is_sealed, read_sealed
from maskloom.progress import Progress
from maskloom.run_directory import RunDirectory
from maskloom.run_lock import holder

State = Literal["sound", "damaged", "missing", "unverified", "unfinished"]
STATES: tuple[State, ...] = ("sound", "damaged", "missing", "unverified", "unfinished")
"""What a file can be; "unverified": it is there, and was made by a version that wrote no checksums (or its checksum is
damaged); "unfinished": it is there, and gets its checksum when the run's ensemble is decided."""
RUN = "run"
"""The name under which the files are listed that belong to no stage."""

_THREADS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Verification:
    """What is known about every file of a run."""

    run: str
    """Its folder."""
    stages: Mapping[str, Mapping[str, State]]
    """By stage (``RUN`` for what belongs to none): the files, by their paths inside the run, and what they are."""

    @property
    def is_sound(self) -> bool:
        """Whether no file is damaged or missing."""
        return not self.bad

    @property
    def bad(self) -> dict[str, State]:
        """Files that are damaged or missing."""
        found = (file for files in self.stages.values() for file in files.items())
        return {name: state for name, state in found if state in ("damaged", "missing")}

    def counts(self, stage: str | None = None) -> dict[State, int]:
        """Returns how many files are what, of a stage or of all."""
        stages = self.stages.values() if stage is None else [self.stages[stage]]
        found = Counter(state for files in stages for state in files.values())
        return {state: found[state] for state in STATES}

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON values: counts by stage, and every file that is not sound by name."""
        return {
            "run": self.run,
            "sound": self.is_sound,
            "files": self.counts(),
            "stages": {stage: self.counts(stage) for stage in self.stages},
            **{
                state: [name for files in self.stages.values() for name, each in files.items() if each == state]
                for state in STATES[1:]
            },
        }

    def table(self) -> str:
        """Returns the result as lines for a terminal: counts by stage, and each damaged or missing file by name."""
        width = max(map(len, self.stages), default=0)
        lines = []
        for stage, files in self.stages.items():
            lines.append(f"{stage:<{width}}  {_counted(self.counts(stage))}")
            lines += [f"  {state}: {name}" for name, state in files.items() if name in self.bad]
        lines.append(f"{self.run}: {_counted(self.counts())}")
        if not self.is_sound:
            lines.append("start `fit` with this run again: it makes damaged and missing files anew")
        if self.counts()["unverified"]:
            lines.append("unverified: made by a version that wrote no checksums; only that they are there is known")
        if self.counts()["unfinished"]:
            lines.append("unfinished: gets its checksum with the ensemble, once `fit` has come so far")
        return "\n".join(lines)


def _counted(counts: Mapping[State, int]) -> str:
    return ", ".join(f"{count:,} {state}" for state, count in counts.items() if count or state == "sound")


def verify_run(root: Path, progress: Progress) -> Verification:
    """Returns what is known about the files of a run's finished stages; see ``maskloom.api.verify``.

    A marker or a ledger that is damaged is listed with its stage's files.
    """
    run = RunDirectory(root)
    if not run.facts.is_file():
        raise UserError(f"{root}: expected a run folder, found no run.json in it; give the folder that `fit` made")
    progress.stage("verify", cached=False)
    if (worker := holder(root)) is not None:
        progress.note(f"{worker} works in it; what changes meanwhile may be called damaged")
    stages: dict[str, dict[str, State]] = {RUN: {_name(run, path): state for path, state in _of_run(run)}}
    names = run.stages()
    for done, stage in enumerate(names, start=1):
        try:
            stages[stage] = {_name(run, path): state for path, state in _of_stage(run, stage)}
        except UserError:
            if run.marker(stage).is_file():
                raise  # else somebody makes the stage anew meanwhile
        progress.advance(done, len(names), stage)
    return Verification(run=str(root), stages=stages)


def _name(run: RunDirectory, path: Path) -> str:
    return path.relative_to(run.root).as_posix()


def _of_run(run: RunDirectory) -> Iterator[tuple[Path, State]]:
    """Yields the files that belong to no stage; those that come only with the ensemble where they are there."""
    for path in (run.facts, run.source, run.decided):
        if path.is_file() or path == run.facts:
            yield path, _sealed_state(path)
    if not run.recipe.is_file():
        return
    decided: dict[str, Any] = {}
    if run.decided.is_file() and _sealed_state(run.decided) == "sound":
        decided = read_sealed(run.decided)
    if "recipe" not in decided:
        yield run.recipe, "unverified" if run.decided.is_file() else "unfinished"
    else:
        yield run.recipe, "sound" if checksum(run.recipe) == decided["recipe"] else "damaged"


def _sealed_state(path: Path) -> State:
    try:
        read_sealed(path)
    except Damaged:
        return "damaged"
    return "sound" if is_sealed(read_json(path)) else "unverified"


def _of_stage(run: RunDirectory, stage: str) -> Iterator[tuple[Path, State]]:
    """Yields the files of a stage; of its marker and its ledger only one that is damaged."""
    ledger = run.ledger(stage)
    try:
        marker = run.read_marker(stage)
    except Damaged:
        yield run.marker(stage), "damaged"
        files, has_checksums = [run.root / name for name in ledger.names()], True
    else:
        files, has_checksums = [run.root / name for name in marker["files"]], "outcome" in marker
    if has_checksums and not all(file in ledger for file in files):
        yield run.sums(stage), "damaged" if run.sums(stage).is_file() else "missing"

    def state(file: Path) -> State:
        if not file.is_file():
            return "missing"
        if file not in ledger:
            return "unverified"
        return "sound" if ledger[file].holds(file) else "damaged"

    with ThreadPoolExecutor(_THREADS) as pool:
        yield from zip(files, pool.map(state, files), strict=True)
