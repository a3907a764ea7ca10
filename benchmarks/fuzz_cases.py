"""The inputs that are spoilt, by kind: each is written into a folder with what is to be done with it.

Seeds are generated, small, and of every format that is read; how they are spoilt follows from the generator alone.
"""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import struct
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from fuzz_judge import CASE, UNTRACKED, Bench
from fuzz_mutations import WORDS, of_bytes, of_json, of_png, of_runs, of_text, of_tiff, of_wkt, pick
from numpy.random import Generator
from PIL import Image

SIZE = (32, 48)
Make = Callable[[Generator, Path, Bench], dict[str, Any]]


# Seeds ---------------------------------------------------------------------------------------------------------------


def _pixels(channels: int = 3, dtype: Any = np.uint8) -> np.ndarray:
    values = np.random.default_rng(0).integers(0, 256, (*SIZE, channels)).astype(dtype)
    return cv2.GaussianBlur(values, (5, 5), 0).reshape(*SIZE, channels)


def _mask(size: tuple[int, int] = SIZE) -> np.ndarray:
    mask = np.zeros(size, np.uint8)
    mask[8:20, 8:30] = 255
    return mask


def _pillow(pixels: np.ndarray, kind: str, mode: str | None = None, **options: Any) -> bytes:
    stream = io.BytesIO()
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(stream, kind, **options)
    return stream.getvalue()


def _tiff(pixels: np.ndarray, **options: Any) -> bytes:
    import tifffile

    stream = io.BytesIO()
    tifffile.imwrite(stream, pixels, **options)
    return stream.getvalue()


def _geotiff(**options: Any) -> bytes:
    from rasterio.io import MemoryFile
    from rasterio.transform import Affine

    with MemoryFile() as memory:
        profile = {"driver": "GTiff", "width": 64, "height": 64, "count": 3, "dtype": "uint8", "crs": "EPSG:32633",
                   "transform": Affine(2, 0, 5e5, 0, -2, 1e5), "nodata": 0, **options}  # fmt: skip
        with memory.open(**profile) as raster:
            for band in range(profile["count"]):
                raster.write(np.full((64, 64), 90 + band, profile["dtype"]), band + 1)
        return bytes(memory.read())


@cache
def images() -> dict[str, bytes]:
    """Returns a small image file of every kind that is read, by a name with its suffix."""
    colour, grey, mask = _pixels(), _pixels(1)[:, :, 0], _mask()
    bands = np.moveaxis(_pixels(5, np.uint16), 2, 0).copy()
    exif = Image.Exif()
    exif[274] = 6
    found = {
        "colour.png": cv2.imencode(".png", colour)[1].tobytes(),
        "grey.png": cv2.imencode(".png", grey)[1].tobytes(),
        "deep.png": cv2.imencode(".png", (colour.astype(np.uint16) * 257))[1].tobytes(),
        "palette.png": _pillow(colour, "PNG", "P"),
        "alpha.png": _pillow(colour, "PNG", "RGBA"),
        "bits.png": _pillow(mask, "PNG", "1"),
        "plain.jpg": cv2.imencode(".jpg", colour)[1].tobytes(),
        "turned.jpg": _pillow(colour, "JPEG", exif=exif.tobytes(), progressive=True),
        "inks.jpg": _pillow(colour, "JPEG", "CMYK"),
        "grey.jpg": _pillow(grey, "JPEG"),
        "still.gif": _pillow(colour, "GIF", "P"),
        "moving.gif": _pillow(colour, "GIF", "P", save_all=True, append_images=[Image.fromarray(colour[::-1].copy())]),
        "plain.bmp": _pillow(colour, "BMP"),
        "palette.bmp": _pillow(colour, "BMP", "P"),
        "lossy.webp": _pillow(colour, "WEBP"),
        "lossless.webp": _pillow(colour, "WEBP", lossless=True),
        "turned.webp": _pillow(colour, "WEBP", exif=exif.tobytes()),
        "strips.tif": _tiff(colour, photometric="rgb", rowsperstrip=8),
        "tiles.tif": _tiff(np.kron(grey, np.ones((2, 2), np.uint8)), tile=(32, 32), compression="zlib"),
        "floats.tif": _tiff(_pixels(4, np.float32), photometric="minisblack", planarconfig="contig"),
        "pages.tif": _tiff(np.stack([grey, grey]), photometric="minisblack"),
        "big.tif": _tiff(colour, photometric="rgb", bigtiff=True),
        "planes.tif": _tiff(bands, photometric="minisblack", planarconfig="separate"),
        "lzw.tif": _geotiff(compress="lzw", predictor=2),
        "jpeg.tif": _geotiff(compress="jpeg", tiled=True, blockxsize=32, blockysize=32),
        "zstd.tif": _geotiff(compress="zstd"),
        "packbits.tif": _geotiff(compress="packbits"),
    }  # fmt: skip
    return found


