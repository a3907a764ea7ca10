"""A Ray cluster of several nodes on this machine, each begun by ``ray start``, of which any can be killed as a whole.

Every node has an address of loopback (the head: this machine's own), ports and processes of its own, so that SIGKILL of
all of these is what a host is like whose power fails. Knows nothing about what is computed there.
"""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import psutil

MARK = "MASKLOOM_BENCHMARK_NODE"
"""The environment variable by which the processes of a node are known, and their children."""
START_SECONDS = 120.0
WORKER_PORTS = 100
MEMORY = 100 * 2**20
"""Bytes of each node's object store."""


class Node:
    """One ``ray start``."""

    def __init__(self, name: str, arguments: list[str], environment: Mapping[str, str]) -> None:
        self.name, self._arguments = name, arguments
        self.mark = f"{environment[MARK]}-{name}"
        self._environment = {**environment, MARK: self.mark}

    def start(self) -> None:
        """Starts it; raises ``RuntimeError`` where that fails."""
        command = [str(Path(sys.executable).with_name("ray")), "start", *self._arguments]
        done = subprocess.run(
            command, env=self._environment, capture_output=True, text=True, timeout=START_SECONDS, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")

    def processes(self) -> list[psutil.Process]:
        """Returns all its processes: Ray's own, and the workers, which are children of one of these."""
        found: list[psutil.Process] = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get(MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    found += [process, *process.children(recursive=True)]
        return list(dict.fromkeys(found))

    def kill(self) -> int:
        """Kills them all at once; returns how many there were."""
        found = self.processes()
        for process in found:  # first none does anything any more, then none is there
            with suppress(psutil.Error):
                process.suspend()
        found = list(dict.fromkeys([*found, *self.processes()]))
        for process in found:
            with suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(found, timeout=10)
        return len(found)

    def workers(self) -> list[psutil.Process]:
        """Returns its processes that were begun for a command and are still there."""
        return [process for process in self.processes() if name_of(process).startswith("ray::Post")]

    @property
    def is_running(self) -> bool:
        """Whether its raylet is there."""
        return any(name_of(process).startswith("raylet") for process in self.processes())


class Nodes:
    """A head and further nodes; use as a context manager, which leaves no process behind."""

    def __init__(self, folder: Path, *, count: int, port: int, cpus: int = 1) -> None:
        """``port`` is the first of some hundreds; ``cpus`` is what each node says that it has."""
        folder.mkdir(parents=True, exist_ok=True)
        token = folder / "token"
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32))
        host = own_address()
        self.environment = {name: text for name, text in os.environ.items() if name != "RAY_ADDRESS"} | {
            "RAY_TMPDIR": str(folder),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_worker_niceness": "0",
            "RAY_USAGE_STATS_ENABLED": "0",
            MARK: f"{os.getpid()}-{secrets.token_hex(4)}",
        }
        self.address, self.client = f"{host}:{port}", f"ray://{host}:{port + 1}"
        self.nodes = []
        for number in range(count):
            ports = port + WORKER_PORTS * (number + 1)
            common = [f"--num-cpus={cpus}", f"--object-store-memory={MEMORY}", f"--min-worker-port={ports}"]
            common.append(f"--max-worker-port={ports + WORKER_PORTS - 1}")
            if number:
                own = [f"--address={self.address}", f"--node-ip-address=127.0.0.{number + 1}"]
            else:
                own = ["--head", f"--port={port}", f"--ray-client-server-port={port + 1}", "--include-dashboard=false"]
            self.nodes.append(Node(f"node{number}" if number else "head", [*own, *common], self.environment))

    @property
    def head(self) -> Node:
        """The first node."""
        return self.nodes[0]

    def __enter__(self) -> Nodes:
        self.heal()
        return self

    def __exit__(self, *error: object) -> None:
        for node in reversed(self.nodes):
            node.kill()

    def heal(self) -> list[str]:
        """Starts the nodes that are gone, all of them after a head that was; returns their names."""
        gone = [node for node in self.nodes if not node.is_running]
        if self.head in gone:
            gone = self.nodes
        for node in gone:
            node.kill()  # what is left of it
        for node in gone:
            node.start()
        return [node.name for node in gone]

    def at(self, pid: int) -> Node | None:
        """Returns the node that a process belongs to."""
        with suppress(psutil.Error):
            process = psutil.Process(pid)
            for above in (process, *process.parents()):
                mark = above.environ().get(MARK)
                if mark is not None:  # processes that name themselves anew overwrite it, their raylet does not
                    return next((node for node in self.nodes if node.mark == mark), None)
        return None

    def workers_gone(self, seconds: float) -> bool:
        """Returns whether they are all gone, after so many seconds at most."""
        ends = time.monotonic() + seconds
        while any(node.workers() for node in self.nodes):
            if time.monotonic() > ends:
                return False
            time.sleep(0.2)
        return True


def own_address() -> str:
    """Returns the address of this machine that others see, as Ray finds it; nothing is sent."""
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as line:
        line.connect(("192.0.2.1", 9))
        return str(line.getsockname()[0])
    return "127.0.0.1"


def name_of(process: psutil.Process) -> str:
    """Returns what a process calls itself; "" of one that is gone."""
    try:
        return Path(process.cmdline()[0]).name
    except (psutil.Error, IndexError):
        return ""
