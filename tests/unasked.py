"""Placeholders that cannot be read unasked, whoever runs the tests: mode bits do not stop an administrator."""

from __future__ import annotations

import builtins
import errno
import io
import os
from pathlib import Path
from typing import Any

import pytest

from maskloom.storage.placeholders import place, stands_in


def refuse_unasked_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has Python refuse to open a placeholder to be read, until the test ends; libraries in C are not held back."""
    really = io.open

    def guarded(file: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
        path = Path(file) if isinstance(file, str | os.PathLike) and not set(mode) & set("wax") else None
        if path is not None and path.is_file() and stands_in(path.stat()):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return really(file, mode, *args, **options)

    monkeypatch.setattr(io, "open", guarded)
    monkeypatch.setattr(builtins, "open", guarded)


def given_up(root: Path) -> None:
    """Puts placeholders in the place of all files of a mirror, as where room was needed."""
    for file in root.rglob("*"):
        if file.is_file() and not stands_in(file.stat()):
            facts = file.stat()
            place(file, facts.st_size, facts.st_mtime_ns)
