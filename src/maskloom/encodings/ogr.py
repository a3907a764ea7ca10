"""One layer of a GeoPackage or FlatGeobuf ↔ encoded areas with their fields, by pyogrio (the extra ``vector``).

Knows nothing about what the fields mean.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from maskloom.errors import BadFile, UserError
from maskloom.files import atomic_path, write_refusal

DRIVERS = {".gpkg": "GPKG", ".fgb": "FlatGeobuf"}
"""GDAL's name of each kind of file, by suffix in lower case."""
_STARTS = {".gpkg": b"SQLite format 3\0", ".fgb": b"fgb\x03fgb"}

_INT64 = 2**63
_COPIES = 3  # of the areas on the disk: with their index, and as FlatGeobuf has them, too, before it sorts them
_CHANGED = "1970-01-01T00:00:00.000Z"  # when a GeoPackage was last changed: equal features give equal bytes


def check_available(path: Path) -> None:
    """Raises ``UserError`` when pyogrio is not installed."""
    _pyogrio(path)


def _pyogrio(path: Path) -> Any:
    try:
        import pyogrio.raw
    except ImportError:
        raise UserError(
            f"{path}: {path.suffix} needs pyogrio; install it with 'pip install maskloom[vector]', or use .geojson"
        ) from None
    return pyogrio


def write_layer(
    path: Path, shapes: Sequence[bytes | None], rows: Sequence[Mapping[str, Any]], *, crs: str | None
) -> None:
    """Writes MultiPolygons (WKB; None for none) with their fields, atomically; the layer is called as the file.

    Equal arguments give equal bytes, whenever they are written. Fields are texts, numbers, bools and None; one of mixed
    kinds becomes text. ``crs`` is "EPSG:n", WKT or None. Raises ``UserError`` when GDAL refuses.
    """
    pyogrio, driver = _pyogrio(path), DRIVERS[path.suffix.lower()]
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = [_column([row.get(name) for row in rows]) for name in names]
    options = {"spatial_index": False} if driver == "FlatGeobuf" and None in shapes else {}  # which needs a place
    with atomic_path(path) as temporary, warnings.catch_warnings(), _repeatable(pyogrio):
        warnings.filterwarnings("ignore", message="'crs' was not provided")
        temporary.unlink()  # GDAL makes its file itself
        try:
            pyogrio.raw.write(
                temporary,
                np.array(shapes, dtype=object),
                field_data=[values for values, _ in columns],
                field_mask=[missing for _, missing in columns],
                fields=names,
                layer=path.stem,
                driver=driver,
                geometry_type="MultiPolygon",
                crs=crs,
                **options,
            )
        except (RuntimeError, ValueError) as error:  # what pyogrio's own errors are
            reason = _one_line(error).replace(temporary.name, path.name)
            num_bytes = _COPIES * sum(len(shape) for shape in shapes if shape is not None)
            raise write_refusal(path, f"could not be written as {driver} ({reason})", num_bytes=num_bytes) from None


@contextmanager
def _repeatable(pyogrio: Any) -> Iterator[None]:
    """Has GDAL write ``_CHANGED`` in place of the time, unless the user has chosen one (OGR_CURRENT_DATE)."""
    name = "OGR_CURRENT_DATE"
    if pyogrio.get_gdal_config_option(name) is not None:
        yield
        return
    pyogrio.set_gdal_config_options({name: _CHANGED})
    try:
        yield
    finally:
        pyogrio.set_gdal_config_options({name: None})


def _column(values: Sequence[Any]) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns one field of all features as an array, and where it is missing (text says so itself)."""
    kind = _kind(values)
    if kind is str:
        return np.array([None if value is None else str(value) for value in values], dtype=object), None
    missing = np.array([value is None for value in values], bool)
    return np.array([value or 0 for value in values], dtype=kind), missing


def _kind(values: Sequence[Any]) -> type:
    kinds = {type(value) for value in values if value is not None}
    if kinds == {bool}:
        return bool
    if float in kinds and kinds <= {int, float}:
        return float
    return int if kinds == {int} and all(abs(value or 0) < _INT64 for value in values) else str


def read_layer(path: Path) -> tuple[str | None, Iterator[tuple[bytes | None, dict[str, Any]]]]:
    """Returns the CRS ("EPSG:n", WKT or None), and each feature's geometry (WKB, heights dropped) and fields.

    Raises ``BadFile`` when the file is damaged or something else, or has no layer of geometries or several.
    """
    pyogrio = _pyogrio(path)
    _check_start(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # GDAL's, of what the shapes are checked for afterwards
            layers = [str(name) for name, kind in pyogrio.list_layers(path) if kind is not None]
            if len(layers) == 1:
                facts, _, shapes, columns = pyogrio.raw.read(path, layer=layers[0], force_2d=True)
    except (RuntimeError, ValueError) as error:  # what pyogrio's own errors are
        expected = DRIVERS[path.suffix.lower()]
        raise BadFile(path, f"expected {expected}, found something else or a part ({_one_line(error)})") from None
    if len(layers) != 1:
        found = ", ".join(layers[:5]) or "none"
        raise BadFile(path, f"expected one layer of polygons, found {found}; save the layer as a file of its own")
    names = [str(name) for name in facts["fields"]]
    return facts["crs"], (
        (shape, dict(zip(names, row, strict=True))) for shape, *row in zip(shapes, *columns, strict=True)
    )


def _check_start(path: Path) -> None:
    """Raises ``BadFile`` for content of another kind: GDAL goes by content, and some kinds name other files."""
    suffix = path.suffix.lower()
    try:
        with path.open("rb") as stream:
            start = stream.read(len(_STARTS[suffix]))
    except OSError as error:
        raise BadFile(path, f"cannot be read ({error.strerror or error})") from None
    if start != _STARTS[suffix]:
        raise BadFile(path, f"expected {DRIVERS[suffix]}, found something else; save the layer as {DRIVERS[suffix]}")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
