"""Arithmetic over named bands written as text, such as ``(nir - red) / (nir + red)``, on NumPy arrays or torch tensors.

The text is read by a grammar of its own and nothing in it is executed: there are numbers, names of bands, ``+ - * /``,
``**`` with a small whole number, parentheses and the functions in ``FUNCTIONS``, with Python's precedence. Length,
depth and number of steps are limited, so that no text costs more than a moment. Knows nothing about files, and not
which bands there are.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple, NoReturn, TypeVar

import numpy as np

from maskloom.errors import UserError, closest

Array = TypeVar("Array")

MAX_LENGTH = 1000
"""Characters of an expression."""
MAX_DEPTH = 32
"""Parentheses, functions and signs inside each other."""
MAX_STEPS = 200
"""Bands, numbers and operations of an expression."""
MAX_EXPONENT = 8

FUNCTIONS: dict[str, tuple[str, ...]] = {
    "abs": ("abs",),
    "sqrt": ("sqrt",),
    "exp": ("exp",),
    "log": ("log",),
    "min": ("", "min"),
    "max": ("", "max"),
    "clip": ("", "max", "min"),
}
"""Every function, and for each of its arguments the operation that follows it: clip(x, low, high) is
min(max(x, low), high). ``log`` is the natural logarithm."""

_TOKEN = re.compile(
    r"(?P<number>(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)"
    r"|(?P<name>[A-Za-z_][A-Za-z0-9_]*)"
    r"|(?P<sign>\*\*|[-+*/(),])"
    r"|(?P<end>\Z)"
)
_SPACE = re.compile(r"[ \t\r\n]*")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_STRENGTH = {"+": 1, "-": 1, "*": 2, "/": 2, "**": 4}
"""How strongly an operator binds; one of equal strength waits for the one before it."""
_NEGATION = 3
"""-a ** 2 is -(a ** 2), and -a * b is (-a) * b."""
_NOT_FINITE = "expected constants with a finite result, found others; change or leave out this part"


@dataclass(frozen=True, slots=True)
class _Number:
    value: float
    """Exactly representable in float32."""


@dataclass(frozen=True, slots=True)
class _Band:
    name: str


@dataclass(frozen=True, slots=True)
class _Power:
    exponent: int


@dataclass(frozen=True, slots=True)
class _Operation:
    name: str


_Step = _Number | _Band | _Power | _Operation


@dataclass(frozen=True, slots=True)
class Expression:
    """One expression, read and checked when made; equal to any other of the same text.

    Raises ``UserError`` with the place in the text for whatever the grammar does not know, for more than the limits
    allow, for constants that are not finite in float32, and for a text without any band.

    >>> Expression("(nir - red) / (nir + red)").evaluate({"nir": np.array([3, 1]), "red": np.array([1, 1])})
    array([0.5, 0. ], dtype=float32)
    """

    text: str
    names: tuple[str, ...] = field(init=False, compare=False)
    """The bands that are used, in the order in which they come first."""
    _places: tuple[int, ...] = field(init=False, repr=False, compare=False)
    """Where in the text each of the names comes first."""
    _steps: tuple[_Step, ...] = field(init=False, repr=False, compare=False)
    """In the order of evaluation: operands first, so that no depth of nesting is left."""

    def __post_init__(self) -> None:
        parser = _Parser(self.text)
        parser.parse()
        object.__setattr__(self, "names", tuple(parser.places))
        object.__setattr__(self, "_places", tuple(parser.places.values()))
        object.__setattr__(self, "_steps", tuple(parser.steps))

    def check_names(self, known: Collection[str]) -> None:
        """Raises ``UserError`` with place and closest name for a band that is not among the ``known`` ones."""
        for name, place in zip(self.names, self._places, strict=True):
            if name not in known:
                _refuse(self.text, place, f"unknown band {_shown(name)}; {closest(name, known)}")

    def evaluate(self, bands: Mapping[str, Array]) -> Array:
        """Returns the value as a new float32 array or tensor of the bands' shape, on their device.

        ``bands`` are arrays or tensors (not both) of any real type and one shape; each is brought to float32 first,
        and every step is float32. NumPy and torch give the same bits, but for ``sqrt``, ``exp`` and ``log``, whose
        last digit is the library's own. Division by zero and the like give infinity and NaN as IEEE 754 says, without
        a warning. Raises ``UserError`` for a band that is not there.
        """
        self.check_names(bands)
        values = {name: _float32(bands[name]) for name in self.names}
        are_tensors = any(hasattr(value, "new_full") for value in values.values())
        quiet: AbstractContextManager[Any] = nullcontext() if are_tensors else np.errstate(all="ignore")
        with quiet:
            result = _run(self._steps, values)
        if len(self._steps) == 1:  # the band as it is, which may be the caller's own memory
            result = result.clone() if are_tensors else result.copy()
        return result  # type: ignore[no-any-return]


def is_band_name(name: str) -> bool:
    """Returns whether an expression can use a band of this name: letters, digits and _, and no function's name."""
    return _NAME.fullmatch(name) is not None and name not in FUNCTIONS


