"""Processes that a process starts for itself: the command, how they ended, and errors that travel between them.

Each is in a session of its own, so that Ctrl-C reaches the one that started it alone. Knows nothing about what they do.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from maskloom.errors import UserError

_NOTHING: Mapping[str, str] = MappingProxyType({})


def start(
    module: str, *arguments: str, environment: Mapping[str, str] = _NOTHING, **options: Any
) -> subprocess.Popen[bytes]:
    """Returns a process that runs a module; ``environment`` is laid over this one's, ``options`` are ``Popen``'s.

    Where this process finds its modules, that one finds its own; nothing of the working folder comes before that.
    """
    places = os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path)
    return subprocess.Popen(
        [sys.executable, "-P", "-m", module, *arguments],
        env={**os.environ, **environment, "PYTHONPATH": places},
        start_new_session=True,
        **options,
    )


def ended(code: int) -> str:
    """Returns how a process ended, by its exit code."""
    if code >= 0:
        return f"ended (exit code {code})"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"was killed (exit code {code}: {name}{', mostly for want of memory' if -code == signal.SIGKILL else ''})"


def portable(error: BaseException) -> Exception:
    """Returns the error as another process can raise it.

    What is no user's error, which is one line, has a note of where it happened.
    """
    trace = "".join(traceback.format_exception(error))
    try:
        copy: Exception = pickle.loads(pickle.dumps(error))
        if type(copy) is not type(error) or not isinstance(copy, Exception):
            raise TypeError(type(copy))
    except Exception:  # of whatever a class of a library raises when it is copied
        text = str(error)
        copy = UserError(text) if isinstance(error, UserError) else RuntimeError(f"{type(error).__name__}: {text}")
    if not isinstance(copy, UserError):
        copy.add_note(f"In another process:\n{trace}")
    return copy
