"""Cases of users' data: images, masks, and the tables and vector files that hold or name them."""

from __future__ import annotations

import io
import zlib
from functools import cache
from pathlib import Path
from typing import Any

from fuzz_bench import Bench
from fuzz_mutations import of_bytes, of_json, of_runs, of_text, of_wkt, pick
from fuzz_seeds import SIZE, command, geotiff, images, pairs, spoilt_image, write
from numpy.random import Generator

TARGETS = ("single.csv", "single.json", "single.geojson", "single.gpkg", "single.fgb", "folder")


def image_files(rng: Generator, folder: Path, bench: Bench) -> dict[str, Any]:
    """A spoilt image or mask, inspected, scored or converted."""
    name = str(pick(rng, list(images())))
    spoilt = spoilt_image(rng, name, images()[name])
    way = rng.random()
    if way < 0.35:
        pairs(folder / "data")
        write(folder / "data" / "images" / name.replace(".", "_x."), spoilt)
        write(folder / "data" / "masks" / (name.replace(".", "_x.").rpartition(".")[0] + ".png"), images()["grey.png"])
        return command("inspect", "data", "--out", "page.html")
    if way < 0.5:
        pairs(folder / "data")
        write(folder / "data" / "images" / "m.png", images()["colour.png"])
        write(folder / "data" / "masks" / f"m.{name.rpartition('.')[2]}", spoilt)
        return command("inspect", "data", "--out", "page.html")
    write(folder / "source" / name, spoilt)
    if way < 0.6:
        write(folder / "truth" / name, images()[name])
        return command("score", "source", "truth", "--json", *(["--boundary"] if rng.random() < 0.3 else []))
    if way < 0.85:
        flags = ["--foreground"] if rng.random() < 0.7 else ["--ignore", "255"]
        return command("convert", "source", str(pick(rng, TARGETS)), *flags)
    write(folder / "like" / "colour.tif", spoilt)
    write(folder / "table.csv", "img,rle_mask\ncolour.tif,3 2\n")
    return command("convert", "table.csv", "folder", "--like", "like", "--to", "geotiff")


def predicted_images(rng: Generator, folder: Path, bench: Bench) -> dict[str, Any]:
    """Spoilt images given to a trained network, whole or by window."""
    to = str(pick(rng, ("png", "prob", "rle", "coco", "geotiff", "geojson", "wkt")))
    is_raster = to in ("geotiff", "geojson", "wkt")
    names = [name for name in images() if name.endswith(".tif") or not is_raster]
    name = str(pick(rng, names))
    write(folder / "images" / f"x{name}", spoilt_image(rng, name, images()[name]))
    write(folder / "images" / "good.tif", geotiff())
    return {"do": "predict", "images": "images", "to": to, "skip_bad": bool(rng.random() < 0.5)}


def run_lengths(rng: Generator, folder: Path, bench: Bench) -> dict[str, Any]:
    """A table of run lengths, converted, scored, inspected or planned with."""
    runs = of_runs(rng, "5 10 60 3 100 20") if rng.random() < 0.6 else "5 10 60 3 100 20"
    column, pair = str(pick(rng, ("rle", "EncodedPixels", "rle_mask"))), ["a,1 2", f"b,{runs}", "c,"]
    way = rng.random()
    if way < 0.5:
        text = "\n".join([f"img,{column}", *pair]) + "\n"
        write(folder / "table.csv", of_text(rng, text) if rng.random() < 0.5 else text)
        target = str(pick(rng, TARGETS))
        extra = [] if rng.random() < 0.8 else ["--order", "column", "--base", "0"]
        if way < 0.15:
            return command("score", "table.csv", "table.csv", "--size", "32x48")
        return command("convert", "table.csv", target, "--size", str(pick(rng, ("32x48", "32x48", "1x1"))), *extra)
    pairs(folder / "data")
    text = "\n".join([f"id,image,{column}", *(f"{line[0]},images/{line[0]}.png,{line[2:]}" for line in pair)]) + "\n"
    write(folder / "data" / "table.csv", of_text(rng, text) if rng.random() < 0.5 else text)
    settings = ["data.rle_order=row", "data.rle_base=1"] if rng.random() < 0.7 else []
    if way < 0.8:
        return command("inspect", "data/table.csv", "--out", "page.html", *(w for s in settings for w in ("--set", s)))
    return {"do": "plan", "data": "data/table.csv", "settings": ["scale=smoke", *settings]}


