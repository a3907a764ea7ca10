"""A run on disk: where every artefact lies, and which stages are finished.

Layout: ``recipe.yaml``, ``run.json``, ``data/`` (source and survey), ``folds.csv``, ``members/<member>/fold<k>/``
(checkpoint, bundles, log; ``folds.csv`` beside them where a member has its own), ``oof/<member>/`` (maps and scores),
``ensemble/``, ``predictions/``, ``submission.csv.gz``, ``report.html``, and ``stages/`` with one marker per finished
stage and one ledger of the checksums of its files.

A stage is finished when its marker carries the fingerprint of what it came from and the files it names are there, as
they were. The marker is written last, so a stage killed at any moment counts as not done. Paths inside a run are
relative: a run can be moved. Where a run is at a URL, what is finished is published. Knows nothing about what stages
compute.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maskloom.errors import UserError
from maskloom.files import TEMPORARY_PREFIX, checksum
from maskloom.files import fingerprint as fingerprint_of
from maskloom.integrity import Damaged, Ledger, is_inside, read_sealed, write_sealed
from maskloom.storage.placeholders import at_hand
from maskloom.storage.publishing import publish

FORMAT = 1
"""Version of the layout; a run written by a later one is refused."""
ATTEMPT, CHECKPOINT = "attempt.json", "checkpoint.safetensors"
"""Names of files by which a stage that was interrupted goes on."""
TELLING = ("log.jsonl", "left_out.json")
"""Names of files that tell how it went, which may be told otherwise another time; nothing is computed from them."""


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """The paths of one run."""

    root: Path

    @classmethod
    def existing(cls, root: Path) -> RunDirectory:
        """Returns the run at ``root``; raises ``UserError`` unless there is one that this version can read."""
        if not (root / "run.json").is_file():
            raise UserError(f"{root}: expected a run folder, found no run.json in it; give the folder that `fit` made")
        version = read_sealed(root / "run.json").get("format")
        if version != FORMAT:
            raise UserError(f"{root}: expected run format {FORMAT}, found {version!r}; use the maskloom that made it")
        return cls(root)

    @property
    def recipe(self) -> Path:
        """The resolved recipe."""
        return self.root / "recipe.yaml"

    @property
    def facts(self) -> Path:
        """Facts about the run: format, version, data folder, hardware."""
        return self.root / "run.json"

    @property
    def source(self) -> Path:
        """The opened data source, paths relative to the data folder."""
        return self.root / "data" / "source.json"

    @property
    def survey(self) -> Path:
        """What was found in the data."""
        return self.root / "data" / "survey.json"

    @property
    def folds(self) -> Path:
        """The fold table, which a user may copy, edit and hand back."""
        return self.root / "folds.csv"

    def member_folds(self, member: str) -> Path:
        """The fold table of a member that has its own."""
        return self.root / "members" / member / "folds.csv"

    @property
    def near_duplicates(self) -> Path:
        """Pairs of records that look alike."""
        return self.root / "data" / "near_duplicates.json"

    def fold(self, member: str, fold: int) -> Path:
        """The training folder of one member's fold."""
        return self.root / "members" / member / f"fold{fold}"

    def bundle(self, member: str, fold: int, which: str) -> Path:
        """The bundle kept by training: ``which`` is "best" or "last"."""
        return self.fold(member, fold) / f"{which}.safetensors"

    def oof(self, member: str) -> Path:
        """Out-of-fold maps and scores of one member."""
        return self.root / "oof" / member

    def oof_map(self, member: str, record_id: str) -> Path:
        """The stored out-of-fold probability map of one record."""
        return self.oof(member) / "maps" / f"{record_id}.map"

    @property
    def ensemble(self) -> Path:
        """Weights, thresholds and scores of the ensemble."""
        return self.root / "ensemble" / "ensemble.json"

    @property
    def decided(self) -> Path:
        """Says what the recipe, the networks and the decisions came from; there only while they belong together."""
        return self.root / "ensemble" / "decided.json"

    def decision(self) -> str:
        """Returns the fingerprint of all that predictions come from; raises ``UserError`` for an unfinished run."""
        if not self.decided.is_file():
            raise UserError(f"{self.root}: expected a finished run, found one without an ensemble; start `fit` again")
        decided = read_sealed(self.decided)
        if "recipe" in decided and not (self.recipe.is_file() and checksum(self.recipe) == decided["recipe"]):
            raise Damaged(self.recipe, "is not the recipe that the run was decided with")
        mark: str = decided["fingerprint"]
        return mark

    def expect_decision(self, decision: str) -> None:
        """Raises ``UserError`` where the run is no longer what it was when it had this fingerprint."""
        try:
            now = self.decision()
        except UserError:  # ``fit`` is at it
            now = ""
        if now != decision:
            raise UserError(
                f"{self.root}: expected the run as it was when this prediction began, found that `fit` has changed it "
                "meanwhile; once that has ended, predict again, into a new folder"
            )

    def decide(self, fingerprint: str) -> None:
        """Says that the recipe, the networks and the decisions belong together."""
        write_sealed(self.decided, {"fingerprint": fingerprint, "recipe": checksum(self.recipe)})
        publish(self.root)

    @property
    def predictions(self) -> Path:
        """Predictions of the data's unlabelled images."""
        return self.root / "predictions"

    @property
    def left_out(self) -> Path:
        """The images without truth that could not be predicted, and why; absent where there are none."""
        return self.predictions / "left_out.json"

    @property
    def report(self) -> Path:
        """The report page."""
        return self.root / "report.html"

    def marker(self, stage: str) -> Path:
        """The marker of a stage; it exists once the stage is finished."""
        return self.root / "stages" / f"{stage}.json"

    def sums(self, stage: str) -> Path:
        """The ledger of a stage's files; it exists once the first of them is finished."""
        return self.root / "stages" / f"{stage}.sums"

    def ledger(self, stage: str) -> Ledger:
        """Returns the ledger of a stage's files as it is now; empty for a stage that an earlier version made."""
        return Ledger(self.root, self.sums(stage))

    def stages(self) -> list[str]:
        """Returns the names of the stages that have a marker."""
        return self._named(".json")

    def ledgers(self) -> list[str]:
        """Returns the names of the stages that have a ledger: those that are finished, and those that were begun."""
        return self._named(".sums")

    def _named(self, suffix: str) -> list[str]:
        """Returns the names of the stages that have such a file; not those of files that are half written."""
        folder = self.root / "stages"
        files = (path for path in folder.rglob(f"*{suffix}") if not path.name.startswith(TEMPORARY_PREFIX))
        return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in files)

    def stage_of(self, path: Path) -> str | None:
        """Returns the stage that leaves a file; None for one that belongs to the run as a whole, or not to it."""
        parts = path.relative_to(self.root).parts if path.is_relative_to(self.root) else ()
        match parts:
            case ("folds.csv",) | ("blocks", *_):
                return "folds"
            case ("data", "registration", *_):
                return "register"
            case ("data", "alignment", *_):
                return "align"
            case ("data", "survey.json" | "near_duplicates.json"):
                return "survey"
            case ("members", member, "folds.csv"):
                return f"folds/{member}"
            case ("members", member, fold, *_):
                return f"train/{member}/{fold}"
            case ("oof" | "pseudo" as kind, name, _, *_):
                return f"{kind}/{name}"
            case ("ensemble", name) if path != self.decided:
                return "postprocess" if name.startswith("postprocess") else "ensemble"
            case ("predictions", "colours", *_):
                return "submit"
            case ("predictions", _, *_):
                return "predict"
            case (name,) if name.startswith("submission."):
                return "submit"
            case ("report.html",):
                return "report"
        return None

    def read_marker(self, stage: str) -> dict[str, Any]:
        """Returns what the stage's marker says; raises ``Damaged`` for one that is not what was written."""
        marker = read_sealed(self.marker(stage))
        files = marker.get("files")
        if not isinstance(files, list) or not all(map(is_inside, files)) or "fingerprint" not in marker:
            raise Damaged(self.marker(stage), "is damaged (it names no files, or files elsewhere)")
        return marker

    def finished(self, stage: str) -> dict[str, Any] | None:
        """Returns what the stage's marker says, or None when the stage is not finished or a file of it is gone."""
        if not self.marker(stage).is_file():
            return None
        try:
            marker = self.read_marker(stage)
        except Damaged:
            return None
        complete = all((self.root / name).exists() for name in marker["files"])
        return marker if complete else None

    def finish(self, stage: str, fingerprint: str, files: Sequence[Path], seconds: float) -> str:
        """Marks a stage as finished; ``files`` must exist, as they are, for it to count as such later.

        Returns the stage's outcome: a fingerprint of what it came from and of the content of its files, but for those
        that only tell how it went. What comes later depends on it.
        """
        ledger = self.ledger(stage)
        ledger.seal(files)
        ledger.write()
        names = sorted(path.relative_to(self.root).as_posix() for path in files)
        outcome = self._outcome(fingerprint, names, ledger)
        marker = {"stage": stage, "fingerprint": fingerprint, "files": names, "seconds": round(seconds, 3)}
        write_sealed(self.marker(stage), marker | {"outcome": outcome})
        publish(self.root)
        return outcome

    def _outcome(self, fingerprint: str, names: Iterable[str], ledger: Ledger) -> str:
        computed = [name for name in names if Path(name).name not in TELLING]
        return fingerprint_of(fingerprint, [(name, ledger[self.root / name].sha256) for name in computed])

    def damaged(self, stage: str, *, thorough: bool = False) -> list[Path]:
        """Returns the files that are there but no longer what the stage left, its marker among them.

        What has size and time of change of then passes, unless ``thorough`` asks to read it. Files of a stage that an
        earlier version made, without checksums, pass all.
        """
        ledger, found = self.ledger(stage), []
        names, marker = ledger.names(), None
        if self.marker(stage).is_file():
            try:
                marker = self.read_marker(stage)
            except Damaged:
                found.append(self.marker(stage))
        if marker is not None:
            names = marker["files"] if "outcome" in marker else []
        files = [self.root / name for name in names] if thorough else ledger.not_known(names)
        there = [file for file in files if file.exists()]
        sound = ledger.are_sound(there, thorough=thorough)
        return found + [file for file, is_sound in zip(there, sound, strict=True) if not is_sound]

    def mend_ledger(self, stage: str) -> bool:
        """Writes the ledger of a finished stage anew where it is damaged and the files are what the stage left.

        Returns whether it was so; the marker tells the files' checksum all together.
        """
        if (marker := self.finished(stage)) is None or "outcome" not in marker:
            return False
        ledger, files = self.ledger(stage), [self.root / name for name in marker["files"]]
        if all(file in ledger for file in files):
            return False
        ledger.seal(files)
        if self._outcome(marker["fingerprint"], marker["files"], ledger) != marker["outcome"]:
            return False
        ledger.write()
        return True

    def accept(self, stage: str, file: Path, fingerprint: str | None = None) -> bool:
        """Takes a changed file of a finished stage as it is now; returns whether it was changed.

        Not where a ``fingerprint`` is stated and the stage came from something else: it will be run anew. Raises
        ``UserError`` where another file of the stage is damaged: to mend that one would undo the change.
        """
        marker, ledger = self.finished(stage), self.ledger(stage)
        if marker is None or "outcome" not in marker or ledger.is_sound(file):
            return False
        if fingerprint not in (None, marker["fingerprint"]):
            return False
        others = [other for other in self.damaged(stage) if other != file]
        if others:
            raise UserError(
                f"{file}: expected only this file to be changed, found {others[0]} damaged, too; move the table out of "
                "the run, state it with --set folds.table=FILE and start again"
            )
        ledger.add(file)
        self.finish(stage, marker["fingerprint"], [self.root / name for name in marker["files"]], marker["seconds"])
        return True

    def checked(self, path: Path) -> Path:
        """Returns the path of a file that is about to be read; see ``check``."""
        self.check([path])
        return path

    def check(self, paths: Iterable[Path]) -> None:
        """Raises ``Damaged`` for the first file whose bytes are not those that its stage left; reads all of them.

        Files of a stage that an earlier version made, without checksums, pass. Of a run at a URL all are then there.
        """
        by_stage: dict[str, list[Path]] = {}
        for path in paths:
            if (stage := self.stage_of(path)) is not None:
                by_stage.setdefault(stage, []).append(path)
            else:
                at_hand(path)
        for stage, files in by_stage.items():
            ledger = self.ledger(stage)
            known, others = [file for file in files if file in ledger], [file for file in files if file not in ledger]
            if not all(map(is_beside, others)) and self._has_checksums(stage):
                raise Damaged(self.sums(stage), "is damaged (it lacks checksums)")
            for file in others:
                at_hand(file)
            for file, is_sound in zip(known, ledger.are_sound(known, thorough=True), strict=True):
                if not is_sound:
                    raise Damaged(file, "is damaged (its checksum differs)" if file.exists() else "is gone")

    def _has_checksums(self, stage: str) -> bool:
        return self.marker(stage).is_file() and "outcome" in self.read_marker(stage)

    def begin(self, stage: str, folder: Path, fingerprint: str) -> None:
        """Empties ``folder`` unless an unfinished attempt of the same stage and fingerprint left it.

        What such an attempt finished record by record can be kept where the stage's ledger knows it, since the same
        inputs give the same bytes.
        """
        stamp = folder / ATTEMPT
        attempt = {"stage": stage, "fingerprint": fingerprint}
        if stamp.is_file() and _is_json(stamp, attempt):
            return
        shutil.rmtree(folder, ignore_errors=True)
        self.sums(stage).unlink(missing_ok=True)
        write_sealed(stamp, attempt)


def is_beside(file: Path) -> bool:
    """Returns whether a file is one that a stage leaves beside its results, of which no ledger knows."""
    return file.name in (ATTEMPT, CHECKPOINT) or file.parent.name == "epochs"


def _is_json(path: Path, value: object) -> bool:
    try:
        return bool(read_sealed(path) == value)
    except UserError:
        return False
