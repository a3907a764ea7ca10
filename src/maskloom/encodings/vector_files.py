"""Files of features read: GeoJSON, GeoPackage, FlatGeobuf and CSV tables of WKT become polygons with class and image.

For those who read truth and those who read results. Features come with the file's CRS; GeoJSON and tables need no other
library, GeoPackage and FlatGeobuf need pyogrio (the extra ``vector``). Knows nothing about masks, and leaves
coordinates as they are: pixels, a contest's grid or a CRS.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from maskloom.encodings.ogr import DRIVERS, read_layer
from maskloom.encodings.outlines import repaired
from maskloom.encodings.polygons import polygons_of
from maskloom.encodings.table_files import open_table
from maskloom.errors import BadFile, UserError, closest, some_of
from maskloom.records import check_id
from maskloom.runtime import json_budget
from maskloom.storage.placeholders import at_hand

if TYPE_CHECKING:
    from shapely import MultiPolygon, Polygon
    from shapely.geometry.base import BaseGeometry

VECTOR_SUFFIXES = (".geojson", ".gpkg", ".fgb")
"""The suffixes of files of features, in lower case; tables of WKT are ``.csv`` and ``.csv.gz``."""

WKT_COLUMNS = ("id", "class", "wkt")
DSTL_COLUMNS = ("ImageId", "ClassType", "MultipolygonWKT")

IMAGE_FIELDS = ("image", "imageid", "image_id", "scene", "img", "file_name", "filename")
CLASS_FIELDS = ("class", "class_name", "classtype", "classid", "class_id", "label", "category")
WKT_FIELDS = ("wkt", "multipolygonwkt", "geometry", "geom")

MAX_BYTES = 2**29
"""The largest file that is read unless asked otherwise: all of it goes into memory."""

_CRS_TEXT = re.compile(
    r"\s*((EPSG|OGC|ESRI|IGNF|IAU_\d+):[\w.-]+|urn:ogc:def:crs:\S+|https?://(www\.)?opengis\.net/def/crs/\S+"
    r"|[A-Z_]+\[.*\])\s*$",
    re.IGNORECASE | re.DOTALL,
)
WGS84 = "EPSG:4326"
"""What GeoJSON is in unless it says otherwise."""


@dataclass(frozen=True, slots=True)
class Feature:
    """Areas of one class in one image: a Polygon or MultiPolygon; an empty one says that there is nothing.

    ``image`` and ``class_name`` may be empty where a file does not tell. ``attributes`` are texts, numbers, bools and
    None. Raises ``UserError`` for an image that cannot name a file.
    """

    geometry: Polygon | MultiPolygon
    class_name: str
    image: str
    attributes: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.geometry.geom_type not in ("Polygon", "MultiPolygon"):
            raise ValueError(f"expected a Polygon or MultiPolygon, got a {self.geometry.geom_type}")
        if self.image:
            check_id(self.image)


def parsed_crs(crs: str) -> Any:
    """Returns rasterio's CRS of "EPSG:n" or WKT; raises ``UserError`` for what is none."""
    from rasterio import Env
    from rasterio.crs import CRS
    from rasterio.errors import CRSError

    if not _CRS_TEXT.match(crs):  # GDAL would take paths and addresses, too, and open them
        raise UserError(f"expected a CRS such as 'EPSG:32633' or its WKT, found {crs!r:.60}")
    try:
        with Env():  # without it GDAL prints what it complains of
            return CRS.from_user_input(crs)
    except (CRSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"expected a CRS such as 'EPSG:32633' or its WKT, found {crs!r:.60} ({reason:.80})") from None


