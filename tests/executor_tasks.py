"""Tasks that tests hand out: functions of a module, as other processes need them."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from maskloom.errors import BadFile
from maskloom.executors.bench import Opening
from maskloom.executors.pool import Pool
from maskloom.executors.processes import Place, Processes
from maskloom.executors.tasks import Call, Executor, Here, Shared
from maskloom.files import write_text
from maskloom.progress import Silent


def eventually(is_so: Callable[[], object], seconds: float = 60.0) -> bool:
    ends = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > ends:
            return False
        time.sleep(0.02)
    return True


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


class Bound:
    """A value that can be had only in the process that made it."""

    def __reduce__(self) -> tuple[Callable[[int], Bound], tuple[int]]:
        return _bound, (os.getpid(),)


def _bound(process: int) -> Bound:
    if process != os.getpid():
        raise LookupError(f"it belongs to process {process}")
    return Bound()


def take(here: Here, shared: None, value: Bound) -> None:
    raise AssertionError("it cannot be had here")


def give(here: Here, shared: None) -> Bound:
    return Bound()


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


def hang(here: Here, shared: None, begun: Path) -> None:
    """Does not tell how far it is, so that it cannot be interrupted on an actor."""
    write_text(begun, str(os.getpid()))
    time.sleep(60)


def wait(here: Here, shared: None, begun: Path, saved: Path) -> None:
    try:
        write_text(begun, str(os.getpid()))  # from here on it may be interrupted
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
