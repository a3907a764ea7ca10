"""Files that are whole or absent."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from maskloom import files
from maskloom.errors import UserError


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    files.write_text(path, "old")
    with pytest.raises(RuntimeError), files.atomic_path(path) as temporary:
        temporary.write_text("half of the ne")
        raise RuntimeError("killed")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["value.json"]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_files_are_as_private_as_the_umask_says(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        files.write_text(tmp_path / "private.json", "{}")
        files.write_text(tmp_path / "private.json", "[]")  # in the place of another
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "private.json").stat().st_mode) == mode


def test_a_temporary_name_that_is_taken_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = iter(["a" * 32, "a" * 32, "b" * 32])
    monkeypatch.setattr(files.uuid, "uuid4", lambda: SimpleNamespace(hex=next(names)))
    first, second = (files.new_temporary(tmp_path / "x.tif") for _ in range(2))
    assert (first.name, second.name) == (".partial-aaaaaaaa.tif", ".partial-bbbbbbbb.tif")


def test_a_full_disk_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(UserError, match="disk is full"):
        files.write_bytes(tmp_path / "value", b"1")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        files.write_text(tmp_path / "file" / "below", "")


def test_json_goes_there_and_back_and_refuses_nan(tmp_path: Path) -> None:
    files.write_json(tmp_path / "a.json", {"b": [1, 2.5], "a": "ä"})
    assert files.read_json(tmp_path / "a.json") == {"a": "ä", "b": [1, 2.5]}
    with pytest.raises(ValueError, match="JSON compliant"):
        files.write_json(tmp_path / "b.json", float("nan"))
    for hostile in (b"{", b"\xff", b"9" * 5000, b"[" * 200_000):
        (tmp_path / "c.json").write_bytes(hostile)
        with pytest.raises(UserError, match=r"c\.json: expected JSON"):
            files.read_json(tmp_path / "c.json")


def test_json_has_a_budget(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('"' + "x" * 98 + '"')
    assert len(files.read_json(path, max_bytes=100)) == 98
    with pytest.raises(UserError, match=r"a\.json: expected JSON of at most 99 bytes, .* cut it into several files"):
        files.read_json(path, max_bytes=99)
    with pytest.raises(UserError, match="at most 1,000 bytes"):  # of which nobody knows the length
        files.read_json(Path("/dev/zero"), max_bytes=1000)


def test_checksum_and_fingerprint(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"maskloom")
    assert files.checksum(tmp_path / "a") == hashlib.sha256(b"maskloom").hexdigest()
    assert files.fingerprint({"b": 1, "a": 2}) == files.fingerprint({"a": 2, "b": 1})
    assert files.fingerprint(1, 2) != files.fingerprint([1, 2])


def test_leftovers_are_removed(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / f"{files.TEMPORARY_PREFIX}x").write_text("")
    (tmp_path / "below" / "kept").write_text("")
    files.remove_partial(tmp_path)
    assert [path.name for path in (tmp_path / "below").iterdir()] == ["kept"]


def test_a_full_disk_that_a_compiled_library_tells_is_told_too(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="disk is full"), files.atomic_path(tmp_path / "value"):
        raise RuntimeError("I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize(
    "refusal",
    [
        lambda temporary: OSError(errno.ENOENT, "No such file or directory", str(temporary)),
        lambda temporary: PermissionError(errno.EACCES, "Permission denied", str(temporary)),
        lambda temporary: OSError(errno.EIO, "Input/output error"),
        lambda temporary: RuntimeError(f"Attempt to create new tiff file '{temporary}' failed:\n {temporary.name}: no"),
    ],
)
def test_the_file_that_was_asked_for_is_named(tmp_path: Path, refusal: Callable[[Path], Exception]) -> None:
    path = tmp_path / "mask.tif"
    with pytest.raises(UserError, match="cannot be written") as refused, files.atomic_path(path) as temporary:
        raise refusal(temporary)
    assert str(refused.value).startswith(f"{path}: ") and ".partial-" not in str(refused.value)
    assert "\n" not in str(refused.value) and not list(tmp_path.iterdir())


def test_a_disk_that_takes_no_more_is_named_though_nothing_can_be_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where it is mounted anew to be read only: even what is not there cannot be removed, says the system."""
    path = tmp_path / "value"

    def refuse(self: Path, *_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self))

    monkeypatch.setattr(Path, "unlink", refuse)
    files.write_text(path, "whole")
    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(UserError) as refused:
        files.write_text(path, "other")
    assert str(refused.value).startswith(f"{path}: cannot be written (Read-only file system)")


def test_what_was_read_meanwhile_is_not_blamed_on_what_is_written(tmp_path: Path) -> None:
    with pytest.raises(PermissionError, match="source"), files.atomic_path(tmp_path / "mask.tif"):
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "source.tif"))


def test_a_folder_that_takes_no_files_is_told_by_the_name_that_was_asked_for() -> None:
    with pytest.raises(UserError, match=r"^/proc/page\.html: cannot be written"):
        files.write_text(Path("/proc/page.html"), "")
