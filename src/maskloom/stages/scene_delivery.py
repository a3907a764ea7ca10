"""Scenes whose files are finished together: which are left out, and whether the files are there as they were written.

Knows nothing about blocks or networks.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from maskloom.errors import BadFile, UserError
from maskloom.files import fingerprint
from maskloom.integrity import read_sealed, write_sealed
from maskloom.stages.scene_files import Wanted, scene_files
from maskloom.stages.scene_sources import Scene

WRITING, FIRST_BLOCK = 0, 1
"""The numbers of a delivery's claims: to write the files, and to the first of its scenes' blocks, which follow."""


class Delivery:
    """Scenes whose files are finished together: one of rasters, all whose polygons share a file."""

    def __init__(self, wanted: Wanted, scenes: Sequence[Scene], options: str, state: Path) -> None:
        """``options`` is a fingerprint of all else that decides the files; ``state`` is where claims and marker lie."""
        self.scenes = tuple(scenes)
        key = fingerprint(options, [scene.fingerprint for scene in scenes])
        self.claims = state / f"{key}.claims"
        self._marker = self.claims.with_suffix(".json")
        self._wanted = wanted
        self._problems: dict[str, BadFile] = {}

    def leave_out(self, scene: Scene, problem: BadFile) -> None:
        """Writes the files without this scene."""
        self._problems[scene.id] = problem

    def left_out(self) -> dict[str, BadFile]:
        """Returns what is wrong with the scenes that are left out, by id."""
        return self._noted()[0] | self._problems

    def remaining(self) -> list[Scene]:
        """Returns the scenes that are not left out."""
        left_out = self.left_out()
        return [scene for scene in self.scenes if scene.id not in left_out]

    def files(self) -> list[Path]:
        """Returns the files of the scenes that are not left out."""
        remaining = self.remaining()
        return scene_files(remaining, self._wanted) if remaining else []

    def outdated(self) -> list[Path]:
        """Returns the files of scenes that are left out, which an earlier prediction may have written."""
        kept = set(self.files())
        return [file for file in scene_files(self.scenes, self._wanted) if file not in kept]

    def is_finished(self) -> bool:
        """Whether all files were written as asked, by whichever process, and are still those."""
        return self._marker.is_file() and self._noted()[1] == self._stamps()

    def _noted(self) -> tuple[dict[str, BadFile], object]:
        """Returns the problems and the stamps of files that the marker states; ({}, None) where it is none, or damaged.

        The files are then written again, from what is left of the blocks.
        """
        try:
            marker = read_sealed(self._marker) if self._marker.is_file() else {}
            problems = {name: BadFile(bad["path"], bad["reason"]) for name, bad in marker["left_out"].items()}
            return problems, marker["files"]
        except (UserError, AttributeError, KeyError, TypeError):  # also of one without a checksum: an earlier version's
            return {}, None

    def _stamps(self) -> dict[str, list[int] | None]:
        """Returns the length and the time of change of each file: other options write the same files otherwise."""
        found = {file: file.stat() if file.is_file() else None for file in self.files()}
        return {
            file.relative_to(self._wanted.out).as_posix(): facts and [facts.st_size, facts.st_mtime_ns]
            for file, facts in found.items()
        }

    def finish(self) -> None:
        """Marks it as finished, once the files are there."""
        problems = {name: {"path": str(bad.path), "reason": bad.reason} for name, bad in self.left_out().items()}
        write_sealed(self._marker, {"left_out": problems, "files": self._stamps()})
