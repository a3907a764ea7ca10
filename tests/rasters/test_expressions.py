"""Expressions against Python's own precedence and NumPy's own arithmetic; hostile text is one line."""

from __future__ import annotations

import copy
import pickle
import string
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from maskloom.errors import UserError
from maskloom.rasters.expressions import MAX_LENGTH, MAX_STEPS, Expression, is_band_name

RNG = np.random.default_rng(0)
BANDS: dict[str, np.ndarray] = {
    "a": RNG.integers(0, 2048, (5, 7)).astype(np.uint16),
    "b": RNG.normal(0, 3, (5, 7)).astype(np.float32),
    "c": np.resize(np.array([0, -0.0, 1, -1, 0.5, np.inf, -np.inf, np.nan, 1e-30], np.float32), (5, 7)),
}


class Refused(Exception):
    """What the language does not know, met by the reference."""


class Reference:
    """A float32 value with Python's operators, one NumPy call each."""

    def __init__(self, value: Any, constant: bool = False) -> None:
        self.value, self.constant = np.asarray(value, np.float32)[()], constant
        if constant and not np.isfinite(self.value):
            raise Refused

    def __add__(self, other: Reference) -> Reference:
        return self.combined(np.add, other)

    def __sub__(self, other: Reference) -> Reference:
        return self.combined(np.subtract, other)

    def __mul__(self, other: Reference) -> Reference:
        return self.combined(np.multiply, other)

    def __truediv__(self, other: Reference) -> Reference:
        return self.combined(np.divide, other)

    def __neg__(self) -> Reference:
        return Reference(np.negative(self.value), self.constant)

    def __pow__(self, other: Reference) -> Reference:
        exponent = float(other.value) if other.constant else 0.5
        if exponent not in (*range(-8, 0), *range(1, 9)):
            raise Refused
        result = self.value
        for _ in range(int(abs(exponent)) - 1):
            result = np.multiply(result, self.value)
        return Reference(result if exponent > 0 else np.divide(np.float32(1), result), self.constant)

    def combined(self, operation: Any, other: Reference) -> Reference:
        return Reference(operation(self.value, other.value), self.constant and other.constant)


def applied(function: Any) -> Any:
    return lambda value: Reference(function(value.value), value.constant)


def extreme(function: Any) -> Any:
    return lambda left, right: Reference(
        np.add(function(left.value, right.value), np.float32(0)), left.constant and right.constant
    )


SMALLEST, LARGEST = extreme(np.minimum), extreme(np.maximum)
REFERENCE_NAMES: dict[str, Any] = {
    "N": lambda number: Reference(number, constant=True),
    "abs": applied(np.abs),
    "sqrt": applied(np.sqrt),
    "exp": applied(np.exp),
    "log": applied(np.log),
    "min": SMALLEST,
    "max": LARGEST,
    "clip": lambda value, low, high: SMALLEST(LARGEST(value, low), high),
}

Pair = tuple[str, str]
"""One expression: in the language, and in Python over references."""


def numbers() -> st.SearchStrategy[Pair]:
    texts = ["0", "1", "2", "3", "0.5", "7.5", ".25", "2.", "1e-3", "3E2", "1.5e+2", "1e30"]
    return st.sampled_from(texts).map(lambda text: (text, f"N({text})"))


def expressions(*functions: str) -> st.SearchStrategy[Pair]:
    leaves = st.sampled_from(sorted(BANDS)).map(lambda name: (name, name)) | numbers()
    exponents = numbers() | st.sampled_from(["1", "2", "3"]).map(lambda text: (f"-{text}", f"-N({text})"))
    arity = {"min": 2, "max": 2, "clip": 3}

    def joined(left: Pair, sign: str, right: Pair, is_bracketed: bool) -> Pair:
        ours, theirs = (f"{one} {sign} {two}" for one, two in zip(left, right, strict=True))
        return (f"({ours})", f"({theirs})") if is_bracketed else (ours, theirs)

    def called(name: str, arguments: list[Pair]) -> Pair:
        ours, theirs = (", ".join(texts) for texts in zip(*arguments[: arity.get(name, 1)], strict=True))
        return f"{name}({ours})", f"{name}({theirs})"

    def larger(inner: st.SearchStrategy[Pair]) -> st.SearchStrategy[Pair]:
        return (
            st.builds(joined, inner, st.sampled_from(["+", "-", "*", "/"]), inner, st.booleans())
            | st.builds(joined, inner, st.just("**"), exponents, st.booleans())
            | inner.map(lambda pair: (f"-{pair[0]}", f"-{pair[1]}"))
            | st.builds(called, st.sampled_from(functions), st.tuples(inner, inner, inner).map(list))
        )

    return st.recursive(leaves, larger, max_leaves=12)


def reference(theirs: str) -> np.ndarray:
    names = REFERENCE_NAMES | {name: Reference(values) for name, values in BANDS.items()}
    with np.errstate(all="ignore"):
        result: Reference = eval(theirs, {"__builtins__": {}}, names)  # text of the strategies above
    if result.constant:
        raise Refused
    return np.asarray(result.value)