def well_known_text(rng: Generator, folder: Path, bench: Bench) -> dict[str, Any]:
    """A table of WKT, or a table of grid sizes beside it."""
    shape = "MULTIPOLYGON (((2 2, 20 2, 20 15, 2 15, 2 2), (4 4, 8 4, 8 8, 4 8, 4 4)), ((30 20, 40 20, 40 30, 30 20)))"
    changed = of_wkt(rng, shape) if rng.random() < 0.8 else shape
    text = f'id,class,wkt\na,car,"{changed}"\na,road,"{shape}"\nb,car,MULTIPOLYGON EMPTY\n'
    write(folder / "table.csv", of_text(rng, text, separators=",\n ()") if rng.random() < 0.4 else text)
    way = rng.random()
    if way < 0.2:
        grid = "ImageId,Xmax,Ymin\na,0.009,-0.009\nb,0.009,-0.009\n"
        write(folder / "grid.csv", of_text(rng, grid))
        return command(
            "convert", "table.csv", "folder", "--size", "32x48", "--grid", "grid.csv", "--classes", "car,road"
        )
    if way < 0.4:
        return command("score", "table.csv", "table.csv", "--size", "32x48")
    extra = ["--simplify", "1.5"] if rng.random() < 0.3 else []
    return command("convert", "table.csv", str(pick(rng, TARGETS)), "--size", "32x48", "--classes", "car,road", *extra)


def coco_files(rng: Generator, folder: Path, bench: Bench) -> dict[str, Any]:
    """A COCO file, or GeoJSON, of spoilt values."""
    runs = {"size": [*SIZE], "counts": [100, 20, SIZE[0] * SIZE[1] - 120]}
    coco = {
        "images": [{"id": n, "file_name": f"images/{c}.png", "height": 32, "width": 48} for n, c in enumerate("abc")],
        "annotations": [
            {"id": 1, "image_id": 0, "category_id": 1, "segmentation": [[2, 2, 20, 2, 20, 15, 2, 15]], "bbox": [2, 2]},
            {"id": 2, "image_id": 1, "category_id": 2, "segmentation": runs, "iscrowd": 1},
            {"id": 3, "image_id": 2, "category_id": 1, "segmentation": {"size": [*SIZE], "counts": "R3d0Wm1"}},
        ],
        "categories": [{"id": 1, "name": "car"}, {"id": 2, "name": "road"}],
    }  # fmt: skip
    way = rng.random()
    if way < 0.25:
        ring = [[2.0, 2.0], [20.0, 2.0], [20.0, 15.0], [2.0, 2.0]]
        feature = {"type": "Feature", "properties": {"image": "a", "class": "car"},
                   "geometry": {"type": "Polygon", "coordinates": [ring]}}  # fmt: skip
        found = {"type": "FeatureCollection", "crs": None, "features": [feature, feature]}
        write(folder / "shapes.geojson", of_json(rng, found))
        return command("convert", "shapes.geojson", str(pick(rng, TARGETS)), "--size", "32x48")
    pairs(folder / "data")
    write(folder / "data" / "coco.json", of_json(rng, coco))
    if way < 0.5:
        return command("convert", "data/coco.json", str(pick(rng, TARGETS)))
    if way < 0.6:
        return command("score", "data/coco.json", "data/coco.json", "--json")
    if way < 0.8:
        return command("inspect", "data/coco.json", "--out", "page.html")
    return {"do": "plan", "data": "data/coco.json", "settings": ["scale=smoke"]}


def vector_files(rng: Generator, folder: Path, bench: Bench) -> dict[str, Any]:
    """A GeoPackage or FlatGeobuf with bytes changed."""
    suffix = str(pick(rng, ("gpkg", "fgb")))
    write(folder / f"shapes.{suffix}", of_bytes(rng, _shapes(suffix)))
    return command("convert", f"shapes.{suffix}", str(pick(rng, TARGETS)), "--size", "32x48")


