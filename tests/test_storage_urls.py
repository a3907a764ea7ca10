"""What a URL is, and that places on this machine stay what they are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from maskloom.errors import UserError
from maskloom.storage.placeholders import at_hand, is_placeholder, mirror_root
from maskloom.storage.places import local_data, origin_of, readable_run, working_run
from maskloom.storage.urls import check_name, mirror_folder, path_of, url_of


@pytest.mark.parametrize(
    ("place", "url"),
    [
        ("s3://bucket/a/b/", "s3://bucket/a/b"),
        (Path("s3://bucket/a"), "s3://bucket/a"),
        ("memory://x", "memory://x"),
        ("photos", None),
        ("/photos/s3:/x", None),
        ("s3:/bucket", None),
        (Path("C:/x"), None),
        ("file:///photos", None),
        (Path("file:///photos"), None),
        ("abfs://container@account.dfs.core.windows.net/x", "abfs://container@account.dfs.core.windows.net/x"),
        ("sftp://user@host:22/photos", "sftp://user@host:22/photos"),
        ("hdfs://user@host/photos", "hdfs://user@host/photos"),
        ("s3://lake/which?/day=3", "s3://lake/which?/day=3"),
    ],
)
def test_what_a_url_is(place: Path | str, url: str | None) -> None:
    assert url_of(place) == url


def test_a_folder_of_that_name_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("s3:/bucket").mkdir(parents=True)
    assert url_of(Path("s3://bucket")) is None
    assert url_of("s3://bucket") == "s3://bucket"


@pytest.mark.parametrize("place", ["file:///data/x", Path("file:///data/x"), "/data/x", Path("/data/x")])
def test_places_of_this_machine(place: Path | str) -> None:
    assert path_of(place) == Path("/data/x") == local_data(place) == readable_run(place)
    with working_run(place) as root:
        assert root == Path("/data/x")


@pytest.mark.parametrize(
    "url",
    [
        "s3://key:secret@bucket/x",
        "s3://key:se/secret@bucket/x",
        "sftp://user:secret@host:22/x",
        "https://host/x?X-Amz-Signature=secret",
        "https://host/x?secret",
        "s3://bucket/x?X-Amz-Signature=secret",
        "gs://bucket/x/y?X-Goog-Signature=secret",
        "abfs://container@account.dfs.core.windows.net/x?sv=1&sig=secret/x",
        "webdav://host/x?token=secret",
    ],
)
def test_secrets_in_a_url_are_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(UserError, match="environment") as problem:
        url_of(url)
    assert "secret" not in str(problem.value).replace("SECRET", "")


def test_a_url_of_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="expected a bucket"):
        url_of("s3:///")


def test_mirrors_differ_by_url_and_by_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASKLOOM_CACHE", str(tmp_path))
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://a")
    one = mirror_folder("s3://b/x")
    assert one.parent == tmp_path and one == mirror_folder("s3://b/x") != mirror_folder("s3://b/x/y")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://b")
    two = mirror_folder("s3://b/x")
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.setenv("AWS_PROFILE", "c")  # which may name a store of its own
    assert len({one, two, mirror_folder("s3://b/x")}) == 3


@pytest.mark.parametrize("name", ["a", "a b/ü.png", "a/.hidden", "..a/b.."])
def test_names_below_a_folder(name: str) -> None:
    assert check_name("s3://b", name) == name


@pytest.mark.parametrize(
    "name", ["", "..", "../a", "a/..", "/a", "a//b", "a/", ".", "a\n", "a\x7f", "x" * 241, "\ud800"]
)
def test_other_names(name: str) -> None:
    with pytest.raises(UserError, match="rename or remove"):
        check_name("s3://b", name)


def test_files_of_no_mirror_are_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "mirrored" / "a"
    file.parent.mkdir()
    file.write_bytes(b"x")
    file.chmod(0o000)
    assert mirror_root(file) is None and not is_placeholder(file)
    assert at_hand(file) == file and at_hand(tmp_path / "none") == tmp_path / "none"
    assert origin_of(file) == str(file.resolve())


def test_nothing_is_loaded_for_places_of_this_machine() -> None:
    words = "import sys, maskloom.storage.places as p; p.local_data('x'); print([m for m in sys.modules if 'fs' in m])"
    found = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=True).stdout
    assert "fsspec" not in found and "s3fs" not in found


def test_a_missing_library_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASKLOOM_CACHE", str(tmp_path))
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(UserError, match=r"pip install 'maskloom\[s3\]'"):
        local_data("s3://bucket/never-asked")