@settings(max_examples=60)
@given(expressions("abs", "sqrt", "exp", "log", "min", "max", "clip"))
@example(("-a ** 2 / b", "-a ** N(2) / b"))
@example(("2 ** -1 ** 2 * b", "N(2) ** -N(1) ** N(2) * b"))
@example(("a - b - c / a / b", "a - b - c / a / b"))
def test_values_equal_pythons(pair: Pair) -> None:
    ours, theirs = pair
    try:
        expected = reference(theirs)
    except Refused:
        with pytest.raises(UserError):
            Expression(ours)
        return
    found = Expression(ours).evaluate(BANDS)
    assert found.dtype == np.float32 and found.shape == (5, 7)
    np.testing.assert_array_equal(found, expected)


@settings(max_examples=60)
@given(expressions("abs", "min", "max", "clip"))
def test_numpy_and_torch_agree_to_the_last_bit(pair: Pair) -> None:
    try:
        expression = Expression(pair[0])
    except UserError:
        return
    found = expression.evaluate({name: torch.from_numpy(values) for name, values in BANDS.items()})
    assert found.dtype == torch.float32
    np.testing.assert_array_equal(found.numpy(), expression.evaluate(BANDS))


def test_roots_exp_and_log_agree_to_rounding() -> None:
    expression = Expression("exp(b) + sqrt(abs(b)) + log(abs(b) + 1)")
    found = expression.evaluate({"b": torch.from_numpy(BANDS["b"])})
    np.testing.assert_allclose(found.numpy(), expression.evaluate(BANDS), rtol=1e-6)
    np.testing.assert_allclose(
        found, np.exp(BANDS["b"]) + np.sqrt(np.abs(BANDS["b"])) + np.log1p(np.abs(BANDS["b"])), rtol=1e-5
    )


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("x", 3),
        ("x ** 1", 3),
        ("-x ** 2", -9),
        ("2 * x ** -1", np.float32(2) * (np.float32(1) / np.float32(3))),
        ("x ** 2 ** 3", 6561),
        ("7 - x - 1", 3),
        ("12 / x / 2", 2),
        ("--x", 3),
        ("2 - -x", 5),
        ("-x * 2", -6),
        ("clip(x, 4, 5)", 4),
        ("clip(x, -1, 2.5)", 2.5),
        ("min(x, 2) + max(2, x)", 5),
        ("sqrt(abs(x - 12))", 3),
        ("log(exp(0)) + x", 3),
        ("\n x\t+\r1 ", 4),
        ("x/(y-2)", np.inf),
        ("(x - 3) / (y - 2)", np.nan),
        ("-x / (y - 2)", -np.inf),
        ("sqrt(-x)", np.nan),
        ("log(x - x)", -np.inf),
        ("exp(100 * x)", np.inf),
        ("x * 1e-45 * 1e-10", 0),
    ],
)
def test_by_hand(text: str, value: float) -> None:
    for bands in ({"x": np.uint8([3]), "y": np.uint8([2])}, {"x": torch.tensor([3]), "y": torch.tensor([2])}):
        found = Expression(text).evaluate(bands)
        np.testing.assert_array_equal(np.asarray(found), np.float32([value]))


def test_unsigned_bands_do_not_wrap_around() -> None:
    bands = {"nir": np.array([[1, 60000]], np.uint16), "red": np.array([[2, 50000]], np.uint16)}
    found = Expression("nir - red").evaluate(bands)
    assert found.tolist() == [[-1.0, 10000.0]]


def test_the_callers_arrays_stay_their_own() -> None:
    band = np.ones((2, 2), np.float32)
    tensor = torch.ones(2, 2)
    for text in ("x", "(x)", "x ** 1"):
        Expression(text).evaluate({"x": band})[:] = 7
        Expression(text).evaluate({"x": tensor})[:] = 7
    Expression("-x + x * x / x").evaluate({"x": band})[:] = 7
    assert (band == 1).all() and bool((tensor == 1).all())


def test_names_in_the_order_of_the_text() -> None:
    expression = Expression("(nir - red) / (nir + 6 * red - 7.5 * blue + 1)")
    assert expression.names == ("nir", "red", "blue")
    for same in (Expression(expression.text), pickle.loads(pickle.dumps(expression)), copy.deepcopy(expression)):
        assert same == expression and hash(same) == hash(expression) and same.names == expression.names
        assert same.evaluate({"nir": np.ones(1), "red": np.zeros(1), "blue": np.zeros(1), "other": 0}) == 0.5
    assert Expression("nir") != Expression("red")
    assert is_band_name("swir1") and not any(map(is_band_name, ("sqrt", "1a", "a b", "", "nír", "a.b", "a\n")))


