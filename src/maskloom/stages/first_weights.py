"""What can be told about first weights before anything is trained: whether the hub gives them, whether they may stay.

Trainings take days, and the weights of the last member are first needed when all others are finished. Knows nothing
about how weights are read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from maskloom.errors import UserError
from maskloom.members import MemberSettings
from maskloom.models.decoders import ask_hub
from maskloom.models.encoders import encoder_prefixes
from maskloom.stages.context import Context
from maskloom.stages.fold_tables import FoldTables, leaf_name


def check_first_weights(context: Context, tables: FoldTables, marks: Mapping[str, str]) -> None:
    """Raises ``UserError`` for a member that would keep random weights, or whose weights the hub does not give.

    ``marks`` are those of ``train.weights_mark`` by member. At smoke scale random weights may stay, since no weights
    fit so few filters; the hub is asked once for each kind of network, and not for members that are trained already.
    """
    recipe = context.recipe
    for number, member in enumerate(recipe.members):
        if marks[member.name] != "none" or member.start is not None or recipe.scale != "full":
            continue
        for place, prefixes in _frozen(member):
            if any(_are_of_the_encoder(prefix, member) for prefix in prefixes):
                raise UserError(
                    f"members.{number}.{place}: expected pretrained weights for what is to keep them, found none for "
                    f"{member.network.encoder!r}; install them, state a file or --set members.{number}.network.weights="
                    f"hub, or let everything learn (--set members.{number}.{place}=[])"
                )
    asked = set()
    for number, member in enumerate(recipe.members):
        kind = member.network.architecture, member.network.encoder
        if marks[member.name] != "hub" or kind in asked or _is_trained(context, tables, member):
            continue
        try:
            ask_hub(member.network)
        except UserError as error:
            raise UserError(f"members.{number}.{error}") from error
        asked.add(kind)


def _frozen(member: MemberSettings) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Returns where the member's settings freeze parameters, and how their names begin."""
    yield "optimiser.frozen", member.optimiser.frozen
    for number, phase in enumerate(member.training.phases):
        if phase.optimiser is not None:
            yield f"training.phases.{number}.optimiser.frozen", phase.optimiser.frozen


def _are_of_the_encoder(prefix: str, member: MemberSettings) -> bool:
    own = encoder_prefixes(member.network)
    return prefix.startswith(own) or any(name.startswith(prefix) for name in own)


def _is_trained(context: Context, tables: FoldTables, member: MemberSettings) -> bool:
    folds = range(tables.of(member.name).num_folds)
    return all(context.run.finished(f"train/{leaf_name(member.name, fold)}") for fold in folds)
