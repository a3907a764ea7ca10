"""Workers on a Ray cluster: its nodes, what each has room for, and whether each sees the folder of the run.

A worker is an actor that asks for its processors and GPU; which node it is on is decided here. Nodes that join later
are taken in; what was on a node that is lost is done elsewhere. Ray is an optional part, which nothing else imports.
Knows nothing about what tasks compute.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskloom.errors import UserError
from maskloom.executors.bench import Opening
from maskloom.executors.nodes import Head, Node, alive_nodes, shared_look, takes_connections
from maskloom.executors.pool import Pool
from maskloom.executors.sites import Work, stated_threads, usual_loaders, usual_processes
from maskloom.progress import Progress
from maskloom.runtime import choose_device, num_cores

if TYPE_CHECKING:
    import torch

INSTALL = "pip install 'maskloom[cluster]'"


@contextmanager
def connected(address: str | None, *, device: str | None, processes: int | None) -> Iterator[Cluster]:
    """Yields a cluster: that at ``ray://HOST:PORT``, else the one that this host is in, else one of this host alone.

    Raises ``UserError`` where Ray is not installed, or the cluster does not answer.
    """
    try:
        import ray
    except ImportError:
        raise UserError(f"--on ray: expected the package ray, which is not installed; {INSTALL}") from None
    is_ours = not ray.is_initialized()  # else the program that this is part of has begun it, and ends it
    if is_ours:
        _connect(ray, address, processes)
    head = Head(is_client=bool(address))
    try:
        yield _cluster(head, device, processes)
    finally:
        if is_ours and head.answers():  # Ray would wait for one that is gone
            ray.shutdown()


def _connect(ray: Any, address: str | None, processes: int | None) -> None:
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    known = address or os.environ.get("RAY_ADDRESS")
    here = known or _running_here()
    if here is None:
        ray.init(address="local", num_cpus=max(num_cores(), processes or 1), include_dashboard=False, **options)
        return
    try:
        if not takes_connections(here):  # Ray would try for minutes
            raise ConnectionError("it takes no connections")
        ray.init(address=here, **options)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"--on ray: expected a Ray cluster at {here}, found none that answers ({reason}); start it with "
            "`ray start --head`, or state its client port as ray://HOST:10001"
        ) from error


def _running_here() -> str | None:
    """Returns the address of the cluster that this host is in, None where there is none.

    Ray keeps it in a file, also after a head was killed; asked for such a one, it would wait without end.
    """
    path = Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray" / "ray_current_cluster"
    try:
        found = path.read_text(encoding="utf-8").strip()
    except OSError:
        return None
    return found if found and takes_connections(found) else None


def _cluster(head: Head, device: str | None, processes: int | None) -> Cluster:
    nodes = alive_nodes()
    has_gpus = any(node.gpus for node in nodes)
    if device is not None and device.startswith("cuda") and not has_gpus:
        raise UserError("--device cuda: no node of the Ray cluster has a GPU; use --device cpu or leave the option out")
    kind = "cuda" if has_gpus and device != "cpu" else "cpu"
    try:
        driver = choose_device(device)
    except UserError:
        driver = choose_device("cpu")
    return Cluster(device=driver, kind=kind, processes=processes, head=head)


@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
    """The nodes, as a site."""

    device: torch.device
    """What the driver computes on: its own."""
    kind: str
    processes: int | None
    head: Head

    @contextmanager
    def workers(self, work: Work, listener: Progress) -> Iterator[Pool]:
        """Yields the executor, after every node has shown that it sees what is shared."""
        from maskloom.executors.actors import Actors

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
        with shared_look(work.run, work.sees, opening.folder) as look:
            crew = Actors(self, opening, look)
            try:
                crew.begin(nodes)
                if not crew.size:
                    raise UserError(f"--on ray: expected nodes with room for {threads} thread(s) each, found none")
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
        if self.processes is not None:
            shared = sum(node.cpus for node in nodes) // self.processes
            return max(min([shared, *(node.cpus for node in nodes if node.cpus)]), 1)
        if self.kind == "cuda":
            return max(min((node.cpus // node.gpus for node in nodes if node.gpus), default=1), 1)
        return max(min((node.cpus // usual_processes(node.cpus) for node in nodes if node.cpus), default=1), 1)

    def room(self, node: Node, threads: int) -> int:
        """Returns how many workers a node has room for."""
        return node.gpus if self.kind == "cuda" else node.cpus // threads
