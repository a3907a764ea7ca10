"""Typed settings: frozen pydantic models loaded from YAML, changed by ``key=value``, saved resolved.

Every component owns a subclass of ``Config`` next to the code it configures. A wrong name suggests the right one.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from maskloom.errors import UserError, closest
from maskloom.storage.placeholders import at_hand


class Config(BaseModel):
    """Base of all settings: frozen, keyword-only, unknown names refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


AnyConfig = TypeVar("AnyConfig", bound=Config)


def parse(kind: type[AnyConfig], values: Any, *, origin: str = "settings") -> AnyConfig:
    """Returns ``values`` as a ``kind``; raises ``UserError`` with one line per wrong setting and the closest name."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        problems = error.errors()
        # A misspelt key also makes its parents fail; what is said about them would only hide it.
        misspelt = [problem for problem in problems if problem["type"] == "extra_forbidden"]
        causes = [problem for problem in problems if not _is_consequence(problem, problems)]
        lines = [_explain(kind, problem) for problem in misspelt or causes]
        raise UserError(f"{origin}: " + "; ".join(lines)) from None


def _is_consequence(problem: Any, problems: Iterable[Any]) -> bool:
    """Returns whether a list is called too short only because its wrong elements, told themselves, do not count."""
    place = problem["loc"]
    inside = (other["loc"] for other in problems if len(other["loc"]) > len(place))
    return problem["type"] == "too_short" and any(other[: len(place)] == place for other in inside)


def _explain(kind: type[Config], problem: Any) -> str:
    path = ".".join(str(part) for part in problem["loc"])
    if problem["type"] != "extra_forbidden":
        said = str(problem["ctx"]["error"]) if problem["type"] == "value_error" else problem["msg"]
        found = repr(problem["input"])
        shown = f", found {found if len(found) <= 80 else found[:77] + '…'}"
        return f"{path or 'value'}: {said}{'' if 'found' in said else shown}"  # our own checks say what they found
    *parents, name = problem["loc"]
    known = _field_names(kind, parents)
    return f"unknown key {path!r}" + (f", {closest(str(name), known)}" if known else "")


def _field_names(kind: Any, path: Iterable[Any]) -> set[str]:
    """Returns the field names of the model that a location of a pydantic error points into."""
    kinds = {kind}
    for part in path:
        found: set[Any] = set()
        for model in kinds:
            if part in getattr(model, "model_fields", {}):
                found |= _models(model.model_fields[part].annotation)
            elif isinstance(part, int) or part not in _all_fields(kinds):
                found.add(model)  # a list index, or the tag of a union: stay on the same model
        kinds = found or kinds
    return _all_fields(kinds)


def _all_fields(kinds: Iterable[Any]) -> set[str]:
    return {name for model in kinds for name in getattr(model, "model_fields", {})}


def _models(annotation: Any) -> set[Any]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return {annotation}
    if get_origin(annotation) in (Union, tuple, list, dict) or get_args(annotation):
        return {model for argument in get_args(annotation) for model in _models(argument)}
    return set()


MAX_YAML_BYTES = 2**20
"""The largest file of settings that is read; the largest recipes have some 100 kB."""
MAX_YAML_VALUES = 100_000
"""Values in it, those behind an alias counted each time: a few lines of aliases can stand for billions."""

_MOST_BITS = 1024  # of a whole number: 308 digits, as a float can hold
_TOO_MANY = "it holds more than {:,} values, those behind an alias counted each time"
_INT, _FLOAT = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"


def load_yaml(path: Path) -> Any:
    """Returns the parsed YAML file; raises ``UserError`` when it is missing, unreadable, malformed or monstrous."""
    try:
        with at_hand(path).open("rb") as stream:
            content = stream.read(MAX_YAML_BYTES + 1)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except OSError as error:
        raise UserError(f"{path}: expected a YAML file, it cannot be read ({error.strerror})") from error
    if len(content) > MAX_YAML_BYTES:
        raise UserError(f"{path}: expected a YAML file of at most {MAX_YAML_BYTES // 2**20} MiB, found a larger one")
    try:
        return _parsed(content.decode())
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: expected YAML, found something else ({reason:.500})") from error


class _Loader(yaml.SafeLoader):
    """YAML 1.1 without numbers to the base of 60: ``1:30`` is text, and thousands of such digits would take hours."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._num_nodes = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Returns the next node; raises ``ValueError`` once there are too many, before the rest is read."""
        self._num_nodes += 1
        if self._num_nodes > MAX_YAML_VALUES:
            raise ValueError(_TOO_MANY.format(MAX_YAML_VALUES))
        return super().compose_node(parent, index)

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        """Returns the tag of a node that states none."""
        tag = super().resolve(kind, value, implicit)  # type: ignore[no-untyped-call]
        return self.DEFAULT_SCALAR_TAG if tag in (_INT, _FLOAT) and ":" in value else tag

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        """Returns a whole number; raises ``ValueError`` for one of too many digits."""
        _check_base(node)
        number = super().construct_yaml_int(node)
        if number.bit_length() > _MOST_BITS:
            raise ValueError("a number in it has too many digits")
        return number

    def construct_yaml_float(self, node: yaml.ScalarNode) -> float:
        """Returns a number."""
        _check_base(node)
        return super().construct_yaml_float(node)