def _spoilt(rng: Generator, name: str, data: bytes) -> bytes:
    if name.endswith(".png") and rng.random() < 0.7:
        return of_png(rng, data)
    if name.endswith(".tif") and rng.random() < 0.6:
        return of_tiff(rng, data)
    return of_bytes(rng, data)


def _write(path: Path, content: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))


def _pairs(folder: Path, names: str = "abc") -> None:
    colour, mask = cv2.imencode(".png", _pixels())[1].tobytes(), cv2.imencode(".png", _mask())[1].tobytes()
    for name in names:
        _write(folder / "images" / f"{name}.png", colour)
        _write(folder / "masks" / f"{name}.png", mask)


def _command(*arguments: str) -> dict[str, Any]:
    return {"do": "command", "arguments": [str(each) for each in arguments]}


TARGETS = ("single.csv", "single.json", "single.geojson", "single.gpkg", "single.fgb", "folder")


# Kinds ---------------------------------------------------------------------------------------------------------------


def image_files(rng: Generator, folder: Path, bench: Bench) -> dict[str, Any]:
    """A spoilt image or mask, inspected, scored or converted."""
    name = str(pick(rng, list(images())))
    spoilt = _spoilt(rng, name, images()[name])
    way = rng.random()
    if way < 0.35:
        _pairs(folder / "data")
        _write(folder / "data" / "images" / name.replace(".", "_x."), spoilt)
        _write(folder / "data" / "masks" / (name.replace(".", "_x.").rpartition(".")[0] + ".png"), images()["grey.png"])
        return _command("inspect", "data", "--out", "page.html")
    if way < 0.5:
        _pairs(folder / "data")
        _write(folder / "data" / "images" / "m.png", images()["colour.png"])
        _write(folder / "data" / "masks" / f"m.{name.rpartition('.')[2]}", spoilt)
        return _command("inspect", "data", "--out", "page.html")
    _write(folder / "source" / name, spoilt)
    if way < 0.6:
        _write(folder / "truth" / name, images()[name])
        return _command("score", "source", "truth", "--json", *(["--boundary"] if rng.random() < 0.3 else []))
    if way < 0.85:
        flags = ["--foreground"] if rng.random() < 0.7 else ["--ignore", "255"]
        return _command("convert", "source", str(pick(rng, TARGETS)), *flags)
    _write(folder / "like" / "colour.tif", spoilt)
    _write(folder / "table.csv", "img,rle_mask\ncolour.tif,3 2\n")
    return _command("convert", "table.csv", "folder", "--like", "like", "--to", "geotiff")


def predicted_images(rng: Generator, folder: Path, bench: Bench) -> dict[str, Any]:
    """Spoilt images given to a trained network, whole or by window."""
    to = str(pick(rng, ("png", "prob", "rle", "coco", "geotiff", "geojson", "wkt")))
    is_raster = to in ("geotiff", "geojson", "wkt")
    names = [name for name in images() if name.endswith(".tif") or not is_raster]
    name = str(pick(rng, names))
    _write(folder / "images" / f"x{name}", _spoilt(rng, name, images()[name]))
    _write(folder / "images" / "good.tif", _geotiff())
    return {"do": "predict", "images": "images", "to": to, "skip_bad": bool(rng.random() < 0.5)}


