"""Who may label for whom: every fold of the members that learn from pseudo-labels, and the networks that never saw it.

Also the checks of a round that can be made before anything is trained.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from maskloom.errors import UserError, closest
from maskloom.recipe import Recipe
from maskloom.records import Record
from maskloom.stages.context import Context
from maskloom.stages.fold_tables import FoldTables, leaf_name, leaf_parts


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """One fold of a pupil: which networks may label for it, and what it validates."""

    pupil: str
    fold: int
    networks: tuple[str, ...]
    validated: frozenset[str]
    groups: frozenset[str]
    num_labelled: int

    @property
    def name(self) -> str:
        """Names its map in the pass over all networks, and its folder of masks."""
        return leaf_name(self.pupil, self.fold)

    def hears(self, teacher: str) -> bool:
        """Returns whether a network of that member labels for it."""
        return any(leaf_parts(leaf)[0] == teacher for leaf in self.networks)


def check_pseudo(context: Context) -> None:
    """Raises ``UserError`` for a round that cannot work, before hours go into its teachers; says what works in part.

    Needs the fold tables and nothing trained.
    """
    learnt: set[str] = set()
    for number, settings in enumerate(context.recipe.pseudo):
        again = sorted(learnt & set(settings.members))
        if again:
            raise UserError(
                f"pseudo.{number}.members: {again[0]} learns in an earlier round already, and a member is trained "
                "once; let another member learn in this one"
            )
        learnt |= set(settings.members)
        if not context.source.unlabelled:
            raise UserError(
                f"pseudo.{number}: expected images without masks beside the labelled ones, found none; remove the round"
            )
        views = views_of(context, number)
        _check_teachers(context.recipe, number, views)
        context.say(teacher_notes(context.recipe, number, views))
        for name in settings.members:
            _check_start(context.recipe, number, name)


def _check_teachers(recipe: Recipe, number: int, views: Sequence[View]) -> None:
    """Raises ``UserError`` for a teacher that was asked for by name and labels for nobody."""
    for name in recipe.pseudo[number].teachers or ():
        if not any(view.hears(name) for view in views):
            pupils = ", ".join(dict.fromkeys(view.pupil for view in views))
            raise UserError(
                f"pseudo.{number}.teachers: expected a network of {name} that never saw what some fold of {pupils} "
                f"validates, found none, so {name} would label nothing; give {name} and {pupils} the same folds, or "
                f"leave {name} out"
            )


def teacher_notes(recipe: Recipe, number: int, views: Sequence[View]) -> list[str]:
    """Returns a sentence for each teacher of a round that does not label for every fold, because its folds differ."""
    notes = []
    for name in teachers_of(recipe, number):
        deaf = [view for view in views if not view.hears(name)]
        if deaf:
            notes.append(
                f"pseudo.{number}: {name} labels nothing for {' and '.join(_named(deaf, views))}: each of its networks "
                "was trained on images that are validated there; with the same folds it would label"
            )
    return notes


def _named(some: Sequence[View], views: Sequence[View]) -> list[str]:
    """Returns the pupils of some of the views; with their folds, where others of the pupil's are not among them."""
    names = []
    for pupil in dict.fromkeys(view.pupil for view in some):
        folds = [str(view.fold) for view in some if view.pupil == pupil]
        is_whole = len(folds) == sum(view.pupil == pupil for view in views)
        names.append(pupil if is_whole else f"{pupil} (fold {', '.join(folds)})")
    return names


def _check_start(recipe: Recipe, number: int, pupil: str) -> None:
    train, start = recipe.pseudo[number].train, recipe.member(pupil).start
    if train == "from_weights" and start is None:
        raise UserError(
            f"pseudo.{number}.train: from_weights expects {pupil}.start to name the member whose weights it begins "
            f"with, found none; name one, or use --set pseudo.{number}.train=scratch"
        )
    if train == "scratch" and start is not None:
        raise UserError(
            f"pseudo.{number}.train: scratch expects no {pupil}.start, found {start}; remove it, or use --set "
            f"pseudo.{number}.train=from_weights"
        )