_Loader.add_constructor(_INT, _Loader.construct_yaml_int)
_Loader.add_constructor(_FLOAT, _Loader.construct_yaml_float)


def _check_base(node: yaml.ScalarNode) -> None:
    """Raises ``ValueError`` for a number to the base of 60, which an explicit tag may ask for."""
    if ":" in node.value:
        raise ValueError(f"expected a number, found {node.value!r:.40}")


def _parsed(text: str) -> Any:
    """Returns the value of YAML text; raises ``ValueError`` for anything else, however its parser fails."""
    if len(text) > MAX_YAML_BYTES:
        raise ValueError(f"it has {len(text):,} characters, of {MAX_YAML_BYTES:,} at most")
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            _check_extent(node)
            return None if node is None else loader.construct_document(node)
        finally:
            loader.dispose()
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    except (yaml.YAMLError, TypeError, AttributeError, LookupError, OverflowError) as error:  # of !!timestamp no, say
        raise ValueError(str(error)) from error


def _check_extent(root: Any) -> None:
    """Raises ``ValueError`` for more values than ``MAX_YAML_VALUES``, and for one that holds itself.

    Nodes are counted before values are made of them: a merge (``<<``) copies all that it names.
    """
    counts: dict[int, int] = {}

    def count(node: Any) -> int:
        if not isinstance(node, yaml.CollectionNode):
            return 1
        if id(node) not in counts:
            counts[id(node)] = 0  # while it is open
            parts = [part for pair in node.value for part in (pair if isinstance(pair, tuple) else (pair,))]
            counts[id(node)] = min(1 + sum(map(count, parts)), MAX_YAML_VALUES + 1)
        elif not counts[id(node)]:
            raise ValueError("a part of it holds itself")
        return counts[id(node)]

    if count(root) > MAX_YAML_VALUES:
        raise ValueError(_TOO_MANY.format(MAX_YAML_VALUES))


def override(config: AnyConfig, assignments: Iterable[str]) -> AnyConfig:
    """Returns ``config`` with ``key.path=value`` assignments applied; values are read as YAML.

    A part of the path that is a whole number indexes a list, a ``*`` means every element:
    ``members.0.training.epochs=3``, ``members.*.training.epochs=3``.
    """
    values = config.model_dump(mode="json")
    for assignment in assignments:
        key, separator, text = assignment.partition("=")
        if not separator or not key:
            raise UserError(f"--set {assignment!r:.80}: expected key=value, for instance seed=1")
        try:
            value = _parsed(text)
        except ValueError:
            raise UserError(f"--set {assignment!r:.80}: the value is not YAML; put quotes around it") from None
        _assign(values, key.split("."), value, f"{key:.80}")
    return parse(type(config), values, origin="--set")


def _assign(values: Any, path: list[str], value: Any, key: str) -> None:
    name, rest = path[0], path[1:]
    if isinstance(values, list):
        if name != "*" and not (name.isdigit() and int(name) < len(values)):
            raise UserError(f"--set {key}: expected '*' or a number below {len(values)}, found {name!r}")
        chosen = range(len(values)) if name == "*" else [int(name)]
        for index in chosen:
            if rest:
                _assign(values[index], rest, value, key)
            else:
                values[index] = value
    elif isinstance(values, dict):
        if rest and name not in values:
            raise UserError(f"--set {key}: unknown key {name!r:.80}, {closest(name, values)}")
        if rest and values[name] is None:
            values[name] = {}
        if rest:
            _assign(values[name], rest, value, key)
        else:
            values[name] = value
    else:
        raise UserError(f"--set {key}: {name!r:.80} lies below a plain value")


def to_yaml(config: Config) -> str:
    """Returns the resolved settings as YAML in the order of their definition."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)