@cache
def _shapes(suffix: str) -> bytes:
    import tempfile

    from maskloom.api import convert

    with tempfile.TemporaryDirectory() as name:
        table = Path(name) / "a.csv"
        table.write_text('id,class,wkt\na,car,"POLYGON ((2 2, 20 2, 20 15, 2 15, 2 2))"\n')
        convert(table, Path(name) / f"a.{suffix}", size=SIZE)
        return (Path(name) / f"a.{suffix}").read_bytes()


BOMBS = ((5_000_000, 1), (1, 300_000_000), (20_000, 20_000), (2_000_000, 10))
"""Rows, and characters of the last cell, of tables of a few kB of which hundreds of MB would come."""


def table_bombs(rng: Generator, folder: Path) -> dict[str, Any]:
    """A small compressed table of many rows, of a long text, or of a long text in many rows."""
    (num_rows, length), way = pick(rng, BOMBS), rng.random()
    column = str(pick(rng, ("mask", "rle", "wkt")))
    if way < 0.5:
        name, content = "table.csv.gz", _zipped(f"image,{column}\n", "images/a.png,", length, num_rows)
    else:
        name, content = "table.parquet", _parquet(column, length, num_rows)
    write(folder / "data" / name, content)
    if way < 0.2:
        return command("score", f"data/{name}", f"data/{name}", "--size", "32x48")
    if way < 0.35:
        return command("convert", f"data/{name}", str(pick(rng, TARGETS)), "--size", "32x48")
    return command("inspect", f"data/{name}", "--out", "page.html")


def _zipped(header: str, row: str, length: int, num_rows: int) -> bytes:
    """Returns gzip of a header and equal rows, which end with so many letters; they are never held at once."""
    packer = zlib.compressobj(1, wbits=31)
    parts = [packer.compress(header.encode())]
    some = max(1, min(num_rows, 2**20 // (len(row) + length)))
    for _ in range(num_rows // some):
        if length < 2**20:
            parts.append(packer.compress(f"{row}{'x' * length}\n".encode() * some))
        else:
            parts += [packer.compress(row.encode()), *(packer.compress(b"x" * 2**20) for _ in range(length // 2**20))]
    return b"".join([*parts, packer.flush()])


def _parquet(column: str, length: int, num_rows: int) -> bytes:
    """Returns Parquet of equal rows, the text of each column stored once."""
    import numpy as np
    import pyarrow as pa
    from pyarrow import parquet

    places = pa.array(np.zeros(num_rows, np.int32))
    texts = {"image": "images/a.png", column: "x" * length}
    columns = {name: pa.DictionaryArray.from_arrays(places, pa.array([text])) for name, text in texts.items()}
    stream = io.BytesIO()
    parquet.write_table(pa.table(columns), stream, compression="zstd", dictionary_pagesize_limit=2**30)
    return stream.getvalue()


def tables(rng: Generator, folder: Path, bench: Bench) -> dict[str, Any]:
    """A table of images, of folds or of scenes."""
    pairs(folder / "data")
    rows = [f"{name},images/{name}.png,masks/{name}.png,g{number % 2}" for number, name in enumerate("abc")]
    text = "\n".join(["id,image,mask,group", *rows]) + "\n"
    way = rng.random()
    if way < 0.1:
        return table_bombs(rng, folder)
    if way < 0.6:
        write(folder / "data" / "table.csv", of_text(rng, text))
        if way < 0.4:
            return command("inspect", "data/table.csv", "--out", "page.html")
        return {"do": "plan", "data": "data/table.csv", "settings": ["scale=smoke"]}
    if way < 0.7:
        import pandas as pd

        files = {kind: [f"{kind}s/{name}.png" for name in "abc"] for kind in ("image", "mask")}
        frame = pd.DataFrame({"id": list("abc"), **files})
        write(folder / "data" / "table.parquet", of_bytes(rng, frame.to_parquet()))
        return command("inspect", "data/table.parquet", "--out", "page.html")
    for name in ("x", "y"):
        write(folder / "data" / f"{name}.tif", geotiff())
    write(folder / "data" / "scenes.csv", of_text(rng, "id,image\nfirst,x.tif\nsecond,y.tif\n"))
    return {"do": "predict", "images": "data/scenes.csv", "to": "geotiff", "skip_bad": bool(rng.random() < 0.5)}
