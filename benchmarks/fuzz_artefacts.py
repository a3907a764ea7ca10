"""Cases of what this program and others like it write: settings, networks, finished runs, stores of data and runs."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import struct
from functools import cache
from pathlib import Path
from typing import Any

from fuzz_bench import FORMATS, Bench
from fuzz_mutations import WORDS, of_bytes, of_json, of_text, pick
from fuzz_seeds import command, images, pairs, write
from numpy.random import Generator

from maskloom.files import OWNER

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
    pairs(folder / "data")
    way = rng.random()
    if way < 0.25:
        text = "classes: {background: 0, object: 255}\nignore: [7]\ntask: binary\n"
        write(folder / "data" / "classes.yaml", _spoilt_yaml(rng, text))
        return {"do": "plan", "data": "data", "settings": ["scale=smoke"]}
    if way < 0.4:
        name, value = str(pick(rng, SETTINGS)), str(pick(rng, (*WORDS, "[" * 2000, "{a: " * 500, "&a [*a]")))
        return {"do": "plan", "data": "data", "settings": ["scale=smoke", f"{name}={value}"]}
    if way < 0.7:
        text = "base: default\nscale: smoke\nseed: 3\ndata: {limit: 2}\nfolds: {count: 2}\ninference: {views: none}\n"
        write(folder / "recipe.yaml", _spoilt_yaml(rng, text))
    else:
        write(folder / "recipe.yaml", _changed_recipe(rng, bench))
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
        write(folder / "net.pth", of_bytes(rng, _torch_file(str(pick(rng, ("zip", "stream"))))))
        return {"do": "foreign", "file": "net.pth"}
    if way < 0.55:
        write(folder / "net.pth", of_bytes(rng, _torch_file("zip")))
        return command("import-weights", "net.pth", "--as", "ternaus-unet11", "--out", "single.safetensors")
    data = bench.bundle.read_bytes()
    if way < 0.8:
        (length,) = struct.unpack_from("<Q", data)
        header = of_json(rng, _opened_header(data[8 : 8 + length]))
        header = _closed_header(rng, header)
        data = struct.pack("<Q", len(header)) + header + data[8 + length :]
    else:
        data = of_bytes(rng, data)
    write(folder / "net.safetensors", data)
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


def run_folders(rng: Generator, folder: Path, bench: Bench) -> dict[str, Any]:
    """A finished run of which one to three files are damaged, most of them without a sign."""
    shutil.copytree(bench.run, folder / "run", copy_function=_linked, ignore=shutil.ignore_patterns("status", ".lock"))
    files = sorted(path for path in (folder / "run").rglob("*") if path.is_file())
    asks = str(pick(rng, ("png", "prob", "rle", "coco", "evaluate", "report", "compare", *["verify"] * 4, "status")))
    begun = []
    if asks == "verify" and rng.random() < 0.5:  # as if it had been interrupted there
        markers = sorted((folder / "run" / "stages").rglob("*.json"))
        marker = markers[int(rng.integers(len(markers)))]
        begun.append(marker.relative_to(folder / "run" / "stages").with_suffix("").as_posix())
        marker.unlink()
        files.remove(marker)
    damaged = []
    for _ in range(int(rng.integers(1, 4))):
        path = files[int(rng.integers(len(files)))]
        _damage(rng, path)
        damaged.append(path.relative_to(folder / "run").as_posix())
    return {"do": "run", "asks": asks, "damaged": damaged, "begun": begun}


def outputs(rng: Generator, folder: Path, bench: Bench) -> dict[str, Any]:
    """A prediction, interrupted or whole, of whose own notes, blocks and rows one to three are damaged."""
    to = str(pick(rng, FORMATS))
    shutil.copytree(bench.output(to, is_whole=bool(rng.random() < 0.4)), folder / "out")
    files = sorted(path for path in (folder / "out").rglob("*") if path.is_file())
    files = [path for path in files if any(part.startswith(".") for part in path.relative_to(folder).parts)]
    if rng.random() < 0.9:  # what says whose folder it is may be refused, which ends the case
        files = [path for path in files if path.name != OWNER]
    spoilt = []
    for _ in range(int(rng.integers(1, 4))):
        path = files[int(rng.integers(len(files)))]
        if path.suffix == ".json" and path.is_file() and rng.random() < 0.6:
            path.write_bytes(of_json(rng, _json_in(path)))
        else:
            _damage(rng, path)
        spoilt.append(path.relative_to(folder / "out").as_posix())
    return {"do": "resumed", "to": to, "spoilt": spoilt}


def _json_in(path: Path) -> Any:
    """Returns what a file says; of one that is spoilt already something like it."""
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return {"left_out": {}, "files": {}}


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