def test_unknown_bands_are_named_with_place_and_hint() -> None:
    expression = Expression("(nir - rad) / nir")
    with pytest.raises(UserError, match=r"character 8: unknown band 'rad'; did you mean 'red'\?"):
        expression.evaluate({"nir": np.ones(1), "red": np.ones(1)})
    expression.check_names(["nir", "rad"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "character 1: expected a band, a number, a function or '(', found the end"),
        ("   ", "found the end"),
        ("3 + 4", "expected at least one band, found numbers only"),
        ("nir red", "character 5: expected an operator or the end, found 'red'"),
        ("2nir", "character 2: expected an operator or the end, found 'nir'"),
        ("(nir", "character 5: expected an operator or ')', found the end"),
        ("nir)", "character 4: expected an operator or the end, found ')'"),
        ("nir +", "found the end"),
        ("+nir", "character 1: expected a band"),
        ("nir // red", "character 6: expected a band"),
        ("nir.real", "found '.' (U+002E)"),
        ("nir[0]", "found '[' (U+005B)"),
        ("nir; red", "found ';'"),
        ("nir == red", "found '='"),
        ("lambda: 0", "found ':'"),
        ("nir if red else blue", "character 5: expected an operator"),
        ("__import__('os').system('true')", "character 1: unknown function '__import__'; known: abs"),
        ("eval(nir)", "unknown function 'eval'; known: abs, clip, exp, log, max, min, sqrt"),
        ("sqr(nir)", "unknown function 'sqr'; did you mean 'sqrt'?"),
        ("nir(red)", "unknown function 'nir'"),
        ("sqrt + nir", "character 1: expected a band, found the function sqrt; write sqrt(…)"),
        ("sqrt()", "character 6: expected a band, a number"),
        ("sqrt(nir, red)", "character 9: expected ')' after 1 argument(s) of sqrt, found ','"),
        ("clip(nir, 1)", "character 12: expected ',' and 3 arguments of clip, found ')'"),
        ("min(nir)", "2 arguments of min"),
        ("nir ** red", "character 8: expected a whole number from 1 to 8"),
        ("nir ** 0.5", "or use sqrt, exp and log"),
        ("nir ** 0", "expected a whole number"),
        ("nir ** 9", "expected a whole number"),
        ("nir ** 9 ** 9 ** 9 ** 9", "expected a whole number"),
        ("nir ** (red - red)", "expected a whole number"),
        ("1e39 * nir", "character 1: expected a number below 3.4e38, found '1e39'"),
        ("1e999999999 * nir", "expected a number below"),
        ("nir + 9" + "9" * 900, "expected a number below 3.4e38, found '" + "9" * 40 + "'…"),
        ("nir + 1 / 0", "character 9: expected constants with a finite result"),
        ("nir * sqrt(-1)", "character 7: expected constants with a finite result"),
        ("nir * 1e30 ** 2", "expected constants with a finite result"),
        ("1e30 ** 2 * nir", "character 6: expected constants with a finite result"),
        ("nir − red", "character 5: expected names, numbers, operators and parentheses, found '−' (U+2212)"),
        ("nír", "(U+00ED)"),
        ("ｎir", "(U+FF4E)"),
        ("nir * ２", "(U+FF12)"),
        ("nir * ٣", "(U+0663)"),
        ("nir\u202e + red", "(U+202E)"),
        ("nir\u2028+ red", "(U+2028)"),
        ("nir\x00", "(U+0000)"),
        ("nir\ud800", "(U+D800)"),
    ],
)
def test_what_the_grammar_does_not_know(text: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        Expression(text)
    assert message in str(caught.value)
    assert_one_line(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("(" * 10**6, f"expected at most {MAX_LENGTH} characters, found 1000000"),
        ("a" * 10**6, "expected at most"),
        ("(" * 500 + "a" + ")" * 499, "levels inside each other"),
        ("-" * 999 + "a", "levels inside each other"),
        ("abs(" * 190 + "a" + ")" * 190, "levels inside each other"),
        ("a ** " + "2 ** " * 150 + "2", "levels inside each other"),
        ("+".join("a" * 400), f"expected at most {MAX_STEPS} bands, numbers and operations"),
    ],
    ids=lambda value: value[:12],
)
def test_no_text_is_too_much(text: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        Expression(text)
    assert message in str(caught.value)
    assert_one_line(caught.value)


def assert_one_line(error: UserError) -> None:
    assert len(str(error).splitlines()) == 1 and len(str(error)) < 1000 and str(error).isprintable()


def test_long_sums_and_deep_brackets_within_the_limits() -> None:
    assert Expression("+".join("a" * 100)).evaluate({"a": np.ones(1)}) == 100
    assert Expression("(" * 30 + "a" + ")" * 30).evaluate({"a": np.ones(1)}) == 1


@settings(max_examples=60)
@given(
    st.text(max_size=40)
    | st.text(alphabet="ab12.e+-*/(), **", max_size=60)
    | st.lists(st.sampled_from(["a", "b", "2", "(", ")", "-", "+", "**", ",", "min(", "clip(", " "])).map("".join)
    | st.text(alphabet=string.printable, max_size=1200)
)
def test_any_text_is_an_expression_or_a_line(text: str) -> None:
    try:
        expression = Expression(text)
    except UserError as error:
        assert_one_line(error)
        return
    found = expression.evaluate(dict.fromkeys(expression.names, np.float32([2])))
    assert found.dtype == np.float32 and found.shape == (1,)
