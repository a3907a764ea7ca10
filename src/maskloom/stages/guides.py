"""What guided members are given: stored out-of-fold maps in training, and the trees that make maps in prediction.

A record's maps come from networks that never saw its group, so a second-layer or refining network learns from maps as
good, and as bad, as those of new images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from maskloom.encodings.probability_maps import read_map
from maskloom.errors import BadFile, UserError
from maskloom.inference.guidance import GuidanceSettings, RegionSettings, guides_of, regions_of
from maskloom.inference.merging import Merge
from maskloom.inference.predictor import InferenceSettings
from maskloom.integrity import Damaged
from maskloom.losses.terms import num_auxiliary_maps
from maskloom.members import MemberSettings
from maskloom.models.bundle import Bundles
from maskloom.models.encoders import NetworkSettings
from maskloom.models.segmenter import Segmenter
from maskloom.recipe import Recipe
from maskloom.records import Record, Size, Task
from maskloom.run_directory import RunDirectory
from maskloom.stages.fold_tables import FoldTables, kept_bundle, leaf_parts
from maskloom.windows import Window


def network_settings(member: MemberSettings, task: Task) -> NetworkSettings:
    """Returns the member's network with room for its guides, and with the further maps that its loss asks for."""
    return member.network.model_copy(
        update={
            "channels": member.network.channels + num_guides(member, task),
            "auxiliary_maps": num_auxiliary_maps(member.loss, member.task_of(task)),
        }
    )


def num_guides(member: MemberSettings, task: Task) -> int:
    """Returns the channels of members' maps beside the image's own."""
    return len(member.guidance.maps) * task.num_maps if member.guidance else 0


def check_guidance(recipe: Recipe, tables: FoldTables) -> None:
    """Raises ``UserError`` unless every member that guides another one validates every record.

    A record that a member always trains on has no honest map.
    """
    trained = {member.name for member in recipe.members}
    for member in recipe.members:
        for name in member.guidance.needed if member.guidance else ():
            if name not in trained:
                continue
            validated, total = len(tables.validated([name])), len(tables.shared.rows)
            if validated < total:
                raise UserError(
                    f"{member.name}.guidance: expected maps of {name} for all {total} records by networks that never "
                    f"saw them, found {total - validated} records it only trains on; use --set folds.kind=kfold"
                )


def stored_map(run: RunDirectory, name: str, record: Record) -> np.ndarray:
    """Returns the out-of-fold map of a member, uint8 C×H×W, for one labelled record.

    Raises ``Damaged`` where it is not what was written, by the checksum that it carries, ``BadFile`` where it is gone.
    """
    path = run.oof_map(name, record.id)
    try:
        return read_map(path)
    except BadFile as problem:
        if not path.exists():
            raise
        raise Damaged(path, "is damaged (its checksum differs)") from problem


def stored_maps(run: RunDirectory, names: Sequence[str], record: Record) -> dict[str, np.ndarray]:
    """Returns the out-of-fold maps of these members, uint8 C×H×W, for one labelled record."""
    return {name: stored_map(run, name, record) for name in names}


def given_out_of_fold(run: RunDirectory, member: MemberSettings) -> Callable[[Record], dict[str, np.ndarray]]:
    """Returns the function that gives a labelled record's maps which the member needs, {} where it needs none."""
    return partial(stored_maps, run, member.guidance.needed if member.guidance else ())


def training_guides(run: RunDirectory, member: MemberSettings) -> Callable[[Record], np.ndarray] | None:
    """Returns the function that gives a training record's guides, uint8 H×W×K; None for a member without."""
    if member.guidance is None or not member.guidance.maps:
        return None
    return partial(_guides, run, member.guidance.maps)


def training_regions(run: RunDirectory, member: MemberSettings) -> Callable[[Record], list[Window]] | None:
    """Returns the function that gives where to look in a training record; None for a member that sees it whole."""
    if member.guidance is None or member.guidance.region is None:
        return None
    return partial(_regions, run, member.guidance.region)


def _guides(run: RunDirectory, names: tuple[str, ...], record: Record) -> np.ndarray:
    return guides_of(list(stored_maps(run, names, record).values()))


def _regions(run: RunDirectory, settings: RegionSettings, record: Record) -> list[Window]:
    """Returns the windows of a record; where its map shows no object, the middle of the image in their usual size."""
    windows = regions_of(stored_map(run, settings.of, record), settings)
    if windows or settings.kind == "box":
        return windows
    return [_middle(record.size, settings.scaled(record.size[0]).window)]


def _middle(size: Size, side: int) -> Window:
    return Window((size[0] - side) // 2, (size[1] - side) // 2, side, side)


def by_leaf(recipe: Recipe, leaves: Iterable[str]) -> dict[str, GuidanceSettings]:
    """Returns what guides each of these networks; those that see the image alone are left out."""
    found = {}
    for leaf in leaves:
        name, fold = leaf_parts(leaf)
        guidance = recipe.member(name).guidance if fold is not None else None
        if guidance is not None:
            found[leaf] = guidance
    return found


def own_inference(recipe: Recipe, leaves: Iterable[str]) -> dict[str, InferenceSettings]:
    """Returns how those of the networks are asked whose members say so for themselves."""
    found = {}
    for leaf in leaves:
        name, fold = leaf_parts(leaf)
        if fold is not None and (stated := recipe.member(name).views_of(recipe.inference)) != recipe.inference:
            found[leaf] = stated
    return found


def guiding_trees(recipe: Recipe, tables: FoldTables, tree: Merge) -> dict[str, Merge]:
    """Returns, for every trained member whose map the tree's networks need, the mean of its folds."""
    trained = {member.name: member for member in recipe.members}
    found: dict[str, Merge] = {}
    waiting = [leaf_parts(leaf)[0] for leaf in tree.leaves()]
    while waiting:
        member = trained.get(waiting.pop())
        for name in member.guidance.needed if member and member.guidance else ():
            if name in trained and name not in found:
                found[name] = Merge(children=tables.leaves(name))
                waiting.append(name)
    return found


def networks_of(tree: Merge, guiding: Mapping[str, Merge]) -> list[str]:
    """Returns every trained network that a tree and the members guiding it consist of, each once."""
    leaves = [leaf for node in (tree, *guiding.values()) for leaf in node.leaves()]
    return [leaf for leaf in dict.fromkeys(leaves) if leaf_parts(leaf)[1] is not None]


def bundles_of(run: RunDirectory, recipe: Recipe, leaves: Iterable[str]) -> Mapping[str, Segmenter]:
    """Returns the bundles of trained networks, to be read, and checked, one after the other."""
    return _Checked(run, bundle_paths(run, recipe, leaves))


def bundle_paths(run: RunDirectory, recipe: Recipe, leaves: Iterable[str]) -> dict[str, Path]:
    """Returns where the bundles of trained networks lie."""
    paths = {}
    for leaf in leaves:
        name, fold = leaf_parts(leaf)
        assert fold is not None, "networks have one"
        paths[leaf] = run.bundle(name, fold, kept_bundle(leaf, recipe.member(name).keep))
    return paths


class _Checked(Mapping[str, Segmenter]):
    """A run's bundles by name; each is what its training left, or raises ``Damaged`` when it is asked for."""

    def __init__(self, run: RunDirectory, paths: Mapping[str, Path]) -> None:
        self._run, self._paths, self._bundles = run, paths, Bundles(paths)

    def __getitem__(self, name: str) -> Segmenter:
        self._run.check([self._paths[name]])
        return self._bundles[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)
