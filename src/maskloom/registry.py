"""What names stand for: recipes, layouts of data, contests' tables; and the plan that a recipe and data make.

A new recipe, layout or contest is one line here. Heavy rooms are imported by the function that needs them. Knows
nothing about running anything.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from maskloom.errors import UserError, closest

if TYPE_CHECKING:
    from maskloom.data.sources.base import DataSettings, DataSource
    from maskloom.recipe import Recipe, Scale
    from maskloom.stages.contest_score import Scorers
    from maskloom.stages.context import Context

RecipeBuilder = Callable[..., "Recipe"]

SCENE_LAYOUTS = ("dstl",)
"""Layouts whose images are scenes of several files: prediction reads new scenes as these layouts say."""

_Layout = tuple[Callable[[Path], bool], Callable[[Path, "DataSettings"], "DataSource"]]


# Names ---------------------------------------------------------------------------------------------------------------


def builders() -> dict[str, RecipeBuilder]:
    """Returns the recipes by name: functions of a source, a device and a scale."""
    from maskloom.contests.carvana.eleventh import carvana_11th
    from maskloom.contests.carvana.fifteenth import carvana_15th
    from maskloom.contests.carvana.first import carvana_1st
    from maskloom.contests.carvana.fourth import carvana_4th
    from maskloom.contests.carvana.seventh import carvana_7th
    from maskloom.contests.carvana.sixth import carvana_6th
    from maskloom.contests.carvana.tenth import carvana_10th
    from maskloom.contests.carvana.third import carvana_3rd
    from maskloom.contests.dstl.swir import dstl_swir
    from maskloom.contests.dstl.third import dstl_3rd
    from maskloom.contests.signate.twentysecond import signate_22nd
    from maskloom.recipes.default import default
    from maskloom.recipes.modern import modern

    carvana = (
        carvana_1st, carvana_3rd, carvana_4th, carvana_6th, carvana_7th, carvana_10th, carvana_11th, carvana_15th,
    )  # fmt: skip
    published = (*carvana, dstl_3rd, dstl_swir, signate_22nd)
    return {"default": default, "modern": modern} | {build.__name__: build for build in published}


def recipes() -> dict[str, str]:
    """Returns the recipes' names with a line on each."""
    return {
        name: (sys.modules[build.__module__].__doc__ or "").strip().splitlines()[0]
        for name, build in builders().items()
    }


def submitters() -> dict[str, Callable[[Context], Path]]:
    """Returns what writes a contest's table from a run's predictions, by the contest's name."""
    from maskloom.contests import carvana
    from maskloom.contests.dstl.deliver import write_submission as write_polygons
    from maskloom.contests.signate.deliver import write_submission as write_segments
    from maskloom.stages.prediction import write_submission

    return {
        "carvana": lambda context: write_submission(context, carvana.SUBMISSION),
        "dstl": write_polygons,
        "signate": write_segments,
    }


def scorers() -> Scorers:
    """Returns what scores a run's masks by a rule of a contest's own, by the contest's name.

    Contests that are not here score by a run's own metric.
    """
    from maskloom.contests.signate.scoring import score_of_counts

    return {"signate": score_of_counts}


def _layouts(settings: DataSettings) -> dict[str, _Layout]:
    """Returns how each layout is recognised and opened, in the order in which they are tried."""
    from maskloom.contests import carvana, dstl, signate
    from maskloom.data.sources import coco, folder, polygons, table

    return {
        "carvana": (carvana.recognise, carvana.open_carvana),
        "dstl": (dstl.recognise, dstl.open_dstl),
        "signate": (signate.recognise, signate.open_signate),
        "folder": (lambda path: folder.recognise(path, settings), folder.open_folder),
        "coco": (coco.recognise, coco.open_coco),
        "table": (table.recognise, table.open_table),
        "polygons": (lambda path: polygons.recognise(path, settings), polygons.open_polygons),
    }


# Data ----------------------------------------------------------------------------------------------------------------


def open_source(data: Path | str, settings: DataSettings) -> DataSource:
    """Returns the opened data; the layout is recognised unless stated.

    Raises ``UserError`` when the folder does not exist or is of no known layout.
    """
    path = Path(data)
    if not path.exists():
        raise UserError(f"{path}: expected a folder, table or COCO file with images and masks, found no such path")
    layouts = _layouts(settings)
    if settings.layout != "auto":
        return layouts[settings.layout][1](path, settings)
    for recognise, open_layout in layouts.values():
        if recognise(path):
            return open_layout(path, settings)
    if settings.images or settings.masks:
        return layouts["folder"][1](path, settings)  # which says what of it is not there
    raise UserError(
        f"{path}: expected images/ and masks/, a table (CSV, Parquet), a COCO file, TIFF rasters with a file of "
        "polygons (.geojson, .gpkg, .fgb), train*/ with train_masks/, or a Dstl folder; found none of them; name the "
        "folders with --set data.images=… --set data.masks=…"
    )


