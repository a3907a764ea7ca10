"""Classes as a user states them, in ``classes.yaml`` or in settings, to a task and a mask coding.

Forms of ``classes``: a list of names (the label is the position), a mapping of name to stored value or to
``[r, g, b]``, a mapping of stored value to name, or a list of ``{name, value}`` or ``{name, colour}``. A class has
several values or colours where its name occurs again in the last two, or as ``{name, values}`` and ``{name, colours}``,
or as a list of colours in the mapping. ``ignore`` is a value, a colour, or a list of them; ``task`` is optional. Reads
no masks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import yaml

from maskloom.config import load_yaml
from maskloom.data.mask_coding import NO_CLASS, Colour, MaskCoding
from maskloom.errors import UserError, closest
from maskloom.records import Task, TaskKind

CLASSES_FILES = ("classes.yaml", "classes.yml")

_KEYS = ("classes", "ignore", "task")
_BACKGROUND_NAMES = frozenset({"background", "bg", "none", "other", "rest", "unlabelled", "unlabeled"})
_MAX_VALUE = 65535

_KINDS: dict[type, str] = {list: "list", dict: "mapping", str: "text"}
_EXAMPLE = "classes: {background: 0, car: 255}"
_LONGEST_EXAMPLE = 200
_SEVERAL_VALUES = "several values of a class are written in a list of {name: NAME, values: [...]}"

Stored = int | Colour
"""What a mask file holds for one class."""


def find_classes_yaml(folder: Path) -> Path | None:
    """Returns the folder's ``classes.yaml``, if it has one."""
    return next((folder / name for name in CLASSES_FILES if (folder / name).is_file()), None)


def read_classes_yaml(path: Path) -> tuple[Task, MaskCoding]:
    """Returns the task and coding that a ``classes.yaml`` states.

    Raises ``UserError`` for unknown keys (with the closest name), values that are no values or colours, and doubles.
    """
    return _read(path, load_yaml(path))


def _read(path: Path, content: Any) -> tuple[Task, MaskCoding]:
    if not isinstance(content, dict) or "classes" not in content:
        found = "nothing" if content is None else f"a {_KINDS.get(type(content), 'single value')} without it"
        raise UserError(
            f"{path}: expected a mapping with the key 'classes', found {found}; write for instance {_example(content)}"
        )
    for key in content:
        if key not in _KEYS:
            raise UserError(f"{path}: unknown key {key!r}, {closest(str(key), _KEYS)}")
    task = content.get("task")
    if task is not None and task not in get_args(TaskKind):
        raise UserError(f"{path}: task: expected one of {', '.join(get_args(TaskKind))}, found {task!r}")
    try:
        names, stored = _entries(content["classes"])
        ignored = _ignored(content.get("ignore"), coloured=stored is not None and isinstance(stored[0][0], tuple))
        return stated_coding(names, stored=stored, ignore=ignored, task=task)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _example(content: Any) -> str:
    """Returns what the file should say: its own classes where it holds nothing else, or some others."""
    try:
        _entries(content)
        text = yaml.safe_dump({"classes": content}, default_flow_style=True, sort_keys=False, width=10_000)
    except (UserError, yaml.YAMLError):
        return _EXAMPLE
    line = " ".join(text.split()).removeprefix("{").removesuffix("}")
    return line if len(line) <= _LONGEST_EXAMPLE else _EXAMPLE


@dataclass(frozen=True, slots=True)
class AttributeClasses:
    """Classes as an attribute names them: ``names`` without the background, in order; a value may stand for a name.

    ``values`` gives the name for every text that the attribute may hold. ``task`` is None where it is not stated, and
    ``column`` where the attribute's own name is not.
    """

    names: tuple[str, ...]
    values: Mapping[str, str]
    task: TaskKind | None = None
    column: str | None = None


