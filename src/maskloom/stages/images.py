"""New images through a finished run: masks, probability maps, a table of run lengths or COCO JSON.

The run's bundles and decisions are all it reads; the data it was trained on may be gone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from maskloom.config import load_yaml, parse
from maskloom.data.image_io import IMAGE_SUFFIXES
from maskloom.data.sources.base import first_problem, measure
from maskloom.data.sources.folder import IMAGE_FOLDERS, MASK_FOLDERS, image_files
from maskloom.encodings.rle import decode_runs
from maskloom.errors import BadFile, UserError
from maskloom.files import OWNER, TEMPORARY_PREFIX, fingerprint, read_json, remove_partial, write_json
from maskloom.inference.merging import RESULT
from maskloom.inference.predictor import Predictor
from maskloom.inference.streaming import predict_records
from maskloom.integrity import Ledger
from maskloom.outputs.maps import mask_paths, probability_paths, write_mask, write_probabilities
from maskloom.outputs.tables import CocoWriter, SubmissionFormat, SubmissionWriter
from maskloom.progress import Progress
from maskloom.recipe import Recipe
from maskloom.records import ClassMap, ProbabilityMap, Record, Task
from maskloom.run_directory import RunDirectory
from maskloom.run_lock import held
from maskloom.runtime import choose_device
from maskloom.stages.ensemble import Ensemble, load_ensemble, open_predictor
from maskloom.stages.prediction import decider
from maskloom.stages.rows import read_rows, write_rows
from maskloom.stages.scoring import image_reader
from maskloom.stages.shared_rows import SharedTable

FORMATS = ("png", "prob", "rle", "coco")
TABLES = {"rle": "predictions.csv.gz", "coco": "predictions.json"}
"""The formats of one file for all images, which several processes may write together."""
SHARED = ".images"
"""The folder, beside what is written, of what the processes tell each other."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a prediction left in ``out``: how many images were written (now or before), and which were left out."""

    out: Path
    num_written: int
    bad: list[BadFile] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A finished run, ready to predict."""

    recipe: Recipe
    ensemble: Ensemble
    predictor: Predictor
    task: Task
    labels: Callable[[dict[str, np.ndarray]], np.ndarray]
    """Decides masks from 8-bit maps C×H×W by name."""

    @property
    def channels(self) -> int:
        """Channels of the images."""
        return max(member.image_channels for member in self.recipe.members)

    def predict(self, image: np.ndarray) -> np.ndarray:
        """Returns the labels of one image H×W×C as stored."""
        return self.labels(self.predictor(image))


def open_for_prediction(run: RunDirectory, device: str | None) -> Opened:
    """Returns the run with its networks loaded on the device."""
    recipe = parse(Recipe, load_yaml(run.recipe), origin=str(run.recipe))
    if recipe.outside:
        names = ", ".join(outside.name for outside in recipe.outside)
        raise UserError(
            f"{run.root}: expected an ensemble of networks, found maps from outside in it ({names}), which new images "
            "have not; add the images to the data as images without masks and `fit` again"
        )
    ensemble = load_ensemble(run)
    predictor = open_predictor(run, ensemble, recipe, choose_device(device))
    task = predictor.task
    labels = decider(run, recipe, ensemble, task)
    return Opened(recipe=recipe, ensemble=ensemble, predictor=predictor, task=task, labels=labels)


def predict_images(
    run: RunDirectory,
    images: Path,
    *,
    out: Path,
    to: str,
    opened: Callable[[], Opened],
    skip_bad: bool,
    progress: Progress,
) -> Prediction:
    """Returns what was written; see ``maskloom.api.Run.predict``. ``opened`` is asked once the images are found."""
    if to not in FORMATS:
        raise UserError(f"to={to!r}: expected one of {', '.join(FORMATS)}")
    bad: list[BadFile] = []
    unfit: dict[str, BadFile] = {}
    progress.stage("predict", cached=False)
    records = find_images(images, out=out, bad=bad if skip_bad else None, note=progress.note)
    mark_output(out, run, to, _root(images))

    def leave_out(record: Record, problem: BadFile) -> None:
        unfit[record.id] = problem
        progress.note(f"left out: {problem}")

    alone = nullcontext() if to in TABLES else held(out)  # files of single images are not shared between processes
    with alone:
        if to not in TABLES:
            remove_partial(out)
        ready = opened()
        common: dict[str, Any] = {
            "read": image_reader(ready.channels),
            "on_bad": leave_out if skip_bad else None,
            "on_progress": progress.advance,
        }
        if to in ("png", "prob"):
            _write_maps(ready, records, out, to, common)
        else:
            written = _write_table(ready, records, out, to, common)
            for record in records:
                if record.id not in written:
                    unfit.setdefault(record.id, BadFile(record.image, "left out before this prediction was continued"))
    return Prediction(out=out, num_written=len(records) - len(unfit), bad=[*bad, *unfit.values()])


def find_images(
    images: Path, *, out: Path, bad: list[BadFile] | None, note: Callable[[str], None] = lambda _: None
) -> list[Record]:
    """Returns a record per image below a folder (or of one file), sorted by path; problems go to ``bad`` if given.

    Hidden files and folders of predictions are passed over. Sizes are from headers: an image over the budget for
    decoding is told here, before any network is loaded.
    """
    if not images.exists():
        raise UserError(f"{images}: expected an image or a folder of images, found no such path")
    root = _root(images)
    if out.resolve() == root.resolve():
        raise UserError(f"{out}: --out is the images' own folder, where masks could overwrite them; choose another")
    paths = _photos(root, out, note) if images.is_dir() else [images]
    if not paths:
        raise UserError(f"{images}: expected images ({' '.join(IMAGE_SUFFIXES)}), found none")
    by_id = by_output_name(paths, root)
    sizes = measure(paths)
    problems = [size for size in sizes if isinstance(size, BadFile)]
    if problems and bad is None:
        raise first_problem(problems)
    if bad is not None:
        bad += problems
    return [
        Record(id=record_id, image=path, size=size)
        for (record_id, path), size in zip(by_id.items(), sizes, strict=True)
        if not isinstance(size, BadFile)
    ]


def by_output_name(paths: Sequence[Path], root: Path) -> dict[str, Path]:
    """Returns files by what their predictions are called; raises ``UserError`` for two that would share a name."""
    found: dict[str, Path] = {}
    for path in paths:
        other = found.setdefault(path.relative_to(root).with_suffix("").as_posix(), path)
        if other != path:
            raise UserError(f"{path}: {other.name} would give the same output name; rename one of them")
    return found


def _root(images: Path) -> Path:
    return images if images.is_dir() else images.parent


def _photos(root: Path, out: Path, note: Callable[[str], None]) -> list[Path]:
    """Returns the images below ``root`` without those in ``out`` or other folders of predictions, and masks beside."""
    found = sorted(image_files(root))
    target = out.resolve()
    holds: dict[Path, bool] = {root: False}

    def holds_predictions(folder: Path) -> bool:
        if folder not in holds:
            own = (folder / OWNER).is_file() or folder.resolve() == target
            holds[folder] = own or holds_predictions(folder.parent)
        return holds[folder]

    photos = [path for path in found if not holds_predictions(path.parent)]
    if len(photos) < len(found):
        note(f"{len(found) - len(photos)} images below {root} lie in folders of predictions and are passed over")
    if not any((root / name).is_dir() for name in IMAGE_FOLDERS):
        return photos
    masks = {root / name for name in MASK_FOLDERS}
    images = [path for path in photos if masks.isdisjoint(path.parents)]
    if len(images) < len(photos):
        note(f"{len(photos) - len(images)} files lie in a folder of masks beside the images and are passed over")
    return images


def mark_output(out: Path, run: RunDirectory, to: str, images: Path) -> None:
    """Writes whose predictions a folder holds; refuses one with other files, of another run or of other images.

    What a killed process left half-written counts as nothing.
    """
    marker = out / OWNER
    described = {"decision": run.decision(), "to": to, "images": str(images.resolve())}
    others = out.is_dir() and any(not entry.name.startswith(TEMPORARY_PREFIX) for entry in out.iterdir())
    if others and not marker.is_file():
        raise UserError(f"{out}: expected an empty or new folder, found other files; choose another folder")
    if marker.is_file() and (found := read_json(marker)) != described:
        same = isinstance(found, dict) and found | {"images": described["images"]} == described
        whose = f"of the images in {found.get('images')}" if same else "of another run or format"
        raise UserError(f"{out}: holds predictions {whose}; choose another folder or remove this one")
    if not marker.is_file():  # once: a process that shares the folder may remove what another one has half-written
        write_json(marker, described)


def _write_maps(opened: Opened, records: Sequence[Record], out: Path, to: str, common: dict[str, Any]) -> None:
    paths = mask_paths if to == "png" else probability_paths

    def consume(record: Record, maps: dict[str, np.ndarray]) -> None:
        if to == "png":
            write_mask(out, ClassMap(id=record.id, labels=opened.labels(maps)), opened.task)
        else:
            write_probabilities(out, ProbabilityMap(id=record.id, values=maps[RESULT]), opened.task)

    def is_written(record: Record) -> bool:
        facts = record.image.stat()  # of a file that was put in another's place, mtime may be old, ctime is not
        changed = max(facts.st_mtime_ns, facts.st_ctime_ns)
        files = paths(out, record.id, opened.task)
        return all(path.is_file() and path.stat().st_mtime_ns >= changed for path in files)

    predict_records(opened.predictor, records, consume, skip=is_written, **common)


def _write_table(opened: Opened, records: Sequence[Record], out: Path, to: str, common: dict[str, Any]) -> set[str]:
    """Returns the ids of the records in the table, which other processes may be at, too."""
    # Chunks of an attempt on other images, or on other versions of them, lie under another name and are not read.
    key = _fingerprint(records, skip_bad=common["on_bad"] is not None)
    advance = common.pop("on_progress")

    def predict(chunk: Sequence[Record], folder: Path, tell: Callable[[int, int], None]) -> list[Path]:
        ledger = Ledger(folder, folder / "rows.sums")
        task, labels = opened.task, opened.labels
        return write_rows(
            opened.predictor, chunk, folder, task, decide=labels, ledger=ledger, on_progress=tell, **common
        )

    def write(files: Sequence[Path]) -> set[str]:
        written: set[str] = set()
        if to == "rle":
            form = SubmissionFormat(columns=("id", "class", "rle") if opened.task.num_maps > 1 else ("id", "rle"))
            with SubmissionWriter(table, form) as lines:
                for row in read_rows(files):
                    lines.write(row.record_id, row.runs, row.class_name if form.has_classes else "")
                    written.add(row.record_id)
        else:
            names = {record.id: record.id + record.image.suffix for record in records}
            with CocoWriter(table, opened.task) as writer:
                for row in read_rows(files):
                    mask = decode_runs(row.runs, row.size, order="row", base=1)
                    writer.write(row.record_id, names[row.record_id], row.class_name, mask)
                    written.add(row.record_id)
        return written

    table = out / TABLES[to]
    shared = SharedTable(table=table, rows=out / ".rows" / key, state=out / SHARED)
    return shared.write(records, predict, write, on_progress=advance)


def _fingerprint(records: Sequence[Record], *, skip_bad: bool) -> str:
    """Returns a fingerprint of the images by name, size, length and times of change."""
    facts = [(record.id, record.size, record.image.stat()) for record in records]
    return fingerprint(
        skip_bad,
        [(name, size, found.st_size, found.st_mtime_ns, found.st_ctime_ns) for name, size, found in facts],
    )
