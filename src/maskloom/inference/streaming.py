"""Many records through one predictor: decoded ahead, written behind, never more than a few in memory.

Reading and writing run in threads beside the prediction (decoders and encoders release the interpreter lock). Knows
nothing about what a prediction is or where it goes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

import numpy as np

from maskloom.errors import BadFile, UnfitImage
from maskloom.records import Record

Source = TypeVar("Source")
"""What is read of a record and predicted from: an image H×W×C, or one together with members' maps."""
Maps = dict[str, np.ndarray]
"""8-bit maps by name, as a ``Predictor`` gives them."""


def predict_records(
    predict: Callable[[Source], Maps],
    records: Iterable[Record],
    consume: Callable[[Record, Maps], object],
    *,
    read: Callable[[Record], Source],
    on_bad: Callable[[Record, BadFile], object] | None = None,
    on_progress: Callable[[int, int], object] | None = None,
    read_ahead: int = 2,
    writers: int = 2,
) -> int:
    """Returns the number of records predicted: ``consume(record, predict(read(record)))`` once for each.

    ``predict`` runs in the calling thread, in the order of ``records``; ``read`` and ``consume`` run in threads, and
    ``consume`` of several records at once and in any order. At most ``read_ahead`` images and ``2 · writers``
    predictions wait. ``on_progress(done, total)`` is called in the calling thread whenever a record has been consumed.
    A file that ``read`` finds damaged, or ``predict`` unfit, is given to ``on_bad``, where there is one, and its record
    left out.

    The first error, also an interrupt, stops everything that has not begun, waits for what has, and is raised as it
    was.
    """
    if read_ahead < 1 or writers < 1:
        raise ValueError(f"read_ahead and writers must be at least 1, got {read_ahead} and {writers}")
    wanted = list(records)
    reader = ThreadPoolExecutor(min(read_ahead, 4), thread_name_prefix="read")
    writer = ThreadPoolExecutor(writers, thread_name_prefix="write")
    images: deque[tuple[Record, Future[Source]]] = deque()
    written: deque[Future[object]] = deque()
    waiting = iter(wanted)
    done = num_bad = 0

    def collect(at_most: int) -> None:
        """Takes finished writes away, oldest first, and waits until at most so many are under way."""
        nonlocal done
        while written and (len(written) > at_most or written[0].done()):
            written.popleft().result()
            done += 1
            if on_progress is not None:
                on_progress(done + num_bad, len(wanted))

    try:
        for record in islice(waiting, read_ahead):
            images.append((record, reader.submit(read, record)))
        while images:
            record, image = images.popleft()
            for following in islice(waiting, 1):
                images.append((following, reader.submit(read, following)))
            collect(2 * writers - 1)
            try:
                prediction = _predicted(predict, record, image)
            except BadFile as problem:
                if on_bad is None:
                    raise
                on_bad(record, problem)
                num_bad += 1
                continue
            written.append(writer.submit(consume, record, prediction))
        collect(0)
    finally:
        for pool in (reader, writer):
            pool.shutdown(wait=False, cancel_futures=True)
        for pool in (reader, writer):
            pool.shutdown(wait=True)
    return done


def _predicted(predict: Callable[[Source], Maps], record: Record, image: Future[Source]) -> Maps:
    """Returns the prediction of an image once it is read; raises ``BadFile`` for one that does not fit."""
    try:
        return predict(image.result())
    except UnfitImage as error:
        raise BadFile(record.image, str(error)) from error
