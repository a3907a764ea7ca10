"""Workers on a Ray cluster: its nodes, what each has room for, and whether each sees the folder of the run.

A worker is an actor that asks for its processors and GPU; which node it is on is decided here. Nodes that join later
are taken in; what was on a node that is lost is done elsewhere. Ray is an optional part, which nothing else imports.
Knows nothing about what tasks compute.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskloom.errors import UserError
from maskloom.executors.bench import Opening
from maskloom.executors.nodes import Head, Node, alive_nodes, shared_look, takes_connections
from maskloom.executors.pool import Pool
from maskloom.executors.sites import THREADS, Work, stated_threads, usual_loaders, usual_processes
from maskloom.progress import Progress
from maskloom.runtime import choose_device, num_cores

if TYPE_CHECKING:
    import torch

INSTALL = "pip install 'maskloom[cluster]'"
OPEN = (
    "this Ray cluster lets anybody run programs on it who reaches its ports; docs/several-machines.md says how a token "
    "keeps them out"
)
_CONNECT_TRIES = 3
_NOT_YET = "Starting Ray client server failed"
"""What Ray says where a head that is busy, or has just begun, took more than half a minute to let us in."""


@contextmanager
def connected(address: str | None, *, device: str | None, processes: int | None) -> Iterator[Cluster]:
    """Yields a cluster: that at ``ray://HOST:PORT``, else the one that this host is in, else one of this host alone.

    Raises ``UserError`` where Ray is not installed, or the cluster does not answer.
    """
    _use_token()
    try:
        import ray
    except ImportError:
        raise UserError(f"--on ray: expected the package ray, which is not installed; {INSTALL}") from None
    is_ours = not ray.is_initialized()  # else the program that this is part of has begun it, and ends it
    head, notes = Head(""), []
    if is_ours:
        found, remedy = (address, "") if address else _stated()
        if found is None:
            notes.append("no Ray cluster was found: one of this host alone is started")
        _connect(ray, found, remedy, processes)
        notes += [] if os.environ.get("RAY_AUTH_MODE", "").lower() == "token" else [OPEN]
    try:
        head = Head(_head_address(address))
        yield _cluster(head, device, processes, tuple(notes))
    finally:
        if is_ours and not head.is_lost and head.answers():  # Ray would wait for one that is gone
            ray.shutdown()


def _use_token() -> None:
    """Has Ray show the token that is at hand, as it does by itself where it also finds the cluster by itself."""
    stated = any(map(os.environ.get, ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")))
    if stated or (Path.home() / ".ray" / "auth_token").is_file():
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def _stated() -> tuple[str | None, str]:
    """Returns the address of the cluster that is to be joined, and what to do where it does not answer.

    The environment states it, or the file in which ``ray start`` left that of the cluster to which this host belongs,
    and which stays behind where a head was killed. A file of another user's is not followed: whoever is joined can run
    programs here. None: there is no cluster.
    """
    stated = os.environ.get("RAY_ADDRESS")
    if stated:
        return stated, "RAY_ADDRESS says so: start the head again, or unset it"
    path = Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray" / "ray_current_cluster"
    found = ""
    with suppress(OSError, ValueError), os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW)) as stream:
        if os.fstat(stream.fileno()).st_uid in (0, os.getuid()):
            found = stream.read(1000).strip()
    remedy = f"{path} says so: start the head again (`ray start --head`), or end it for good with `ray stop`"
    return found or None, remedy


def _connect(ray: Any, address: str | None, remedy: str, processes: int | None) -> None:
    """Joins the cluster; None: starts one of this host."""
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address is None:
        ray.init(address="local", num_cpus=max(num_cores(), processes or 1), include_dashboard=False, **options)
        return
    for tries_left in reversed(range(_CONNECT_TRIES)):
        try:
            if not takes_connections(address):  # Ray would try for minutes
                raise ConnectionError("it takes no connections")
            ray.init(address=address, **options)
            return
        except (ConnectionError, RuntimeError, ValueError, TimeoutError, OSError, ray.exceptions.RayError) as error:
            if tries_left and _NOT_YET in str(error):
                continue
            raise UserError(
                f"--on ray: expected a Ray cluster at {address}, found none that answers ({_reason(error)}); "
                f"{remedy or 'start its head (`ray start --head`), and state its client port as ray://HOST:10001'}"
            ) from error


def _reason(error: Exception) -> str:
    """Returns what an error says, in a line: the end of a traceback that Ray sends along."""
    text = str(error).strip()
    if "Traceback (most recent call last)" in text:
        text = text.rsplit("\n", 1)[-1]
    return " ".join(text.split())[:300]


def _head_address(address: str | None) -> str:
    """Returns where the head that this process has joined takes connections; "" where that is not known."""
    import ray
    from ray.util.client import ray as client

    stated = address or os.environ.get("RAY_ADDRESS", "")
    if stated.startswith("ray://"):
        return stated
    return "" if client.is_connected() else str(ray.get_runtime_context().gcs_address)


def _cluster(head: Head, device: str | None, processes: int | None, notes: tuple[str, ...]) -> Cluster:
    nodes = alive_nodes()
    has_gpus = any(node.gpus for node in nodes)
    if device is not None and device.startswith("cuda") and not has_gpus:
        raise UserError("--device cuda: no node of the Ray cluster has a GPU; use --device cpu or leave the option out")
    kind = "cuda" if has_gpus and device != "cpu" else "cpu"
    try:
        driver = choose_device(device)
    except UserError:
        driver = choose_device("cpu")
    return Cluster(device=driver, kind=kind, processes=processes, head=head, notes=notes)


@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
    """The nodes, as a site."""

    device: torch.device
    """What the driver computes on: its own."""
    kind: str
    processes: int | None
    head: Head
    notes: tuple[str, ...] = ()
    """What there is to say of it."""

    @contextmanager
    def workers(self, work: Work, listener: Progress) -> Iterator[Pool]:
        """Yields the executor, after every node has shown that it sees what is shared."""
        from maskloom.executors.actors import Actors

        for note in self.notes:
            listener.note(note)
        nodes = alive_nodes()
        threads = self._threads(nodes)
        opening = Opening(
            run=work.run.resolve(),
            command=work.command,
            target=work.target,
            unit=work.unit,
            device=self.kind,
            threads=threads,
            loaders=usual_loaders(threads) if work.loaders is None else work.loaders,
            is_deterministic=work.is_deterministic,
            folder=str(Path.cwd()),
        )
        with shared_look(work.run, work.writes, work.sees, opening.folder) as look:
            crew = Actors(self, opening, look)
            try:
                crew.begin(nodes)
                if not crew.size:
                    wanted = f"{threads} processor(s){' and a GPU' if self.kind == 'cuda' else ''}"
                    raise UserError(
                        f"--on ray: expected a node with {wanted} for a worker, found none; state fewer threads "
                        f"({THREADS}=1) or start nodes with more"
                    )
            except BaseException:
                crew.close()
                raise
            listener.note(f"{crew.size} worker(s) on {self.kind} of {len(nodes)} node(s), {threads} thread(s) each")
            with Pool(crew, listener) as pool:
                yield pool

    def _threads(self, nodes: list[Node]) -> int:
        """Returns how many threads every worker has: the same on all nodes, so that their sums are the same."""
        stated = stated_threads()
        if stated is not None:
            return stated
        if self.kind == "cuda":
            return max(min((node.cpus // node.gpus for node in nodes if node.gpus), default=1), 1)
        if self.processes is not None:
            shared = sum(node.cpus for node in nodes) // self.processes
            return max(min([shared, *(node.cpus for node in nodes if node.cpus)]), 1)
        return max(min((node.cpus // usual_processes(node.cpus) for node in nodes if node.cpus), default=1), 1)

    def room(self, node: Node, threads: int) -> int:
        """Returns how many workers a node has room for."""
        by_cpus = node.cpus // threads
        return min(node.gpus, by_cpus) if self.kind == "cuda" else by_cpus