def read_attribute_classes(path: Path) -> AttributeClasses:
    """Returns what a ``classes.yaml`` beside polygons states; it may also name their attribute, as ``column``.

    Raises ``UserError`` as ``read_classes_yaml`` does, and for colours and ignored values, which polygons have not.
    """
    content = load_yaml(path)
    column = content.pop("column", None) if isinstance(content, dict) else None
    if column is not None and not isinstance(column, str):
        raise UserError(f"{path}: column: expected the name of an attribute, found {column!r}; put it in quotes")
    task, coding = _read(path, content)
    if coding.kind == "colours" or coding.ignore:
        found = "colours" if coding.kind == "colours" else "ignored values"
        raise UserError(f"{path}: the truth is polygons, which have no {found}; state names, or values of an attribute")
    return replace(_of_attribute(task, coding), task=content.get("task"), column=column)


def attribute_classes(names: Sequence[str], task: TaskKind | None) -> AttributeClasses:
    """Returns classes that settings state: an attribute may hold a name or its position."""
    return replace(_of_attribute(*stated_coding(names, task=task)), task=task)


def _of_attribute(task: Task, coding: MaskCoding) -> AttributeClasses:
    labels = dict(enumerate(task.classes, start=1 if task.kind == "binary" else 0))
    background = 0 if task.kind != "binary" and is_background(task.classes[0]) else None
    names = tuple(name for label, name in labels.items() if label != background)
    values = {str(value): labels[label] for value, label in coding.values if labels.get(label) in names}
    return AttributeClasses(names, values | {name: name for name in names})


def stated_coding(
    names: Sequence[str],
    *,
    stored: Sequence[Sequence[Stored]] | None = None,
    ignore: Sequence[Stored] = (),
    task: TaskKind | None = None,
) -> tuple[Task, MaskCoding]:
    """Returns the task and coding of named classes; without ``stored`` a class's value is its position.

    ``stored`` are all values, or all colours, of each class. One name is the foreground of a binary task: without
    ``stored`` every value above 0, else its own values over 0 or black. Two names of which the first is a background
    (by its name, or because the task is stated as binary) are a binary task too. Raises ``UserError`` for doubles and
    for numbers of classes that do not fit the task.
    """
    kind = task or _kind(names)
    ignored_values = tuple(value for value in ignore if isinstance(value, int))
    ignored_colours = tuple(value for value in ignore if not isinstance(value, int))
    if kind == "binary" and len(names) == 1 and stored is None:
        found = MaskCoding(kind="foreground", ignore=ignored_values, ignore_colours=ignored_colours)
        return Task(kind="binary", classes=tuple(names)), found
    if kind == "binary" and len(names) > 2:
        raise UserError(f"a binary task has one foreground class (and a background), found {len(names)} names")
    values = stored if stored is not None else [(place,) for place in range(len(names))]
    pairs: list[tuple[Stored, int]] = [
        (value, label) for (label, _), own in zip(enumerate(names), values, strict=True) for value in own
    ]
    nothing: Stored = (0, 0, 0) if pairs and isinstance(pairs[0][0], tuple) else 0
    if kind == "binary" and len(names) == 1:
        pairs = [(nothing, 0), *((value, 1) for value, _ in pairs)]
    elif kind == "multilabel" and nothing not in [value for value, _ in pairs] and nothing not in ignore:
        pairs = [(nothing, NO_CLASS), *pairs]
    _check_different([value for value, _ in pairs], ignore)
    classes = tuple(names[-1:] if kind == "binary" else names)
    coding = MaskCoding(
        kind="colours" if isinstance(nothing, tuple) else "values",
        values=tuple((value, label) for value, label in pairs if isinstance(value, int)),
        colours=tuple((value, label) for value, label in pairs if not isinstance(value, int)),
        ignore=ignored_values,
        ignore_colours=ignored_colours,
    )
    return Task(kind=kind, classes=classes), coding


def is_background(name: str) -> bool:
    """Returns whether a class is a background by its name."""
    return name.strip().lower() in _BACKGROUND_NAMES


def _kind(names: Sequence[str]) -> TaskKind:
    return "binary" if len(names) == 1 or (len(names) == 2 and is_background(names[0])) else "multiclass"


def _check_different(stored: Sequence[Stored], ignore: Sequence[Stored]) -> None:
    everything = [*stored, *ignore]
    double = [value for place, value in enumerate(everything) if value in everything[:place]]
    if double:
        raise UserError(f"every class needs stored values of its own, found {double[0]} twice (0 is the background)")


