"""Messages for users: bounded, whatever of a file they repeat, and with both of their ends."""

from __future__ import annotations

import pickle
from pathlib import Path

from maskloom.errors import LONGEST, BadFile, UserError


def test_a_message_is_cut_in_the_middle() -> None:
    error = UserError(f"expected a number, found {'9' * 100_000}; correct the table")
    assert len(str(error)) <= LONGEST + 3
    assert str(error).startswith("expected a number, found 9") and str(error).endswith("9; correct the table")
    assert str(UserError("9" * LONGEST)) == "9" * LONGEST


def test_so_is_the_reason_of_a_bad_file() -> None:
    error = pickle.loads(pickle.dumps(BadFile("a.csv", f"found {'9' * 100_000}; restore it")))
    assert len(error.reason) <= LONGEST + 3 and error.reason.endswith("; restore it")
    assert error.path == Path("a.csv") and str(error).startswith("a.csv: found 9")
