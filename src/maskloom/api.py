"""The Python door: fit, open_run, status, compare, score, convert, inspect. The command line is thin over this.

A finished run is in ``maskloom.runs``. Heavy rooms are imported by the function that needs them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskloom.errors import BadFile, UserError, closest
from maskloom.files import checksum
from maskloom.progress import Progress, Silent
from maskloom.registry import builders as builders
from maskloom.registry import open_source, plan
from maskloom.registry import recipes as recipes
from maskloom.run_directory import RunDirectory
from maskloom.runs import Run as Run
from maskloom.runs import open_run as open_run
from maskloom.storage.places import local_data, readable_run, working_run
from maskloom.storage.urls import url_of

if TYPE_CHECKING:
    from maskloom.models.segmenter import Segmenter
    from maskloom.outputs.comparison import Comparison
    from maskloom.outputs.convert import Conversion
    from maskloom.outputs.status_rows import RunStatus
    from maskloom.recipe import Recipe
    from maskloom.records import Size
    from maskloom.stages.run_comparison import RunComparison
    from maskloom.stages.verification import Verification


def fit(
    recipe: str | Path | Recipe,
    data: Path | str,
    *,
    run: Path | str | None = None,
    settings: Sequence[str] = (),
    device: str | None = None,
    skip_bad: bool = False,
    workers: int | None = None,
    on: str | None = None,
    processes: int | None = None,
    devices_per_network: int = 1,
    progress: Progress | None = None,
) -> Run:
    """Returns the finished run of a recipe on a data folder; started again it continues.

    Args:
        recipe: A recipe's name, a YAML file, or a complete recipe.
        data: Folder, table or COCO file with images and masks; a path or a URL (``s3://…``).
        run: Folder or URL for everything produced; None makes ``runs/<recipe>-<date>-<time>``.
        settings: ``key=value`` changes to the recipe.
        device: "cpu", "cuda", or None for CUDA where there is one.
        skip_bad: Leave damaged records out and list them instead of stopping.
        workers: Loader processes (of each worker, where there are several); None chooses by the processor's cores.
        on: Where trainings and predictions run: None in this process, "local" in one per GPU (or several on the cores),
            "ray" or "ray://HOST:PORT" on a Ray cluster whose nodes all see the run's folder and the data.
        processes: How many workers there are; None: as GPUs or cores allow.
        devices_per_network: So many GPUs (or processes of the CPU) train each network together; not beside ``on``.
        progress: Hears stages, steps and notes.

    Raises:
        UserError: For every mistake in options, recipe or data.
    """
    from maskloom.executors.sites import open_site
    from maskloom.fitting import Fitting, dated_folder
    from maskloom.runtime import keep_freed_memory, rank_devices

    if devices_per_network > 1 and on is not None:
        raise UserError(
            f"--devices-per-network {devices_per_network}: expected no --on beside it, found --on {on}, which gives "
            "every network one device; leave one of them out"
        )
    listener = progress or Silent()
    with open_site(on, device=device, processes=processes) as site:
        rank_devices(site.device, devices_per_network)  # raises now where there are not so many
        if site.device.type == "cpu":
            keep_freed_memory()
        folder = local_data(data) if on is None else local_data(data).absolute()  # workers may be elsewhere
        complete, source = plan(recipe, folder, settings=settings, device=site.kind, skip_bad=skip_bad)
        place = run if run is not None else dated_folder(complete.name)
        listener.note(f"run folder: {url_of(place) or place}")
        for note in source.notes:
            listener.note(note)
        fitting = Fitting(
            recipe=complete,
            source=source,
            site=site,
            workers=workers,
            devices_per_network=devices_per_network,
            progress=listener,
        )
        with working_run(place) as root:
            fitting.run(root if on is None else root.absolute())
        return open_run(root, device=site.device.type)


def verify(run: Path | str, *, progress: Progress | None = None) -> Verification:
    """Returns which files of a run are sound, damaged, missing or without a checksum, and which stages are unfinished.

    Every file is read. The run, finished or not, is not changed; ``fit`` makes anew what is damaged or missing. Raises
    ``UserError`` when there is no run at ``run``.
    """
    from maskloom.stages.verification import verify_run

    return verify_run(readable_run(run), progress or Silent())


def status(run: Path | str, *, page: Path | str | None = None) -> RunStatus:
    """Returns where a run stands: its stages, who is at which, how far and how fast, when they are expected to end.

    ``page`` is where the same is written as a page that refreshes itself. Finished or not, at work or not, the run is
    not changed. Raises ``UserError`` when there is none at ``run``.
    """
    from maskloom.run_status import read_status

    found = read_status(RunDirectory.existing(readable_run(run)))
    if page is not None:
        from maskloom.outputs.status_page import write_status_page

        write_status_page(Path(page), found)
    return found


def compare(
    run_a: Path | str | Sequence[Path | str],
    run_b: Path | str | Sequence[Path | str],
    *,
    group: str | None = None,
    progress: Progress | None = None,
) -> RunComparison:
    """Returns by how much finished run B scores better than A out of fold, and how sure that is.

    Either may be several runs of one recipe with different seeds, whose spread then counts, too. Only images that all
    runs scored are compared. ``group`` says which images are easy or hard together (an attribute, or a regular
    expression on ids); None: as in the runs. Maps and masks are read only of runs of versions that stored no counts;
    ``progress`` hears how far that is.

    Raises ``UserError`` for what is no finished run, for other classes, metrics or masks, and without common images.
    """
    from maskloom.stages.run_comparison import compare_runs

    sides = ([run] if isinstance(run, str | Path) else run for run in (run_a, run_b))
    first, second = ([readable_run(run) for run in side] for side in sides)
    return compare_runs(first, second, progress or Silent(), group=group)


def load_bundle(path: Path | str) -> Segmenter:
    """Returns a trained network with its settings; ``.network`` maps N×C×H×W float32 to logits.

    Raises ``UserError`` when the file is not a bundle, or is one of a run and not what its training left there;
    nothing in it is ever executed.
    """
    from maskloom.models.bundle import load_bundle as load

    bundle = Path(path)
    for folder in bundle.parents:
        if (folder / "run.json").is_file():
            RunDirectory(folder).check([bundle])
    return load(bundle)


def import_weights(file: Path | str, *, name: str, out: Path | str) -> Path:
    """Returns the path of a bundle made of a published network's checkpoint; nothing in the file is ever executed.

    ``name`` is a key of ``maskloom.models.published.PUBLISHED``. An earlier import at ``out`` is replaced.

    Raises ``UserError`` for an unknown name, a file that is no checkpoint or one of another network (its unknown and
    missing tensors are listed), and when ``out`` holds anything else.
    """
    from maskloom.models.bundle import save_bundle
    from maskloom.models.foreign import read_foreign
    from maskloom.models.published import PUBLISHED, load_published
    from maskloom.outputs.convert_target import on_this_machine

    source, target = on_this_machine(file), on_this_machine(out)
    if name not in PUBLISHED:
        hint = closest(name, PUBLISHED)
        known = "" if hint.startswith("known") else f" known: {', '.join(sorted(PUBLISHED))}"
        raise UserError(f"no published network is called {name!r}; {hint}{known}")
    if target.exists() and not _was_imported(target):
        raise UserError(f"{target}: expected a new file or an earlier import, found another; choose another name")
    try:
        segmenter = load_published(name, read_foreign(source))
    except BadFile:
        raise
    except UserError as error:
        raise BadFile(source, str(error)) from error
    save_bundle(target, segmenter, {IMPORTED: {"name": name, "sha256": checksum(source)}})
    return target


IMPORTED = "imported"
"""The key under which a bundle says which published checkpoint it was made of."""


def _was_imported(path: Path) -> bool:
    from maskloom.models.bundle import read_extra

    try:
        return IMPORTED in read_extra(path)
    except BadFile:
        return False


def score(
    truth: Path | str,
    prediction: Path | str,
    *,
    ignore: int | None = None,
    classes: Sequence[str] | None = None,
    skip_missing: bool = False,
    order: str = "row",
    base: int = 1,
    size: Size | None = None,
    foreground: bool = False,
    boundary: bool = False,
    tolerance: str | None = None,
) -> Comparison:
    """Returns Dice and IoU of any two mask sets (folders, tables, COCO, vector files), independently of a run.

    ``ignore`` is a truth value that counts nowhere; ``classes`` names the labels 0, 1, …; ``skip_missing`` scores what
    both sides have; ``order`` ("row", "column") and ``base`` (0, 1) say how tables count pixels; ``size`` (height,
    width) is needed when both sides are tables; ``foreground`` takes every value above 0 as the one class. With
    ``boundary`` also the F-score of outlines; those that lie ``tolerance`` apart at most agree: pixels ("3") or a
    share of the image's diagonal (None: "0.75%").
    """
    from maskloom.boundary_score import Tolerance
    from maskloom.outputs.comparison import compare

    if order not in ("row", "column") or base not in (0, 1):
        raise UserError(f"expected order row or column and base 0 or 1, found {order!r} and {base}")
    if size is not None and min(size) < 1:
        raise UserError(f"expected a size (height, width) of at least 1 pixel each, found {size[0]}x{size[1]}")
    if tolerance is not None and not boundary:
        raise UserError(f"tolerance {tolerance}: expected boundary beside it, whose outlines it is of; state both")
    stated = Tolerance() if tolerance is None else Tolerance.parse(tolerance)
    return compare(
        Path(truth),
        Path(prediction),
        ignore=ignore,
        classes=classes,
        skip_missing=skip_missing,
        order="row" if order == "row" else "column",
        base=1 if base == 1 else 0,
        size=size,
        foreground=foreground,
        boundary=stated if boundary else None,
    )


def convert(
    source: Path | str,
    out: Path | str,
    *,
    like: Path | str | None = None,
    to: str | None = None,
    classes: Sequence[str] | None = None,
    foreground: bool = False,
    ignore: int | None = None,
    simplify: float = 0.0,
    min_area: float = 0.0,
    order: str = "row",
    base: int = 1,
    size: Size | None = None,
    grid: Path | str | None = None,
    progress: Progress | None = None,
) -> Conversion:
    """Returns what was written of masks in one kind of file, converted to another.

    Args:
        source: Folder of mask files, table of run lengths or WKT, COCO JSON, GeoJSON, GeoPackage or FlatGeobuf.
        out: A folder (PNG masks), ``.csv`` or ``.csv.gz`` (run lengths), ``.json`` (COCO), ``.geojson``, ``.gpkg`` or
            ``.fgb``. A folder must be new or hold masks converted before; a file is replaced.
        like: Images (a folder or a file) whose sizes, CRS and transforms hold, or a sample table with names, columns
            and order.
        to: "geotiff" or "layers" (one PNG per class) for a folder, "wkt" for a table, where the default is not meant.
        classes: Names of the labels 0, 1, …; one name is that of the foreground.
        foreground: Take every value above 0 (instance ids) as one class.
        ignore: A value of mask files that is no class.
        simplify: Distance in pixels by which outlines may move to have fewer vertices.
        min_area: Parts of less than so many square pixels are left out.
        order: "row" or "column": how tables of run lengths count pixels, read and written.
        base: 0 or 1: the number of the first pixel in them.
        size: (height, width) of images whose size nothing else tells.
        grid: ``grid_sizes.csv`` of the Dstl contest, for WKT in its coordinates.
        progress: Hears notes and how far it is.

    Raises:
        UserError: For every mistake in options or data; no file is left half-written.
    """
    from maskloom.outputs.convert import ConvertOptions, convert_masks

    if order not in ("row", "column") or base not in (0, 1):
        raise UserError(f"expected order row or column and base 0 or 1, found {order!r} and {base}")
    options = ConvertOptions(
        like=None if like is None else Path(like),
        to=to,
        classes=None if classes is None else tuple(classes),
        foreground=foreground,
        ignore=ignore,
        simplify=simplify,
        min_area=min_area,
        order="row" if order == "row" else "column",
        base=1 if base == 1 else 0,
        size=size,
        grid=None if grid is None else Path(grid),
    )
    return convert_masks(Path(source), Path(out), options, progress or Silent())


def inspect(
    data: Path | str, *, page: Path | str, settings: Sequence[str] = (), progress: Progress | None = None
) -> str:
    """Returns a table for the terminal of what is in the data, and writes the page with pictures."""
    from maskloom.config import override
    from maskloom.data.sources.base import DataSettings
    from maskloom.data.statistics import survey
    from maskloom.outputs.inspection import check_page, inspection_table, write_inspection

    check_page(Path(page))
    stated = override(DataSettings(skip_bad=True), [text.removeprefix("data.") for text in settings])
    source = open_source(local_data(data), stated)
    listener = progress or Silent()
    listener.stage("inspect", cached=False)
    found = survey(source, workers=8, on_progress=listener.advance, unlabelled=True)
    findings = write_inspection(Path(page), source, found)
    return inspection_table(source, found, findings)


def demo(out: Path | str, *, device: str | None = None, progress: Progress | None = None) -> Run:
    """Returns the run of the default recipe on generated photos below ``out``; started again it continues."""
    from maskloom.data.studio import write_studio
    from maskloom.outputs.convert_target import on_this_machine
    from maskloom.runtime import num_cores

    listener, folder = progress or Silent(), on_this_machine(out)
    data = folder / "data"
    listener.stage("studio", cached=False)
    write_studio(data, **DEMO_STUDIO, workers=num_cores(), on_photo=listener.advance)
    return fit("default", data, run=folder / "run", device=device, settings=DEMO_SETTINGS, progress=listener)


DEMO_STUDIO: dict[str, Any] = {"objects": 14, "test_objects": 2, "views": 16, "size": (256, 384), "seed": 0}
"""The generated photos of the demo."""
DEMO_SETTINGS = (
    "folds.count=2",
    "members.0.input.size=[192, 288]",
    "members.0.training.epochs=8",
    "members.0.training.images_per_epoch=120",
    "members.0.training.progressive=0.75",
    "members.0.training.validate_every=1",
    "members.0.training.validate_from=0.6",
)
"""What the demo changes in the default recipe so that it ends in a few minutes on two cores."""