def read_features(
    path: Path,
    *,
    max_bytes: int = MAX_BYTES,
    class_field: str | None = None,
    note: Callable[[str], None] = lambda _: None,
) -> tuple[str | None, list[Feature]]:
    """Returns the CRS ("EPSG:n" or WKT; None for none) and the features of a vector file or a table of WKT.

    Image and class come from the fields ``IMAGE_FIELDS`` and ``CLASS_FIELDS`` in upper or lower case (in a table "id"
    and "name" are images too), or the class from ``class_field``; what is not there is "". Features without an area
    are kept as empty MultiPolygons, so that their image stays known, and are counted in a ``note``; so are polygons
    that cross or touch themselves, which are repaired as ``encodings.outlines.repaired`` says. Heights are dropped.
    GeoJSON without a member "crs" is in EPSG:4326, a table has no CRS.

    Raises ``BadFile`` for files of more than ``max_bytes``, damaged ones, several layers, no feature with the
    ``class_field`` that is stated, points and lines, and coordinates that are not finite.
    """
    try:
        num_bytes = path.stat().st_size
    except FileNotFoundError:
        raise BadFile(path, "no such file") from None
    if num_bytes > max_bytes:
        raise BadFile(path, f"expected a file of at most {max_bytes} bytes, found {num_bytes}; cut it into several")
    at_hand(path)
    suffix = path.suffix.lower()
    if path.name.lower().endswith((".csv", ".csv.gz")):
        crs, stored = None, _table_rows(path)
    elif suffix == ".geojson":
        crs, stored = _read_geojson(path)
    elif suffix in DRIVERS:
        crs, layer = read_layer(path)
        stored = _layer_rows(path, layer)
    else:
        raise UserError(f"{path}: expected a file ending in {', '.join(VECTOR_SUFFIXES)}, .csv or .csv.gz")
    is_table = path.name.lower().endswith((".csv", ".csv.gz"))
    images = (*IMAGE_FIELDS, "id", "name") if is_table else IMAGE_FIELDS
    classes: Sequence[str] = CLASS_FIELDS
    if class_field is not None:
        classes = (class_field.lower(),)
        stored = iter(_with_field(path, list(stored), class_field))
    return crs, _features(path, (_row(row, images, classes) for row in stored), note)


def _with_field(path: Path, rows: list[_Stored], name: str) -> list[_Stored]:
    """Returns the rows; raises ``BadFile`` where none has a field of that name, in upper or lower case."""
    found = {key.lower(): key for row in rows for key in row.fields}
    if name.lower() not in found:
        known = closest(name, found.values()) if found else "features have no attributes at all"
        raise BadFile(path, f"expected the attribute {name!r} to hold the class, found none of that name; {known}")
    return rows


class _Stored(NamedTuple):
    """One feature as stored, its geometry perhaps as WKT; ``place`` is where, for messages."""

    place: str
    geometry: BaseGeometry | str | None
    fields: Mapping[str, Any]


class _Row(NamedTuple):
    """The same with class and image told from the other fields."""

    place: str
    geometry: BaseGeometry | str | None
    class_name: str
    image: str
    attributes: Mapping[str, Any]


def _features(path: Path, rows: Iterable[_Row], note: Callable[[str], None]) -> list[Feature]:
    features: list[Feature] = []
    mended: list[str] = []
    flat: list[str] = []
    num_empty = 0
    for row in rows:
        try:
            (row.class_name + row.image).encode()
            geometry, is_repaired = _area(row.geometry)
            if is_repaired and geometry.is_empty:
                flat.append(row.place)
                is_repaired = False
            features.append(Feature(geometry, row.class_name, row.image, row.attributes))
        except UnicodeEncodeError:
            raise BadFile(path, f"{row.place}: expected text as class and image, found half a character") from None
        except UserError as error:
            raise BadFile(path, f"{row.place}: {error}") from None
        mended += [row.place] * is_repaired
        num_empty += geometry.is_empty
    num_empty -= len(flat)
    if num_empty:
        note(f"{path.name}: {num_empty} of {len(features)} features are empty")
    if flat:
        names = some_of(flat, 3)
        note(f"{path.name}: {len(flat)} of {len(features)} features are rings without area, taken as empty: {names}")
    if mended:
        names = some_of(mended, 3)
        note(f"{path.name}: {len(mended)} of {len(features)} features cross or touch themselves; repaired: {names}")
    return features


def _area(shape: BaseGeometry | str | None) -> tuple[Polygon | MultiPolygon, bool]:
    """Returns the valid area of a stored geometry or its WKT, and whether it had to be repaired."""
    import shapely

    parts = [] if shape is None else polygons_of(shape)
    if len(parts) == 1 and parts[0].is_valid:
        return parts[0], False
    whole = _multipolygon_of(parts)
    if shapely.is_valid(whole):
        return whole, False
    return _multipolygon_of(repaired(parts)), True


def _multipolygon_of(polygons: list[Polygon]) -> MultiPolygon:
    import shapely

    return shapely.multipolygons(polygons) if polygons else shapely.MultiPolygon()


def _named(fields: Mapping[str, Any], names: Sequence[str]) -> tuple[str, str]:
    """Returns the field that goes by the first of these names, and its value as text; both "" where there is none."""
    by_name = {key.lower(): key for key in fields}
    key = next((by_name[name] for name in names if name in by_name), "")
    value = _plain(fields[key]) if key else None
    if isinstance(value, float) and value.is_integer():  # GDAL has whole numbers so where some are missing
        value = int(value)
    return key, "" if value is None else str(value)


