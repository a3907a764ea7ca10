"""Runs at a URL: published as they grow, continued from anywhere, read in part."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from buckets import BUCKET, ENVIRONMENT, Line, Requests, client, emptied, serving
from maskloom.errors import UserError
from maskloom.files import write_bytes, write_json, write_text
from maskloom.integrity import Damaged
from maskloom.progress import Silent
from maskloom.run_directory import RunDirectory
from maskloom.stages.verification import verify_run
from maskloom.storage import publishing, remote, remote_lock
from maskloom.storage.mirror import Mirror
from maskloom.storage.placeholders import is_placeholder
from maskloom.storage.places import local_data, readable_run, working_run
from maskloom.storage.publishing import rank
from maskloom.storage.remote import Store, store_at
from maskloom.storage.remote_lock import LOCK_NAME, TakenOver
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
    recorded,
    train,
)

pytest.importorskip("fsspec")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with in_memory(tmp_path, monkeypatch) as place:
        yield place


def test_ranks() -> None:
    order = [BUNDLE, "members/net/fold0/checkpoint.safetensors", "stages/oof/net.sums", "oof/net/attempt.json"]
    ranks = [rank(name) for name in [*order, "stages/oof/net.json", "ensemble/decided.json"]]
    assert ranks == sorted(set(ranks))


def test_a_run_continues_on_another_machine(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with working_run(url) as root:
        train(begun(root))
        assert {BUNDLE, "run.json", "stages/train/net/fold0.json", "stages/train/net/fold0.sums"} <= listed(url)
        predict_out_of_fold(RunDirectory(root))
        (root / "report.html").write_text("page")
    assert LOCK_NAME not in listed(url) and "report.html" in listed(url)  # the last of it comes at the end
    with elsewhere(tmp_path, monkeypatch), working_run(url) as root:
        run = RunDirectory.existing(root)
        for stage in ("train/net/fold0", "oof/net"):
            assert run.finished(stage) is not None and run.damaged(stage) == []
        assert is_placeholder(root / MAP) and is_placeholder(root / BUNDLE)  # nothing of it was read
        assert (root / "oof/net/scores.json").read_bytes() == b"{}"
        assert run.checked(root / MAP).read_bytes() == b"map"
        assert run.damaged("oof/net", thorough=True) == []
        predict_out_of_fold(run, b"another map")
    readable_run(url)
    root = Mirror.of(url, "run").root
    assert is_placeholder(root / MAP)  # the first machine sees what the second one did
    assert RunDirectory(root).checked(root / MAP).read_bytes() == b"another map"
    assert (root / BUNDLE).read_bytes() == b"weights" and not is_placeholder(root / BUNDLE)


def test_what_is_published_is_not_sent_again(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with working_run(url) as root:
        run = begun(root)
        train(run)
        with recorded(monkeypatch) as done:
            predict_out_of_fold(run)
    assert set(done[:2]) == {MAP, "oof/net/scores.json"}
    assert done[2:] == ["stages/oof/net.sums", "stages/oof/net.json"]


def test_a_damaged_object_is_never_used(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with working_run(url) as root:
        predict_out_of_fold(begun(root))
    store_at(url).write(MAP, b"mop")
    with elsewhere(tmp_path, monkeypatch):
        run = RunDirectory(readable_run(url))
        with pytest.raises(Damaged, match=r"a\.map"):
            run.check([run.root / MAP])
        found = verify_run(run.root, Silent())
        assert found.bad == {MAP: "damaged"}
        with working_run(url) as root:
            assert RunDirectory(root).damaged("oof/net", thorough=True) == [root / MAP]


def test_verify_reads_all_and_others_only_what_they_read(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with working_run(url) as root:
        train(begun(root))
        predict_out_of_fold(RunDirectory(root))
    with elsewhere(tmp_path, monkeypatch):
        root = readable_run(url)
        assert is_placeholder(root / MAP) and is_placeholder(root / BUNDLE)
        assert verify_run(root, Silent()).is_sound
        assert not is_placeholder(root / MAP) and not is_placeholder(root / BUNDLE)


def test_what_is_removed_goes_at_the_url_too(url: str) -> None:
    with working_run(url) as root:
        run = begun(root)
        predict_out_of_fold(run)
        write_json(run.decided, {})
        train(run)
        assert "ensemble/decided.json" in listed(url)
        run.decided.unlink()
        run.marker("oof/net").unlink()
        shutil.rmtree(run.oof("net"))
        finish(run, "survey", **{"data/survey.json": b"{}"})
        assert not listed(url) & {"ensemble/decided.json", MAP, "stages/oof/net.json"}


def test_what_vouches_for_files_goes_first_when_a_stage_is_done_again(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with working_run(url) as root:
        run = begun(root)
        train(run)
        predict_out_of_fold(run)
        with recorded(monkeypatch) as done:
            predict_out_of_fold(run, b"another map")
    assert done[0] == "-stages/oof/net.json" and done[-1] == "stages/oof/net.json"
    assert MAP in done[1:-2] and BUNDLE not in done


def test_no_run_at_a_url_is_one_line(url: str) -> None:
    with pytest.raises(UserError, match=r"found no run\.json there"):
        readable_run(url)


# Two machines --------------------------------------------------------------------------------------------------------


def test_a_second_machine_is_told_who_works_there(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with working_run(url) as root:
        begun(root)
        with elsewhere(tmp_path, monkeypatch):
            with pytest.raises(UserError, match=f"process {os.getpid()} on .* works there since"), working_run(url):
                pass
            with pytest.raises(UserError, match="expected a run"):
                readable_run(url)  # nothing is published yet, and reading takes no lock
        with pytest.raises(UserError, match="works in it"), working_run(url):
            pass
    with elsewhere(tmp_path, monkeypatch), working_run(url):
        pass


def test_who_gave_no_sign_is_succeeded_and_stops(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TakenOver, match="found that process"), working_run(url) as root:
        train(begun(root))
        monkeypatch.setattr(remote_lock, "GONE_SECONDS", -1.0)
        with elsewhere(tmp_path, monkeypatch), working_run(url) as theirs:
            assert is_placeholder(theirs / BUNDLE)
            predict_out_of_fold(RunDirectory(root))
    assert MAP not in listed(url) and LOCK_NAME not in listed(url)
    with working_run(url) as root:  # what it could not publish is kept here, for nobody went on there
        assert BUNDLE in listed(url)


def test_a_killed_process_goes_on_with_what_it_had(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mirror = Mirror.of(url, "run")
    with working_run(url) as root:
        train(begun(root))
    remote_lock.RemoteLock(store_at(url), mirror.folder).take()  # it holds the lock, and is gone
    write_bytes(mirror.root / MAP, b"not yet published")
    store_at(url).write("members/net/fold0/log.jsonl", b"{}\n")  # a publication was cut off here
    with working_run(url) as root:
        assert (root / MAP).read_bytes() == b"not yet published"
    assert MAP in listed(url)


def test_what_another_machine_did_counts(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with working_run(url) as root:
        predict_out_of_fold(begun(root))
    write_bytes(root / "oof/net/maps/b.map", b"not yet published")
    with elsewhere(tmp_path, monkeypatch), working_run(url) as theirs:
        predict_out_of_fold(RunDirectory(theirs), b"theirs")
    with working_run(url) as root:
        assert not (root / "oof/net/maps/b.map").exists()
        assert RunDirectory(root).checked(root / MAP).read_bytes() == b"theirs"


# Between the ends of stages ------------------------------------------------------------------------------------------


def test_a_checkpoint_is_published_while_training_goes_on(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_lock, "SIGN_SECONDS", 0.05)
    monkeypatch.setattr(publishing, "PUBLISH_SECONDS", 0.1)
    name = f"members/net/fold0/{CHECKPOINT}"
    with pytest.raises(TakenOver), working_run(url) as root:
        begun(root)
        write_bytes(root / name, b"epoch 3")
        write_text(root / "members/net/fold0/log.jsonl", "{}\n")
        deadline = time.monotonic() + 10
        while name not in listed(url) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert store_at(url).read_all(name) == b"epoch 3"
        monkeypatch.setattr(remote_lock, "GONE_SECONDS", -1.0)
        with elsewhere(tmp_path, monkeypatch):
            root = Mirror.of(url, "run").root
            with pytest.raises(TakenOver), working_run(url) as theirs:
                assert theirs == root and (theirs / name).read_bytes() == b"epoch 3"  # fetched without being asked
                remote_lock.RemoteLock(store_at(url), tmp_path).take()


def test_an_error_publishes_what_there_is(url: str) -> None:
    with pytest.raises(RuntimeError), working_run(url) as root:
        begun(root)
        write_bytes(root / MAP, b"half")
        raise RuntimeError
    assert MAP in listed(url) and LOCK_NAME not in listed(url)


# A real S3 API -------------------------------------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Requests]]:
    pytest.importorskip("s3fs")
    pytest.importorskip("moto.server")
    with serving() as (address, requests):
        for name, value in {**ENVIRONMENT, "AWS_ENDPOINT_URL": address}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("MASKLOOM_CACHE", str(tmp_path / "cache"))
        emptied()
        yield address, requests


def test_the_order_of_writing(server: tuple[str, Requests]) -> None:
    _, requests = server
    with working_run(f"s3://{BUCKET}/run") as root:
        train(begun(root))
        predict_out_of_fold(RunDirectory(root))
    written = [name.replace("run/", "", 1) for name in requests.written()]
    assert written[0] == LOCK_NAME and written[-1] == f"-{LOCK_NAME}"
    one = written.index("stages/train/net/fold0.json")
    assert {BUNDLE, "members/net/fold0/log.jsonl", "run.json"} < set(written[:one])
    assert written[one - 1] == "stages/train/net/fold0.sums"
    two = written.index("stages/oof/net.json")
    assert {MAP, "oof/net/scores.json", "stages/oof/net.sums"} == set(written[one + 1 : two])
    assert written[two - 1] == "stages/oof/net.sums"


def test_a_run_in_a_bucket_that_is_not_there_is_one_line(server: tuple[str, Requests]) -> None:
    with (
        pytest.raises(UserError, match="s3://no-such-bucket/run: expected a bucket"),
        working_run("s3://no-such-bucket/run"),
    ):
        pass


KILLED = """
import os, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from runs_at_urls import begun, train, predict_out_of_fold
from maskloom.run_directory import RunDirectory
from maskloom.storage.places import working_run
from maskloom.storage.remote import Store
upload = Store.upload
def killed(self, file, name):
    if name == "stages/oof/net.json":
        os._exit(9)
    upload(self, file, name)
