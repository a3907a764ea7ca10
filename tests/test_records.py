"""The shared words check themselves when they are made."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskloom.errors import BadFile, UserError, closest
from maskloom.records import BadSize, ClassMap, ProbabilityMap, Record, Sample, Task, check_id, usual_size


@pytest.mark.parametrize(
    "hostile",
    ["", "../a", "a/../b", "/etc/passwd", "a//b", "a/", "./a", "a\\b", "C:a", "a\0b", "a\nb", "b*", "a/" + "x" * 300],
)
def test_ids_that_could_lead_elsewhere_are_refused(hostile: str) -> None:
    with pytest.raises(UserError, match="cannot name an output file"):
        check_id(hostile)


@pytest.mark.parametrize("char", '\\:*?"<>|')
def test_the_refusal_names_the_character(char: str) -> None:
    with pytest.raises(UserError) as refused:
        check_id(f"a{char}b")
    assert char in str(refused.value).split("expected", 1)[1]


@given(st.text())
def test_an_accepted_id_stays_below_its_folder(record_id: str) -> None:
    try:
        check_id(record_id)
    except UserError:
        return
    root = Path("root").resolve()
    assert (root / record_id).resolve().is_relative_to(root) and (root / record_id).resolve() != root


def test_a_record_without_group_is_its_own() -> None:
    assert Record(id="a/b", image=Path("a/b.png"), size=(2, 3)).group == "a/b"
    with pytest.raises(UserError, match="size"):
        Record(id="a", image=Path("a.png"), size=(0, 3))


@pytest.mark.parametrize(
    ("kind", "classes"),
    [("binary", ("a", "b")), ("multiclass", ("a",)), ("multilabel", ()), ("multiclass", ("a", "a"))],
)
def test_tasks_that_make_no_sense_are_refused(kind: str, classes: tuple[str, ...]) -> None:
    with pytest.raises(UserError):
        Task(kind=kind, classes=classes)  # type: ignore[arg-type]


def test_masks_of_another_size_are_told_with_both_sizes() -> None:
    with pytest.raises(BadSize, match=r"5×4.*3×2"):
        Sample(id="a", image=np.zeros((2, 3, 3), np.uint8), labels=np.zeros((4, 5), np.uint8))


def test_maps_have_their_types() -> None:
    with pytest.raises(ValueError, match="uint8"):
        ProbabilityMap(id="a", values=np.zeros((1, 2, 3), np.float32))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="uint8"):
        ClassMap(id="a", labels=np.zeros((2, 3), np.int64))  # type: ignore[arg-type]


@pytest.mark.parametrize("error", [BadFile("a.png", "cut"), BadSize("a", (1, 2), (3, 4))])
def test_errors_travel_between_processes(error: UserError) -> None:
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_the_closest_name_is_offered() -> None:
    assert closest("epoch", ["epochs", "seed"]) == "did you mean 'epochs'?"
    assert closest("zzz", ["b", "a"]) == "known: a, b"


def test_the_usual_size_is_the_most_frequent_one_and_of_these_the_first() -> None:
    assert usual_size([(9, 9), (4, 6), (4, 6)]) == (4, 6)
    assert usual_size(iter([(9, 9), (4, 6)])) == (9, 9)
