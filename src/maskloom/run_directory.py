"""A run on disk: where every artefact lies, and which stages are finished.

Layout: ``recipe.yaml``, ``run.json``, ``data/`` (source and survey), ``folds.csv``, ``members/<member>/fold<k>/``
(checkpoint, bundles, log; ``folds.csv`` beside them where a member has its own), ``oof/<member>/`` (maps and scores),
``ensemble/``, ``predictions/``, ``submission.csv.gz``, ``report.html``, and ``stages/`` with one marker per finished
stage.

A stage is finished when its marker carries the fingerprint of what it came from and the files it names are there.
The marker is written last, so a stage killed at any moment counts as not done. Paths inside a run are relative: a
run can be moved. Knows nothing about what stages compute.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maskloom.errors import UserError
from maskloom.files import read_json, write_json

FORMAT = 1
"""Version of the layout; a run written by a later one is refused."""


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """The paths of one run."""

    root: Path

    @classmethod
    def existing(cls, root: Path) -> RunDirectory:
        """Returns the run at ``root``; raises ``UserError`` unless there is one that this version can read."""
        if not (root / "run.json").is_file():
            raise UserError(f"{root}: expected a run folder, found no run.json in it; give the folder that `fit` made")
        version = read_json(root / "run.json").get("format")
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
        mark: str = read_json(self.decided)["fingerprint"]
        return mark

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

    def finished(self, stage: str) -> dict[str, Any] | None:
        """Returns what the stage's marker says, or None when the stage is not finished or a file of it is gone."""
        if not self.marker(stage).is_file():
            return None
        marker: dict[str, Any] = read_json(self.marker(stage))
        complete = all((self.root / name).exists() for name in marker["files"])
        return marker if complete else None

    def finish(self, stage: str, fingerprint: str, files: Sequence[Path], seconds: float) -> None:
        """Marks a stage as finished; ``files`` must exist for it to count as such later."""
        names = sorted(path.relative_to(self.root).as_posix() for path in files)
        marker = {"stage": stage, "fingerprint": fingerprint, "files": names, "seconds": round(seconds, 3)}
        write_json(self.marker(stage), marker)

    def begin(self, stage: str, folder: Path, fingerprint: str) -> None:
        """Empties ``folder`` unless an unfinished attempt of the same stage and fingerprint left it.

        What such an attempt finished record by record can be kept, since the same inputs give the same bytes.
        """
        stamp = folder / "attempt.json"
        attempt = {"stage": stage, "fingerprint": fingerprint}
        if stamp.is_file() and read_json(stamp) == attempt:
            return
        shutil.rmtree(folder, ignore_errors=True)
        write_json(stamp, attempt)
