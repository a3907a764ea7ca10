"""What ``on`` asks for: this process, processes of this host, or a Ray cluster; and what is computed on there.

Knows nothing about stages or what tasks compute.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from maskloom.errors import UserError
from maskloom.executors.bench import Opening
from maskloom.executors.tasks import Executor, InProcess
from maskloom.progress import Progress
from maskloom.runtime import choose_device, num_cores

if TYPE_CHECKING:
    import torch

THREADS = "OMP_NUM_THREADS"
_CORES_PER_PROCESS = 4
_MOST_LOADERS = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What workers are wanted for."""

    run: Path
    command: str
    target: str = ""
    unit: str = "images"
    loaders: int | None = None
    """Processes that read samples, of each worker; None: by cores."""
    is_deterministic: bool = False
    sees: Sequence[Path] = ()
    """Files and folders that every worker must find where they are."""
    writes: tuple[Path, ...] = ()
    """Folders beside the run's into which workers write: what is written there must be seen by all of them."""


class Site(Protocol):
    """Where tasks will run."""

    @property
    def device(self) -> torch.device:
        """What the driver computes on."""

    @property
    def kind(self) -> str:
        """What tasks compute on: "cpu" or "cuda"."""

    def workers(self, work: Work, listener: Progress) -> AbstractContextManager[Executor]:
        """Returns the executor, whose workers end with the context; ``listener`` hears of workers that are lost."""


@contextmanager
def open_site(on: str | None, *, device: str | None = None, processes: int | None = None) -> Iterator[Site]:
    """Yields the place that ``on`` names: None, "local", "ray" or "ray://HOST:PORT".

    ``device`` is that of ``runtime.choose_device``; ``processes`` is how many workers there are, None: as devices or
    cores allow. Raises ``UserError`` for anything else, and where the place is not to be had.
    """
    if processes is not None and processes < 1:
        raise UserError(f"--processes {processes}: expected at least 1")
    if on is None:
        if processes is not None:
            raise UserError(f"--processes {processes}: expected --on local or --on ray beside it; state both")
        yield _Alone(choose_device(device))
    elif on == "local":
        yield _Local(choose_device(device), processes)
    elif on == "ray" or re.fullmatch(r"ray://\S+:\d+", on):
        from maskloom.executors.cluster import connected

        with connected(None if on == "ray" else on, device=device, processes=processes) as cluster:
            yield cluster
    else:
        raise UserError(f"--on {on!r}: expected local, ray or ray://HOST:PORT")


@dataclass(frozen=True, slots=True)
class _Alone:
    """This process."""

    device: torch.device

    @property
    def kind(self) -> str:
        """What tasks compute on."""
        return self.device.type

    def workers(self, work: Work, listener: Progress) -> AbstractContextManager[Executor]:
        """Returns an executor without workers."""
        return nullcontext(InProcess())


@dataclass(frozen=True, slots=True)
class _Local:
    """Processes of this host: one per GPU, or several on its cores."""

    device: torch.device
    processes: int | None

    @property
    def kind(self) -> str:
        """What tasks compute on."""
        return self.device.type

    def workers(self, work: Work, listener: Progress) -> AbstractContextManager[Executor]:
        """Returns the executor of these processes."""
        import torch

        from maskloom.executors.pool import Pool
        from maskloom.executors.processes import Place, Processes

        gpus = visible_gpus(self.device) if self.kind == "cuda" else []
        count = self.processes or len(gpus) or usual_processes(num_cores())
        available = torch.get_num_threads()  # as many as this process would compute with
        threads = available if stated_threads() else max(available // count, 1)
        opening = Opening(
            run=work.run,
            command=work.command,
            target=work.target,
            unit=work.unit,
            device=self.kind,
            threads=threads,
            loaders=usual_loaders(num_cores() // count) if work.loaders is None else work.loaders,
            is_deterministic=work.is_deterministic,
        )
        common = {THREADS: str(threads)}
        places = [
            Place(f"worker {number + 1} of {count}", common | _only(gpus[number % len(gpus)] if gpus else None))
            for number in range(count)
        ]
        listener.note(f"{count} worker(s) on {self.kind}, {threads} thread(s) each")
        return Pool(Processes(places, opening), listener)


def usual_processes(cores: int) -> int:
    """Returns how many workers share so many cores: a few threads each, since more of them help a training little."""
    return min(cores, max(2, cores // _CORES_PER_PROCESS))


def usual_loaders(cores: int) -> int:
    """Returns how many processes read samples beside one that computes on so many cores."""
    return min(max(cores - 1, 1), _MOST_LOADERS)


def stated_threads() -> int | None:
    """Returns how many threads the environment asks every process to have."""
    text = os.environ.get(THREADS, "").split(",")[0]
    return int(text) if text.isdecimal() and int(text) > 0 else None


def visible_gpus(device: torch.device) -> list[str]:
    """Returns what ``CUDA_VISIBLE_DEVICES`` must say for a process to see one GPU, for each; the stated one alone."""
    import torch

    stated = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [name.strip() for name in stated.split(",")] if stated else []
    count = torch.cuda.device_count()
    found = names[:count] if names else [str(number) for number in range(count)]
    return found if device.index is None else found[device.index : device.index + 1]


def _only(gpu: str | None) -> dict[str, str]:
    return {} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu}
