"""New images through a finished run: masks, probability maps, a table of run lengths or COCO JSON.

The run's bundles and decisions are all it reads; the data it was trained on may be gone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from maskloom.config import load_yaml, parse
from maskloom.data.image_io import IMAGE_SUFFIXES
from maskloom.data.image_kinds import Accepted, read_kinds
from maskloom.data.mask_coding import Colour, MaskCoding
from maskloom.data.palettes import palette
from maskloom.data.sources.base import first_problem, measure
from maskloom.data.sources.folder import IMAGE_FOLDERS, MASK_FOLDERS, image_files
from maskloom.errors import BadFile, UserError
from maskloom.executors.tasks import Executor, InProcess
from maskloom.files import OWNER, TEMPORARY_PREFIX, read_json, remove_partial, write_json
from maskloom.integrity import read_sealed
from maskloom.models.bundle import read_normalisation
from maskloom.progress import Progress
from maskloom.recipe import Recipe
from maskloom.records import Record, Task, check_id
from maskloom.run_directory import RunDirectory
from maskloom.run_lock import held
from maskloom.runtime import choose_device
from maskloom.stages.ensemble import Ensemble, load_ensemble, open_predictor
from maskloom.stages.guides import bundle_paths, networks_of
from maskloom.stages.image_files import FORMATS, TABLES, Asked, write_files, write_table
from maskloom.stages.prediction import decider


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
    predictor: Callable[..., dict[str, np.ndarray]]
    """Gives 8-bit maps C×H×W by name of an image H×W×C as stored."""
    task: Task
    labels: Callable[[dict[str, np.ndarray]], np.ndarray]
    """Decides masks from 8-bit maps C×H×W by name."""
    decision: str
    """What the run had decided when it was opened; see ``RunDirectory.decision``."""

    @property
    def channels(self) -> int:
        """Channels of the images."""
        return max(member.image_channels for member in self.recipe.members)

    @property
    def takes_grey(self) -> bool:
        """Whether a single band stands for three; see ``Recipe.takes_grey``."""
        return self.recipe.takes_grey

    def predict(self, image: np.ndarray) -> np.ndarray:
        """Returns the labels of one image H×W×C as stored."""
        return self.labels(self.predictor(image))


def open_for_prediction(run: RunDirectory, device: str | None) -> Opened:
    """Returns the run with its networks loaded on the device."""
    decision = run.decision()
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
    return Opened(
        recipe=recipe, ensemble=ensemble, predictor=predictor, task=task, labels=labels, decision=decision
    )  # fmt: skip


def open_decisions(run: RunDirectory) -> Opened:
    """Returns the run without its networks, for a process whose workers have them."""
    decision = run.decision()
    recipe = parse(Recipe, load_yaml(run.recipe), origin=str(run.recipe))
    ensemble = load_ensemble(run)
    if recipe.outside or ensemble.task is None:  # an earlier version's, whose networks alone tell the task
        return open_for_prediction(run, "cpu")
    labels = decider(run, recipe, ensemble, ensemble.task)
    return Opened(
        recipe=recipe, ensemble=ensemble, predictor=_nobody, task=ensemble.task, labels=labels, decision=decision
    )  # fmt: skip


def opened_as(run: RunDirectory, decision: str, open_it: Callable[[], Opened]) -> Opened:
    """Returns what ``open_it`` does of a run; raises ``UserError`` where `fit` has changed the run since ``decision``.

    A `fit` that changes anything takes the decision away first, so that what was read before it is looked at again is
    of one decision.
    """
    try:
        opened = open_it()
    except (UserError, OSError):  # perhaps of files that are being replaced
        run.expect_decision(decision)
        raise
    run.expect_decision(decision)
    return opened


def accepted_by(run: RunDirectory) -> Accepted | None:
    """Returns which images a run's networks take, by the header of one of them; None where that cannot be read.

    All were trained on images of one kind; opening them says what is wrong.
    """
    try:
        recipe = parse(Recipe, load_yaml(run.recipe), origin=str(run.recipe))
        ensemble = load_ensemble(run)
        (bundle, *_) = bundle_paths(run, recipe, networks_of(ensemble.tree, ensemble.guiding)).values()
        dtype = read_normalisation(bundle).dtype
    except (UserError, KeyError, ValueError):
        return None
    channels = max(member.image_channels for member in recipe.members)
    return Accepted(channels=channels, dtype=dtype, takes_grey=recipe.takes_grey)


def no_workers() -> AbstractContextManager[Executor]:
    """Returns what computes in this process."""
    return nullcontext(InProcess())


def _nobody(*_: Any, **__: Any) -> dict[str, np.ndarray]:
    raise RuntimeError("expected the networks to be asked by workers")


def predict_images(
    run: RunDirectory,
    images: Path,
    *,
    out: Path,
    to: str,
    opened: Callable[[], Opened],
    skip_bad: bool,
    progress: Progress,
    workers: Callable[[], AbstractContextManager[Executor]] = no_workers,
    accepted: Callable[[], Accepted | None] = lambda: None,
) -> Prediction:
    """Returns what was written; see ``maskloom.api.Run.predict``.

    Images that are not ``accepted`` by their headers are told before any is predicted.
    ``opened`` is asked, and ``workers`` are begun, once the images are found. Where the executor has workers, they are
    given shards of the images, and open the run themselves: ``opened`` is to give what was decided alone
    (``open_decisions``).
    """
    if to not in FORMATS:
        raise UserError(f"to={to!r}: expected one of {', '.join(FORMATS)}")
    decision = run.decision()
    colours = colours_of(run) if to == "colours" else ()
    bad: list[BadFile] = []
    unfit: dict[str, BadFile] = {}
    progress.stage("predict", cached=False)
    records = find_images(images, out=out, bad=bad if skip_bad else None, accepted=accepted(), note=progress.note)
    mark_output(out, run, to, _root(images))

    def leave_out(record: Record, problem: BadFile) -> None:
        unfit[record.id] = problem
        progress.note(f"left out: {problem}")

    alone = nullcontext() if to in TABLES else held(out)  # files of single images are not shared between processes
    with alone:
        if to not in TABLES:
            remove_partial(out)
        ready, on_bad = opened_as(run, decision, opened), leave_out if skip_bad else None
        asked = Asked(run=run, decision=decision, out=out, to=to, skip_bad=skip_bad, palette=colours)
        with workers() as executor:
            if to in TABLES:
                written = write_table(ready, records, asked, executor, on_bad=on_bad, progress=progress)
                for record in records:
                    if record.id not in written:
                        unfit.setdefault(
                            record.id, BadFile(record.image, "left out before this prediction was continued")
                        )
            else:
                write_files(ready, records, asked, executor, on_bad=on_bad, progress=progress)
                if executor.is_parallel:
                    remove_partial(out)  # of workers that were lost
        if to not in TABLES:  # of what an image was before it was damaged
            unread = [_output_name(problem.path, _root(images)) for problem in bad]
            for record_id in (*unfit, *unread):
                with suppress(UserError):  # of a name that no output can have
                    asked.remove(record_id, ready.task)
    return Prediction(out=out, num_written=len(records) - len(unfit), bad=[*bad, *unfit.values()])


def colours_of(run: RunDirectory) -> tuple[Colour, ...]:
    """Returns the colours of the labels, as the masks that the run learnt from have them; raises ``UserError``.

    Of all that prediction reads, this alone is in the run's description of its data.
    """
    if not run.source.is_file():
        raise UserError(f"{run.source}: expected the description of the data with its colours, found none; choose png")
    source = read_sealed(run.source)
    task = Task(kind=source["task"]["kind"], classes=tuple(source["task"]["classes"]))
    try:
        return palette(task, MaskCoding.from_json(source["coding"]))
    except UserError as error:
        raise UserError(f"to=colours: {error}") from None


def find_images(
    images: Path,
    *,
    out: Path,
    bad: list[BadFile] | None,
    accepted: Accepted | None = None,
    note: Callable[[str], None] = lambda _: None,
) -> list[Record]:
    """Returns a record per image below a folder (or of one file), sorted by path; problems go to ``bad`` if given.

    Hidden files and folders of predictions are passed over. Sizes are from headers: an image over the budget for
    decoding is told here, before any network is loaded, and so is one whose channels or depth are not ``accepted``.
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
    if accepted is not None:
        unfit = [accepted.problem(kind) for kind in read_kinds(paths)]
        sizes = [
            BadFile(path, reason) if reason and not isinstance(size, BadFile) else size
            for path, size, reason in zip(paths, sizes, unfit, strict=True)
        ]
    named = [_misnamed(record_id, path) for record_id, path in by_id.items()]
    sizes = [problem or size for problem, size in zip(named, sizes, strict=True)]
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
        other = found.setdefault(_output_name(path, root), path)
        if other != path:
            raise UserError(f"{path}: {other.name} would give the same output name; rename one of them")
    return found


def _misnamed(record_id: str, path: Path) -> BadFile | None:
    """Returns why no output can be called like an image; None where one can."""
    try:
        check_id(record_id)
    except UserError as error:
        return BadFile(path, str(error))
    return None


def _output_name(path: Path, root: Path) -> str:
    return path.relative_to(root).with_suffix("").as_posix()


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
    if marker.is_file() and (found := _owner_in(marker)) != described:
        if found is None:
            whose = f"and its {OWNER}, which says of what, is damaged"
        elif found | {"images": described["images"]} == described:
            whose = f"of the images in {found.get('images')!s:.300}"
        else:
            whose = "of another run or format"
        raise UserError(f"{out}: holds predictions {whose}; choose another folder or remove this one")
    if not marker.is_file():  # once: a process that shares the folder may remove what another one has half-written
        write_json(marker, described)


def _owner_in(marker: Path) -> dict[str, Any] | None:
    """Returns what the marker of a folder of predictions says; None where it is damaged."""
    try:
        found = read_json(marker)
    except UserError:
        return None
    return found if isinstance(found, dict) else None
