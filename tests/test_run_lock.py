"""One process at a time: the second is told who, and a killed one holds nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from maskloom.errors import UserError
from maskloom.run_lock import LOCK, held, holder

HOLD = """
import sys, time
from pathlib import Path
from maskloom.run_lock import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(120)
"""


@pytest.fixture
def other(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the folder."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_the_second_is_told_who_holds_it_and_a_killed_one_holds_nothing(
    tmp_path: Path, other: subprocess.Popen[str]
) -> None:
    folder = tmp_path / "run"
    found = holder(folder)
    assert found is not None and found.pid == other.pid
    with pytest.raises(UserError) as refused, held(folder):
        pass
    said = str(refused.value)
    assert "\n" not in said and f"process {other.pid} on {os.uname().nodename} since 2" in said
    assert f"wait until it ends, or stop it (kill {other.pid}) and start again" in said
    assert holder(folder) == found, "whoever is refused changes nothing"
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert (folder / LOCK).is_file() and holder(folder) is None
    with held(folder):
        mine = holder(folder)
        assert mine is not None and mine.pid == os.getpid()
    assert holder(folder) is None and list(folder.iterdir()) == []


def test_a_process_cannot_hold_a_folder_twice(tmp_path: Path) -> None:
    with held(tmp_path):
        with pytest.raises(UserError, match=f"process {os.getpid()} "), held(tmp_path / "." / "x" / ".."):
            pass
        assert holder(tmp_path) is not None
        with held(tmp_path / "another"):
            pass
    with held(tmp_path):
        pass


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"), held(tmp_path / "file" / "run"):
        pass
    assert holder(tmp_path / "nowhere") is None
