"""Georeferenced rasters with one file of polygons (GeoJSON, GeoPackage, FlatGeobuf) in any CRS, to a source.

Polygons are brought to every raster that they lie on, vertex by vertex. An attribute may hold their class, and another
may name the raster that they belong to. Knows nothing about pixels: headers are read and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import shapely
from shapely import Polygon, box

from maskloom.data.ground_polygons import GroundPolygons, Placed, in_turn
from maskloom.data.sources.band_patterns import RASTER_SUFFIXES
from maskloom.data.sources.base import DataSettings, DataSource, finish, first_problem, measure
from maskloom.data.sources.classes import PIECES, classes_of_pieces
from maskloom.data.sources.raster_folder import raster_files
from maskloom.data.sources.stacks import ImageFiles, checked_stacks, images_among, record_of
from maskloom.data.stated_classes import (
    AttributeClasses,
    attribute_classes,
    find_classes_yaml,
    read_attribute_classes,
)
from maskloom.data.union_find import UnionFind
from maskloom.encodings.vector_files import CLASS_FIELDS, VECTOR_SUFFIXES, WGS84, Feature, read_features
from maskloom.errors import BadFile, UserError, closest, some_of
from maskloom.rasters.georeference import Georeference, read_georeference, reprojected, to_crs
from maskloom.records import Record, Shapes, Size

_FOREGROUND = "foreground"  # the class of polygons that name none


@dataclass(frozen=True, slots=True)
class _Raster:
    """A raster without truth, and where it lies."""

    record: Record
    georeference: Georeference


def recognise(path: Path, settings: DataSettings) -> bool:
    """Returns whether the path is a folder of TIFF rasters with a file of polygons at its top, or with the stated one.

    Where there are several such files, opening asks for one.
    """
    return path.is_dir() and bool(_vector_files(path, settings)) and bool(raster_files(path, settings)[0])


def open_polygons(path: Path, settings: DataSettings) -> DataSource:
    """Returns the source of a folder of rasters and of one file of polygons.

    Rasters are the TIFFs below ``images/`` if there is such a folder (or the stated one), else below the folder itself.
    ``classes.yaml`` or the settings state classes, and which attribute holds them; otherwise the classes are those of
    the attribute that goes by a usual name, or all polygons are of one. Rasters that no polygon lies on are unlabelled,
    unless an empty feature names them.

    Raises ``UserError`` for no file of polygons or several, one without a CRS or with another content, classes that are
    not stated, no raster that a polygon lies on, and (without ``skip_bad``) for damaged rasters, those without a CRS,
    and polygons that lie outside all of them.
    """
    file = _one_file(path, settings)
    stated = _stated_classes(path, settings)
    column = settings.column if settings.column is not None else stated.column if stated else None
    notes: list[str] = []
    crs, features = read_features(file, class_field=column or None, note=notes.append)
    if crs is None:
        raise BadFile(file, "expected polygons with a CRS, found none; say which it is (ogr2ogr -a_srs EPSG:n)")
    if column == "":
        features = [replace(feature, class_name="") for feature in features]
    names = _class_names(file, features, stated, column)
    labels = _labels(file, features, names, stated, column)
    rasters, problems = _rasters(path, settings, notes)
    if problems and not (settings.skip_bad and rasters):
        raise first_problem(problems)  # before polygons seem to lie nowhere without these rasters
    ground = GroundPolygons(file, crs, [feature.geometry for feature in features])
    owners, named = _owners(file, features, rasters, notes)
    placed = _placed(ground, rasters, owners, problems)
    if problems and not (settings.skip_bad and placed):
        raise first_problem(problems)
    rasters = [each for each in rasters if each.record.id in placed]
    found = {number for of_raster in placed.values() for number in of_raster.numbers}
    problems += _outside(ground, features, found, {each.record.id for each in rasters}, owners)
    groups = _same_ground(rasters, notes)
    rasters = [replace(each, record=replace(each.record, group=groups[each.record.id])) for each in rasters]
    records = [_with_truth(each.record, placed[each.record.id], labels, named) for each in rasters]
    return finish(_source(path, settings, records, names, problems, notes), settings)


# Files --------------------------------------------------------------------------------------------------------------


def _vector_files(path: Path, settings: DataSettings) -> list[Path]:
    if settings.masks is not None:
        stated = path / settings.masks
        return [stated] if stated.suffix.lower() in VECTOR_SUFFIXES and stated.is_file() else []
    return [
        file
        for file in sorted(path.iterdir())
        if file.suffix.lower() in VECTOR_SUFFIXES and file.is_file() and not file.name.startswith(".")
    ]


def _one_file(path: Path, settings: DataSettings) -> Path:
    files = _vector_files(path, settings) if path.is_dir() else []
    if len(files) == 1:
        return files[0]
    endings = ", ".join(VECTOR_SUFFIXES)
    if not files:
        where = f"{path / settings.masks}" if settings.masks is not None else f"{path}"
        raise UserError(f"{where}: expected a file of polygons ({endings}) beside rasters, found none")
    names = some_of([file.name for file in files])
    raise UserError(
        f"{path}: expected one file of polygons, found {len(files)} ({names}); choose one with "
        f"--set data.masks={files[0].name}, or bring them into one file with an attribute 'class'"
    )


def _rasters(path: Path, settings: DataSettings, notes: list[str]) -> tuple[list[_Raster], list[UserError]]:
    """Returns the rasters that lie somewhere, and what is wrong with the others."""
    files, base, num_others = raster_files(path, settings)
    if not files:
        raise UserError(f"{base}: expected TIFF rasters ({', '.join(RASTER_SUFFIXES)}), found none")
    if num_others:
        notes.append(f"{num_others} images that are no TIFFs say nothing of where they lie and were passed over")
    images = images_among(files, base, settings.bands, notes)
    sizes = measure([image.image for image in images])
    judged = [_with_place(image, size) for image, size in zip(images, sizes, strict=True)]
    if settings.bands is not None:
        images = checked_stacks([image for image, _ in judged], notes)
        judged = [(image, place) for image, (_, place) in zip(images, judged, strict=True)]
    rasters: list[_Raster] = []
    problems: list[UserError] = []
    for (image, georeference), size in zip(judged, sizes, strict=True):
        try:
            record = record_of(image, size)
        except BadFile as problem:
            problems.append(problem)
        else:
            assert georeference is not None, "without one, that is the image's problem"
            rasters.append(_Raster(record, georeference))
    return rasters, problems


def _with_place(image: ImageFiles, size: Size | BadFile) -> tuple[ImageFiles, Georeference | None]:
    """Returns an image and where it lies; where that is unknown, it is the image's problem."""
    if image.problem is not None or isinstance(size, BadFile):
        return image, None
    try:
        georeference = read_georeference(image.image)
        if georeference is None or georeference.crs is None:
            grid = f" as the grid of image {image.id!r}" if image.bands else ""
            raise BadFile(
                image.image, f"expected a raster with a CRS{grid}, found none; give it its own (gdal_edit.py -a_srs)"
            )
    except BadFile as problem:
        return replace(image, problem=problem), None
    return image, georeference