def _float32(values: Any) -> Any:
    if hasattr(values, "float"):
        return values.float()
    return np.asarray(values).astype(np.float32, copy=False)


def _run(steps: Sequence[_Step], bands: Mapping[str, Any]) -> Any:
    stack: list[Any] = []
    for step in steps:
        if isinstance(step, _Number):
            stack.append(step.value)
        elif isinstance(step, _Band):
            stack.append(bands[step.name])
        elif isinstance(step, _Power):
            stack.append(_power(stack.pop(), step.exponent))
        elif step.name in _UNARY:
            stack.append(_UNARY[step.name](stack.pop()))
        else:
            right = stack.pop()
            stack.append(_BINARY[step.name](stack.pop(), right))
    return stack.pop()


def _elementwise(name: str) -> Callable[[Any], Any]:
    def apply(values: Any) -> Any:
        return getattr(values, name)() if hasattr(values, name) else getattr(np, name)(values)

    return apply


def _paired(left: Any, right: Any) -> tuple[Any, Any]:
    """Returns both operands, where one is a tensor and one a number as two tensors.

    torch divides a number by a tensor, and on some devices a tensor by a number, through a rounded reciprocal; and it
    has no maximum of a tensor and a number.
    """
    if hasattr(left, "new_full") and not hasattr(right, "new_full"):
        return left, left.new_full((), right)
    if hasattr(right, "new_full") and not hasattr(left, "new_full"):
        return right.new_full((), left), right
    return left, right


def _quotient(left: Any, right: Any) -> Any:
    left, right = _paired(left, right)
    return left / right


def _extreme(name: str) -> Callable[[Any, Any], Any]:
    def apply(left: Any, right: Any) -> Any:
        left, right = _paired(left, right)
        chosen = getattr(left, name)(right) if hasattr(left, name) else getattr(np, name)(left, right)
        return chosen + 0.0  # of 0 and -0, libraries take now the one, now the other: it is 0

    return apply


def _power(base: Any, exponent: int) -> Any:
    """Returns the power by multiplication, whose bits agree everywhere; those of libraries' powers do not."""
    result = base
    for _ in range(abs(exponent) - 1):
        result = result * base
    return result if exponent > 0 else _quotient(1.0, result)


_UNARY: dict[str, Callable[[Any], Any]] = {
    "negate": operator.neg,
    "abs": abs,
    "sqrt": _elementwise("sqrt"),
    "exp": _elementwise("exp"),
    "log": _elementwise("log"),
}
_BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": _quotient,
    "min": _extreme("minimum"),
    "max": _extreme("maximum"),
}


class _Token(NamedTuple):
    kind: str
    """"number", "name", "sign" or "end"."""
    text: str
    start: int


def _refuse(text: str, place: int, reason: str) -> NoReturn:
    shown = repr(text) if len(text) <= 60 else repr(text[:60]) + "…"
    raise UserError(f"expression {shown}, character {place + 1}: {reason}")


def _shown(text: str) -> str:
    return repr(text) if len(text) <= 40 else repr(text[:40]) + "…"


