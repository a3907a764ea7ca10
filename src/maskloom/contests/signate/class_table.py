"""Which class each category is learnt as: all 20 as they are, merged, left out, or a few before a background.

A table is data: a YAML mapping of category to class, where nothing (or ``ignore``) says that the category's pixels
count nowhere. Also reads annotations by such a table, and says where in a picture a colour stands that no category
has. Knows nothing about photos and folders.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from maskloom.config import load_yaml
from maskloom.contests.signate.colours import CATEGORIES, COLOURS
from maskloom.data.image_io import read_mask_values
from maskloom.data.mask_coding import Colour, MaskCoding, apply
from maskloom.errors import UserError, closest
from maskloom.records import Task

FILE = "class_table.yaml"
"""Where a data folder has its table."""
BACKGROUND = "background"
"""The class of everything that is not kept; label 0."""
IGNORED = "ignore"
"""What stands in a table for a category whose pixels count nowhere; the same as nothing."""
BLACK: Colour = (0, 0, 0)
"""The colour of the background."""


@dataclass(frozen=True, slots=True)
class ClassTable:
    """The class of each category, by category; None: its pixels count in no loss and no metric.

    Categories that are not named keep a class of their own. Raises ``UserError`` for a category that is none, and
    unless two classes or more are left.
    """

    class_of: Mapping[str, str | None]

    def __post_init__(self) -> None:
        for category in self.class_of:
            if category not in COLOURS:
                raise UserError(f"unknown category {category!r}; {closest(str(category), CATEGORIES)}")
        complete = {category: self.class_of.get(category, category) for category in CATEGORIES}
        object.__setattr__(self, "class_of", complete)  # the class is frozen for everyone else
        found = self.classes
        if len(found) < 2:
            left = f"{found[0]!r} alone" if found else "none: every category is left out"
            raise UserError(f"expected categories that become two classes or more, found {left}; map more of them")

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes in the order of their labels: that of their first category, a background before all others."""
        found = list(dict.fromkeys(name for name in self.class_of.values() if name is not None))
        return tuple(sorted(found, key=lambda name: name != BACKGROUND))

    def keeping(self, names: Sequence[str]) -> ClassTable:
        """Returns the table in which only these classes stay, in its own order, and all others become the background.

        What counts nowhere stays so. Raises ``UserError`` for a name that is no class of this table.
        """
        for name in names:
            if name not in self.classes:
                raise UserError(f"no class is called {name!r}; {closest(name, self.classes)}")
        return ClassTable(
            {
                category: name if name is None or name in names else BACKGROUND
                for category, name in self.class_of.items()
            }
        )

    def task(self) -> Task:
        """Returns the task: its classes, exclusive."""
        return Task(kind="multiclass", classes=self.classes)

    def coding(self) -> MaskCoding:
        """Returns how colours of annotations become labels."""
        label_of = {name: label for label, name in enumerate(self.classes)}
        classes = [(COLOURS[category], name) for category, name in self.class_of.items()]
        return MaskCoding(
            kind="colours",
            colours=tuple((colour, label_of[name]) for colour, name in classes if name is not None),
            ignore_colours=tuple(colour for colour, name in classes if name is None),
        )


ALL = ClassTable({})
"""Every category is a class of its own: label and place in ``CATEGORIES`` are one."""


def read_class_table(path: Path) -> ClassTable:
    """Returns the table of a YAML file; raises ``UserError`` for anything but a mapping of categories to classes."""
    content = load_yaml(path)
    if not isinstance(content, dict) or not content:
        raise UserError(f"{path}: expected a mapping of category to class, such as bus: vehicle, found something else")
    class_of: dict[str, str | None] = {}
    for category, name in content.items():
        if name is not None and not (isinstance(name, str) and name.strip()):
            raise UserError(
                f"{path}: {category}: expected the name of a class, or nothing to leave it out, found {name!r}"
            )
        class_of[str(category)] = None if name == IGNORED else name
    try:
        return ClassTable(class_of)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


@dataclass(frozen=True, slots=True)
class CategoryLabels:
    """Which label of the data stands for which category, by what the coding says of its colours."""

    alone: Mapping[str, int]
    """By category: the label of exactly its pixels, whatever the class is called."""
    shared: Mapping[str, tuple[str, ...]]
    """By category whose class bears its name: the other categories that this class holds as well."""
    ignored: tuple[str, ...]
    """Categories whose pixels count nowhere."""


def category_labels(task: Task, coding: MaskCoding) -> CategoryLabels:
    """Returns which label stands for which category.

    A category that is learnt in another's class has no label of its own, be its name that of another class or of none.

    >>> merged = ClassTable({"bus": "car", "own": None})
    >>> found = category_labels(merged.task(), merged.coding())
    >>> "car" in found.alone, found.shared, found.ignored
    (False, {'car': ('bus',)}, ('own',))
    """
    category_of = {colour: category for category, colour in COLOURS.items()}
    held: dict[int, list[str]] = {}
    for colour, label in coding.colours:
        held.setdefault(label, []).append(category_of.get(colour, ""))
    alone = {categories[0]: label for label, categories in held.items() if len(categories) == 1 and categories[0]}
    shared = {
        task.classes[label]: tuple(name for name in categories if name and name != task.classes[label])
        for label, categories in held.items()
        if len(categories) > 1 and task.classes[label] in categories
    }
    ignored = tuple(category_of[colour] for colour in coding.ignore_colours if colour in category_of)
    return CategoryLabels(alone=alone, shared=shared, ignored=ignored)


def read_annotation(path: Path, coding: MaskCoding) -> np.ndarray:
    """Returns the labels (uint8 H×W, ``IGNORE`` for what counts nowhere) of an annotation of colours.

    Raises ``BadFile`` for a damaged file and for a colour that the coding does not list, with the row and the column
    of its first pixel, both from 0.
    """
    return apply(coding, read_mask_values(path, colours=True), path)
