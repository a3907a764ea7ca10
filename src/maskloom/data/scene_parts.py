"""Blocks of scenes as records of their own: what validates where folds are blocks.

Knows nothing about pixels, nor about how scenes are divided.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from maskloom.records import MaskFile, Record
from maskloom.windows import Window


@dataclass(frozen=True, kw_only=True, slots=True)
class ScenePart(Record):
    """A block of a scene: predicted, counted and shown by itself; ``size`` is the block's, ``image`` the scene's file.

    Its truth is a file of labels, cut out of the scene's once.
    """

    scene: Record
    """The whole."""
    window: Window
    """The block, in pixels of the scene."""


def part_id(scene: str, window: Window) -> str:
    """Returns the id of a block, by which its maps are stored; no two blocks of a scene begin at one pixel."""
    return f"{scene}/r{window.top}c{window.left}"


def parts_of(scene: Record, windows: Sequence[Window], labels: Path) -> list[ScenePart]:
    """Returns the blocks of a scene as records, whose files of labels lie below the folder ``labels``."""
    return [
        ScenePart(
            id=(name := part_id(scene.id, window)),
            image=scene.image,
            size=(window.height, window.width),
            truth=MaskFile(path=labels / f"{name}.png", coded="labels"),
            group=scene.id,
            attributes=scene.attributes,
            bands=scene.bands,
            scene=scene,
            window=window,
        )
        for window in windows
    ]


def parts_among(records: Iterable[Record]) -> list[ScenePart]:
    """Returns those of the records that are parts of scenes."""
    return [record for record in records if isinstance(record, ScenePart)]


def scenes_of(records: Iterable[Record]) -> list[Record]:
    """Returns the scenes that records are parts of, each once, and the other records as they are, in order."""
    found: dict[str, Record] = {}
    for record in records:
        whole = record.scene if isinstance(record, ScenePart) else record
        found.setdefault(whole.id, whole)
    return list(found.values())