# Classes ------------------------------------------------------------------------------------------------------------


def _stated_classes(path: Path, settings: DataSettings) -> AttributeClasses | None:
    """Returns what ``classes.yaml`` states, with the names of the settings; the settings alone; None for neither."""
    yaml = find_classes_yaml(path)
    if yaml is None:
        return None if settings.classes is None else attribute_classes(settings.classes, settings.task)
    stated = read_attribute_classes(yaml)
    if settings.task is not None and stated.task not in (None, settings.task):
        raise UserError(f"{yaml}: this is a {stated.task} task, the settings state {settings.task}; change one of them")
    if settings.classes is None:
        return stated
    if len(settings.classes) != len(stated.names):
        found = ", ".join(settings.classes)
        raise UserError(f"classes: expected {len(stated.names)} names as in {yaml.name}, found {found}; state them all")
    called = dict(zip(stated.names, settings.classes, strict=True))
    values = {value: called[name] for value, name in stated.values.items()}
    return replace(stated, names=tuple(settings.classes), values=values)


def _class_names(
    file: Path, features: Sequence[Feature], stated: AttributeClasses | None, column: str | None
) -> list[str]:
    """Returns the classes in order; raises ``BadFile`` where it takes an attribute to tell them and there is none."""
    found = sorted({feature.class_name for feature in features if feature.class_name})
    if stated is None:
        return found or [_FOREGROUND]
    if len(stated.names) > 1 and not found:
        asked = "holds nothing" if column else f"goes by none of {', '.join(CLASS_FIELDS)}"
        raise BadFile(
            file, f"expected an attribute that holds one of {len(stated.names)} classes, found that it {asked}; name "
            "it with --set data.column=NAME"
        )  # fmt: skip
    return list(stated.names)


