"""Whether every file of a run is still what it was when it was finished; reads all of them, and changes nothing.

Of a stage that was begun and not finished, these are the files that its ledger knows. Checkpoints, bundles and notes of
attempts, of which no ledger knows, carry checksums of their own. Knows nothing else about what files hold.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from maskloom.errors import BadFile, UserError
from maskloom.files import TEMPORARY_PREFIX, checksum, read_json
from maskloom.integrity import Damaged, is_sealed, read_sealed
from maskloom.progress import Progress
from maskloom.run_directory import ATTEMPT, CHECKPOINT, RunDirectory, is_beside
from maskloom.run_lock import holder
from maskloom.storage.placeholders import at_hand

State = Literal["sound", "damaged", "missing", "unverified", "unfinished"]
STATES: tuple[State, ...] = ("sound", "damaged", "missing", "unverified", "unfinished")
"""What a file can be; "unverified": it is there, and was made by a version that wrote no checksums (or its checksum is
damaged); "unfinished": it is there, and gets its checksum when its stage (for the recipe: the run's ensemble) has come
so far."""
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
    unfinished: tuple[str, ...] = ()
    """The stages that were begun and are not finished: of them, only what is done already could be looked at."""

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
            "unfinished_stages": list(self.unfinished),
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
            remark = "; not finished, looked at as far as it is done" if stage in self.unfinished else ""
            lines.append(f"{stage:<{width}}  {_counted(self.counts(stage))}{remark}")
            lines += [f"  {state}: {name}" for name, state in files.items() if name in self.bad]
        lines.append(f"{self.run}: {_counted(self.counts())}")
        left_over = [name for name in self.bad if self._is_left_over(name)]
        if len(left_over) < len(self.bad):
            lines.append("start `fit` with this run again: it makes damaged and missing files anew")
        if left_over:
            lines.append(f"no stage needs these any more, delete them: {', '.join(left_over)}")
        if self.counts()["unverified"]:
            lines.append("unverified: made by a version that wrote no checksums; only that they are there is known")
        if self.counts()["unfinished"]:
            lines.append(
                "unfinished: gets its checksum with its stage (the recipe with the ensemble), once `fit` is there"
            )
        return "\n".join(lines)

    def _is_left_over(self, name: str) -> bool:
        """Returns whether only a stage that is finished by now would have read a file; then nothing makes it anew."""
        return is_beside(Path(name)) and not any(name in self.stages[stage] for stage in self.unfinished)


def _counted(counts: Mapping[State, int]) -> str:
    return ", ".join(f"{count:,} {state}" for state, count in counts.items() if count or state == "sound")


def verify_run(root: Path, progress: Progress) -> Verification:
    """Returns what is known about the files of a run's stages; see ``maskloom.api.verify``.

    A marker or a ledger that is damaged is listed with its stage's files.
    """
    run = RunDirectory(root)
    if not run.facts.is_file():
        raise UserError(f"{root}: expected a run folder, found no run.json in it; give the folder that `fit` made")
    progress.stage("verify", cached=False)
    if (worker := holder(root)) is not None:
        progress.note(f"{worker} works in it; what changes meanwhile may be called damaged")
    stages: dict[str, dict[str, State]] = {RUN: {_name(run, path): state for path, state in _of_run(run)}}
    there = _files_by_stage(run)
    finished = set(run.stages())
    names = sorted({*finished, *run.ledgers(), *there})
    for done, stage in enumerate(names, start=1):
        try:
            stages[stage] = {_name(run, path): state for path, state in _of_stage(run, stage, there.get(stage, ()))}
        except UserError:
            if run.marker(stage).is_file():
                raise  # else somebody makes the stage anew meanwhile
        progress.advance(done, len(names), stage)
    unfinished = tuple(stage for stage in names if stage in stages and stage not in finished)
    return Verification(run=str(root), stages=stages, unfinished=unfinished)


def _name(run: RunDirectory, path: Path) -> str:
    return path.relative_to(run.root).as_posix()


def _of_run(run: RunDirectory) -> Iterator[tuple[Path, State]]:
    """Yields the files that belong to no stage; those that come only with the ensemble where they are there."""
    for path in (run.facts, run.source, run.decided):
        if path.is_file():
            yield path, _sealed_state(path)
    if run.marker("survey").is_file():  # the first stage, which was made with them
        yield from ((path, "missing") for path in (run.source, run.recipe) if not path.is_file())
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


def _files_by_stage(run: RunDirectory) -> dict[str, list[Path]]:
    """Returns the files that lie where stages leave theirs, whatever is known about them."""
    found: dict[str, list[Path]] = {}
    for folder, _, names in os.walk(run.root):
        for name in names:
            path = Path(folder) / name
            stage = None if name.startswith(TEMPORARY_PREFIX) else run.stage_of(path)
            if stage is not None:
                found.setdefault(stage, []).append(path)
    return {stage: sorted(files) for stage, files in found.items()}


def _of_stage(run: RunDirectory, stage: str, there: Sequence[Path]) -> Iterator[tuple[Path, State]]:
    """Yields the files of a stage; of its marker and its ledger only one that is damaged.

    ``there`` are all that lie where the stage leaves its own: what no ledger knows is a file in the making, or one that
    carries a checksum of its own, or not the run's.
    """
    ledger = run.ledger(stage)
    files, has_checksums, is_finished = [run.root / name for name in ledger.names()], True, run.marker(stage).is_file()
    if is_finished:
        try:
            marker = run.read_marker(stage)
        except Damaged:
            yield run.marker(stage), "damaged"
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
    known = set(files)
    for file in (file for file in there if file not in known):
        own = _own(file)
        if own is not None and (is_beside(file) or not is_finished) and (found := _told_by(own, file)) is not None:
            yield file, found
        elif own is None and not is_finished and file.is_file():
            yield file, "unfinished"


def _own(file: Path) -> Callable[[Path], State] | None:
    """Returns what compares a file with the checksum that it carries itself; None for a kind that carries none."""
    if file.name == ATTEMPT:
        return _sealed_state
    if file.name == CHECKPOINT:
        return _checkpoint_state
    return _bundle_state if file.suffix == ".safetensors" else None


def _told_by(own: Callable[[Path], State], file: Path) -> State | None:
    """Returns the state of a file that carries its checksum; None for one that is gone meanwhile."""
    try:
        return own(at_hand(file))
    except (BadFile, OSError):
        return "damaged" if file.is_file() else None
    except UserError:
        if file.is_file():
            raise
        return None


def _checkpoint_state(path: Path) -> State:
    from maskloom.training.checkpoint import is_sealed_checkpoint  # here, as it takes torch with it

    return "sound" if is_sealed_checkpoint(path) else "unverified"


def _bundle_state(path: Path) -> State:
    from maskloom.models.bundle import is_sealed_bundle

    return "sound" if is_sealed_bundle(path) else "unverified"
