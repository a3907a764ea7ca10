"""Data at a URL: read from a real S3 API on loopback."""

from __future__ import annotations

import io
import logging
import os
import threading
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from buckets import BUCKET, ENVIRONMENT, Line, Requests, client, emptied, serving
from executor_tasks import eventually
from maskloom.data.image_io import image_size, read_image
from maskloom.errors import BadFile, UserError
from maskloom.files import checksum
from maskloom.heartbeat import Heartbeat
from maskloom.integrity import write_sealed
from maskloom.rasters.reading import open_raster
from maskloom.storage import remote
from maskloom.storage.placeholders import is_placeholder
from maskloom.storage.places import local_data, origin_of, working_run
from maskloom.storage.ranges import BLOCK, SMALL, Parts, RangedFile
from maskloom.storage.remote import Changed, Store
from maskloom.storage.remote_lock import LOCK_NAME
from maskloom.windows import Window
from runs_at_urls import begun, train

pytest.importorskip("s3fs")
pytest.importorskip("moto.server")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, Requests]]:
    with serving() as both:
        yield both


@pytest.fixture
def requests(server: tuple[str, Requests], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Requests:
    """What is asked of the store that the environment names; its bucket is empty, and so is the cache."""
    address, requests = server
    for name, value in {**ENVIRONMENT, "AWS_ENDPOINT_URL": address}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASKLOOM_CACHE", str(tmp_path / "cache"))
    emptied()
    requests.seen.clear()
    return requests


def put(name: str, content: bytes) -> None:
    client(os.environ["AWS_ENDPOINT_URL"]).put_object(Bucket=BUCKET, Key=name, Body=content)


def picture(value: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((5, 7, 3), value, np.uint8)).save(stream, "png")
    return stream.getvalue()


def of(requests: Requests, method: str) -> list[tuple[str, str, int]]:
    return [seen for seen in requests.seen if seen[0] == method]


# Listing -------------------------------------------------------------------------------------------------------------


def test_more_objects_than_one_answer_holds_are_listed(requests: Requests) -> None:
    objects = emptied()
    for number in range(1003):
        objects.put_object(BUCKET, f"many/{number % 7}/{number:04}.png", b"x")
    root = local_data(f"s3://{BUCKET}/many")
    assert len([file for file in root.rglob("*.png") if is_placeholder(file)]) == 1003
    assert len(requests.seen) <= 4


@pytest.mark.parametrize("name", ["../x", "a/../../x", "a//b", "/etc/passwd", "a/\x01b", "a/./b"])
def test_names_that_lead_elsewhere_are_refused_by_name(requests: Requests, name: str) -> None:
    class Fake:
        protocol = "s3"

        def invalidate_cache(self) -> None: ...

        def find(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
            return {f"{BUCKET}/data/{name}": {"size": 1, "ETag": "x", "type": "file"}}

    store = Store(f"s3://{BUCKET}/data")
    store._fs = Fake()
    with pytest.raises(UserError, match="rename or remove") as problem:
        store.listing()
    assert repr(name) in str(problem.value)


def test_a_name_above_the_folder_is_refused_by_a_server_that_lists_it(requests: Requests) -> None:
    put("data/../evil", b"x")
    with pytest.raises(UserError, match=r"'\.\./evil'"):
        local_data(f"s3://{BUCKET}/data")


def test_an_object_below_an_object_is_refused(requests: Requests) -> None:
    put("data/a", b"x")
    put("data/a/b", b"x")
    with pytest.raises(UserError, match="found both"):
        local_data(f"s3://{BUCKET}/data")


# Fetching ------------------------------------------------------------------------------------------------------------


def test_an_image_is_fetched_once_when_it_is_read(requests: Requests) -> None:
    put("data/images/a.png", picture(10))
    put("data/classes.yaml", b"classes: [car]\n")
    root = local_data(f"s3://{BUCKET}/data/")
    image = root / "images" / "a.png"
    assert is_placeholder(image) and image.stat().st_size == len(picture(10))
    assert (root / "classes.yaml").read_bytes() == b"classes: [car]\n"
    assert image_size(image) == (5, 7)
    assert is_placeholder(image)  # a header is no reason to fetch it
    assert (read_image(image) == 10).all()
    asked = len(requests.seen)
    assert (read_image(image) == 10).all() and len(requests.seen) == asked
    assert origin_of(image) == f"s3://{BUCKET}/data/images/a.png"
    assert local_data(Path(f"s3://{BUCKET}/data")) == root
    assert not is_placeholder(image)


def test_a_changed_object_is_fetched_anew_and_a_removed_one_goes(requests: Requests) -> None:
    put("data/a.png", picture(10))
    put("data/b.png", picture(20))
    root = local_data(f"s3://{BUCKET}/data")
    assert (read_image(root / "a.png") == 10).all() and (read_image(root / "b.png") == 20).all()
    put("data/a.png", picture(11))
    client(os.environ["AWS_ENDPOINT_URL"]).delete_object(Bucket=BUCKET, Key="data/b.png")
    local_data(f"s3://{BUCKET}/data")
    assert is_placeholder(root / "a.png") and (read_image(root / "a.png") == 11).all()
    assert not (root / "b.png").exists()


def test_an_object_that_changes_after_the_listing_is_told(requests: Requests) -> None:
    put("data/a.png", picture(10))
    root = local_data(f"s3://{BUCKET}/data")
    put("data/a.png", picture(99))
    with pytest.raises(Changed, match=r"a\.png: changed"):
        read_image(root / "a.png")
    assert is_placeholder(root / "a.png")


def test_one_image_is_mirrored_without_its_neighbours(requests: Requests) -> None:
    put("data/scene.tif", b"x" * 10)
    put("data/scene.tfw", b"1\n0\n0\n-1\n5\n5\n")
    put("data/other.tif", b"x")
    file = local_data(f"s3://{BUCKET}/data/scene.tif")
    assert sorted(path.name for path in file.parent.iterdir()) == ["scene.tfw", "scene.tif"]


# Rasters -------------------------------------------------------------------------------------------------------------


@cache
def cog(size: int = 1536) -> bytes:
    from rasterio import Affine
    from rasterio.io import MemoryFile

    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (3, size, size), np.uint8)
    with MemoryFile() as file:
        with file.open(
            driver="COG", width=size, height=size, count=3, dtype="uint8", BLOCKSIZE=256, compress="deflate",
            crs="EPSG:32630", transform=Affine(10.0, 0, 5e5, 0, -10.0, 4e6),
        ) as raster:  # fmt: skip
            raster.write(pixels)
        return bytes(file.read())


def test_a_window_of_a_raster_costs_a_few_ranges(requests: Requests, tmp_path: Path) -> None:
    content = cog()
    assert len(content) > 2 * SMALL
    (tmp_path / "local.tif").write_bytes(content)
    put("data/scene.tif", content)
    file = local_data(f"s3://{BUCKET}/data/scene.tif")
    requests.seen.clear()
    with open_raster(file) as raster:
        pixels, is_valid = raster.read(Window(512, 768, 256, 256))
        georeference = raster.georeference
    sent = sum(size for _, _, size in requests.seen)
    assert sent < 0.05 * len(content) and len(requests.seen) <= 8, (sent, len(content), requests.seen)
    with open_raster(tmp_path / "local.tif") as raster:
        expected, _ = raster.read(Window(512, 768, 256, 256))
        assert raster.georeference == georeference
    assert (pixels == expected).all() and is_valid.all()
    assert is_placeholder(file)
    print(f"{sent / len(content):.4f} of {len(content):,} bytes in {len(requests.seen)} requests")


def test_a_raster_that_is_read_again_and_again_is_fetched(requests: Requests) -> None:
    content = cog()
    put("data/scene.tif", content)
    file = local_data(f"s3://{BUCKET}/data") / "scene.tif"
    with open_raster(file) as raster:
        raster.read(Window(0, 0, 1536, 1536))
    assert is_placeholder(file)
    with open_raster(file) as raster:
        raster.read(Window(0, 0, 16, 16))
    assert not is_placeholder(file) and checksum(file) == checksum(file)
    assert file.read_bytes() == content


def test_a_part_that_is_gone_is_told_as_such(requests: Requests) -> None:
    put("data/scene.tif", cog())
    file = local_data(f"s3://{BUCKET}/data") / "scene.tif"
    client(os.environ["AWS_ENDPOINT_URL"]).delete_object(Bucket=BUCKET, Key="data/scene.tif")
    with pytest.raises(Changed), open_raster(file) as raster:
        raster.read(Window(0, 0, 16, 16))


def test_ranges_agree_with_the_whole(requests: Requests) -> None:
    content = bytes(np.random.default_rng(1).integers(0, 255, 5 * BLOCK + 17, np.uint8))
    put("data/a.tif", content)
    file = local_data(f"s3://{BUCKET}/data") / "a.tif"
    parts = Parts(file)
    stream = RangedFile(parts)
    rng = np.random.default_rng(2)
    for _ in range(40):
        start, length = int(rng.integers(0, len(content))), int(rng.integers(0, 2 * BLOCK))
        stream.seek(start)
        assert stream.read(length) == content[start : start + length]
    assert parts.num_read <= len(content)
    assert stream.seek(-3, os.SEEK_END) == len(content) - 3 and stream.read() == content[-3:] and stream.read(1) == b""


# Faults --------------------------------------------------------------------------------------------------------------


def test_a_lost_connection_is_waited_out(
    requests: Requests, server: tuple[str, Requests], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(remote, "_LONGEST_PAUSE", 0.3)
    line = Line(server[0])
    monkeypatch.setenv("AWS_ENDPOINT_URL", line.address)
    for number in range(4):
        client(server[0]).put_object(Bucket=BUCKET, Key=f"data/{number}.png", Body=picture(number))
    root = local_data(f"s3://{BUCKET}/data")
    assert (read_image(root / "0.png") == 0).all()
    line.cut()
    is_mended = threading.Event()

    def mend() -> None:
        if eventually(lambda: "waiting for it" in caplog.text):  # s3fs asks again for some seconds by itself
            time.sleep(1)
        is_mended.set()
        line.mend()

    threading.Thread(target=mend).start()
    for number in range(1, 4):
        assert (read_image(root / f"{number}.png") == number).all()
    assert is_mended.is_set() and "waiting for it" in caplog.text and "answers again" in caplog.text
    line.close()


def test_a_connection_that_stays_away_is_one_line(
    requests: Requests, server: tuple[str, Requests], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MASKLOOM_STORAGE_WAIT", "1")
    line = Line(server[0])
    monkeypatch.setenv("AWS_ENDPOINT_URL", line.address)
    client(server[0]).put_object(Bucket=BUCKET, Key="data/0.png", Body=picture(0))
    root = local_data(f"s3://{BUCKET}/data")
    line.cut()
    with pytest.raises(UserError, match=r"data/0\.png: expected the store to answer.*asked \d+ times") as problem:
        read_image(root / "0.png")
    assert "it continues" in str(problem.value) and not isinstance(problem.value, BadFile)
    assert is_placeholder(root / "0.png")
    line.mend()
    assert (read_image(root / "0.png") == 0).all()
    line.close()


def test_a_wrong_address_is_told_soon(requests: Requests, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASKLOOM_STORAGE_WAIT", "0.5")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="AWS_ENDPOINT_URL"):
        local_data(f"s3://{BUCKET}/data")


@pytest.mark.parametrize("url", ["s3://no-such-bucket/data", f"s3://{BUCKET}/nothing"])
def test_a_wrong_name_is_told(requests: Requests, url: str) -> None:
    with pytest.raises(UserError, match="check the"):
        local_data(url)


def test_a_refusal_names_the_credentials_but_not_their_value(
    requests: Requests, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise PermissionError(f"the key {ENVIRONMENT['AWS_ACCESS_KEY_ID']} is not known: http://x/?sig=abc")

    store = Store(f"s3://{BUCKET}/data")
    monkeypatch.setattr(store._fs, "find", refuse)
    with pytest.raises(UserError, match="AWS_PROFILE") as problem:
        store.listing()
    assert ENVIRONMENT["AWS_ACCESS_KEY_ID"] not in str(problem.value) and "abc" not in str(problem.value)


def test_no_credential_is_written_anywhere(
    requests: Requests, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "session/token")
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
    secrets = [os.environ[name].encode() for name in names]
    looked_at: list[str] = []

    def check(name: str, content: bytes) -> None:
        looked_at.append(name)
        for secret in secrets:
            assert secret not in content, name

    caplog.set_level(logging.DEBUG, logger="maskloom")
    put("data/a.png", picture(1))
    store = Store(f"s3://{BUCKET}/run")
    with working_run(f"s3://{BUCKET}/run") as root:
        data = local_data(f"s3://{BUCKET}/data")
        read_image(data / "a.png")
        run = begun(root)
        write_sealed(run.facts, {"format": 1, "data": origin_of(data)})
        heartbeat = Heartbeat(root, command="fit", target=f"s3://{BUCKET}/run", device="cpu", unit="images")
        with heartbeat:
            deadline = time.monotonic() + 10
            while not list(root.glob("status/*.json")) and time.monotonic() < deadline:
                time.sleep(0.02)
            train(run)
            while_it_works = set(store.listing())
            for name in while_it_works:
                check(name, store.read_all(name) or b"")
        refused = Store(f"s3://{BUCKET}/run")
        monkeypatch.setattr(refused._fs, "cat_file", _refuse)
        with pytest.raises(UserError) as problem:
            refused.read_all("run.json")
        check("message", str(problem.value).encode())
    for file in (tmp_path / "cache").rglob("*"):
        if file.is_file() and not is_placeholder(file):
            check(file.name, file.read_bytes())
    check("log", caplog.text.encode())
    assert {LOCK_NAME, "run.json"} <= while_it_works and any(name.startswith("status/") for name in while_it_works)
    assert {"known.json", "mirror.json", "signs.json", "run.json", "a.png", LOCK_NAME} <= set(looked_at)


def _refuse(*args: Any, **kwargs: Any) -> Any:
    raise PermissionError(f"no access for {[os.environ[name] for name in ENVIRONMENT]}")
