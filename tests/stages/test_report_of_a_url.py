"""The report of a run whose data are at a URL: not listed anew, and without its pictures once the bucket is gone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from maskloom.data.image_io import write_png
from maskloom.data.mask_coding import MaskCoding
from maskloom.data.sources.base import DataSource
from maskloom.errors import UserError
from maskloom.records import MaskFile, Record, Task
from maskloom.run_directory import RunDirectory
from maskloom.stages import reporting
from maskloom.storage.places import local_data
from maskloom.storage.remote import Changed, Store, store_at
from unasked import given_up

fsspec = pytest.importorskip("fsspec")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

SIZE = (8, 12)


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Two images with masks in fsspec's own store in memory, and an empty cache."""
    monkeypatch.setenv("MASKLOOM_CACHE", str(tmp_path / "cache"))
    here, url = tmp_path / "here", f"memory://{tmp_path.name}/data"
    for name in ("images/a.png", "masks/a.png", "images/b.png", "masks/b.png"):
        write_png(here / name, np.full(SIZE if "masks" in name else (*SIZE, 3), 1, np.uint8))
        store_at(url).write(name, (here / name).read_bytes())
    yield url
    store = fsspec.filesystem("memory")
    if store.exists(tmp_path.name):
        store.rm(tmp_path.name, recursive=True)


def described(root: Path = Path("anywhere")) -> dict[str, Any]:
    records = tuple(
        Record(
            id=name,
            image=root / "images" / f"{name}.png",
            size=SIZE,
            truth=MaskFile(path=root / "masks" / f"{name}.png"),
        )
        for name in "ab"
    )
    task, coding = Task(kind="multiclass", classes=("road", "car")), MaskCoding(kind="values", values=((0, 0), (1, 1)))
    return DataSource(layout="folder", root=root, task=task, coding=coding, records=records).to_json()


def refused(*_: object) -> Any:
    raise UserError("expected rights to look there, found none")


def shown(source: DataSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Returns the ids of the images that the page shows."""
    monkeypatch.setattr(reporting, "_decided", lambda *_: np.ones(SIZE, np.uint8))
    rows = [{"id": name, "fold": 0, "dice": 0.5, "iou": 0.4} for name in "ab"]
    ensemble: Any = SimpleNamespace(metric="dice", scores={"oof": {"classes": {"road": 1.0, "car": 0.5}}})
    tables: Any = SimpleNamespace()
    return [each.id for each in reporting._examples(RunDirectory(tmp_path), source, ensemble, tables, rows)]


def test_data_that_were_listed_here_are_not_listed_again(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = local_data(url)
    monkeypatch.setattr(Store, "listing", refused)
    source = reporting._source(described(), url)
    assert source.root == root and shown(source, tmp_path, monkeypatch) == ["a", "b"]


def test_data_that_were_never_listed_here_are_listed(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(reporting._source(described(), url), tmp_path, monkeypatch) == ["a", "b"]


@pytest.mark.parametrize("is_known", [True, False])
@pytest.mark.parametrize("refusal", ["no rights", "no bucket"])
def test_without_a_bucket_or_rights_the_page_has_no_pictures(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_known: bool, refusal: str
) -> None:
    if is_known:
        local_data(url)
    if refusal == "no rights":
        monkeypatch.setattr(Store, "listing", refused)
        monkeypatch.setattr(Store, "stat", refused)
    else:
        fsspec.filesystem("memory").rm(tmp_path.name, recursive=True)
    source = reporting._source(described(), url)
    assert [record.id for record in source.records] == ["a", "b"]
    assert shown(source, tmp_path, monkeypatch) == []
    assert reporting._look_alikes(source, [{"first": "a", "second": "b"}]) == []


def test_an_object_that_changed_meanwhile_is_left_out(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_up(local_data(url))
    source = reporting._source(described(), url)
    write_png(tmp_path / "other.png", np.full((9, 9), 1, np.uint8))
    store_at(url).write("images/b.png", (tmp_path / "other.png").read_bytes())
    assert shown(source, tmp_path, monkeypatch) == ["a"]
    assert reporting._look_alikes(source, [{"first": "a", "second": "b"}]) == []

    def changed() -> list[str]:
        raise Changed(f"{url}/images/b.png")

    assert reporting._unless_changed(changed) == [] and reporting._unless_changed(lambda: ["a"]) == ["a"]
