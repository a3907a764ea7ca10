"""The nodes of a Ray cluster: which are there, what each sees of what is shared, and whether the head still answers.

Knows nothing about workers or tasks.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from maskloom.executors.bench import whereabouts
from maskloom.files import TEMPORARY_PREFIX

PROBE_SECONDS = 120.0
"""So long a node may take to answer whether it sees the run's folder."""
HEAD_SECONDS = 5.0
"""So often the head is asked for a connection, and the cluster for its nodes."""
_HEAD_TRIES = 3


@dataclass(frozen=True, slots=True)
class Node:
    """One host of the cluster."""

    id: str
    name: str
    cpus: int
    gpus: int


def alive_nodes() -> list[Node]:
    """Returns the nodes of the cluster that are alive, always in the same order."""
    import ray

    found = [
        Node(
            node["NodeID"],
            node["NodeManagerHostname"],
            int(node["Resources"].get("CPU", 0)),
            int(node["Resources"].get("GPU", 0)),
        )
        for node in ray.nodes()
        if node["Alive"]
    ]
    return sorted(found, key=lambda node: (node.name, node.id))


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """What a node is asked to find."""

    path: Path
    """A file that the driver wrote into the run's folder."""
    text: str
    """What is in it."""
    sees: tuple[Path, ...]
    folder: str

    def place(self) -> None:
        """Writes the file, unless it is there."""
        if not self.path.is_file():
            self.path.write_text(self.text, encoding="utf-8")

    def missing(self, node: str, found: dict[str, str]) -> str | None:
        """Returns why a node cannot take part, in a line, by what it said; None: it can."""
        ours = whereabouts()
        others = [f"{name} {found[name]} (here {ours[name]})" for name in ours if found.get(name) != ours[name]]
        if others:
            return f"node {node}: expected the same versions as here, found {', '.join(others)}; install the same"
        if found["probe"] != self.text:
            return (
                f"node {node}: expected to see the run's folder {self.path.parent}, found something else there; put "
                "the run on a file system that all nodes share, under the same path"
            )
        if found["missing"]:
            return (
                f"node {node}: expected to see {found['missing']}, found no such path; put the data on a file system "
                "that all nodes share, under the same path"
            )
        return None


def look_around(look: Look) -> dict[str, str]:
    """Returns what is found on the node on which this is called."""
    if look.folder:
        with suppress(OSError):
            os.chdir(look.folder)
    try:
        text = look.path.read_text(encoding="utf-8")
    except OSError:
        text = ""
    missing = next((str(path) for path in look.sees if not path.exists()), "")
    return whereabouts() | {"probe": text, "missing": missing}


@contextmanager
def shared_look(run: Path, sees: Sequence[Path], folder: str) -> Iterator[Look]:
    """Yields what nodes are asked to find: a file in the run's folder, which goes at the end, and ``sees``."""
    text = secrets.token_hex(8)
    path = run.resolve() / f"{TEMPORARY_PREFIX}nodes-{text}"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield Look(path=path, text=text, sees=tuple(sees), folder=folder)
    finally:
        path.unlink(missing_ok=True)


def takes_connections(address: str) -> bool:
    """Returns whether something answers at ``HOST:PORT`` or ``ray://HOST:PORT``; True for addresses of other forms."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        return True
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=HEAD_SECONDS).close()
    except OSError:
        return False
    return True


class Head:
    """The head of a cluster: whether it still answers. Ray itself waits for a minute, and may then end the process."""

    def __init__(self, *, is_client: bool) -> None:
        import ray

        self.address = "" if is_client else str(ray.get_runtime_context().gcs_address)
        self._looked, self._failed = time.monotonic(), 0

    def is_due(self) -> bool:
        """Returns whether it is time to look again."""
        return time.monotonic() - self._looked >= HEAD_SECONDS

    def answers(self) -> bool:
        """Returns whether it takes connections; True without asking where it is reached through a client port."""
        self._looked = time.monotonic()
        if not self.address:
            return True
        is_there = takes_connections(self.address)
        self._failed = 0 if is_there else self._failed + 1
        return is_there

    @property
    def is_lost(self) -> bool:
        """Whether it has not answered several times in a row."""
        return self._failed >= _HEAD_TRIES

    def lost(self) -> str:
        """Returns what to tell of a head that is lost."""
        return (
            f"--on ray: the head of the cluster at {self.address} does not answer any more; start it again "
            "(`ray start --head`) and start the same command again, it continues"
        )
