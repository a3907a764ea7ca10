"""The street-scene system end to end at smoke scale on drawn scenes of the contest's layout, and two scores of it.

    python benchmarks/signate_smoke.py [--size 1936x1216] [--scenes 63] [--test-scenes 9] [--out DIR]

Draws photos with all 20 colours and attributes, runs ``maskloom fit signate_22nd --set scale=smoke`` on two cores (7
folds, stratified by route × time of day), and scores what it left by the package's scorer and by the one below, which
is written from the published rule in plain loops over pixels and shares nothing with the package: the submission; the
submission against a truth made hard (an image without a scored category, one that lacks a category); and the
out-of-fold masks. Prints one JSON line. Fails where two scores of the same masks differ by more than 1e-9, where a fold
has two photos more of a route and time of day than another, and where a colour is nowhere.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from time import perf_counter

import torch
from common import ended
from PIL import Image

from maskloom.errors import UserError

LAUNCHER = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)
sys.exit(code)
"""
"""Started from a small process: a child's peak otherwise counts what its parent held when it was started."""

# The rule, from its description alone ---------------------------------------------------------------------------------

COLOURS = {"car": (0, 0, 255), "pedestrian": (255, 0, 0), "lane": (69, 47, 142), "signal": (255, 255, 0)}
"""The four scored categories, as published."""
BITS = {name: 1 << place for place, name in enumerate(COLOURS)}

Rows = Mapping[str, Mapping[str, list[list[int]]]]
"""Of one image: by category, by row, the first and last column of each segment."""


