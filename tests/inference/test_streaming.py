from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest

from maskloom.errors import BadFile, UserError
from maskloom.inference.streaming import predict_records
from maskloom.records import Record


def some_records(count: int) -> list[Record]:
    return [Record(id=f"r{index}", image=Path(f"r{index}.png"), size=(2, 2)) for index in range(count)]


def read(record: Record) -> np.ndarray:
    return np.full((2, 2, 1), int(record.id[1:]), np.uint8)


def predict(image: np.ndarray) -> dict[str, np.ndarray]:
    return {"result": image.transpose(2, 0, 1) + np.uint8(1)}


@pytest.mark.parametrize(("read_ahead", "writers"), [(1, 1), (2, 2), (7, 3)])
def test_every_record_is_consumed_once_with_its_own_prediction(read_ahead: int, writers: int) -> None:
    found: list[tuple[str, int]] = []
    heard: list[tuple[int, int]] = []
    count = predict_records(
        predict,
        some_records(20),
        lambda record, maps: found.append((record.id, int(maps["result"][0, 0, 0]))),
        read=read,
        on_progress=lambda done, total: heard.append((done, total)),
        read_ahead=read_ahead,
        writers=writers,
    )
    assert count == 20
    assert sorted(found) == sorted((f"r{index}", index + 1) for index in range(20))
    assert heard == [(done, 20) for done in range(1, 21)]


def test_no_records_are_no_work() -> None:
    assert predict_records(predict, [], lambda record, maps: None, read=read) == 0


def test_few_images_and_predictions_wait() -> None:
    alive, most, lock = 0, 0, threading.Lock()

    def counted_read(record: Record) -> np.ndarray:
        nonlocal alive, most
        with lock:
            alive += 1
            most = max(most, alive)
        return read(record)

    def slow_consume(record: Record, maps: dict[str, np.ndarray]) -> None:
        nonlocal alive
        time.sleep(0.005)
        with lock:
            alive -= 1

    predict_records(predict, some_records(40), slow_consume, read=counted_read, read_ahead=2, writers=2)
    assert alive == 0 and most <= 2 + 1 + 4


class OddError(Exception):
    """An error that must arrive as it is."""


@pytest.mark.parametrize("where", ["read", "predict", "consume", "progress"])
@pytest.mark.parametrize("error", [OddError("x"), UserError("y"), KeyboardInterrupt()])
def test_the_first_error_is_raised_as_it_was(where: str, error: BaseException) -> None:
    before = threading.active_count()
    consumed: list[str] = []

    def fail(place: str, number: int) -> None:
        if place == where and number == 5:
            raise error

    def failing_read(record: Record) -> np.ndarray:
        fail("read", int(record.id[1:]))
        return read(record)

    def failing_predict(image: np.ndarray) -> dict[str, np.ndarray]:
        fail("predict", int(image[0, 0, 0]))
        return predict(image)

    def failing_consume(record: Record, maps: dict[str, np.ndarray]) -> None:
        fail("consume", int(record.id[1:]))
        consumed.append(record.id)

    with pytest.raises(type(error)) as caught:
        predict_records(
            failing_predict,
            some_records(1000),
            failing_consume,
            read=failing_read,
            on_progress=lambda done, _: fail("progress", done),
        )
    assert caught.value is error
    assert threading.active_count() == before
    assert len(consumed) < 20


def test_damaged_files_can_be_left_out() -> None:
    def picky(record: Record) -> np.ndarray:
        if record.id in ("r0", "r3"):
            raise BadFile(record.image, "is truncated")
        return read(record)

    bad: list[str] = []
    heard: list[int] = []
    count = predict_records(
        predict,
        some_records(5),
        lambda record, maps: None,
        read=picky,
        on_bad=lambda record, problem: bad.append(f"{record.id} {problem.reason}"),
        on_progress=lambda done, total: heard.append(done),
    )
    assert count == 3 and bad == ["r0 is truncated", "r3 is truncated"] and heard[-1] == 5
    with pytest.raises(BadFile):
        predict_records(predict, some_records(5), lambda record, maps: None, read=picky)
