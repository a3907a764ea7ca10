"""What a user can mend: errors that become one clear line and exit code 2.

Every message says what was expected, what was found, and what to do. Anything that is not a ``UserError`` is a
defect of ours and keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

LONGEST = 2_000
"""Characters of a message, above which it is cut in the middle: what it repeats of a file may be endless."""


def shortened(message: str) -> str:
    """Returns the message, of one longer than ``LONGEST`` both ends: what was expected, and what to do."""
    if len(message) <= LONGEST:
        return message
    return f"{message[: LONGEST // 2]} … {message[-LONGEST // 2 :]}"


class UserError(ValueError):
    """A mistake in what the user gave (options, recipe, data); the message is one line that says how to mend it."""

    def __init__(self, message: str = "") -> None:
        super().__init__(shortened(message))


class BadFile(UserError):
    """One file cannot be used; names the file and the reason, so that a run may leave its record out and say so."""

    def __init__(self, path: Path | str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = Path(path)
        self.reason = shortened(reason)

    def __reduce__(self) -> tuple[type[BadFile], tuple[Path, str]]:
        # Loader workers send their errors through a queue; the default would call __init__ with the joined message.
        return (BadFile, (self.path, self.reason))


class UnfitImage(UserError):
    """A readable image that the networks were not made for, such as one of another depth; says nothing of its file."""


def some_of(names: Iterable[str], most: int = 5) -> str:
    """Returns the names for a message, no more than ``most`` of them: ``a, b and 3 more``."""
    names = list(names)
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def closest(name: str, known: Iterable[str]) -> str:
    """Returns a hint such as ``did you mean 'epochs'?``, or the list of what is known when nothing is near."""
    names = sorted(known)
    matches = get_close_matches(name, names, n=1, cutoff=0.6)
    return f"did you mean {matches[0]!r}?" if matches else f"known: {', '.join(names)}"
