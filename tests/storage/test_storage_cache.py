"""The cache is the copy that may be lost: what happens when it is, what is kept in it, and on which disks."""

from __future__ import annotations

import os
import shutil
import time
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import pytest

from maskloom.errors import UserError
from maskloom.files import write_bytes
from maskloom.run_directory import RunDirectory
from maskloom.storage import mirror as mirrors
from maskloom.storage import remote_lock
from maskloom.storage.mirror import Mirror, budget, keep_within_budget
from maskloom.storage.placeholders import at_hand, is_placeholder
from maskloom.storage.places import local_data, readable_run, working_run
from maskloom.storage.publishing import publish
from maskloom.storage.remote import store_at
from runs_at_urls import (
    BUNDLE,
    CHECKPOINT,
    MAP,
    begun,
    elsewhere,
    finish,
    in_memory,
    listed,
    predict_out_of_fold,
    train,
)

pytest.importorskip("fsspec")


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with in_memory(tmp_path, monkeypatch) as place:
        yield place


def finished(url: str) -> Path:
    """Returns the mirror's folder of a run with two finished stages."""
    with working_run(url) as root:
        train(begun(root))
        predict_out_of_fold(RunDirectory(root))
    return root


@pytest.mark.parametrize("name", ["mirror.json", "known.json"])
@pytest.mark.parametrize("text", ["{", "[1]", '{"a": 1}', '{"a": [1, 2]}', '{"url": {"a": null}}'])
def test_a_damaged_cache_says_which_folder_to_move_away(url: str, name: str, text: str) -> None:
    folder = finished(url).parent
    (folder / name).write_text(text)
    mirrors._mirrors.clear()
    with pytest.raises(UserError, match=f"{folder}/{name}: .*; move {folder} away"):
        readable_run(url)
    folder.rename(folder.with_name("away"))
    mirrors._mirrors.clear()
    assert (readable_run(url) / "run.json").is_file()


# A run whose mirror lost files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("lost", [[MAP], [BUNDLE, MAP], ["stages/oof/net.json", MAP], ["stages", "oof", "members"]])
def test_what_the_cache_lost_stays_at_the_url(url: str, lost: list[str]) -> None:
    root, before = finished(url), listed(url)
    for name in lost:
        shutil.rmtree(root / name) if (root / name).is_dir() else (root / name).unlink()
    with working_run(url):
        assert is_placeholder(root / MAP)
        run = RunDirectory(root)
        assert all(run.finished(stage) for stage in ("train/net/fold0", "oof/net"))
        assert run.checked(root / MAP).read_bytes() == b"map"
    assert listed(url) == before


def test_who_only_reads_gets_it_back_too(url: str) -> None:
    root = finished(url)
    (root / MAP).unlink()
    readable_run(url)
    assert at_hand(root / MAP).read_bytes() == b"map"


def test_what_is_lost_after_a_kill_stays_at_the_url_too(url: str) -> None:
    root, before = finished(url), listed(url)
    remote_lock.RemoteLock(store_at(url), Mirror.of(url, "run").folder).take()  # it holds the lock, and is gone
    (root / MAP).unlink()
    with working_run(url):
        assert at_hand(root / MAP).read_bytes() == b"map"
    assert listed(url) == before


def test_what_is_lost_while_the_command_runs_stays_at_the_url(url: str) -> None:
    root = finished(url)
    with working_run(url):
        (root / MAP).unlink()
        finish(RunDirectory(root), "survey", **{"data/survey.json": b"{}"})
        assert MAP in listed(url)
        RunDirectory(root).marker("oof/net").unlink()  # now the stage is to be done again
        publish(root)
        assert MAP not in listed(url)


def test_a_killed_command_keeps_what_it_removed_and_wrote(url: str) -> None:
    """A stage that was being done again lacks files of the former one: that is no loss."""
    root = finished(url)
    remote_lock.RemoteLock(store_at(url), Mirror.of(url, "run").folder).take()
    run = RunDirectory(root)
    run.marker("oof/net").unlink()
    run.begin("oof/net", root / "oof" / "net", "another")
    write_bytes(root / "oof/net/maps/b.map", b"new")
    with working_run(url):
        assert (root / "oof/net/maps/b.map").read_bytes() == b"new" and not (root / MAP).exists()
    assert "oof/net/maps/b.map" in listed(url) and MAP not in listed(url)


