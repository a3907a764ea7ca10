"""Settings that do nothing beside the others of a recipe: who states one expects something of it, and is told.

What a recipe brings along by itself may be idle; what is refused here is what was stated over it. Recipes that runs
wrote, which state everything, are taken as they are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import reduce
from typing import Any

from maskloom.config import Config
from maskloom.data.input_policy import InputPolicy
from maskloom.errors import UserError
from maskloom.members import MemberSettings
from maskloom.recipe import Recipe
from maskloom.training.schedules import OPTIONS, ScheduleSettings

Idle = tuple[str, str]
"""The path of a setting, as ``--set`` names it, and why it does nothing."""


def refuse_idle(asked: Recipe, before: Recipe | None, assignments: Sequence[str] = ()) -> None:
    """Raises ``UserError`` for settings that do nothing and that ``before``, the recipe they were laid over, has not.

    None: all that differs from its default was stated, unless the recipe was written by a run. What one of the
    ``assignments`` (as ``--set`` takes them) states of every member passes where it does something for some.
    """
    if before is None and (asked.scale == "smoke" or asked.model_fields_set >= set(Recipe.model_fields)):
        return
    idle = idle_settings(asked)
    tails = Counter(_tail(path) for path, _ in idle)
    of_all = [key.removeprefix(_EVERY) for key, *_ in (text.partition("=") for text in assignments) if _EVERY in key]
    stated = [
        f"{path}: {why}, found {_short(_value(asked, path))}; leave it out"
        for path, why in idle
        if (before is None or _value(asked, path) != _value(before, path))
        and (tails[_tail(path)] == len(asked.members) or not _tail(path).startswith(tuple(of_all)))
    ]
    if stated:
        raise UserError("; ".join(stated))


_EVERY = "members.*."


def _tail(path: str) -> str:
    """Returns the path inside a member, or the path where it is of none."""
    return path.split(".", 2)[2] if path.startswith("members.") else path


def idle_settings(recipe: Recipe) -> list[Idle]:
    """Returns all settings that differ from their defaults and do nothing."""
    found = [idle for number, member in enumerate(recipe.members) for idle in _of_member(member, f"members.{number}")]
    if not any(member.input.mode == "window" for member in recipe.members):
        why = "for members of windows (input.mode=window), of which there is none"
        found += [(f"inference.{name}", why) for name in ("overlap", "crop_offsets") if getattr(recipe.inference, name)]
    if recipe.inference.whole_pixels and not any(map(_could_be_asked_whole, recipe.members)):
        found.append(("inference.whole_pixels", "for members of windows without margin (input.margin), not in regions"))
    return found


def _could_be_asked_whole(member: MemberSettings) -> bool:
    looks_at_regions = member.guidance is not None and member.guidance.region is not None
    return member.input.whole() is not None and not looks_at_regions


def _of_member(member: MemberSettings, at: str) -> Iterator[Idle]:
    yield from _of_input(member.input, f"{at}.input")
    if not member.network.minimises_loss:
        kind = "trees are grown" if member.network.trees is not None else "the rules of indices are searched for"
        for section in ("loss", "optimiser", "schedule", "augment", "training"):
            settings: Config = getattr(member, section)
            yield from ((f"{at}.{section}.{name}", f"{kind} without it") for name in _changed(settings))
        if member.input.prefer_class:
            yield f"{at}.input.prefer_class", f"{kind} without it"
        return
    yield from _of_schedule(member.schedule, f"{at}.schedule")
    for number, phase in enumerate(member.training.phases):
        if phase.schedule is not None:
            yield from _of_schedule(phase.schedule, f"{at}.training.phases.{number}.schedule")
    if "deep_supervision" in _changed(member.loss) and not member.network.deep_supervision:
        why = "for networks that give coarser maps, too (network.deep_supervision=true)"
        yield f"{at}.loss.deep_supervision", why
    if member.training.early_stopping_delta and member.training.early_stopping is None:
        yield f"{at}.training.early_stopping_delta", "for early stopping (training.early_stopping)"


def _of_input(policy: InputPolicy, at: str) -> Iterator[Idle]:
    changed = _changed(policy)
    if policy.mode in ("full", "resize") and "overlap" in changed:
        yield f"{at}.overlap", f"for windows and parts, mode {policy.mode} has none"
    if policy.mode != "window" and "prefer_class" in changed:
        yield f"{at}.prefer_class", f"it chooses windows, mode {policy.mode} has none"
    if policy.prefer_mask_mean is None and "keep_background" in changed:
        yield f"{at}.keep_background", "for windows that input.prefer_mask_mean chooses"


def _of_schedule(settings: ScheduleSettings, at: str) -> Iterator[Idle]:
    for name in _changed(settings):
        if name != "kind" and name not in OPTIONS[settings.kind]:
            kinds = [kind for kind, options in OPTIONS.items() if name in options]
            yield f"{at}.{name}", f"for schedules of kind {' or '.join(kinds)}, this one is {settings.kind}"


def _changed(settings: Config) -> list[str]:
    """Returns the names of the settings that differ from their defaults."""
    fields = type(settings).model_fields
    return [name for name, field in fields.items() if getattr(settings, name) != field.get_default()]


def _value(recipe: Recipe, path: str) -> Any:
    """Returns what the recipe has at that path; None where there is no such place."""

    def below(place: Any, part: str) -> Any:
        if part.isdigit():
            return place[int(part)] if place is not None and int(part) < len(place) else None
        return getattr(place, part, None)

    return reduce(below, path.split("."), recipe)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:59] + "…"