def _entries(classes: Any) -> tuple[list[str], list[list[Stored]] | None]:
    """Returns names and the stored values of each (None where positions are meant)."""
    if isinstance(classes, dict) and classes and all(isinstance(key, int) for key in classes):
        return _gathered((_name(name), [_stored(value)]) for value, name in classes.items())  # 0: background, 1: car
    if isinstance(classes, dict) and classes:
        return _gathered((_name(name), _mapped(value)) for name, value in classes.items())
    if isinstance(classes, list) and classes and all(isinstance(entry, dict) for entry in classes):
        return _gathered((_name(entry.get("name")), _entry_values(entry)) for entry in classes)
    if isinstance(classes, list) and classes:
        return [_name(name) for name in classes], None
    raise UserError(f"classes: expected a list of names or a mapping of name to value or colour, found {classes!r}")


def _gathered(entries: Iterable[tuple[str, list[Stored]]]) -> tuple[list[str], list[list[Stored]]]:
    """Returns each name once, in the order of their first entries, with the values of all its entries."""
    found: dict[str, list[Stored]] = {}
    for name, values in entries:
        found.setdefault(name, []).extend(values)
    if len({isinstance(value, int) for values in found.values() for value in values}) > 1:
        raise UserError(f"classes: expected values for all or colours for all, found both; {_SEVERAL_VALUES}")
    return list(found), list(found.values())


def _mapped(value: Any) -> list[Stored]:
    """Returns what a name is mapped to: a value, a colour or several colours."""
    if isinstance(value, list) and value and all(isinstance(each, list) for each in value):
        return [_stored(each) for each in value]
    if isinstance(value, list) and len(value) != 3 and all(type(each) is int for each in value):
        raise UserError(
            f"expected a value of 0 to {_MAX_VALUE} or a colour [r, g, b] of 0 to 255, found {value!r}; "
            + _SEVERAL_VALUES
        )
    return [_stored(value)]


def _name(name: Any) -> str:
    if isinstance(name, str) and name.strip():
        return name
    raise UserError(f"classes: expected a name, found {name!r}" + ("; put it in quotes" if name is not None else ""))


_ONE = ("value", "colour", "color")
_SEVERAL = ("values", "colours", "colors")


def _entry_values(entry: dict[Any, Any]) -> list[Stored]:
    keys = [key for key in (*_ONE, *_SEVERAL) if key in entry]
    unknown = set(entry) - {"name", *_ONE, *_SEVERAL}
    if unknown:
        name = str(sorted(map(str, unknown))[0])
        raise UserError(f"classes: unknown key {name!r}, {closest(name, ('name', 'value', 'colour'))}")
    if len(keys) != 1:
        raise UserError(f"classes: expected a value or a colour for {entry.get('name')!r}, found {len(keys)} of them")
    found = entry[keys[0]]
    if keys[0] in _ONE:
        return [_stored(found)]
    if not isinstance(found, list) or not found:
        raise UserError(f"classes: expected a list as {keys[0]} of {entry.get('name')!r}, found {found!r}")
    return [_stored(value) for value in found]


def _stored(value: Any) -> Stored:
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MAX_VALUE:
        return value
    if isinstance(value, list) and len(value) == 3 and all(isinstance(part, int) and 0 <= part < 256 for part in value):
        red, green, blue = value
        return red, green, blue
    raise UserError(f"expected a value of 0 to {_MAX_VALUE} or a colour [r, g, b] of 0 to 255, found {value!r}")


def _ignored(ignore: Any, *, coloured: bool) -> list[Stored]:
    if ignore is None:
        return []
    single = not isinstance(ignore, list) or (coloured and all(isinstance(part, int) for part in ignore))
    found = [_stored(ignore)] if single else [_stored(value) for value in ignore]
    if any(isinstance(value, tuple) != coloured for value in found):
        wanted = "colours" if coloured else "values"
        raise UserError(f"ignore: expected {wanted}, as for the classes, found {ignore!r}")
    return found
