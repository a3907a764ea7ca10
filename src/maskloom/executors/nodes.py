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

    probes: tuple[Path, ...]
    """Files that the driver wrote: one into the run's folder, and one into every other folder that is written."""
    text: str
    """What is in each of them."""
    sees: tuple[Path, ...]
    folder: str

    def place(self) -> None:
        """Writes the files that are not there."""
        for path in self.probes:
            if not path.is_file():
                path.write_text(self.text, encoding="utf-8")

    def missing(self, node: str, found: dict[str, str]) -> str | None:
        """Returns why a node cannot take part, in a line, by what it said; None: it can."""
        ours = whereabouts()
        others = [
            f"{name} {found.get(name) or '(none)'} (here {ours[name] or 'none'})"
            for name in ours
            if found.get(name) != ours[name]
        ]
        if others:
            return f"node {node}: expected the same versions as here, found {', '.join(others)}; install the same"
        if found["unseen"] == str(self.probes[0].parent):
            return (
                f"node {node}: expected to see the run's folder {found['unseen']}, found something else there; put "
                "the run on a file system that all nodes share, under the same path"
            )
        if found["unseen"]:
            return (
                f"node {node}: expected to see the folder {found['unseen']}, into which is written, found something "
                "else there; put it on a file system that all nodes share, under the same path"
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
    unseen = next((str(path.parent) for path in look.probes if _text(path) != look.text), "")
    missing = next((str(path) for path in look.sees if not path.exists()), "")
    return whereabouts() | {"unseen": unseen, "missing": missing}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""


@contextmanager
def shared_look(run: Path, writes: Sequence[Path], sees: Sequence[Path], folder: str) -> Iterator[Look]:
    """Yields what nodes are asked to find: a file in each folder that is written, the run's first, and ``sees``.

    The files go at the end, and so do folders that were made for them and are still empty.
    """
    text = secrets.token_hex(8)
    folders = list(dict.fromkeys(path.resolve() for path in (run, *writes)))
    made = [path for path in folders[1:] if not path.exists()]
    look = Look(
        probes=tuple(path / f"{TEMPORARY_PREFIX}nodes-{text}" for path in folders),
        text=text,
        sees=tuple(sees),
        folder=folder,
    )
    try:
        for path in folders:
            path.mkdir(parents=True, exist_ok=True)
        yield look
    finally:
        for probe in look.probes:
            with suppress(OSError):
                probe.unlink(missing_ok=True)
        for path in made:
            with suppress(OSError):  # it is not empty
                path.rmdir()


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

    def __init__(self, address: str) -> None:
        """``address`` is HOST:PORT, or ray://HOST:PORT of its client port; "" where nobody knows it."""
        self.address = address
        self._looked, self._failed, self._failed_at = time.monotonic(), 0, 0.0

    def is_due(self) -> bool:
        """Returns whether it is time to look again."""
        return time.monotonic() - self._looked >= HEAD_SECONDS

    def answers(self) -> bool:
        """Returns whether it takes connections; True without asking where its address is not known."""
        self._looked = time.monotonic()
        if not self.address:
            return True
        if takes_connections(self.address):
            self._failed = 0
            return True
        if not self._failed or time.monotonic() - self._failed_at >= HEAD_SECONDS:  # calls in a row are one look
            self._failed += 1
            self._failed_at = time.monotonic()
        return False

    @property
    def is_client_port(self) -> bool:
        """Whether its address is that of its client port: then the other nodes are reached through it alone."""
        return self.address.startswith("ray://")

    @property
    def is_lost(self) -> bool:
        """Whether it has not answered several times in a row."""
        return self._failed >= _HEAD_TRIES

    def give_up(self) -> None:
        """Takes it for lost, as whoever speaks with it has found."""
        self._failed = max(self._failed, _HEAD_TRIES)

    def lost(self) -> str:
        """Returns what to tell of a head that is lost."""
        at = f" at {self.address}" if self.address else ""
        return (
            f"--on ray: the head of the cluster{at} does not answer any more; start it again (`ray start --head`), "
            "then every other node (`ray start --address=…`: none comes back by itself) and the same command, it "
            "continues"
        )