Store.upload = killed
with working_run("s3://{bucket}/run") as root:
    train(begun(root))
    predict_out_of_fold(RunDirectory(root))
"""


def test_a_process_killed_before_the_marker_leaves_the_former_state(
    server: tuple[str, Requests], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"s3://{BUCKET}/run"
    words = KILLED.format(tests=str(Path(__file__).parent), bucket=BUCKET)
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", words], check=False).returncode == 9
    assert MAP in listed(url) and "stages/oof/net.json" not in listed(url)
    with elsewhere(tmp_path, monkeypatch):
        run = RunDirectory(readable_run(url))
        assert run.finished("train/net/fold0") is not None and run.finished("oof/net") is None
        with pytest.raises(UserError, match="works there since"), working_run(url):
            pass
    with working_run(url) as root:  # on its own machine it goes on at once
        run = RunDirectory(root)
        assert run.finished("oof/net") is not None and run.damaged("oof/net") == []
    assert "stages/oof/net.json" in listed(url)


def test_a_line_that_is_cut_while_publishing_is_waited_for(
    server: tuple[str, Requests], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(remote, "_LONGEST_PAUSE", 0.3)
    line = Line(server[0])
    monkeypatch.setenv("AWS_ENDPOINT_URL", line.address)
    url = f"s3://{BUCKET}/run"
    with working_run(url) as root:
        train(begun(root))
        line.cut()
        threading.Timer(2.5, line.mend).start()
        began = time.monotonic()
        predict_out_of_fold(RunDirectory(root))
        assert time.monotonic() - began > 2
    with elsewhere(tmp_path, monkeypatch):
        assert verify_run(readable_run(url), Silent()).is_sound
    line.close()


def test_data_and_a_run_may_share_a_bucket(server: tuple[str, Requests]) -> None:
    client(server[0]).put_object(Bucket=BUCKET, Key="data/table.csv", Body=b"id,image\n")
    with working_run(f"s3://{BUCKET}/runs/one") as root:
        train(begun(root))
        assert (local_data(f"s3://{BUCKET}/data/table.csv")).read_bytes() == b"id,image\n"
    assert len(Store(f"s3://{BUCKET}").listing()) == 6
