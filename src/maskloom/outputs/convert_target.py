"""Where converted masks go: the kind that a name stands for, what must not be overwritten, what cannot be written.

Also which paths must be of this machine, for all that is written and for what is read as a whole.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from maskloom.encodings.vector_files import VECTOR_SUFFIXES
from maskloom.errors import UserError, closest
from maskloom.files import OWNER, read_json, write_json
from maskloom.storage.urls import path_of, url_of

FOLDERS = ("png", "layers", "geotiff")
TABLES = ("rle", "wkt")
VECTORS = tuple(suffix.removeprefix(".") for suffix in VECTOR_SUFFIXES)
KINDS = (*FOLDERS, *TABLES, "coco", *VECTORS)
"""What masks can be converted to."""


def kind_of(out: Path, to: str | None) -> str:
    """Returns which of ``KINDS`` is written to ``out``; raises ``UserError`` where suffix and ``to`` do not tell."""
    if to is not None and to not in KINDS:
        raise UserError(f"--to {to}: {closest(to, KINDS)}")
    allowed = _allowed(out, to)
    if to is not None and to not in allowed:
        raise UserError(f"{out}: --to {to} does not fit this name, which can hold {' or '.join(allowed)}; change one")
    return to or allowed[0]


def _allowed(out: Path, to: str | None) -> tuple[str, ...]:
    suffix = out.suffix.lower()
    if out.name.lower().endswith((".csv", ".csv.gz")):
        return TABLES
    if suffix == ".json":
        return ("coco",)
    if suffix in VECTOR_SUFFIXES:
        return (suffix.removeprefix("."),)
    if not suffix or to in FOLDERS:
        return FOLDERS
    raise UserError(
        f"{out}: expected a folder, or a name ending in .csv, .csv.gz, .json, {', '.join(VECTOR_SUFFIXES)}; for a "
        f"folder of that name state --to {'|'.join(FOLDERS)}"
    )


def check_target(out: Path, kind: str, read: Iterable[Path]) -> None:
    """Raises ``UserError`` where writing would overwrite what is read, or a folder of anything but converted masks.

    Also where it cannot be written. A file that is there is replaced once its successor is whole.
    """
    is_folder = kind in FOLDERS
    for given in (path.resolve() for path in read):
        if out.resolve() == given or (is_folder and given in out.resolve().parents):
            raise UserError(f"{out}: lies where {given} is read from; choose another place")
    if out.exists() and out.is_dir() != is_folder:
        expected, found = ("a folder", "a file") if is_folder else ("the name of a file", "a folder")
        raise UserError(f"{out}: expected {expected}, found {found}; choose another name")
    if is_folder and out.is_dir() and any(out.iterdir()) and not (out / OWNER).is_file():
        raise UserError(f"{out}: expected an empty or new folder, found other files; choose another folder")
    check_writable(out)


def on_this_machine(place: Path | str) -> Path:
    """Returns the path of a place that must be of this machine; raises ``UserError`` for a URL other than a file's."""
    url = url_of(place)
    if url is not None:
        raise UserError(
            f"{url}: expected a path of this machine, found a URL, which only the data and the run of a command may "
            "be; give a local one, and copy it from or to there (aws s3 cp)"
        )
    return path_of(place)


def check_writable(path: Path) -> None:
    """Raises ``UserError`` where a file or folder of that name cannot be written, before the work for it is done.

    Nothing is left behind: where folders are still to be made, the nearest one that is there is tried.
    """
    place = path if path.is_dir() else path.parent
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        tempfile.TemporaryFile(dir=place).close()
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({place}: {error.strerror}); choose another place or mend its permissions"
        ) from None


def mark_target(out: Path, source: Path, kind: str, layers: Mapping[int, str] | None = None) -> None:
    """Writes whose masks a folder holds, and of ``layers`` their classes by label value.

    Raises ``UserError`` where it holds those of something else.
    """
    marker = out / OWNER
    described: dict[str, Any] = {"converted": str(source.resolve()), "to": kind}
    if layers is not None:
        described["classes"] = {name: value for value, name in layers.items()}
    if marker.is_file() and read_json(marker) != described:
        raise UserError(f"{out}: holds masks of another source; choose another folder or remove this one")
    write_json(marker, described)
