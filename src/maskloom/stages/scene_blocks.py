"""Blocks of scenes predicted, here or by workers: each is read, asked about and stored by itself.

The process that was started claims blocks before it hands them out, so that others that were started with the same
command leave them alone, and workers need no locks. Knows nothing about the files that blocks become.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from maskloom.data.dataset import with_channels
from maskloom.encodings.probability_maps import write_map
from maskloom.errors import BadFile
from maskloom.executors.tasks import Call, Executor, Here, ShardProgress, Ticket, shards
from maskloom.inference.blocks import BlockGrid, BlockPixels, predict_block, read_block
from maskloom.inference.frames import Frame
from maskloom.inference.merging import RESULT
from maskloom.inference.streaming import predict_records
from maskloom.records import Record, Size
from maskloom.run_directory import RunDirectory
from maskloom.stages.by_workers import Counted, expect_seen
from maskloom.stages.claims import Claims
from maskloom.stages.image_files import opened_here
from maskloom.stages.scene_delivery import FIRST_BLOCK, Delivery
from maskloom.stages.scene_files import StoredBlocks, stored
from maskloom.stages.scene_sources import Scene, open_scene

if TYPE_CHECKING:
    from maskloom.stages.images import Opened

SHARD = 16
"""Blocks that a worker is given at a time, at most."""

_MAPS = "maps"
_AHEAD = 2  # shards per worker that are handed out before what is written needs them


def predict_blocks(
    opened: Opened,
    record: Record,
    blocks: StoredBlocks,
    numbers: Iterable[int],
    *,
    take: Callable[[int], bool],
    on_stored: Callable[[int], object],
    on_progress: Callable[[int, int], object],
) -> None:
    """Stores those of a scene's blocks that ``take`` accepts when their turn comes; ``on_stored`` hears of each.

    ``take`` and ``on_stored`` are called in threads. Raises ``BadFile`` for a scene that cannot be read.
    """
    pieces = [Record(id=str(number), image=record.image, size=record.size) for number in numbers]
    channels = opened.channels
    with open_scene(record) as raster:

        def read(piece: Record) -> BlockPixels | None:
            number = int(piece.id)
            return read_block(raster, blocks.grid, blocks.windows[number]) if take(number) else None

        def ask(image: np.ndarray, *, raster: Size, frame: Frame | None) -> dict[str, np.ndarray]:
            shown = with_channels(image, channels, record.image)
            return {RESULT: opened.predictor(shown, raster=raster, frame=frame)[RESULT]}

        def predict(found: BlockPixels | None) -> dict[str, np.ndarray]:
            return {} if found is None else {_MAPS: stored(predict_block(ask, found), found.is_valid)}

        def consume(piece: Record, maps: dict[str, np.ndarray]) -> None:
            if maps:
                write_map(blocks.path(int(piece.id)), maps[_MAPS])
                on_stored(int(piece.id))

        predict_records(predict, pieces, consume, read=read, on_progress=on_progress, read_ahead=1)


# By workers ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class SceneWork:
    """What workers need to know of all scenes of a prediction; travels to each once."""

    run: RunDirectory
    decision: str
    """Of the run, as workers are to open it."""
    scenes: Mapping[str, tuple[Record, Path, BlockGrid]]
    """By id: the files, the folder of its blocks, and how it is cut."""
    num_maps: int
    skip_bad: bool


@dataclass(frozen=True, slots=True)
class _Begun:
    """What of a delivery is this process's."""

    claims: Claims
    tickets: list[Ticket]
    files: dict[str, list[Path]]
    """The blocks that were handed out, by scene."""