class _Parser:
    """Reads an expression by precedence climbing; arithmetic between constants is done at once, in float32."""

    def __init__(self, text: str) -> None:
        self._text = text
        self.steps: list[_Step] = []
        self.places: dict[str, int] = {}
        """Where each band comes first."""
        if len(text) > MAX_LENGTH:
            _refuse(text, MAX_LENGTH, f"expected at most {MAX_LENGTH} characters, found {len(text)}; shorten it")
        self._token = self._scanned(0)

    def parse(self) -> None:
        """Reads the whole text."""
        self._expression(0, 1)
        if self._token.kind != "end":
            self._stop(self._token, f"expected an operator or the end, found {self._found()}")
        if not self.places:
            _refuse(self._text, 0, "expected at least one band, found numbers only; name a band")

    def _expression(self, strength: int, depth: int) -> None:
        """Reads an operand and all operators after it that bind more strongly than ``strength``."""
        if depth > MAX_DEPTH:
            self._stop(self._token, f"expected at most {MAX_DEPTH} levels inside each other; write it flatter")
        self._operand(depth)
        while self._token.kind == "sign" and _STRENGTH.get(self._token.text, 0) > strength:
            sign = self._take()
            if sign.text == "**":  # from the right: a ** 2 ** 3 is a ** 8, and a ** -1 is 1 / a
                exponent = self._token
                self._expression(_NEGATION, depth + 1)
                self._raise_to(exponent, sign)
            else:
                self._expression(_STRENGTH[sign.text], depth + 1)
                self._apply(sign.text, sign)

    def _operand(self, depth: int) -> None:
        token = self._take() if self._token.kind in ("number", "name") or self._token.text in ("-", "(") else None
        if token is None:
            self._stop(self._token, f"expected a band, a number, a function or '(', found {self._found()}")
        if token.kind == "number":
            self._add_number(float(token.text), token, f"expected a number below 3.4e38, found {_shown(token.text)}")
        elif token.text == "-":
            self._expression(_NEGATION, depth + 1)
            self._apply("negate", token)
        elif token.text == "(":
            self._expression(0, depth + 1)
            self._close("an operator or ')'")
        elif self._token.text == "(":
            self._call(token, depth)
        elif token.text in FUNCTIONS:
            self._stop(token, f"expected a band, found the function {token.text}; write {token.text}(…)")
        else:
            self.places.setdefault(token.text, token.start)
            self._add(_Band(token.text), token)

    def _call(self, name: _Token, depth: int) -> None:
        if name.text not in FUNCTIONS:
            self._stop(name, f"unknown function {_shown(name.text)}; {closest(name.text, FUNCTIONS)}")
        operations = FUNCTIONS[name.text]
        self._take()
        for number, operation in enumerate(operations):
            if number:
                self._close(f"',' and {len(operations)} arguments of {name.text}", ",")
            self._expression(0, depth + 1)
            if operation:
                self._apply(operation, name)
        self._close(f"')' after {len(operations)} argument(s) of {name.text}")

    def _close(self, expected: str, sign: str = ")") -> None:
        if self._token.kind != "sign" or self._token.text != sign:
            self._stop(self._token, f"expected {expected}, found {self._found()}")
        self._take()

    def _raise_to(self, token: _Token, sign: _Token) -> None:
        """Replaces base and exponent by the power."""
        last = self.steps[-1]
        value = last.value if isinstance(last, _Number) else math.nan
        if not (value.is_integer() and 1 <= abs(value) <= MAX_EXPONENT):
            self._stop(
                token,
                f"expected a whole number from 1 to {MAX_EXPONENT}, or its negative, as exponent; multiply, or "
                "use sqrt, exp and log",
            )
        self.steps.pop()
        base = self.steps[-1]
        if isinstance(base, _Number):
            self.steps.pop()
            with np.errstate(all="ignore"):
                self._add_number(_power(np.float32(base.value), int(value)), sign, _NOT_FINITE)
        elif value != 1:
            self._add(_Power(int(value)), sign)

    def _apply(self, name: str, token: _Token) -> None:
        """Adds an operation on what was read last, or its value where that is constant."""
        count = 1 if name in _UNARY else 2
        # A constant is one step, whatever it was made of: so these are the operands, if both are constant.
        operands = [np.float32(step.value) for step in self.steps[-count:] if isinstance(step, _Number)]
        if len(operands) < count:
            self._add(_Operation(name), token)
            return
        del self.steps[-count:]
        with np.errstate(all="ignore"):
            value = _UNARY[name](*operands) if count == 1 else _BINARY[name](*operands)
        self._add_number(value, token, _NOT_FINITE)

    def _add_number(self, value: Any, token: _Token, reason: str) -> None:
        with np.errstate(all="ignore"):
            rounded = float(np.float32(value))
        if not math.isfinite(rounded):
            self._stop(token, reason)
        self._add(_Number(rounded), token)

    def _add(self, step: _Step, token: _Token) -> None:
        if len(self.steps) == MAX_STEPS:
            self._stop(token, f"expected at most {MAX_STEPS} bands, numbers and operations; split it")
        self.steps.append(step)

    def _take(self) -> _Token:
        """Returns the token at hand and goes on to the next."""
        token = self._token
        self._token = self._scanned(token.start + len(token.text))
        return token

    def _scanned(self, place: int) -> _Token:
        space = _SPACE.match(self._text, place)
        start = space.end() if space else place
        found = _TOKEN.match(self._text, start)
        if found is None or found.lastgroup is None:
            character = self._text[start]
            _refuse(
                self._text,
                start,
                f"expected names, numbers, operators and parentheses, found {character!r} (U+{ord(character):04X})",
            )
        return _Token(found.lastgroup, found.group(), start)

    def _found(self) -> str:
        return "the end" if self._token.kind == "end" else _shown(self._token.text)

    def _stop(self, token: _Token, reason: str) -> NoReturn:
        _refuse(self._text, token.start, reason)
