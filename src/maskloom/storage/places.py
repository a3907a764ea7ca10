"""The doors to data and runs that may be at a URL: each gives a folder of this machine to work with.

For a place on this machine that is the place itself, and no library is loaded. Knows nothing about recipes or stages.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from maskloom.errors import UserError
from maskloom.integrity import Ledger
from maskloom.run_lock import held, holder
from maskloom.storage.mirror import PICTURES, Known, Mirror, keep_within_budget
from maskloom.storage.placeholders import is_placeholder, mirror_root
from maskloom.storage.publishing import (
    LAST_WAIT_SECONDS,
    finished_files,
    is_published,
    never_removed,
    publishing,
)
from maskloom.storage.remote import Changed, Found
from maskloom.storage.remote_lock import RemoteLock
from maskloom.storage.urls import path_of, url_of

_SETTINGS = (".yaml", ".yml")
_TABLES = (".csv", ".csv.gz", ".parquet", ".json", ".geojson", ".gpkg", ".fgb", *_SETTINGS)
_BULK = (*PICTURES, ".safetensors", ".map")
_TRIES = 3
_LARGEST_TABLE = 2**31  # bytes; a larger file is none that a layout reads


# Data ----------------------------------------------------------------------------------------------------------------


def local_data(place: Path | str) -> Path:
    """Returns the folder or file of this machine with the data at a place; a URL is listed, and its tables fetched.

    Images, and what is of no kind that layouts read, are fetched, or read in parts, when they are read; of the URL of a
    table the other tables, too. Raises ``UserError`` for a URL where there is nothing, or that cannot be read.
    """
    url = url_of(place)
    if url is None:
        return path_of(place)
    mirror = Mirror.of(url, "data")
    if _listed(mirror):
        return mirror.root
    parent, _, name = url.rpartition("/")
    if not parent.partition("://")[2].strip("/") or mirror.store.stat() is None:
        raise UserError(f"{url}: expected data, found nothing there; check the bucket and the name")
    if name.lower().endswith(PICTURES):
        mirror = Mirror.of(parent, "data", part=name)
        _listed(mirror, picture=name)
    else:  # a table, whose images lie beside it
        mirror = Mirror.of(parent, "data")
        _listed(mirror, table=name)
    return mirror.root / name


def _listed(mirror: Mirror, *, picture: str = "", table: str = "") -> bool:
    """Makes a mirror agree with what lies at its URL, and returns whether that is anything.

    Of one ``picture`` only what may belong to it is listed; for one ``table`` only that and settings are fetched.
    """
    with mirror.alone():
        found = mirror.store.listing(f"{picture.rpartition('.')[0]}." if picture else "")
        if picture:  # georeference, masks and overviews may lie beside a raster
            found = {name: facts for name, facts in found.items() if "/" not in name}
        if not found:
            return False
        mirror.refresh(found)

    def is_read(name: str) -> bool:
        if table:
            return name == table or ("/" not in name and name.lower().endswith(_SETTINGS))
        return name.lower().endswith(_TABLES)

    mirror.fetch_all(name for name, facts in found.items() if is_read(name) and facts.size <= _LARGEST_TABLE)
    keep_within_budget()
    return True


def origin_of(path: Path) -> str:
    """Returns where a file or folder comes from: the URL of one in a mirror, of another its absolute path."""
    root = mirror_root(path)
    if root is None:
        return str(path.resolve())
    url, inside = Mirror.at(root).url, path.relative_to(root).as_posix()
    return url if inside == "." else f"{url}/{inside}"


# Runs ----------------------------------------------------------------------------------------------------------------


def readable_run(place: Path | str) -> Path:
    """Returns the folder of this machine with the run at a place, to be read; of a URL, as it is there now.

    Small files are fetched, networks, maps and masks when they are read. Raises ``UserError`` for a URL where there is
    no run.
    """
    url = url_of(place)
    if url is None:
        return path_of(place)
    mirror = Mirror.of(url, "run")
    with mirror.alone():  # who begins to work there meanwhile waits
        if holder(mirror.folder) is None:  # else somebody on this machine works there, and the mirror is ahead
            found = _fill(mirror, is_ahead=RemoteLock(mirror.store, mirror.folder).was_last())
            if "run.json" not in found:
                raise UserError(f"{url}: expected a run, found no run.json there; give the URL that `fit` was given")
    return mirror.root


@contextmanager
def working_run(place: Path | str) -> Iterator[Path]:
    """Yields the folder of this machine to work in on the run at a place; of a URL, with what is there.

    What the block leaves is published as it grows, at the end of stages and now and then, and at the end of the block.
    Raises ``UserError``, naming who, where another process or machine works there.
    """
    url = url_of(place)
    if url is None:
        yield path_of(place)
        return
    mirror = Mirror.of(url, "run")
    lock = RemoteLock(mirror.store, mirror.folder)
    with held(mirror.folder):
        with mirror.alone():
            is_ahead = lock.take()
            lock.keep()
            try:
                found = _fill(mirror, is_ahead=is_ahead)
                mirror.fetch_all(_unfinished(mirror, found))
            except BaseException:
                _give_up(mirror, lock, is_ahead=is_ahead)
                raise
        with publishing(mirror, lock):
            yield mirror.root


def _give_up(mirror: Mirror, lock: RemoteLock, *, is_ahead: bool) -> None:
    """Gives back a lock under which nothing was done; one that says that the mirror is ahead of the URL stays."""
    lock.leave()
    if not is_ahead:
        wait, mirror.store.wait = mirror.store.wait, min(mirror.store.wait, LAST_WAIT_SECONDS)
        with suppress(UserError, OSError):
            lock.release()
        mirror.store.wait = wait


def _fill(mirror: Mirror, *, is_ahead: bool) -> dict[str, Found]:
    """Makes a run's mirror hold what lies at its URL, unless it is ahead of that; returns what was listed there.

    It is ahead where the last to write there was this mirror (``is_ahead``), or where nothing there has changed since:
    a killed process left in it what it could not publish. Where another machine went on, that counts. So it does where
    the mirror lost files: it lies in a cache, and is never the copy that decides.
    """
    for _ in range(_TRIES):
        listing = mirror.store.listing()
        found = {name: facts for name, facts in listing.items() if is_published(name)}
        with suppress(Changed):  # somebody publishes meanwhile
            _agree_with(mirror, found, is_ahead=is_ahead)
            return found
    raise Changed(mirror.url)


def _agree_with(mirror: Mirror, found: Mapping[str, Found], *, is_ahead: bool) -> None:
    known, local = mirror.known(), {name for name, _ in mirror.files()}
    changed = {name for name in {*known, *found} if name not in known or not known[name].is_of(found.get(name))}
    lacking = found.keys() - local
    if is_ahead and not lacking & never_removed(mirror.root, local):
        if not any(is_placeholder(mirror.root / name) for name in changed):
            if changed:  # a publication was cut off; a time of change that no file has makes it done again
                same = {name: facts for name, facts in known.items() if name not in changed}
                mirror.remember(same | {name: Known(found[name].size, "", -1) for name in changed & found.keys()})
            return
    elif not changed and not lacking:
        return
    mirror.refresh(found)
    mirror.fetch_all(name for name in found if name.startswith("stages/"))
    mirror.refresh(found, _times(mirror, found))
    mirror.fetch_all(name for name in found if not _is_bulk(name))


def _times(mirror: Mirror, found: Mapping[str, Found]) -> dict[str, int]:
    """Returns the times of change that ledgers state of files: they pass for what they were without being read."""
    times = {}
    for name in found:
        if name.startswith("stages/") and name.endswith(".sums"):
            ledger = Ledger(mirror.root, mirror.root / name)
            for file in ledger.names():
                seal = ledger[mirror.root / file]
                if file in found and found[file].size == seal.size:
                    times[file] = seal.mtime_ns
    return times


def _is_bulk(name: str) -> bool:
    """Returns whether a run's file is one of many or large, and read only after its checksum was."""
    if name.endswith("/checkpoint.safetensors"):  # which is read unasked, and is small where its training is finished
        return False
    top = name.partition("/")[0]
    return name.endswith(_BULK) or top == "predictions" or (top in ("oof", "pseudo") and name.count("/") > 2)


def _unfinished(mirror: Mirror, found: Iterable[str]) -> list[str]:
    """Returns the files in whose folders no finished stage left any: their stages go on with them."""
    files = finished_files(mirror.root, found)
    finished = {file.rpartition("/")[0] for file in files if not file.endswith("folds.csv")}

    def is_open(name: str) -> bool:
        above = name
        while above:
            above = above.rpartition("/")[0]
            if above and above in finished:
                return False
        return True

    return [name for name in found if is_open(name)]
