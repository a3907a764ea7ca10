"""Which cluster is joined, what its nodes have room for and see, and whether its head answers; without Ray."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from maskloom.errors import UserError
from maskloom.executors import nodes
from maskloom.executors.bench import whereabouts
from maskloom.executors.cluster import OPEN, Cluster, _connect, _stated, connected
from maskloom.executors.nodes import Head, Node, look_around, shared_look, takes_connections
from maskloom.executors.sites import THREADS


@contextmanager
def listening() -> Iterator[str]:
    """Yields an address that takes connections."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def gone() -> str:
    """An address that takes none."""
    with listening() as address:
        pass
    return address


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No cluster, no token, nothing stated."""
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", THREADS):
        monkeypatch.setenv(name, "")  # so that what the code sets is undone
        monkeypatch.delenv(name)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def leave(tmp_path: Path, address: str) -> Path:
    """Leaves the file in which ``ray start`` names the cluster of this host."""
    path = tmp_path / "ray" / "ray_current_cluster"
    path.parent.mkdir(exist_ok=True)
    path.write_text(address)
    return path


# Which cluster -------------------------------------------------------------------------------------------------------


def test_a_head_that_is_gone_is_no_reason_to_compute_elsewhere(tmp_path: Path, gone: str) -> None:
    path = leave(tmp_path, gone)
    address, remedy = _stated()
    assert address == gone and not takes_connections(f"ray://{gone}")
    with pytest.raises(UserError, match=rf"expected a Ray cluster at {gone}, found none that answers") as told:
        _connect(fake_ray(), address, remedy, None)
    assert str(path) in str(told.value) and "`ray start --head`" in str(told.value) and "`ray stop`" in str(told.value)


@pytest.mark.parametrize("failures", [2, 3])
def test_a_head_that_is_slow_to_let_us_in_is_asked_again(failures: int) -> None:
    refusal = (
        'Initialization failure from server:\nTraceback (most recent call last):\n  File "proxier.py", line 772\n'
        "RuntimeError: Starting Ray client server failed. See ray_client_server_23000.err for detailed logs.\n"
    )
    asked = []

    def init(**options: Any) -> None:
        asked.append(options["address"])
        if len(asked) <= failures:
            raise ConnectionAbortedError(refusal)

    ray, address = fake_ray(), ""
    ray.init = init
    with listening() as place:
        address = f"ray://{place}"
        if failures < 3:
            _connect(ray, address, "", None)
        else:
            with pytest.raises(UserError, match=r"\(RuntimeError: Starting Ray client server failed\. See [^\n]*\);"):
                _connect(ray, address, "", None)
    assert asked == [address] * 3


def test_what_the_environment_states_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, gone: str) -> None:
    leave(tmp_path, "127.0.0.1:1")
    monkeypatch.setenv("RAY_ADDRESS", gone)
    address, remedy = _stated()
    assert address == gone
    with pytest.raises(UserError, match=r"RAY_ADDRESS says so: start the head again, or unset it$"):
        _connect(fake_ray(), address, remedy, None)


def test_the_file_of_another_user_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = leave(tmp_path, "127.0.0.1:1")
    assert _stated()[0] == "127.0.0.1:1"
    owner = path.stat().st_uid
    with monkeypatch.context() as patch:
        patch.setattr(os, "fstat", lambda _: SimpleNamespace(st_uid=owner + 12345))
        assert _stated()[0] is None
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert _stated()[0] is None, "a link leads to what others chose"
    path.unlink()
    assert _stated()[0] is None


def fake_ray(gcs_address: str = "") -> Any:
    """Returns what stands for Ray, with a node of four processors."""
    ray = ModuleType("ray")
    facts: dict[str, Any] = {
        "begun": [],
        "is_initialized": lambda: False,
        "init": lambda **options: ray.begun.append(options),
        "shutdown": lambda: ray.begun.append("shutdown"),
        "exceptions": SimpleNamespace(RayError=type("RayError", (Exception,), {})),
        "get_runtime_context": lambda: SimpleNamespace(gcs_address=gcs_address),
        "nodes": lambda: [
            {"NodeID": "1", "NodeManagerHostname": "here", "Resources": {"CPU": 4.0}, "Alive": True},
        ],
    }
    for name, value in facts.items():
        setattr(ray, name, value)
    return ray


def join(monkeypatch: pytest.MonkeyPatch, ray: Any, address: str | None = None) -> Cluster:
    client = ModuleType("ray.util.client")
    client.ray = SimpleNamespace(is_connected=lambda: False)  # type: ignore[attr-defined]
    for name, module in (("ray", ray), ("ray.util", ModuleType("ray.util")), ("ray.util.client", client)):
        monkeypatch.setitem(sys.modules, name, module)
    with connected(address, device="cpu", processes=None) as found:
        return found


def test_a_cluster_of_this_host_alone_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with listening() as address:
        ray = fake_ray(address)
        found = join(monkeypatch, ray)
    assert found.notes == ("no Ray cluster was found: one of this host alone is started", OPEN)
    assert ray.begun[0]["address"] == "local" and ray.begun[-1] == "shutdown"
    assert found.head.address == address


def test_a_cluster_without_a_token_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, home: Path) -> None:
    with listening() as address:
        leave(tmp_path, address)
        assert join(monkeypatch, fake_ray(address)).notes == (OPEN,)
        (home / ".ray").mkdir(parents=True)
        (home / ".ray" / "auth_token").write_text("secret")
        assert join(monkeypatch, fake_ray(address)).notes == ()
        assert os.environ["RAY_AUTH_MODE"] == "token", "what was found here is shown, as Ray does by itself"


def test_the_client_port_is_asked_whether_it_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    with listening() as address:
        found = join(monkeypatch, fake_ray("10.0.0.1:6379"), f"ray://{address}")
        assert found.head.address == f"ray://{address}" and found.head.answers()
    assert not found.head.answers()


# The head ------------------------------------------------------------------------------------------------------------


def test_many_calls_at_once_are_one_look_at_the_head(gone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    head = Head(gone)
    assert not any(head.answers() for _ in range(10)) and not head.is_lost
    monkeypatch.setattr(nodes, "HEAD_SECONDS", 0.0)
    head.answers(), head.answers()
    assert head.is_lost and f"the head of the cluster at {gone} does not answer" in head.lost()
    assert "`ray start --head`" in head.lost() and "`ray start --address=…`" in head.lost(), "nodes end with their head"


def test_whoever_finds_the_head_lost_says_so() -> None:
    head = Head("")
    assert head.answers() and not head.is_lost
    head.give_up()
    assert head.is_lost and "the head of the cluster does not answer" in head.lost()


# Room ----------------------------------------------------------------------------------------------------------------

SMALL, LARGE = Node("1", "a", 8, 4), Node("2", "b", 64, 4)


def gpus(processes: int | None) -> Cluster:
    return Cluster(device=torch.device("cpu"), kind="cuda", processes=processes, head=Head(""))


@pytest.mark.parametrize("processes", [None, 4, 8])
def test_gpus_are_counted_with_the_processors_beside_them(processes: int | None) -> None:
    site = gpus(processes)
    assert site._threads([SMALL, LARGE]) == 2
    assert [site.room(node, 2) for node in (SMALL, LARGE)] == [4, 4]
    assert [site.room(node, 8) for node in (SMALL, LARGE)] == [1, 4]


def test_more_threads_than_processors_are_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(THREADS, "16")
    site = gpus(None)
    assert site._threads([SMALL, LARGE]) == 16
    assert [site.room(node, 16) for node in (SMALL, LARGE)] == [0, 4]


def test_processors_are_divided_by_the_workers() -> None:
    site = Cluster(device=torch.device("cpu"), kind="cpu", processes=9, head=Head(""))
    assert site._threads([SMALL, LARGE]) == 8 and site.room(SMALL, 8) == 1 and site.room(LARGE, 8) == 8


# What nodes see ------------------------------------------------------------------------------------------------------


def test_every_folder_that_is_written_is_looked_for(tmp_path: Path) -> None:
    run, out, data = tmp_path / "run", tmp_path / "out", tmp_path / "data"
    out.mkdir()
    data.mkdir()
    with shared_look(run, (out, out, run), (data,), "") as look:
        assert [path.parent for path in look.probes] == [run, out]
        look.place()
        assert look.missing("a", look_around(look)) is None
        # Another node has a folder of that name of its own.
        look.probes[1].unlink()
        line = look.missing("a", look_around(look))
        assert line is not None and line.startswith(f"node a: expected to see the folder {out}, into which is written")
        look.place()  # it was removed meanwhile, as what killed processes leave is
        look.probes[0].write_text("of another command")
        assert "node a: expected to see the run's folder" in str(look.missing("a", look_around(look)))
        look.probes[0].unlink()
        look.place()
        data.rmdir()
        assert f"node a: expected to see {data}, found no such path" in str(look.missing("a", look_around(look)))
    assert not list(run.iterdir()) and not list(out.iterdir())


def test_a_folder_that_was_made_for_looking_goes_unless_it_was_used(tmp_path: Path) -> None:
    for is_used in (False, True):
        with shared_look(tmp_path / "run", (tmp_path / "out",), (), "") as look:
            look.place()
            if is_used:
                (tmp_path / "out" / "mask.png").touch()
        assert (tmp_path / "out").exists() == is_used


def test_all_that_computes_must_be_alike(tmp_path: Path) -> None:
    ours = whereabouts()
    assert set(ours) == {"maskloom", "torch", "timm", "segmentation-models-pytorch", "numpy", "opencv", "python"}
    assert all(ours.values())
    with shared_look(tmp_path, (), (), "") as look:
        look.place()
        found = look_around(look)
        for name in ours:
            assert f"{name} 1 (here {found[name]})" in str(look.missing("a", found | {name: "1"}))
        assert "timm (none) (here" in str(look.missing("a", found | {"timm": ""}))
