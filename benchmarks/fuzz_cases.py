"""The inputs that are spoilt, by kind: each is written into a folder with what is to be done with it.

Seeds are generated, small, and of every format that is read; how they are spoilt follows from the generator alone.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from fuzz_artefacts import checkpoints, outputs, run_folders, stored_objects, yaml_files
from fuzz_bench import Bench
from fuzz_data import coco_files, image_files, predicted_images, run_lengths, tables, vector_files, well_known_text
from fuzz_judge import CASE
from fuzz_seeds import Make, write

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
    "outputs": (outputs, 2),
}
"""What is made, and how often in comparison."""


def written(kind: str, seed: int, number: int, folder: Path, bench: Bench) -> None:
    """Writes the case of that kind and number into a folder; the same for the same seed."""
    rng = np.random.default_rng([seed, number, sorted(KINDS).index(kind)])
    case = KINDS[kind][0](rng, folder, bench)
    write(folder / CASE, json.dumps({"kind": kind, "seed": seed, "number": number, **case}))


def kind_of(number: int) -> str:
    """Returns the kind of a case's number; kinds take turns as often as they are worth."""
    turns = [kind for kind, (_, weight) in KINDS.items() for _ in range(weight)]
    return turns[number * 7 % len(turns)]