def _row(stored: _Stored, images: Sequence[str], classes: Sequence[str]) -> _Row:
    image_key, image = _named(stored.fields, images)
    class_key, class_name = _named(stored.fields, classes)
    others = {key: _plain(value) for key, value in stored.fields.items() if key not in (image_key, class_key)}
    return _Row(stored.place, stored.geometry, class_name, image, others)


def _plain(value: Any) -> Any:
    """Returns an attribute as text, number, bool or None; lists and objects as JSON."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return None
    if isinstance(value, list | dict):
        return json.dumps(value, ensure_ascii=False)
    return value if isinstance(value, str | int | float | bool) else str(value)


# Tables of WKT


def is_wkt_table(path: Path) -> bool:
    """Whether a CSV table, plain or compressed, has a column of WKT, by its headings; raises ``BadFile``."""
    with open_table(path) as rows:
        return any(column.lower() in WKT_FIELDS for column in next(rows, []))


def _table_rows(path: Path) -> Iterator[_Stored]:
    with open_table(path) as rows:
        header = next(rows, [])
        wkt_key, _ = _named(dict.fromkeys(header), WKT_FIELDS)
        if not wkt_key or not _named(dict.fromkeys(header), (*IMAGE_FIELDS, "id", "name"))[0]:
            raise BadFile(path, f"expected columns such as {','.join(WKT_COLUMNS)}, found {','.join(header)[:200]}")
        for number, row in enumerate(rows, start=2):
            if len(row) != len(header):
                raise BadFile(path, f"expected {len(header)} columns in row {number}, found {len(row)}")
            fields = dict(zip(header, row, strict=True))
            yield _Stored(f"row {number}", fields.pop(wkt_key), fields)


# GeoJSON


def _read_geojson(path: Path) -> tuple[str | None, Iterator[_Stored]]:
    size, allowed = path.stat().st_size, json_budget()
    if size > allowed:
        raise BadFile(
            path,
            f"expected GeoJSON of at most {allowed:,} bytes, for whose features there is memory now, found {size:,}; "
            "cut it into several, free some memory, or give a GeoPackage",
        )
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError, OSError) as error:  # of JSON, of Unicode, of numbers with too many digits
        raise BadFile(path, f"expected GeoJSON, found something else or a part ({error})") from None
    if not isinstance(content, dict) or not isinstance(content.get("features"), list):
        found = content.get("type", "an object") if isinstance(content, dict) else type(content).__name__
        raise BadFile(path, f"expected a GeoJSON FeatureCollection, found {found!r:.40}")
    return _stated_crs(path, content), _geojson_rows(path, content["features"])


def _stated_crs(path: Path, content: Mapping[str, Any]) -> str | None:
    if "crs" not in content:
        return WGS84
    member = content["crs"]
    if member is None:
        return None
    try:
        name = str(member["properties"]["name"])
        crs = parsed_crs(name)
    except (KeyError, TypeError):
        raise BadFile(path, f"expected 'crs' with a name, found {member!r:.80}") from None
    except UserError as error:
        raise BadFile(path, str(error)) from None
    if name.upper().endswith("CRS84"):  # WGS 84 with longitude first, as all GeoJSON has it
        return WGS84
    number = crs.to_epsg(confidence_threshold=100)
    return str(crs.to_wkt()) if number is None else f"EPSG:{number}"


def _geojson_rows(path: Path, features: Sequence[Any]) -> Iterator[_Stored]:
    import shapely

    for number, feature in enumerate(features, start=1):
        place = f"feature {number}"
        try:
            stored, fields = feature.get("geometry"), feature.get("properties") or {}
            geometry = None if stored is None else shapely.from_geojson(json.dumps(stored))
            fields = dict(fields)
            yield _Stored(place, geometry, fields)
        except (AttributeError, TypeError, ValueError, RecursionError, shapely.errors.ShapelyError) as error:
            reason = " ".join(str(error).split())
            raise BadFile(path, f"{place}: expected GeoJSON polygons of finite numbers ({reason:.120})") from None


# GeoPackage and FlatGeobuf


def _layer_rows(path: Path, layer: Iterable[tuple[bytes | None, dict[str, Any]]]) -> Iterator[_Stored]:
    import shapely

    for number, (shape, fields) in enumerate(layer, start=1):
        place = f"feature {number}"
        try:
            geometry = None if shape is None else shapely.from_wkb(shape)
        except (shapely.errors.ShapelyError, NotImplementedError) as error:  # the second for curves
            reason = " ".join(str(error).split())
            raise BadFile(path, f"{place}: expected polygons, found something else ({reason:.120})") from None
        yield _Stored(place, geometry, fields)