def run_lengths(rng: Generator, folder: Path, bench: Bench) -> dict[str, Any]:
    """A table of run lengths, converted, scored, inspected or planned with."""
    runs = of_runs(rng, "5 10 60 3 100 20") if rng.random() < 0.6 else "5 10 60 3 100 20"
    column, pair = str(pick(rng, ("rle", "EncodedPixels", "rle_mask"))), ["a,1 2", f"b,{runs}", "c,"]
    way = rng.random()
    if way < 0.5:
        text = "\n".join([f"img,{column}", *pair]) + "\n"
        _write(folder / "table.csv", of_text(rng, text) if rng.random() < 0.5 else text)
        target = str(pick(rng, TARGETS))
        extra = [] if rng.random() < 0.8 else ["--order", "column", "--base", "0"]
        if way < 0.15:
            return _command("score", "table.csv", "table.csv", "--size", "32x48")
        return _command("convert", "table.csv", target, "--size", str(pick(rng, ("32x48", "32x48", "1x1"))), *extra)
    _pairs(folder / "data")
    text = "\n".join([f"id,image,{column}", *(f"{line[0]},images/{line[0]}.png,{line[2:]}" for line in pair)]) + "\n"
    _write(folder / "data" / "table.csv", of_text(rng, text) if rng.random() < 0.5 else text)
    settings = ["data.rle_order=row", "data.rle_base=1"] if rng.random() < 0.7 else []
    if way < 0.8:
        return _command("inspect", "data/table.csv", "--out", "page.html", *(w for s in settings for w in ("--set", s)))
    return {"do": "plan", "data": "data/table.csv", "settings": ["scale=smoke", *settings]}


def well_known_text(rng: Generator, folder: Path, bench: Bench) -> dict[str, Any]:
    """A table of WKT, or a table of grid sizes beside it."""
    shape = "MULTIPOLYGON (((2 2, 20 2, 20 15, 2 15, 2 2), (4 4, 8 4, 8 8, 4 8, 4 4)), ((30 20, 40 20, 40 30, 30 20)))"
    changed = of_wkt(rng, shape) if rng.random() < 0.8 else shape
    text = f'id,class,wkt\na,car,"{changed}"\na,road,"{shape}"\nb,car,MULTIPOLYGON EMPTY\n'
    _write(folder / "table.csv", of_text(rng, text, separators=",\n ()") if rng.random() < 0.4 else text)
    way = rng.random()
    if way < 0.2:
        grid = "ImageId,Xmax,Ymin\na,0.009,-0.009\nb,0.009,-0.009\n"
        _write(folder / "grid.csv", of_text(rng, grid))
        return _command(
            "convert", "table.csv", "folder", "--size", "32x48", "--grid", "grid.csv", "--classes", "car,road"
        )
    if way < 0.4:
        return _command("score", "table.csv", "table.csv", "--size", "32x48")
    extra = ["--simplify", "1.5"] if rng.random() < 0.3 else []
    return _command("convert", "table.csv", str(pick(rng, TARGETS)), "--size", "32x48", "--classes", "car,road", *extra)


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
        _write(folder / "shapes.geojson", of_json(rng, found))
        return _command("convert", "shapes.geojson", str(pick(rng, TARGETS)), "--size", "32x48")
    _pairs(folder / "data")
    _write(folder / "data" / "coco.json", of_json(rng, coco))
    if way < 0.5:
        return _command("convert", "data/coco.json", str(pick(rng, TARGETS)))
    if way < 0.6:
        return _command("score", "data/coco.json", "data/coco.json", "--json")
    if way < 0.8:
        return _command("inspect", "data/coco.json", "--out", "page.html")
    return {"do": "plan", "data": "data/coco.json", "settings": ["scale=smoke"]}


def vector_files(rng: Generator, folder: Path, bench: Bench) -> dict[str, Any]:
    """A GeoPackage or FlatGeobuf with bytes changed."""
    suffix = str(pick(rng, ("gpkg", "fgb")))
    _write(folder / f"shapes.{suffix}", of_bytes(rng, _shapes(suffix)))
    return _command("convert", f"shapes.{suffix}", str(pick(rng, TARGETS)), "--size", "32x48")


@cache
def _shapes(suffix: str) -> bytes:
    import tempfile

    from maskloom.api import convert

    with tempfile.TemporaryDirectory() as name:
        table = Path(name) / "a.csv"
        table.write_text('id,class,wkt\na,car,"POLYGON ((2 2, 20 2, 20 15, 2 15, 2 2))"\n')
        convert(table, Path(name) / f"a.{suffix}", size=SIZE)
        return (Path(name) / f"a.{suffix}").read_bytes()


