"""Polygons with a class and an image → vector files: GeoJSON, GeoPackage, FlatGeobuf, and CSV tables of WKT.

A feature is all of one class in one image, or a single object. Files appear whole or not at all. GeoJSON and tables
need no other library; GeoPackage and FlatGeobuf need pyogrio (the extra ``vector``). Knows nothing about masks, and
leaves coordinates as they are: pixels, a contest's grid or a CRS. ``encodings.vector_files`` reads such files.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskloom.encodings.ogr import DRIVERS, check_available, write_layer
from maskloom.encodings.table_files import text_writer
from maskloom.encodings.vector_files import VECTOR_SUFFIXES, WGS84, WKT_COLUMNS, Feature, parsed_crs
from maskloom.errors import UserError

if TYPE_CHECKING:
    from shapely import MultiPolygon, Polygon
    from shapely.geometry.base import BaseGeometry


def write_features(
    path: Path, features: Iterable[Feature], *, crs: str | None, columns: tuple[str, str, str] = WKT_COLUMNS
) -> None:
    """Writes features to ``.geojson``, ``.gpkg``, ``.fgb``, ``.csv`` or ``.csv.gz``, atomically.

    ``crs`` is "EPSG:n" or WKT, None for pixels and other coordinates without a place on the ground. RFC 7946 wants
    GeoJSON in EPSG:4326; here coordinates stay in ``crs``, and any other CRS stands in the member "crs" of the older
    GeoJSON, as GDAL writes it, so that GIS programs place it rightly (where there is none it is ``null``, as the older
    GeoJSON has it, but GDAL takes it for EPSG:4326 all the same). The fields "image" and "class" stand beside the
    attributes. A table has one row per feature in the order given, its three ``columns`` alone, and no CRS: one that is
    stated raises ``UserError``. GeoJSON and tables are streamed; the other two hold the encoded features in memory, and
    FlatGeobuf reorders them by place.
    """
    suffix = path.suffix.lower()
    if path.name.lower().endswith((".csv", ".csv.gz")):
        _write_table(path, features, crs, columns)
    elif suffix == ".geojson":
        _write_geojson(path, features, crs)
    elif suffix in DRIVERS:
        _write_layer(path, features, crs)
    else:
        raise UserError(f"{path}: expected a file ending in {', '.join(VECTOR_SUFFIXES)}, .csv or .csv.gz")


def _write_table(path: Path, features: Iterable[Feature], crs: str | None, columns: tuple[str, str, str]) -> None:
    if crs is not None:
        raise UserError(f"{path}: a table of WKT cannot hold the CRS {crs:.60}; write .geojson, .gpkg or .fgb instead")
    with text_writer(path) as stream:
        rows = csv.writer(stream, lineterminator="\n")
        rows.writerow(columns)
        for feature in features:
            rows.writerow((feature.image, feature.class_name, _multipolygon(feature.geometry).wkt))


def _multipolygon(geometry: BaseGeometry) -> MultiPolygon:
    import shapely

    if geometry.is_empty:
        return shapely.MultiPolygon()
    return geometry if geometry.geom_type == "MultiPolygon" else shapely.multipolygons([geometry])


def _write_geojson(path: Path, features: Iterable[Feature], crs: str | None) -> None:
    member = "" if _is_wgs84(crs) else f'"crs": {json.dumps(_crs_member(crs), ensure_ascii=False)},\n'
    with text_writer(path) as stream:
        stream.write('{\n"type": "FeatureCollection",\n' + member + '"features": [')
        separator = "\n"
        for feature in features:
            stream.write(separator + _geojson(feature))
            separator = ",\n"
        stream.write("\n]\n}\n")


def _geojson(feature: Feature) -> str:
    import shapely

    text = json.dumps(_fields(feature), ensure_ascii=False, allow_nan=False)
    geometry = "null" if feature.geometry.is_empty else shapely.to_geojson(_oriented(feature.geometry))
    return f'{{"type":"Feature","properties":{text},"geometry":{geometry}}}'


def _oriented(geometry: Polygon | MultiPolygon) -> BaseGeometry:
    """Returns the geometry with its shells counter-clockwise and its holes clockwise (RFC 7946, 3.1.6)."""
    import shapely
    from shapely.geometry.polygon import orient

    parts = [orient(part) for part in shapely.get_parts(geometry)]
    return parts[0] if geometry.geom_type == "Polygon" else shapely.multipolygons(parts)


def _is_wgs84(crs: str | None) -> bool:
    return crs is not None and parsed_crs(crs) == parsed_crs(WGS84)


def _crs_member(crs: str | None) -> dict[str, Any] | None:
    """Returns GeoJSON's older member "crs": an EPSG number as URN, the WKT for a CRS that has none."""
    if crs is None:
        return None
    number = parsed_crs(crs).to_epsg(confidence_threshold=100)
    name = crs if number is None else f"urn:ogc:def:crs:EPSG::{number}"
    return {"type": "name", "properties": {"name": name}}


def _write_layer(path: Path, features: Iterable[Feature], crs: str | None) -> None:
    import shapely

    check_available(path)
    shapes: list[bytes | None] = []
    rows: list[dict[str, Any]] = []
    for feature in features:
        shapes.append(None if feature.geometry.is_empty else shapely.to_wkb(_multipolygon(feature.geometry)))
        rows.append(_fields(feature))
    write_layer(path, shapes, rows, crs=crs)


def _fields(feature: Feature) -> dict[str, Any]:
    return {"image": feature.image, "class": feature.class_name, **feature.attributes}
