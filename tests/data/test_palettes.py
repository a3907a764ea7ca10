"""The colour of each label: the first of several, black for a background of several where black is free."""

from __future__ import annotations

from maskloom.contests.signate.class_table import ALL, ClassTable
from maskloom.contests.signate.colours import COLOURS
from maskloom.data.mask_coding import Colour, MaskCoding
from maskloom.data.palettes import BLACK, palette
from maskloom.records import Task

RED, BLUE, GREEN = (255, 0, 0), (0, 0, 255), (0, 200, 0)
ROAD = Task(kind="multiclass", classes=("Background", "road"))


def coding(*colours: tuple[Colour, int], ignore: tuple[Colour, ...] = ()) -> MaskCoding:
    return MaskCoding(kind="colours", colours=colours, ignore_colours=ignore)


def test_a_background_of_several_colours_is_black_where_black_is_free() -> None:
    several = ((RED, 0), (GREEN, 0), (BLUE, 1))
    assert palette(ROAD, coding(*several)) == (BLACK, BLUE)
    assert palette(ROAD, coding(*several, ignore=(BLACK,))) == (RED, BLUE)
    assert palette(ROAD, coding(*several, (BLACK, 1))) == (RED, BLUE)
    assert palette(ROAD, coding((RED, 0), (BLUE, 1), (GREEN, 1))) == (RED, BLUE)
    assert palette(Task(kind="binary", classes=("road",)), coding(*several)) == (BLACK, BLUE)
    assert palette(Task(kind="multiclass", classes=("sky", "road")), coding(*several)) == (RED, BLUE)


def test_annotations_of_the_contest_have_their_colours() -> None:
    assert palette(ALL.task(), ALL.coding()) == tuple(COLOURS.values())
    few = ClassTable({"own": None}).keeping(["car", "lane"])
    assert palette(few.task(), few.coding()) == (BLACK, COLOURS["car"], COLOURS["lane"])