def open_scenes(folder: Path, settings: DataSettings) -> DataSource | None:
    """Returns the opened data of a folder in one of ``SCENE_LAYOUTS``; None where it is in none of them.

    Where the networks were trained on stacks of files (``settings.bands``), the folder's scenes are such stacks. Of
    ``settings`` the folder of images counts, too, where there is one of that name, and ``skip_bad``. Raises
    ``UserError`` as the layout does.
    """
    from maskloom.data.sources.base import DataSettings
    from maskloom.data.sources.raster_folder import open_stacks

    images = settings.images if settings.images and (folder / settings.images).is_dir() else None
    masks = settings.masks if settings.bands else None
    plain = DataSettings(images=images, masks=masks, bands=settings.bands, skip_bad=settings.skip_bad)
    if plain.bands is not None:
        return open_stacks(folder, plain)
    for name in SCENE_LAYOUTS:
        recognise, open_layout = _layouts(plain)[name]
        if recognise(folder):
            return open_layout(folder, plain)
    return None


# Plans ---------------------------------------------------------------------------------------------------------------


def plan(
    recipe: str | Path | Recipe, data: Path | str, *, settings: Sequence[str], device: str, skip_bad: bool = False
) -> tuple[Recipe, DataSource]:
    """Returns the complete recipe for this data and device, and the opened data.

    Raises ``UserError`` also for what a file or ``settings`` state and what would do nothing.
    """
    from maskloom.config import override, parse
    from maskloom.data.sources.base import DataSettings
    from maskloom.recipe import Recipe, merged, read_recipe_file
    from maskloom.recipes.idle import refuse_idle
    from maskloom.recipes.planning import released
    from maskloom.recipes.smoke import smoked_parts
    from maskloom.records import usual_size

    changes: dict[str, Any] = {}
    base: str | Recipe = recipe if isinstance(recipe, Recipe) else str(recipe)
    if isinstance(base, str) and (base.endswith((".yaml", ".yml")) or Path(base).is_file()):
        changes = read_recipe_file(Path(base))
        _check_kinds(Path(base), changes)
        base = changes.pop("base", None) or ("default" if "members" not in changes else parse(Recipe, changes))
    scale, settings = _take_scale(settings, changes.pop("scale", "full"))
    if scale == "smoke" and isinstance(base, Recipe) and base.scale != "smoke":
        raise UserError("scale=smoke: expected a recipe by name, found a complete one; shrink its own settings")
    if skip_bad:
        settings = [*settings, "data.skip_bad=true"]
    for text in settings:
        if text.startswith("data="):
            raise UserError(f"--set {text}: expected one setting at a time: --set data.KEY=VALUE, as data.limit=10")
    data_changes = [text.removeprefix("data.") for text in settings if text.startswith("data.")]
    stated = base.data if isinstance(base, Recipe) else DataSettings()
    stated = parse(DataSettings, stated.model_dump() | changes.get("data", {}), origin=f"{recipe}: data")
    stated = override(stated, data_changes)
    if isinstance(base, str) and base not in builders():
        raise UserError(f"no recipe is called {base!r} and no such file exists; {closest(base, builders())}")
    source = open_source(data, stated)
    is_named = isinstance(base, str)
    if isinstance(base, str):
        base = builders()[base](source, device=device, scale=scale)
    complete = merged(base, changes | {"data": stated.model_dump(mode="json")}, origin=str(recipe))
    refuse_idle(complete if is_named else base, base if is_named else None)
    if is_named and scale == "smoke":  # what the file lays over the shrunk recipe is shrunk with it
        complete = smoked_parts(complete, changes, usual_size(record.size for record in source.records))
    asked = override(complete, [text for text in settings if not text.startswith("data.")])
    refuse_idle(asked, complete, settings)
    return released(base, asked) if is_named else asked, source


def _check_kinds(path: Path, changes: dict[str, Any]) -> None:
    """Raises ``UserError`` unless the keys of a recipe file that are needed before it is parsed are of their kind."""
    from maskloom.recipe import Scale

    base, data, scale = changes.get("base", ""), changes.get("data", {}), changes.get("scale", "full")
    if not isinstance(base, str):
        raise UserError(f"{path}: base: expected the name of a recipe, found {base!r}; see `maskloom recipes`")
    if not isinstance(data, dict):
        raise UserError(f"{path}: data: expected a mapping such as {{limit: 10}}, found {data!r}; mend or remove it")
    if scale not in get_args(Scale):
        known = get_args(Scale)
        hint = closest(scale, known) if isinstance(scale, str) else f"known: {', '.join(known)}"
        raise UserError(f"{path}: scale: found {scale!r}; {hint}")


def _take_scale(settings: Sequence[str], scale: Scale) -> tuple[Scale, list[str]]:
    """Returns the scale, which recipes need before they are built, and the other settings."""
    others = []
    for text in settings:
        if not text.startswith("scale="):
            others.append(text)
        elif text in ("scale=full", "scale=smoke"):
            scale = "smoke" if text == "scale=smoke" else "full"
        else:
            raise UserError(f"--set {text}: expected scale=full or scale=smoke")
    return scale, others
