"""The colour of each label, where the masks that were learnt from are of colours. Knows nothing about files."""

from __future__ import annotations

from maskloom.data.mask_coding import Colour, MaskCoding
from maskloom.data.stated_classes import is_background
from maskloom.errors import UserError
from maskloom.records import Task

BLACK: Colour = (0, 0, 0)


def palette(task: Task, coding: MaskCoding) -> tuple[Colour, ...]:
    """Returns the colour of each label: of several colours that a label has, the first one that is listed.

    A background of several colours is black, unless black stands for something else. Raises ``UserError`` for masks
    without colours, and for classes that do not exclude each other, which no single colour shows.

    >>> coding = MaskCoding(kind="colours", colours=(((9, 9, 9), 0), ((7, 0, 0), 1), ((8, 0, 0), 1)))
    >>> palette(Task(kind="multiclass", classes=("sky", "road")), coding)
    ((9, 9, 9), (7, 0, 0))
    """
    if coding.kind != "colours":
        raise UserError("expected data whose masks hold a colour for each class, found masks of values; choose png")
    if task.kind == "multilabel":
        raise UserError("expected classes that exclude each other, found a multilabel task; choose png, a mask each")
    own: dict[int, list[Colour]] = {}
    for colour, label in coding.colours:
        own.setdefault(label, []).append(colour)
    names = ("background", *task.classes) if task.kind == "binary" else task.classes
    is_free = BLACK not in (*(colour for colour, _ in coding.colours), *coding.ignore_colours)
    return tuple(
        BLACK if is_free and is_background(name) and len(own[label]) > 1 else own[label][0]
        for label, name in enumerate(names)
    )
