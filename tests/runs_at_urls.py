"""Runs at URLs for tests: made of a few bytes, in fsspec's own store in memory, as one machine or another sees them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from maskloom.files import write_bytes
from maskloom.integrity import write_sealed
from maskloom.run_directory import FORMAT, RunDirectory
from maskloom.storage import remote_lock
from maskloom.storage.remote import Store, store_at

MAP, BUNDLE, CHECKPOINT = "oof/net/maps/a.map", "members/net/fold0/last.safetensors", "checkpoint.safetensors"


@contextmanager
def in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Yields the URL of a folder in memory; the cache is empty."""
    monkeypatch.setenv("MASKLOOM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote_lock, "_SETTLE_SECONDS", 0.0)
    name = tmp_path.name
    yield f"memory://{name}/here"
    import fsspec  # type: ignore[import-untyped]

    store = fsspec.filesystem("memory")
    if store.exists(name):
        store.rm(name, recursive=True)


@contextmanager
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str = "other") -> Iterator[None]:
    """Another machine: an empty cache."""
    with monkeypatch.context() as there:
        there.setenv("MASKLOOM_CACHE", str(tmp_path / name))
        yield


def begun(root: Path) -> RunDirectory:
    """Returns a run in which nothing was done."""
    run = RunDirectory(root)
    write_sealed(run.facts, {"format": FORMAT, "data": "data"})
    return run


def finish(run: RunDirectory, stage: str, **files: bytes) -> None:
    """Finishes a stage that leaves these files."""
    paths = [run.root / name for name in files]
    for path, content in zip(paths, files.values(), strict=True):
        write_bytes(path, content)
    run.finish(stage, "mark", paths, 1.0)


def train(run: RunDirectory, content: bytes = b"weights") -> None:
    """Finishes a training."""
    finish(run, "train/net/fold0", **{BUNDLE: content, "members/net/fold0/log.jsonl": b"{}\n"})


def predict_out_of_fold(run: RunDirectory, content: bytes = b"map") -> None:
    """Finishes the stage after it."""
    finish(run, "oof/net", **{MAP: content, "oof/net/scores.json": b"{}"})


def listed(url: str) -> set[str]:
    """Returns what lies at a URL."""
    return set(store_at(url).listing())


@contextmanager
def recorded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Yields the names that are uploaded, and those that are removed as ``-name``, in their order."""
    done: list[str] = []
    upload, remove = Store.upload, Store.remove

    def uploaded(self: Store, file: Path, name: str) -> None:
        done.append(name)
        upload(self, file, name)

    def removed(self: Store, names: Iterable[str]) -> None:
        names = list(names)
        done.extend(f"-{name}" for name in names)
        remove(self, names)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "upload", uploaded)
        patch.setattr(Store, "remove", removed)
        yield done