def round_of(recipe: Recipe, member: str) -> int | None:
    """Returns the round in which a member learns from pseudo-labels, or None."""
    return next((number for number, each in enumerate(recipe.pseudo) if member in each.members), None)


def teachers_of(recipe: Recipe, number: int) -> tuple[str, ...]:
    """Returns the members whose networks label in a round, which all must be trained before its pupils."""
    settings = recipe.pseudo[number]
    names = [member.name for member in recipe.members]
    later = {name for each in recipe.pseudo[number:] for name in each.members}
    for name in (*settings.members, *(settings.teachers or ())):
        if name not in names:
            raise UserError(f"pseudo.{number}: expected members of this recipe, found {name!r}; {closest(name, names)}")
        if recipe.member(name).guidance is not None:
            raise UserError(
                f"pseudo.{number}: {name} is guided by maps of all folds of other members, which saw what a fold "
                "validates; expected members that see the image alone"
            )
    for name in settings.teachers or ():
        if name in later:
            raise UserError(f"pseudo.{number}.teachers: {name} learns in this round or later; name one trained before")
    chosen = settings.teachers or [
        member.name for member in recipe.members if member.name not in later and member.guidance is None
    ]
    if not chosen:
        raise UserError(f"pseudo.{number}: expected a member to label images, found only those that learn; add one")
    return tuple(chosen)


def views_of(context: Context, number: int) -> list[View]:
    """Returns every fold of every distinct fold table among a round's pupils; raises ``UserError`` without teachers."""
    return views_among(context.recipe, context.fold_tables(), context.source.records, number)


def views_among(recipe: Recipe, tables: FoldTables, records: Sequence[Record], number: int) -> list[View]:
    """Returns what ``views_of`` does, of a finished run too: damaged records, which no table has, are passed over."""
    known = tables.shared.fold_of()
    records = [record for record in records if record.id in known]
    teachers = teachers_of(recipe, number)
    views = []
    for pupil in dict.fromkeys(folds_of(recipe, tables, number, name) for name in recipe.pseudo[number].members):
        table = tables.of(pupil)
        for fold in range(table.num_folds):
            training, validated = table.split(fold)
            ids = set(validated)
            groups = {record.group for record in records if record.id in ids}
            groups |= {row.group for row in table.rows if row.fold == fold}
            unseen = [record.id for record in records if record.group in groups]
            networks = tuple(
                leaf for name in teachers for leaf in tables.leaves(name) if _never_saw(recipe, tables, leaf, unseen)
            )
            if not networks:
                raise UserError(
                    f"pseudo.{number}: expected a network of {', '.join(teachers)} that never saw what fold {fold} of "
                    f"{pupil} validates, found none; give {pupil} and one of its teachers the same folds"
                )
            views.append(
                View(
                    pupil=pupil,
                    fold=fold,
                    networks=networks,
                    validated=frozenset(validated),
                    groups=frozenset(groups),
                    num_labelled=len(training),
                )
            )
    return views


def folds_of(recipe: Recipe, tables: FoldTables, number: int, pupil: str) -> str:
    """Returns the first pupil of the round that has the same folds."""
    own = tables.of(pupil).fold_of()
    return next(name for name in recipe.pseudo[number].members if tables.of(name).fold_of() == own)


def _never_saw(recipe: Recipe, tables: FoldTables, leaf: str, ids: Iterable[str]) -> bool:
    """Returns whether neither a network nor those whose weights it began with were trained on any of the records."""
    name, fold = leaf_parts(leaf)
    assert fold is not None, "networks have one"
    lineage: list[str] = []
    following: str | None = name
    while following is not None:
        lineage.append(following)
        following = recipe.member(following).start
    return all(tables.fold(member, record_id) == fold for record_id in ids for member in lineage)