def _labels(
    file: Path,
    features: Sequence[Feature],
    names: Sequence[str],
    stated: AttributeClasses | None,
    column: str | None,
) -> list[int]:
    """Returns the place in ``names`` of each feature's class; raises ``BadFile`` for a class that is none."""
    values: Mapping[str, str] = stated.values if stated is not None else {name: name for name in names}
    are_alike = len(names) == 1 and not any(feature.class_name for feature in features)
    labels = []
    for number, feature in enumerate(features, start=1):
        value = feature.class_name
        if are_alike or (feature.geometry.is_empty and not value):
            labels.append(0)
        elif value in values:
            labels.append(names.index(values[value]))
        else:
            found = f"the class {value!r}, which is not stated ({closest(value, values)})" if value else "no class"
            alone = """ (--set 'data.column=""' takes all as one class)""" if len(names) == 1 and not column else ""
            raise BadFile(file, f"feature {number}: found {found}; mend it, or state the class in classes.yaml{alone}")
    return labels


# Places -------------------------------------------------------------------------------------------------------------


def _owners(
    file: Path, features: Sequence[Feature], rasters: Sequence[_Raster], notes: list[str]
) -> tuple[dict[int, str], set[str]]:
    """Returns the raster that features belong to by number, where they name one, and those that empty features name.

    Where no feature names a raster of these, the attribute is taken to mean something else. A feature that names one
    which is not here belongs to it all the same: it lies on no other.
    """
    by_name: dict[str, str] = {}
    doubtful: set[str] = set()
    for each in rasters:
        for name in {each.record.image.name, PurePosixPath(each.record.id).name}:
            if by_name.setdefault(name, each.record.id) != each.record.id:
                doubtful.add(name)
    whole = {each.record.id: each.record.id for each in rasters}  # a whole id goes before a name
    by_name |= whole
    doubtful -= whole.keys()
    images = {number: feature.image for number, feature in enumerate(features) if feature.image}
    if not images:
        return {}, set()
    if not any(image in by_name for image in images.values()):
        notes.append(
            f"{file.name}: features name images that are not here ({next(iter(images.values()))!r} …): not used"
        )
        return {}, set()
    notes.append(f"{file.name}: {len(images)} of {len(features)} features belong to the raster that they name")
    if twice := next((image for image in images.values() if image in doubtful), None):
        raise BadFile(file, f"features name {twice!r}, which several rasters are called; name them with their folders")
    owners = {number: by_name.get(image, image) for number, image in images.items()}
    return owners, {owner for number, owner in owners.items() if features[number].geometry.is_empty}


def _same_ground(rasters: Sequence[_Raster], notes: list[str]) -> dict[str, str]:
    """Returns the group of each raster by id: those that share more than half of the smaller one's ground are one.

    They show, and their polygons say, the same: on two sides of a fold they would leak.
    """
    together = UnionFind([each.record.id for each in rasters])
    num_joined = 0
    for ids, rims in _rims(rasters).values():
        for first, second in shapely.STRtree(rims).query(rims, predicate="intersects").T.tolist():
            smaller = min(rims[first].area, rims[second].area)
            if first < second and rims[first].intersection(rims[second]).area > 0.5 * smaller:
                num_joined += together.join(ids[first], ids[second])
    if num_joined:
        notes.append(
            f"{num_joined} of {len(rasters)} rasters show the ground of another one: they stay in one fold with it"
        )
    return {each.record.id: together.find(each.record.id) for each in rasters}


