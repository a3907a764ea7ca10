"""Tasks that tests hand out: functions of a module, as other processes need them."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from maskloom.errors import BadFile
from maskloom.executors.bench import Opening
from maskloom.executors.pool import Pool
from maskloom.executors.processes import Place, Processes
from maskloom.executors.tasks import Call, Executor, Here, Shared
from maskloom.progress import Silent


def call(executor: Executor, function: object, *arguments: object, shared: object = None, order: int = 0) -> Call:
    shares: Shared = executor.share(shared)
    return Call(name="stage", function=function, shared=shares, arguments=arguments, order=order)  # type: ignore[arg-type]


def pool(run: Path, count: int, listener: object = None) -> Pool:
    places = [Place(f"worker {number + 1}", {}) for number in range(count)]
    return Pool(Processes(places, Opening(run=run, command="fit")), listener or Silent())  # type: ignore[arg-type]


def add(here: Here, shared: int, value: int) -> tuple[int, int]:
    return shared + value, os.getpid()


def speak(here: Here, shared: None) -> str:
    here.progress.note("hello")
    for done in range(3):
        here.progress.advance(done + 1, 3)
        here.tell(done)
    return "said"


def build_once(here: Here, shared: None, key: str) -> float:
    return here.keeper.get(key, time.monotonic)


def die_once(here: Here, shared: None, mark: Path) -> str:
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "done"


def die(here: Here, shared: None) -> None:
    os._exit(3)


def fail(here: Here, shared: None, kind: str) -> None:
    if kind == "user":
        raise BadFile("photo.png", "is cut off")
    raise ZeroDivisionError("of ours")


def append(here: Here, shared: None, path: Path, text: str, seconds: float) -> None:
    time.sleep(seconds)
    with path.open("a") as stream:
        stream.write(text)


def wait(here: Here, shared: None, begun: Path, saved: Path) -> None:
    begun.write_text(str(os.getpid()))
    try:
        for _ in range(600):
            time.sleep(0.1)
            here.progress.advance(1, 2)
    except KeyboardInterrupt:
        saved.touch()
        raise


def main(root: str) -> None:
    """A driver whose one worker waits, to be killed."""
    folder = Path(root)
    with pool(folder, 1) as executor:
        executor.collect(executor.submit(call(executor, wait, folder / "begun", folder / "saved")))


if __name__ == "__main__":
    import executor_tasks  # as workers know it

    executor_tasks.main(sys.argv[1])