def test_where_the_url_counts_files_of_the_same_length_go_too(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"members/net/fold0/{CHECKPOINT}"
    with working_run(url) as root:
        write_bytes(begun(root).root / name, b"epoch 5")
    write_bytes(root / name, b"epoch 6")  # which was not published
    with elsewhere(tmp_path, monkeypatch), working_run(url) as theirs:
        (theirs / "report.html").write_text("page")
    with working_run(url):
        assert (root / name).read_bytes() == b"epoch 5"


# What is kept --------------------------------------------------------------------------------------------------------


def put(url: str, **files: bytes) -> None:
    for name, content in files.items():
        store_at(url).write(name, content)


def test_pictures_are_given_up_and_tables_are_not(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirrors, "RECENT_SECONDS", -1.0)
    monkeypatch.setenv("MASKLOOM_CACHE_SIZE", "15K")
    put(url, **{"table.csv": b"id,image\n" * 500, "classes.yaml": b"classes: [car]\n", "a.png": b"a" * 10_000})
    root = local_data(url)
    for name in ("table.csv", "classes.yaml"):
        os.utime(root / name, ns=(0, (root / name).stat().st_mtime_ns))  # used longest ago
    at_hand(root / "a.png")
    put(url, **{"b.png": b"b" * 10_000})
    at_hand(local_data(url) / "b.png")
    keep_within_budget()
    assert is_placeholder(root / "a.png")
    assert (root / "table.csv").read_bytes() == b"id,image\n" * 500
    assert (root / "classes.yaml").read_bytes() == b"classes: [car]\n"


def test_locks_and_half_written_files_are_passed_over(url: str) -> None:
    """Copied there with a folder: a mirror has such files of its own, and would neither remove nor read theirs."""
    put(url, **dict.fromkeys(("a.png", ".lock", ".partial-1a2b.png", ".partial-3c/b.png", "images/.lock"), b"a"))
    root = local_data(url)
    assert [file for file in root.rglob("*") if file.is_file()] == [root / "a.png"]


def test_what_was_used_longest_ago_makes_room(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASKLOOM_CACHE_SIZE", "25K")
    monkeypatch.setattr(mirrors, "RECENT_SECONDS", -1.0)
    put(url, **{f"{name}.png": name.encode() * 10_000 for name in "abc"})
    root = local_data(url)
    for number, name in enumerate("bca"):
        path = at_hand(root / f"{name}.png")
        os.utime(path, ns=(number * 10**9, path.stat().st_mtime_ns))
    keep_within_budget()
    assert sorted(file.name for file in root.iterdir() if not is_placeholder(file)) == ["a.png", "c.png"]
    assert at_hand(root / "b.png").read_bytes() == b"b" * 10_000


def test_what_was_used_before_the_clock_was_set_back_makes_room_unless_it_is_used_again(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MASKLOOM_CACHE_SIZE", "15K")
    put(url, **{f"{name}.png": name.encode() * 10_000 for name in "ab"})
    root = local_data(url)
    for name in "ab":
        path = at_hand(root / f"{name}.png")
        os.utime(path, ns=(time.time_ns() + 86_400 * 10**9, path.stat().st_mtime_ns))
    at_hand(root / "b.png")
    keep_within_budget()
    assert sorted(file.name for file in root.iterdir() if not is_placeholder(file)) == ["b.png"]


def test_the_budget_leaves_half_of_a_small_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setenv("MASKLOOM_CACHE", str(tmp_path / "not" / "there"))
    monkeypatch.delenv("MASKLOOM_CACHE_SIZE", raising=False)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, 20 * 2**30))
    assert budget() == 10 * 2**30
    assert budget(fetched=20 * 2**30) == 20 * 2**30  # which does not shrink what may be kept as it fills
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, 2**40))
    assert budget() == 50 * 2**30
    monkeypatch.setenv("MASKLOOM_CACHE_SIZE", "200G")
    assert budget() == 200 * 2**30


def test_what_no_layout_reads_is_not_fetched_at_the_listing(url: str) -> None:
    unread = ["shard.tar", "film.mp4", "scan.las", "net.safetensors", "arrays.npz", "scene.tif.ovr"]
    read = ["a/table.csv", "rows.csv.gz", "b/coco.json", "fields.geojson", "classes.yml", "rows.parquet", "x.gpkg"]
    put(url, **dict.fromkeys((*unread, *read), b"x"))
    root = local_data(url)
    assert {name for name in (*unread, *read) if is_placeholder(root / name)} == set(unread)
    assert at_hand(root / "shard.tar").read_bytes() == b"x"


def test_of_one_table_the_others_are_not_fetched(url: str) -> None:
    put(url, **{"table.csv": b"id,image\n", "huge.csv": b"x", "logs/1.json": b"x", "classes.yaml": b"x", "a.png": b"x"})
    table = local_data(f"{url}/table.csv")
    there = {file.relative_to(table.parent).as_posix() for file in table.parent.rglob("*") if file.is_file()}
    assert there == {"table.csv", "huge.csv", "logs/1.json", "classes.yaml", "a.png"}
    assert {name for name in there if not is_placeholder(table.parent / name)} == {"table.csv", "classes.yaml"}


# Disks ---------------------------------------------------------------------------------------------------------------


def test_a_file_system_without_permissions_is_refused(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """There a placeholder would pass for a file of zeros."""
    opened = os.open
    put(url, **{"a.png": b"x" * 10})
    with monkeypatch.context() as disk:
        disk.setattr(os, "open", lambda path, flags, mode=0o777, **more: opened(path, flags, 0o755, **more))
        with pytest.raises(UserError, match=r"keeps permissions.*MASKLOOM_CACHE"):
            local_data(url)
    root = Mirror.of(url, "data").root
    assert list(root.iterdir()) == []
    assert is_placeholder(local_data(url) / "a.png")


def test_two_that_make_one_mirror_make_the_same(url: str) -> None:
    folder = Mirror.of(url, "run").folder
    first = (folder / "mirror.json").read_bytes()
    (folder / "mirror.json").unlink()
    Mirror.of(url, "run")
    assert (folder / "mirror.json").read_bytes() == first