def tables(rng: Generator, folder: Path, bench: Bench) -> dict[str, Any]:
    """A table of images, of folds or of scenes."""
    _pairs(folder / "data")
    rows = [f"{name},images/{name}.png,masks/{name}.png,g{number % 2}" for number, name in enumerate("abc")]
    text = "\n".join(["id,image,mask,group", *rows]) + "\n"
    way = rng.random()
    if way < 0.6:
        _write(folder / "data" / "table.csv", of_text(rng, text))
        if way < 0.4:
            return _command("inspect", "data/table.csv", "--out", "page.html")
        return {"do": "plan", "data": "data/table.csv", "settings": ["scale=smoke"]}
    if way < 0.7:
        import pandas as pd

        files = {kind: [f"{kind}s/{name}.png" for name in "abc"] for kind in ("image", "mask")}
        frame = pd.DataFrame({"id": list("abc"), **files})
        _write(folder / "data" / "table.parquet", of_bytes(rng, frame.to_parquet()))
        return _command("inspect", "data/table.parquet", "--out", "page.html")
    for name in ("x", "y"):
        _write(folder / "data" / f"{name}.tif", _geotiff())
    _write(folder / "data" / "scenes.csv", of_text(rng, "id,image\nfirst,x.tif\nsecond,y.tif\n"))
    return {"do": "predict", "images": "data/scenes.csv", "to": "geotiff", "skip_bad": bool(rng.random() < 0.5)}


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join(['*' + before] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
"""A few lines that are 9⁹ words."""
MERGES = "a: &a {x: 1}\n" + "".join(
    f"{name}: &{name} {{<<: [{','.join(['*' + before] * 9)}]}}\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
"""A few lines that merge 9⁸ mappings into one."""


def yaml_files(rng: Generator, folder: Path, bench: Bench) -> dict[str, Any]:
    """A recipe, classes, or a setting of the command line."""
    _pairs(folder / "data")
    way = rng.random()
    if way < 0.25:
        text = "classes: {background: 0, object: 255}\nignore: [7]\ntask: binary\n"
        _write(folder / "data" / "classes.yaml", _spoilt_yaml(rng, text))
        return {"do": "plan", "data": "data", "settings": ["scale=smoke"]}
    if way < 0.4:
        name, value = str(pick(rng, SETTINGS)), str(pick(rng, (*WORDS, "[" * 2000, "{a: " * 500, "&a [*a]")))
        return {"do": "plan", "data": "data", "settings": ["scale=smoke", f"{name}={value}"]}
    if way < 0.7:
        text = "base: default\nscale: smoke\nseed: 3\ndata: {limit: 2}\nfolds: {count: 2}\ninference: {views: none}\n"
        _write(folder / "recipe.yaml", _spoilt_yaml(rng, text))
    else:
        _write(folder / "recipe.yaml", _changed_recipe(rng, bench))
    return {"do": "plan", "recipe": "recipe.yaml", "data": "data"}


SETTINGS = (
    "seed", "metric", "folds.count", "members.0.name", "members.0.input.size", "members.*.training.epochs", "x.y",
    "data.classes", "data.group", "data.limit", "members.0.network.encoder", "members", "members.99.x", "name",
)  # fmt: skip
STRANGE_YAML = (
    BOMB, MERGES, "x: 1" + ":1" * 100_000 + "\n", "x: !!int 1" + ":1" * 100_000 + "\n", "x: 0x" + "f" * 6000 + "\n",
    "x: " + "[" * 5000, "a: &a [*a]\n", "x: 2001-99-99\n", "x: !!python/object/apply:os.system [id]\n",
    "x: !!int abc\n", "x: !!float z\n", "? [a]\n: b\n", "x: 0b\n", "x: " + "9" * 6000 + "\n", "<<: 3\n",
    "x: !!binary é\n", "x: !!timestamp no\n", "seed: 1\nseed: 2\n", "---\n---\n", "x: !!set {a, b}\n",
)  # fmt: skip


def _spoilt_yaml(rng: Generator, text: str) -> bytes:
    way = rng.random()
    if way < 0.15:
        extra = str(pick(rng, STRANGE_YAML))
        return (extra + text if rng.random() < 0.5 else text.replace("3", f"[{extra}]") + extra).encode()
    return of_text(rng, text, separators=" :,\n{}[]")


def _changed_recipe(rng: Generator, bench: Bench) -> bytes:
    """A complete recipe, as JSON, which YAML is, with values changed."""
    import yaml

    return of_json(rng, yaml.safe_load((bench.run / "recipe.yaml").read_text()))


def checkpoints(rng: Generator, folder: Path, bench: Bench) -> dict[str, Any]:
    """A file of torch.save, safetensors or a bundle."""
    way = rng.random()
    if way < 0.4:
        _write(folder / "net.pth", of_bytes(rng, _torch_file(str(pick(rng, ("zip", "stream"))))))
        return {"do": "foreign", "file": "net.pth"}
    if way < 0.55:
        _write(folder / "net.pth", of_bytes(rng, _torch_file("zip")))
        return _command("import-weights", "net.pth", "--as", "ternaus-unet11", "--out", "single.safetensors")
    data = _small_bundle()
    if way < 0.8:
        (length,) = struct.unpack_from("<Q", data)
        header = of_json(rng, _opened_header(data[8 : 8 + length]))
        header = _closed_header(rng, header)
        data = struct.pack("<Q", len(header)) + header + data[8 + length :]
    else:
        data = of_bytes(rng, data)
    _write(folder / "net.safetensors", data)
    return {"do": str(pick(rng, ("bundle", "bundle", "foreign"))), "file": "net.safetensors"}


def _opened_header(header: bytes) -> Any:
    values = json.loads(header)
    values["__metadata__"]["maskloom"] = json.loads(values["__metadata__"]["maskloom"])
    return values


def _closed_header(rng: Generator, header: bytes) -> bytes:
    """Turns the settings inside the header back into text, where they are still there."""
    try:
        values = json.loads(header)
        values["__metadata__"]["maskloom"] = json.dumps(values["__metadata__"]["maskloom"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return header
    return json.dumps(values).encode("utf-8", "surrogatepass")


@cache
def _torch_file(kind: str) -> bytes:
    import torch

    stream = io.BytesIO()
    state = {"conv.weight": torch.ones(2, 3, 3, 3), "conv.bias": torch.zeros(2), "steps": torch.tensor(3)}
    torch.save({"state_dict": state, "epoch": 3}, stream, _use_new_zipfile_serialization=kind == "zip")
    return stream.getvalue()


@cache
def _small_bundle() -> bytes:
    """A bundle of a small network; tiny files are spoilt where it matters more often."""
    import tempfile

    import torch

    from maskloom.data.input_policy import InputPolicy
    from maskloom.models.bundle import save_bundle
    from maskloom.models.encoders import NetworkSettings
    from maskloom.models.segmenter import Normalisation, build_segmenter
    from maskloom.records import Task

    torch.manual_seed(0)
    settings = NetworkSettings(weights="none")
    segmenter = build_segmenter(
        settings, task=Task(kind="binary", classes=("car",)), policy=InputPolicy(mode="full"),
        normalisation=Normalisation(mean=(0.5,) * 3, std=(0.2,) * 3),
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        save_bundle(Path(name) / "b.safetensors", segmenter)
        return (Path(name) / "b.safetensors").read_bytes()


def run_folders(rng: Generator, folder: Path, bench: Bench) -> dict[str, Any]:
    """A finished run of which one to three files are damaged, most of them without a sign."""
    shutil.copytree(bench.run, folder / "run", copy_function=_linked, ignore=shutil.ignore_patterns("status", ".lock"))
    files = sorted(path for path in (folder / "run").rglob("*") if path.is_file())
    damaged = []
    for _ in range(int(rng.integers(1, 4))):
        path = files[int(rng.integers(len(files)))]
        _damage(rng, path)
        damaged.append(path.relative_to(folder / "run").as_posix())
    known = [name for name in damaged if Path(name).name not in UNTRACKED]
    asks = str(pick(rng, ("png", "prob", "rle", "coco", "evaluate", "report", "compare", "verify", "verify", "status")))
    return {"do": "run", "asks": asks, "damaged": known}


def _linked(source: str, target: str) -> str:
    """Copies, but for networks, which are linked until they are damaged: nothing writes into them."""
    if source.endswith(".safetensors"):
        os.link(source, target)
        return target
    return str(shutil.copy2(source, target))


def _damage(rng: Generator, path: Path) -> None:
    if not path.is_file():
        return
    facts, data = path.stat(), path.read_bytes()
    way = rng.random()
    path.unlink()  # of a linked network only this name
    if way < 0.08:
        return
    found = bytearray(data)
    if way < 0.8 and found:
        for _ in range(int(pick(rng, (1, 1, 3)))):
            found[int(rng.integers(len(found)))] ^= 1 << int(rng.integers(8))
    else:
        found = bytearray(of_bytes(rng, data))
    path.write_bytes(found)
    if rng.random() < 0.8:
        os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))


OBJECTS = (
    "../x", "a/../../x", "/etc/passwd", "a//b", "a/./b", "..", "images/a.png/x", "images", "known.json", "mirror.json",
    "mirrored/x.csv", ".lock", ".partial-x", ".maskloom-holder.json", "stages/x.json", "x.csv/", "con.csv", "a\\b.csv",
)  # fmt: skip
"""Names of objects that would be files elsewhere, files and folders at once, or a mirror's own."""


def stored_objects(rng: Generator, folder: Path, bench: Bench) -> dict[str, Any]:
    """A store of data or of a run whose names or objects are spoilt, or its mirror's own notes."""
    way = rng.random()
    asks = "data" if way < 0.6 else str(pick(rng, ("status", "work")))
    if asks == "data":
        objects = {"classes.yaml": b"classes: [car]\n", "table.csv": b"id,image\na,images/a.png\n"}
        objects |= {f"images/{name}.png": images()["grey.png"] for name in "ab"}
    else:
        files = (path for path in sorted(bench.run.rglob("*")) if path.is_file() and path.stat().st_size < 20_000)
        objects = {path.relative_to(bench.run).as_posix(): path.read_bytes() for path in files}
        objects = {name: data for name, data in objects.items() if not name.startswith(("status/", ".lock"))}
        objects[".maskloom-holder.json"] = b'{"key": "a", "sign": "b", "holder": {"pid": 1, "host": "x", "since": ""}}'
    spoils = []
    if way < 0.3:
        objects |= {str(pick(rng, (*OBJECTS, *WORDS))): b"evil" for _ in range(int(rng.integers(1, 4)))}
    elif asks == "data":
        spoils = [int(rng.integers(2**31)) for _ in range(int(rng.integers(1, 3)))]
    else:
        for _ in range(int(rng.integers(1, 3))):
            name = str(pick(rng, (".maskloom-holder.json", *sorted(objects))))
            objects[name] = of_bytes(rng, objects[name])
    texts = {name: base64.b64encode(data).decode() for name, data in objects.items()}
    return {"do": "storage", "asks": asks, "objects": texts, "spoils": spoils}


KINDS: dict[str, tuple[Make, int]] = {
    "images": (image_files, 6),
    "prediction": (predicted_images, 3),
    "rle": (run_lengths, 2),
    "wkt": (well_known_text, 2),
    "coco": (coco_files, 2),
    "vectors": (vector_files, 1),
    "tables": (tables, 2),
    "yaml": (yaml_files, 2),
    "checkpoints": (checkpoints, 2),
    "runs": (run_folders, 2),
    "storage": (stored_objects, 1),
}
"""What is made, and how often in comparison."""


def written(kind: str, seed: int, number: int, folder: Path, bench: Bench) -> None:
    """Writes the case of that kind and number into a folder; the same for the same seed."""
    rng = np.random.default_rng([seed, number, sorted(KINDS).index(kind)])
    case = KINDS[kind][0](rng, folder, bench)
    _write(folder / CASE, json.dumps({"kind": kind, "seed": seed, "number": number, **case}))


def kind_of(number: int) -> str:
    """Returns the kind of a case's number; kinds take turns as often as they are worth."""
    turns = [kind for kind, (_, weight) in KINDS.items() for _ in range(weight)]
    return turns[number * 7 % len(turns)]