def truth_bits(path: Path) -> tuple[bytearray, int]:
    """Returns a bit per pixel for its scored category (0: another), row by row, and the width."""
    picture = Image.open(path).convert("RGB")
    content, bit_of = picture.tobytes(), {bytes(colour): BITS[name] for name, colour in COLOURS.items()}
    bits = bytearray(len(content) // 3)
    for place in range(len(bits)):
        bits[place] = bit_of.get(content[3 * place : 3 * place + 3], 0)
    return bits, picture.width


def submitted_bits(rows: Rows, num_pixels: int, width: int) -> bytearray:
    """Returns the bits of the categories that a submission gives to each pixel; both ends of a segment belong to it."""
    bits = bytearray(num_pixels)
    for category, by_row in rows.items():
        for row, segments in by_row.items():
            for first, last in segments:
                for column in range(first, last + 1):
                    bits[int(row) * width + column] |= BITS[category]
    return bits


def image_worth(truth: bytearray, found: bytearray) -> float | None:
    """Returns the mean IoU of the categories that the truth holds; None where it holds none."""
    pairs: dict[tuple[int, int], int] = {}
    for pair in zip(truth, found, strict=True):
        pairs[pair] = pairs.get(pair, 0) + 1
    values = []
    for bit in BITS.values():
        there = sum(count for (true, _), count in pairs.items() if true & bit)
        if there:
            both = sum(count for (true, other), count in pairs.items() if true & bit and other & bit)
            either = sum(count for (true, other), count in pairs.items() if (true | other) & bit)
            values.append(both / either)
    return sum(values) / len(values) if values else None


def mean_worth(worths: list[float | None]) -> float:
    """Returns the mean over the images whose truth holds a scored category."""
    known = [worth for worth in worths if worth is not None]
    return sum(known) / len(known)


def independent_score(truth: Path, submission: Path) -> float:
    """Returns the contest's score of a submission against a folder of colour annotations."""
    images = json.loads(submission.read_text(encoding="utf-8"))
    worths = []
    for path in sorted(truth.glob("*.png")):
        true, width = truth_bits(path)
        worths.append(image_worth(true, submitted_bits(images.get(f"{path.stem}.jpg", {}), len(true), width)))
    return mean_worth(worths)


def independent_score_of_maps(truth: Path, run: Path) -> float:
    """Returns the contest's score of a run's out-of-fold masks: the most probable class of each stored map."""
    from maskloom.contests.signate.colours import CATEGORIES
    from maskloom.encodings.probability_maps import read_map
    from maskloom.run_directory import RunDirectory

    bit_of = [BITS.get(name, 0) for name in CATEGORIES]
    worths = []
    for path in sorted(truth.glob("*.png")):
        labels = read_map(RunDirectory(run).oof_map("unet", path.stem)).argmax(axis=0).ravel().tolist()
        worths.append(image_worth(truth_bits(path)[0], bytearray(bit_of[label] for label in labels)))
    return mean_worth(worths)


# The run --------------------------------------------------------------------------------------------------------------


def fit(data: Path, run: Path) -> tuple[float, float]:
    """Returns the seconds of the command and its largest resident memory in MiB."""
    command = [sys.executable, "-m", "maskloom", "fit", "signate_22nd", "--data", str(data), "--run", str(run)]
    began = perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", LAUNCHER, *command, "--set", "scale=smoke", "--device", "cpu"],
        capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        raise UserError(f"{' '.join(command)}: ended with {done.returncode}: {done.stderr.strip()[-2000:]}")
    return perf_counter() - began, float(done.stdout)


def package_scores(data: Path, run: Path, truths: list[Path]) -> Iterator[float]:
    """Yields the package's scores: of the submission against each truth, then of the out-of-fold masks."""
    from maskloom.contests.signate.scoring import score_files, score_of_counts
    from maskloom.data.sources.base import DataSettings
    from maskloom.registry import open_source
    from maskloom.run_directory import RunDirectory
    from maskloom.stages.ensemble import counts_path, read_counts

    for truth in truths:
        yield score_files(truth, run / "submission.json").mean
    source = open_source(data, DataSettings())
    found = score_of_counts(read_counts(counts_path(RunDirectory(run))), source.task, source.coding)
    assert found is not None, "drawn streets have lanes"
    yield found.score


def hard_truth(truth: Path, out: Path) -> Path:
    """Returns a copy of a truth whose first image has no scored category, and whose second has no lane."""
    out.mkdir()
    wall = bytes((92, 136, 125))
    for number, path in enumerate(sorted(truth.glob("*.png"))):
        picture = Image.open(path).convert("RGB")
        gone = {0: list(COLOURS.values()), 1: [COLOURS["lane"]]}.get(number, [])
        content, colours = picture.tobytes(), {bytes(colour) for colour in gone}
        pixels = (content[place : place + 3] for place in range(0, len(content), 3))
        changed = b"".join(wall if pixel in colours else pixel for pixel in pixels) if gone else content
        Image.frombytes("RGB", picture.size, changed).save(out / path.name)
    return out


def folds_by_stratum(data: Path, run: Path) -> dict[str, list[int]]:
    """Returns the photos of every route and time of day by fold."""
    found: dict[str, list[int]] = {}
    with (run / "folds.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    num_folds = 1 + max(int(row["fold"]) for row in rows)
    for row in rows:
        stated = json.loads((data / "seg_train_annotations" / f"{row['id']}.json").read_text(encoding="utf-8"))
        name = "{route} {timeofday}".format(**stated["attributes"])
        found.setdefault(name, [0] * num_folds)[int(row["fold"])] += 1
    return dict(sorted(found.items()))


def num_colours(folder: Path) -> int:
    """Returns how many colours there are in annotations."""
    found: set[tuple[int, ...]] = set()
    for path in folder.glob("*.png"):
        found |= {colour for _, colour in Image.open(path).convert("RGB").getcolors(maxcolors=256) or ()}
    return len(found)


def measured(folder: Path, size: tuple[int, int], scenes: int, test_scenes: int) -> dict[str, object]:
    """Returns what the line says; ``size`` is (height, width)."""
    from maskloom.contests.signate.stand_in import TEST_ANNOTATIONS, write_stand_in

    data, run = folder / "data", folder / "run"
    began = perf_counter()
    write_stand_in(data, images=scenes, test_images=test_scenes, size=size)
    drawn = perf_counter() - began
    seconds, peak = fit(data, run)
    truths = [data / TEST_ANNOTATIONS, hard_truth(data / TEST_ANNOTATIONS, folder / "hard")]
    began = perf_counter()
    others = [independent_score(truth, run / "submission.json") for truth in truths]
    others.append(independent_score_of_maps(data / "seg_train_annotations", run))
    scored = perf_counter() - began
    ours = list(package_scores(data, run, truths))
    folds = folds_by_stratum(data, run)
    names = ("submission", "against_a_hard_truth", "out_of_fold")
    return {
        "size": f"{size[1]}x{size[0]}",
        "scenes": scenes,
        "test_scenes": test_scenes,
        "colours": num_colours(data / "seg_train_annotations"),
        "seconds": {"draw": round(drawn, 1), "fit": round(seconds, 1), "score_in_plain_loops": round(scored, 1)},
        "peak_mib": round(peak),
        "score": dict(zip(names, ours, strict=True)),
        "score_in_plain_loops": dict(zip(names, others, strict=True)),
        "largest_difference": max(abs(one - other) for one, other in zip(ours, others, strict=True)),
        "photos_by_fold": folds,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="1936x1216", help="WIDTHxHEIGHT of the scenes, from 152x96")
    parser.add_argument("--scenes", type=int, default=63, help="to learn from; 7 of each route and time of day are 63")
    parser.add_argument("--test-scenes", type=int, default=9)
    parser.add_argument("--out", type=Path, help="an empty folder where data and run stay; else they are removed")
    arguments = parser.parse_args()
    width, _, height = arguments.size.partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        parser.error(f"--size: expected WIDTHxHEIGHT such as 1936x1216, found {arguments.size!r}")
    if arguments.test_scenes < 2:
        parser.error(f"--test-scenes: expected at least 2, found {arguments.test_scenes}")
    with tempfile.TemporaryDirectory() as name:
        folder = arguments.out or Path(name)
        found = measured(folder, (int(height), int(width)), arguments.scenes, arguments.test_scenes)
    line = {"benchmark": "signate_smoke"} | found | {"cores": os.cpu_count(), "torch": torch.__version__}
    print(json.dumps(line), flush=True)
    counts = found["photos_by_fold"]
    assert isinstance(counts, dict)
    wrong = [
        reason
        for reason, holds in (
            ("two scores of the same masks differ", found["largest_difference"] > 1e-9),  # type: ignore[operator]
            ("a fold has too many of a stratum", any(max(each) - min(each) > 1 for each in counts.values())),
            ("a colour is missing", found["colours"] != 20),
        )
        if holds
    ]
    print("".join(f"wrong: {reason}\n" for reason in wrong), end="", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    ended(main)
