"""Blocks of scenes predicted, here or by workers: each is read, asked about and stored by itself.

The process that was started claims blocks before it hands them out, so that others that were started with the same
command leave them alone, and workers need no locks. Knows nothing about the files that blocks become.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
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
from maskloom.progress import Silent
from maskloom.records import Record
from maskloom.run_directory import RunDirectory
from maskloom.stages.claims import Claims
from maskloom.stages.image_files import opened_here
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

        def ask(image: np.ndarray, frame: Frame | None = None) -> dict[str, np.ndarray]:
            shown = with_channels(image, channels, record.image)
            return {RESULT: opened.predictor(shown, frame=frame)[RESULT]}

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
    scenes: Mapping[str, tuple[Record, Path, BlockGrid]]
    """By id: the files, the folder of its blocks, and how it is cut."""
    num_maps: int
    skip_bad: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Claimed:
    """Scenes whose files are finished together, and where their blocks are claimed."""

    scenes: Sequence[Scene]
    claims: Path
    first: int
    """The number of the first block's claim; those of all scenes follow each other."""
    left_out: Collection[str]
    """The ids of scenes that are not predicted."""
    leave_out: Callable[[Scene, BadFile], object]


class BlocksByWorkers:
    """Has blocks predicted, some before their scenes' turn comes, so that no worker waits; use as a context manager."""

    def __init__(
        self,
        executor: Executor,
        work: SceneWork,
        blocks: Mapping[str, StoredBlocks],
        on_progress: Callable[[str, int], object],
    ) -> None:
        """``on_progress`` is given a scene's id, and how many of its blocks are there."""
        self._executor, self._work, self._blocks, self._on_progress = executor, work, blocks, on_progress
        self._under_way: dict[Path, tuple[Claims, list[Ticket]]] = {}

    def __enter__(self) -> BlocksByWorkers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for claims, _ in self._under_way.values():
            claims.__exit__(kind, error, trace)

    def predict(self, wanted: Claimed, later: Iterable[Claimed]) -> None:
        """Returns once all blocks that nobody else is at are there; begins with those of ``later``."""
        self._begin(wanted)
        for following in later:
            if sum(len(tickets) for _, tickets in self._under_way.values()) >= _AHEAD * self._executor.num_workers:
                break
            self._begin(following)
        claims, tickets = self._under_way[wanted.claims]
        with claims:
            for ticket in tickets:
                self._executor.collect(ticket)
            del self._under_way[wanted.claims]

    def _begin(self, wanted: Claimed) -> None:
        """Claims and hands out the blocks that are missing."""
        if wanted.claims in self._under_way:
            return
        tickets: list[Ticket] = []
        claims = Claims(wanted.claims)
        self._under_way[wanted.claims] = (claims, tickets)
        first = wanted.first
        for scene in wanted.scenes:
            blocks = self._blocks[scene.id]
            there = {number for number in range(len(blocks.windows)) if blocks.path(number).is_file()}
            wants = [] if scene.id in wanted.left_out else range(len(blocks.windows))
            mine = [n for n in wants if n not in there and claims.take(first + n)]
            first += len(blocks.windows)
            tickets += self._handed_out(scene, mine, len(there), wanted)

    def _handed_out(self, scene: Scene, numbers: Sequence[int], there: int, wanted: Claimed) -> list[Ticket]:
        listener = _OfScene(scene.id, self._on_progress)
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
                on_told=lambda problem: wanted.leave_out(scene, problem),
            )
            for place, shard in shards(numbers, self._executor, at_most=SHARD)
        ]


def _predict_shard(here: Here, work: SceneWork, scene: str, numbers: Sequence[int]) -> None:
    """Stores some blocks of a scene; of one that cannot be read, it tells why where such are left out."""
    record, folder, grid = work.scenes[scene]
    blocks = StoredBlocks(folder, grid, work.num_maps)
    try:
        predict_blocks(
            opened_here(here, work.run),
            record,
            blocks,
            numbers,
            take=lambda number: not blocks.path(number).is_file(),
            on_stored=lambda _: None,
            on_progress=here.progress.advance,
        )
    except BadFile as problem:
        if not work.skip_bad:
            raise
        here.tell(problem)


class _OfScene(Silent):
    """A listener that counts the blocks of one scene."""

    def __init__(self, scene: str, on_progress: Callable[[str, int], object]) -> None:
        self._scene, self._on_progress = scene, on_progress

    def advance(self, done: int, total: int, detail: str = "", *, seconds_left: float | None = None) -> None:
        self._on_progress(self._scene, done)