class BlocksByWorkers:
    """Has blocks predicted, some before their scenes' turn comes, so that no worker waits; use as a context manager."""

    def __init__(
        self,
        executor: Executor,
        work: SceneWork,
        blocks: Mapping[str, StoredBlocks],
        *,
        on_progress: Callable[[str, int], object],
        leave_out: Callable[[Delivery, Scene, BadFile], object],
    ) -> None:
        """``on_progress`` is given a scene's id, and how many of its blocks are there."""
        self._executor, self._work, self._blocks = executor, work, blocks
        self._on_progress, self._leave_out = on_progress, leave_out
        self._begun: dict[Delivery, _Begun] = {}

    def __enter__(self) -> BlocksByWorkers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is not None:
                self._executor.drop()  # before another process may take what workers are at
        finally:
            for begun in self._begun.values():
                begun.claims.__exit__(kind, error, trace)

    def predict(self, wanted: Delivery, later: Iterable[Delivery]) -> None:
        """Returns once all blocks that nobody else is at are there; begins with those of ``later``.

        Raises ``UserError`` where this process does not see what workers have stored.
        """
        self._begin(wanted)
        for following in later:
            if sum(len(begun.tickets) for begun in self._begun.values()) >= _AHEAD * self._executor.num_workers:
                break
            self._begin(following)
        begun = self._begun[wanted]
        for ticket in begun.tickets:
            self._executor.collect(ticket)
        left_out = wanted.left_out()
        stored_blocks = (path for name, paths in begun.files.items() if name not in left_out for path in paths)
        expect_seen(stored_blocks, unless=wanted.is_finished)
        del self._begun[wanted]
        begun.claims.__exit__(None, None, None)

    def _begin(self, wanted: Delivery) -> None:
        """Claims and hands out the blocks that are missing."""
        if wanted in self._begun:
            return
        claims, left_out = Claims(wanted.claims), wanted.left_out()
        begun = self._begun[wanted] = _Begun(claims, [], {})
        mine: list[tuple[Scene, list[int], int]] = []
        first = FIRST_BLOCK
        for scene in wanted.scenes:
            blocks = self._blocks[scene.id]
            there = blocks.there()
            wants = () if scene.id in left_out else range(len(blocks.windows))
            mine.append((scene, [n for n in wants if n not in there and claims.take(first + n)], len(there)))
            first += len(blocks.windows)
        if wanted.is_finished():  # asked after looking for blocks, which go only once this is so
            return
        for scene, numbers, num_there in mine:
            if not numbers:
                continue
            blocks = self._blocks[scene.id]
            blocks.folder.mkdir(parents=True, exist_ok=True)  # so that what comes into it is seen at once
            begun.files[scene.id] = [blocks.path(number) for number in numbers]
            begun.tickets.extend(self._handed_out(scene, numbers, num_there, wanted))

    def _handed_out(self, scene: Scene, numbers: Sequence[int], there: int, wanted: Delivery) -> list[Ticket]:
        listener = Counted(lambda done, _: self._on_progress(scene.id, done))
        progress = ShardProgress(listener, done=there, total=there + len(numbers))
        shared = self._executor.share(self._work)
        return [
            self._executor.submit(
                Call(
                    name="predict",
                    function=_predict_shard,
                    shared=shared,
                    arguments=(scene.id, tuple(shard)),
                    shard=f"{scene.id}, blocks {place}",
                ),
                progress=progress.listener(),
                on_told=lambda problem: self._leave_out(wanted, scene, problem),
            )
            for place, shard in shards(numbers, self._executor, at_most=SHARD)
        ]


def _predict_shard(here: Here, work: SceneWork, scene: str, numbers: Sequence[int]) -> None:
    """Stores some blocks of a scene; of one that cannot be read, it tells why where such are left out."""
    record, folder, grid = work.scenes[scene]
    blocks = StoredBlocks(folder, grid, work.num_maps)
    try:
        predict_blocks(
            opened_here(here, work.run, work.decision),
            record,
            blocks,
            numbers,
            take=lambda _: True,
            on_stored=lambda _: None,
            on_progress=here.progress.advance,
        )
    except BadFile as problem:
        if not work.skip_bad:
            raise
        here.tell(problem)