def _rims(rasters: Sequence[_Raster]) -> dict[str, tuple[list[str], list[Polygon]]]:
    """Returns ids and rims by the CRS that the rims are in: longitude and latitude, or a site's own plane."""
    found: dict[str, tuple[list[str], list[Polygon]]] = {}
    for each in rasters:
        height, width = each.record.size
        crs = str(each.georeference.crs)
        (rim,) = to_crs([box(0, 0, width, height)], each.georeference)
        with suppress(UserError):  # what lies nowhere on the globe lies beside others of its CRS
            (rim,), crs = reprojected([rim], crs, WGS84), WGS84
        ids, rims = found.setdefault(crs, ([], []))
        ids.append(each.record.id)
        rims.append(rim)
    return found


def _placed(
    ground: GroundPolygons, rasters: Sequence[_Raster], owners: Mapping[int, str], problems: list[UserError]
) -> dict[str, Placed]:
    """Returns by id what lies on each raster; those that cannot lie where the polygons do go to ``problems``."""
    placed: dict[str, Placed] = {}
    for each in rasters:
        try:
            placed[each.record.id] = _on_raster(ground, each, owners)
        except BadFile as problem:
            if problem.path != each.record.image:
                raise
            problems.append(problem)
    return placed


def _on_raster(ground: GroundPolygons, raster: _Raster, owners: Mapping[int, str]) -> Placed:
    record, name = raster.record, raster.record.id
    return ground.on_raster(
        record.image, record.size, raster.georeference, is_wanted=lambda number: owners.get(number, name) == name
    )


def _outside(
    ground: GroundPolygons,
    features: Sequence[Feature],
    found: set[int],
    rasters: set[str],
    owners: Mapping[int, str],
) -> list[UserError]:
    """Returns the one problem of features that lie on no raster; raises ``UserError`` where none lies on any.

    Those that belong to a raster which is not here lie there.
    """
    drawn = [number for number, feature in enumerate(features) if not feature.geometry.is_empty]
    here = rasters | {""}
    away = [number for number in drawn if number not in found and owners.get(number, "") in here]
    if drawn and not found:
        raise UserError(
            f"{ground.file}: expected polygons on the rasters, found all {len(drawn)} outside every one of "
            f"{len(rasters)}; {ground.extent()}: correct the CRS of the file that has a wrong one"
        )
    if not away:
        return []
    names = some_of([f"feature {number + 1}" for number in away], 3)
    return [
        BadFile(
            ground.file,
            f"{len(away)} of {len(drawn)} features lie outside every raster ({names}); add the rasters, or cut the "
            "file to them (--skip-bad leaves such features out)",
        )
    ]


def _with_truth(record: Record, placed: Placed, labels: Sequence[int], named: set[str]) -> Record:
    if not placed.numbers and record.id not in named:
        return record
    labelled = [(labels[number], polygon) for number, polygon in zip(placed.numbers, placed.polygons, strict=True)]
    return replace(record, truth=Shapes(wkt=tuple(in_turn(labelled))))


def _source(
    path: Path,
    settings: DataSettings,
    records: Sequence[Record],
    names: Sequence[str],
    problems: Sequence[UserError],
    notes: Sequence[str],
) -> DataSource:
    labelled = [record for record in records if record.truth is not None]
    unlabelled = tuple(record for record in records if record.truth is None)
    yaml = find_classes_yaml(path)
    task = settings.task or (read_attribute_classes(yaml).task if yaml is not None else None)
    kind, with_task, note = classes_of_pieces(labelled, names, settings.model_copy(update={"task": task}))
    if unlabelled:
        notes = [*notes, f"{len(unlabelled)} rasters have no polygon: they are predicted, not learned from"]
    return DataSource(
        layout="polygons",
        root=path,
        task=kind,
        coding=PIECES,
        records=with_task,
        unlabelled=unlabelled,
        notes=(note, *notes),
        problems=tuple(problems),
    )
