"""What the benchmarks share: generated data, networks as a peer's user has them, comparing runs that were disturbed."""

from __future__ import annotations

import hashlib
import json
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import NoReturn, TypeVar

import torch

from maskloom.data.studio import write_studio
from maskloom.errors import UserError
from maskloom.files import TEMPORARY_PREFIX
from maskloom.models.decoders import build_network
from maskloom.models.encoders import NetworkSettings
from maskloom.runtime import num_cores

Measured = TypeVar("Measured")

ENCODER = "tf_efficientnet_lite0"


def studio(folder: Path, *, size: tuple[int, int], objects: int, views: int, seed: int = 7) -> Path:
    """Returns a folder of generated photos in the Carvana layout."""
    write_studio(folder, objects=objects, views=views, size=size, seed=seed)
    return folder


def studio_with_test(folder: Path, *, size: tuple[int, int], objects: int = 4) -> Path:
    """Returns a small folder of generated photos with test photos and a sample submission."""
    write_studio(folder, objects=objects, views=8, size=size, seed=7, test_objects=1)
    return folder


def digests(folder: Path, patterns: Iterable[str]) -> dict[str, str]:
    """Returns the checksums of the results below a folder: of all files of these patterns that say no time."""
    paths = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    found = (path for path in sorted(paths) if path.name not in ("checkpoint.safetensors", "attempt.json"))
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def differences(whole: Mapping[str, str], resumed: Mapping[str, str]) -> list[str]:
    """Returns in words what differs of two runs' checksums; that nothing was compared is a difference, too."""
    found = [f"differs: {key}" for key in sorted(whole.keys() | resumed.keys()) if whole.get(key) != resumed.get(key)]
    return found + ["no files were compared"] * (not whole)


def left_behind(folder: Path) -> list[str]:
    """Returns the temporary files below a folder."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob(f"{TEMPORARY_PREFIX}*"))


def peer_network() -> torch.nn.Module:
    """Returns the same pretrained network as a user of segmentation-models-pytorch would use it: float32, NCHW."""
    return build_network(NetworkSettings(encoder=ENCODER), 1)


def in_fresh_process(function: Callable[..., Measured], *arguments: object, **options: object) -> Measured:
    """Returns what the function returns in a process of its own, so that neither side inherits the other's settings."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments, **options).result()


def ended(main: Callable[[], object]) -> NoReturn:
    """Runs a benchmark and ends the process: with what it returns, or with one line and 2 for a user's mistake."""
    try:
        done = main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    sys.exit(done if isinstance(done, int) else 0)


def report(name: str, ours: list[float], peers: list[float], unit: str, **facts: object) -> None:
    """Prints both medians and the median of the pairwise ratios as one JSON line."""
    ratios = [peer / our for our, peer in zip(ours, peers, strict=True)]
    line = {
        "benchmark": name,
        f"maskloom_{unit}": round(statistics.median(ours), 4),
        f"peer_{unit}": round(statistics.median(peers), 4),
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "cores": num_cores(),
        "torch": torch.__version__,
    }
    print(json.dumps(line | facts), flush=True)
