"""What a pickle says, without doing any of it: classes, functions and calls become inert records.

A pickle is a program whose instructions may call anything. Here the standard library's disassembler names the
instructions, and a small machine with a stack builds plain values, lists and tuples from them. There is no
instruction that imports, calls or sets an attribute: a global is its name, a call is a ``Record`` of name and
arguments. What is read, held and repeated is bounded by budgets. Knows nothing about tensors.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import IO, Any, cast

MAX_OPERATIONS = 500_000
"""Instructions in all pickles of one file; a tensor takes about 40, so networks of 10,000 tensors fit."""
MAX_BYTES = 32 * 2**20
"""Bytes of all pickles of one file; the numbers of the tensors lie outside."""
MAX_LINE = 2**20
"""Bytes of one textual argument, which ends at a line break."""

DICT = "dict"
ORDERED_DICT = "collections.OrderedDict"
PERSISTENT = "persistent id"
"""What the writer kept outside the pickle; the one argument says which."""

MAX_NAME = 500
"""Characters in the dotted name of a class or function."""

_PROGRAM_MODULES = frozenset(
    {"_posixsubprocess", "ctypes", "importlib", "marshal", "nt", "os", "posix", "pty", "runpy", "shutil",
     "socket", "subprocess", "sys", "webbrowser"}
)  # fmt: skip
_PROGRAM_BUILTINS = frozenset(
    {"__import__", "breakpoint", "compile", "eval", "exec", "execfile", "exit", "file", "input", "open", "quit"}
)  # fmt: skip


class Refused(ValueError):
    """A file does not say what it must, or says too much; the message has no path and is one line."""


@dataclass(slots=True, eq=False, repr=False)
class Name:
    """A class or function that the pickle mentions; only its dotted name exists here."""

    path: str


@dataclass(slots=True, eq=False, repr=False)
class Record:
    """An object or the outcome of a call as the pickle describes it; dictionaries are records too."""

    kind: str
    """Dotted name of the class or function, ``DICT`` or ``PERSISTENT``."""
    args: tuple[Any, ...] = ()
    state: Any = None
    """What the object's attributes were to be."""
    entries: dict[str, Any] = field(default_factory=dict)
    """Items with text for a key, in the file's order; others are not kept, since no tensor is named so."""


class PickleReader:
    """Reads one pickle after the other from a binary stream, within one budget for all of them."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.persistent: list[Any] = []
        """Every persistent id met so far, in order."""
        self._stream = stream
        self._bytes_left = MAX_BYTES
        self._operations_left = MAX_OPERATIONS

    def load(self) -> Any:
        """Returns the next pickle's value: None, numbers, text, bytes, lists, tuples, ``Name`` and ``Record``.

        Sets become lists. The stream is left behind the pickle's last byte. Raises ``Refused`` for what is no whole
        pickle, for one beyond the budgets, and for one that names a function which runs programs.
        """
        machine = _Machine(charge=self._charge, persistent=self.persistent)
        try:
            for opcode, argument, _ in pickletools.genops(cast(IO[bytes], self)):
                self._charge(1)
                if opcode.name == "STOP":
                    return machine.pop()
                machine.step(opcode.name, argument)
        except Refused:
            raise
        except ValueError as error:  # how the disassembler reports bytes that are no pickle
            raise Refused(f"no whole pickle: {' '.join(str(error).split())[:120]}") from None
        raise Refused("no whole pickle: it does not end")

    def read(self, size: int) -> bytes:
        """Returns the stream's next bytes, for the disassembler."""
        if size > self._bytes_left:
            raise Refused(f"a pickle of more than {MAX_BYTES // 2**20} MiB")
        content = self._stream.read(size)
        self._bytes_left -= len(content)
        return content

    def readline(self) -> bytes:
        """Returns the stream's next line with its end, for the disassembler."""
        line = self._stream.readline(min(MAX_LINE, self._bytes_left) + 1)
        if len(line) > min(MAX_LINE, self._bytes_left):
            raise Refused(f"a pickle with a line of more than {MAX_LINE // 2**20} MiB")
        self._bytes_left -= len(line)
        return line

    def _charge(self, num_operations: int) -> None:
        self._operations_left -= num_operations
        if self._operations_left < 0:
            raise Refused(f"a pickle of more than {MAX_OPERATIONS:,} instructions")


class _Machine:
    """The stack, the marks on it and the memo of one pickle."""

    def __init__(self, *, charge: Callable[[int], None], persistent: list[Any]) -> None:
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self._charge = charge
        self._persistent = persistent

    def step(self, name: str, argument: Any) -> None:
        """Does one instruction, given by the disassembler's name for it."""
        if name in _PUSH_ARGUMENT:
            self._stack.append(argument)
        elif name in _PUSH_NEW:
            self._stack.append(_PUSH_NEW[name]())
        elif name in _TUPLES:
            self._stack.append(tuple(reversed([self.pop() for _ in range(_TUPLES[name])])))
        elif name in _PUT:
            self._memo[len(self._memo) if name == "MEMOIZE" else argument] = self._top()
        elif name in _GET:
            if argument not in self._memo:
                raise Refused("a pickle that recalls what it has not said")
            self._stack.append(self._memo[argument])
        elif name not in ("PROTO", "FRAME"):
            handler = _HANDLERS.get(name)
            if handler is None:
                raise Refused(f"a pickle with the instruction {name}, which no torch writes")
            handler(self, argument)

    def pop(self) -> Any:
        """Returns and removes the uppermost value above the last mark."""
        value = self._top()
        del self._stack[-1]
        return value

    def _top(self) -> Any:
        if len(self._stack) <= (self._marks[-1] if self._marks else 0):
            raise Refused("a pickle that takes more than it has put down")
        return self._stack[-1]

    def _above_mark(self) -> list[Any]:
        if not self._marks:
            raise Refused("a pickle that takes more than it has put down")
        start = self._marks.pop()
        values = self._stack[start:]
        del self._stack[start:]
        return values

    def _mark(self, _: Any) -> None:
        self._marks.append(len(self._stack))

    def _drop(self, _: Any) -> None:
        if self._marks and self._marks[-1] == len(self._stack):
            self._marks.pop()
        else:
            self.pop()

    def _drop_above_mark(self, _: Any) -> None:
        self._above_mark()

    def _repeat(self, _: Any) -> None:
        self._stack.append(self._top())

    def _list(self, _: Any) -> None:
        self._stack.append(self._above_mark())

    def _tuple(self, _: Any) -> None:
        self._stack.append(tuple(self._above_mark()))

    def _dict(self, _: Any) -> None:
        record = Record(DICT)
        _fill(record, self._above_mark())
        self._stack.append(record)

    def _append(self, _: Any) -> None:
        self._extend([self.pop()])

    def _appends(self, _: Any) -> None:
        self._extend(self._above_mark())

    def _extend(self, values: list[Any]) -> None:
        target = self._top()
        if isinstance(target, list):
            target.extend(values)
        elif not isinstance(target, Record):  # a record of a list's kind swallows its items
            raise Refused("a pickle that appends to what is no list")

    def _set_item(self, _: Any) -> None:
        value, key = self.pop(), self.pop()
        _fill(self._top(), [key, value])

    def _set_items(self, _: Any) -> None:
        values = self._above_mark()
        _fill(self._top(), values)

    def _global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self._stack.append(_named(module, name))

    def _stack_global(self, _: Any) -> None:
        name, module = self.pop(), self.pop()
        if not (isinstance(name, str) and isinstance(module, str)):
            raise Refused("a pickle whose class has no name")
        self._stack.append(_named(module, name))

    def _call(self, _: Any) -> None:
        args, called = self.pop(), self.pop()
        self._stack.append(self._record(called, args))

    def _call_with_keywords(self, _: Any) -> None:
        self.pop()
        self._call(None)

    def _call_above_mark(self, _: Any) -> None:
        called, *args = self._above_mark() or [None]
        self._stack.append(self._record(called, tuple(args)))

    def _call_by_name(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self._stack.append(self._record(_named(module, name), tuple(self._above_mark())))

    def _record(self, called: Any, args: Any) -> Record:
        if isinstance(called, Record) and called.kind == PERSISTENT and isinstance(called.args[0], tuple):
            called = next((part for part in called.args[0] if isinstance(part, Name)), None)  # a class with its source
        if isinstance(called, Record):
            called = Name("a computed function")
        if not isinstance(called, Name) or not isinstance(args, tuple):
            raise Refused("a pickle that calls what is no function")
        record = Record(called.path, args)
        if called.path == ORDERED_DICT and args and isinstance(args[0], list):  # as Python 2 wrote them
            self._charge(10 * len(args[0]))  # one such list may be called for again and again
            for pair in args[0]:
                if not isinstance(pair, (list, tuple)) or len(pair) != 2:
                    raise Refused("a pickle whose dictionary holds no pairs")
                _fill(record, list(pair))
        return record

    def _set_state(self, _: Any) -> None:
        state, target = self.pop(), self._top()
        if not isinstance(target, Record):
            raise Refused("a pickle that sets the attributes of what has none")
        target.state = state

    def _textual_persistent(self, argument: str) -> None:
        self._persistent.append(argument)
        self._stack.append(Record(PERSISTENT, (argument,)))

    def _stacked_persistent(self, _: Any) -> None:
        self._textual_persistent(self.pop())


def _named(module: str, name: str) -> Name:
    """Returns the name, spelt as today's Python does.

    Refusing what runs programs is no protection, which is that nothing is ever called; but who asks for it wants to
    harm whoever opens the file, and the weights beside it are not to be trusted either.
    """
    module = {"__builtin__": "builtins", "copy_reg": "copyreg"}.get(module, module)
    if len(module) + len(name) > MAX_NAME:
        raise Refused(f"a pickle with a class name of more than {MAX_NAME} characters")
    path = f"{module}.{name}"
    if module.partition(".")[0] in _PROGRAM_MODULES or (
        module == "builtins" and name.partition(".")[0] in _PROGRAM_BUILTINS
    ):
        raise Refused(f"a pickle that asks to run {path[:80]!r} (nothing of it was run); do not trust this file")
    return Name(path)


def _fill(target: Any, values: list[Any]) -> None:
    """Puts key, value, key, value … into a dictionary's or another object's record."""
    if not isinstance(target, Record) or len(values) % 2:
        raise Refused("a pickle that sets items of what is no dictionary")
    pairs: Iterator[Any] = iter(values)
    target.entries.update((key, value) for key, value in zip(pairs, pairs, strict=True) if type(key) is str)


_PUSH_ARGUMENT = frozenset(
    {"INT", "LONG", "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING",
     "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "UNICODE",
     "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
)  # fmt: skip
_PUSH_NEW: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_SET": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": lambda: Record(DICT),
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_PUT = ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE")
_GET = ("GET", "BINGET", "LONG_BINGET")
_HANDLERS: dict[str, Callable[[_Machine, Any], None]] = {
    "MARK": _Machine._mark,
    "POP": _Machine._drop,
    "POP_MARK": _Machine._drop_above_mark,
    "DUP": _Machine._repeat,
    "LIST": _Machine._list,
    "FROZENSET": _Machine._list,
    "TUPLE": _Machine._tuple,
    "DICT": _Machine._dict,
    "APPEND": _Machine._append,
    "APPENDS": _Machine._appends,
    "ADDITEMS": _Machine._appends,
    "SETITEM": _Machine._set_item,
    "SETITEMS": _Machine._set_items,
    "GLOBAL": _Machine._global,
    "STACK_GLOBAL": _Machine._stack_global,
    "REDUCE": _Machine._call,
    "NEWOBJ": _Machine._call,
    "NEWOBJ_EX": _Machine._call_with_keywords,
    "OBJ": _Machine._call_above_mark,
    "INST": _Machine._call_by_name,
    "BUILD": _Machine._set_state,
    "PERSID": _Machine._textual_persistent,
    "BINPERSID": _Machine._stacked_persistent,
}
