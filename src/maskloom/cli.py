"""The command line: one command per thing a user wants, thin over ``maskloom.api``.

Heavy imports happen inside the commands, so that ``maskloom --help`` answers at once.
"""

from __future__ import annotations

import errno
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from maskloom.errors import UserError
from maskloom.files import FULL_DISK
from maskloom.termination import TERMINATED, terminable

if TYPE_CHECKING:
    from maskloom.console import Terminal

INTERRUPTED = 130
"""The exit code after Ctrl-C."""

_UsageError: Any = typer.BadParameter.mro()[1]  # of typer's own copy of click, or of click


@contextmanager
def _in_one_line() -> Iterator[None]:
    """Turns a mistake in how a command is called into a ``UserError``."""
    try:
        yield
    except _UsageError as error:
        is_known = error.ctx is not None and error.ctx.parent is not None
        command = f"maskloom {error.ctx.info_name}" if is_known else "maskloom"
        reason = error.format_message().rstrip(".")
        raise UserError(f"{command}: {reason[:1].lower()}{reason[1:]}; see `{command} --help`") from None


class _Commands(TyperGroup):
    """The commands; a mistake in how one is called is one line, as every other mistake is."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """Returns what a call is made of; one without a word shows the help."""
        with _in_one_line() if args else nullcontext():
            return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: Any) -> Any:
        """Runs the command."""
        with _in_one_line():
            return super().invoke(ctx)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Lists the commands, each with the whole first paragraph of its help."""
        first = {name: (command.help or "").partition("\n\n")[0] for name, command in self.commands.items()}
        with formatter.section("Commands"):
            formatter.write_dl([(name, " ".join(text.split())) for name, text in first.items()])


app = typer.Typer(
    name="maskloom",
    cls=_Commands,
    help="From a folder of images and masks to the most accurate masks that hardware and deadline allow.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,  # importing rich would take longer than all the rest of --help
    context_settings={"max_content_width": 100},
)


class Device(StrEnum):
    """Where to compute."""

    cpu = "cpu"
    cuda = "cuda"


class Format(StrEnum):
    """What predictions are written as."""

    png = "png"
    colours = "colours"
    prob = "prob"
    rle = "rle"
    coco = "coco"
    geotiff = "geotiff"
    geojson = "geojson"
    gpkg = "gpkg"
    fgb = "fgb"
    wkt = "wkt"


class Units(StrEnum):
    """What lengths of polygons are counted in."""

    pixels = "pixels"
    crs = "crs"


Data = Annotated[Path, typer.Option("--data", help="Folder, table or COCO file with images and masks.")]
Run = Annotated[Path, typer.Argument(help="The folder of a run.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Settings = Annotated[list[str] | None, typer.Option("--set", help="key=value, for instance seed=1; repeatable.")]
DeviceOption = Annotated[Device | None, typer.Option("--device", help="Default: CUDA where there is one.")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Leave damaged records out and list them in the report.")]
Workers = Annotated[int | None, typer.Option("--workers", min=0, help="Loader processes. Default: by cores.")]
On = Annotated[
    str | None,
    typer.Option("--on", metavar="local|ray|ray://HOST:PORT", help="Share the work: a process per GPU, or a cluster."),
]
Processes = Annotated[int | None, typer.Option("--processes", min=1, help="How many workers --on has.")]


@app.command()
def fit(
    recipe: Annotated[str, typer.Argument(help="A recipe's name (see `maskloom recipes`) or a YAML file.")],
    data: Data,
    run: Annotated[Path | None, typer.Option("--run", help="Run folder. Default: a new dated one.")] = None,
    settings: Settings = None,
    device: DeviceOption = None,
    skip_bad: SkipBad = False,
    workers: Workers = None,
    on: On = None,
    processes: Processes = None,
    devices_per_network: Annotated[
        int, typer.Option("--devices-per-network", min=1, help="GPUs that train one network together.")
    ] = 1,
) -> None:
    """Run every stage of a recipe: folds, training, out-of-fold scores, ensemble, predictions, report.

    Started again with the same run folder it continues; with a changed recipe it repeats only what depends on it.
    """
    from maskloom import api

    with _terminal() as terminal:
        result = api.fit(
            recipe, data, run=run, settings=settings or [], device=device, skip_bad=skip_bad, workers=workers,
            on=on, processes=processes, devices_per_network=devices_per_network, progress=terminal,
        )  # fmt: skip
    print(result.summary())


@app.command()
def predict(
    run: Run,
    images: Annotated[
        Path,
        typer.Argument(
            help="An image, or a folder of images. Of rasters also a table of scenes (CSV: id, image, band, band_2 …), "
            "or a folder in the Dstl layout."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder for what is written.")],
    to: Annotated[
        Format,
        typer.Option(
            "--to",
            help="png: masks; colours: masks in the data's colours; prob: 8-bit maps; rle: a table; coco: JSON. Of "
            "rasters of any size: geotiff: masks; geojson, gpkg, fgb, wkt: polygons.",
        ),
    ],
    probabilities: Annotated[bool, typer.Option("--probabilities", help="Probability rasters, too (geotiff).")] = False,
    uncertainty: Annotated[bool, typer.Option("--uncertainty", help="Uncertainty rasters, too (geotiff).")] = False,
    simplify: Annotated[
        float | None, typer.Option("--simplify", help="Distance by which outlines may move. Default: the recipe's.")
    ] = None,
    min_area: Annotated[float | None, typer.Option("--min-area", help="Leave out smaller polygons.")] = None,
    min_hole: Annotated[float | None, typer.Option("--min-hole", help="Fill smaller holes of polygons.")] = None,
    buffer: Annotated[
        float | None, typer.Option("--buffer", help="Distance by which outlines move outwards; inwards if below 0.")
    ] = None,
    units: Annotated[
        Units | None, typer.Option("--units", help="Of these lengths and areas: pixels, or crs (metres, say).")
    ] = None,
    grid: Annotated[Path | None, typer.Option("--grid", help="Grid sizes whose coordinates WKT has (Dstl).")] = None,
    device: DeviceOption = None,
    skip_bad: SkipBad = False,
    on: On = None,
    processes: Processes = None,
) -> None:
    """Predict masks for new images with a run's whole ensemble; started again it continues."""
    from maskloom import api

    with _terminal() as terminal:
        opened = api.open_run(run, device=device)
        done = opened.predict(
            images, out=out, to=to.value, probabilities=probabilities, uncertainty=uncertainty, simplify=simplify,
            min_area=min_area, min_hole=min_hole, buffer=buffer, units=units.value if units else None, grid=grid,
            skip_bad=skip_bad, on=on, processes=processes, progress=terminal,
        )  # fmt: skip
    print(f"{done.num_written} predictions in {done.out}" + (f", {len(done.bad)} left out" if done.bad else ""))


@app.command()
def evaluate(run: Run, json: Json = False) -> None:
    """Show a run's out-of-fold scores: ensemble and members, per fold."""
    from maskloom import api

    opened = api.open_run(run)
    print(_json(opened.evaluate()) if json else opened.summary())


@app.command()
def status(
    ctx: typer.Context,
    run: Run,
    html: Annotated[Path | None, typer.Option("--html", help="Write it as a page, too; it refreshes itself.")] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Look again and again, until the run is finished.")] = False,
    json: Json = False,
) -> None:
    """Show where a run stands: stages, who is at which since when, how fast, and when they are expected to end."""
    from maskloom import api

    if json:
        print(_json(api.status(run, page=html).to_json()))
        return
    from maskloom.console import show_status

    show_status(lambda: api.status(run, page=html), watch=watch)
    if ctx.obj:  # SIGTERM, not Ctrl-C, ended the watching
        raise typer.Exit(TERMINATED)


@app.command()
def verify(run: Run, json: Json = False) -> None:
    """Check every file of a run by its checksum; exit code 1 where one is damaged or missing, which `fit` mends."""
    from maskloom import api

    with _terminal() as terminal:
        result = api.verify(run, progress=terminal)
    print(_json(result.to_json()) if json else result.table())
    if not result.is_sound:
        raise typer.Exit(1)


class _TakesSeveral(TyperCommand):
    """A command whose option ``--against`` takes all that follows, up to the next option."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Repeats ``--against`` before each of the words that follow it, as click takes several values."""
        spread: list[str] = []
        is_open = False
        for word in args:
            if word.startswith("-"):
                is_open = word == "--against" or word.startswith("--against=")
                spread += [] if word == "--against" else [word]
            else:
                spread += ["--against", word] if is_open else [word]
        if is_open and args[-1] == "--against":
            spread.append("--against")  # which then says what it lacks
        return super().parse_args(ctx, spread)


@app.command(cls=_TakesSeveral)
def compare(
    runs: Annotated[list[Path], typer.Argument(help="RUN_A RUN_B; or A's runs of several seeds, before --against.")],
    against: Annotated[
        list[Path] | None,
        typer.Option("--against", metavar="RUN_B …", help="B's runs of several seeds: all folders that follow."),
    ] = None,
    group: Annotated[
        str | None,
        typer.Option("--group", help="Drawn together: an attribute, or a regular expression. Default: as in the runs."),
    ] = None,
    json: Json = False,
) -> None:
    """Compare two finished runs, or two systems of several seeds each, by their out-of-fold results.

    `compare A B`, or `compare A1 A2 A3 --against B1 B2 B3`. Shown are the scores of both, the difference B - A with its
    interval over groups (paired bootstrap), and the smallest difference that the data could show.
    """
    from maskloom import api

    if against is None and len(runs) != 2:
        raise UserError(
            f"expected two runs, found {len(runs)}; several seeds are stated as compare A1 A2 --against B1 B2"
        )
    first, second = (runs, against) if against is not None else (runs[:1], runs[1:])
    with _terminal() as terminal:
        result = api.compare(first, second, group=group, progress=terminal)
    print(_json(result.to_json()) if json else result.table())


@app.command()
def score(
    truth: Annotated[Path, typer.Argument(help="Folder of masks, table, COCO or vector file with the truth.")],
    prediction: Annotated[Path, typer.Argument(help="The same for what is scored.")],
    json: Json = False,
    ignore: Annotated[int | None, typer.Option("--ignore", help="Truth value that counts nowhere.")] = None,
    classes: Annotated[str | None, typer.Option("--classes", help="Names of the labels 0, 1, …: a,b,c.")] = None,
    skip_missing: Annotated[bool, typer.Option("--skip-missing", help="Score what both sides have.")] = False,
    order: Annotated[str, typer.Option("--order", help="How tables count pixels: row or column.")] = "row",
    base: Annotated[int, typer.Option("--base", help="Number of the first pixel in tables: 0 or 1.")] = 1,
    size: Annotated[str | None, typer.Option("--size", help="HEIGHTxWIDTH of images, for two tables.")] = None,
    foreground: Annotated[bool, typer.Option("--foreground", help="Take every value above 0 as one class.")] = False,
    boundary: Annotated[bool, typer.Option("--boundary", help="The F-score of outlines, too.")] = False,
    tolerance: Annotated[
        str | None,
        typer.Option("--tolerance", help="Pixels (3), or share of the diagonal, that outlines may lie apart: 0.75%."),
    ] = None,
) -> None:
    """Compare any two mask sets, independently of a run."""
    from maskloom import api

    names = classes.split(",") if classes else None
    result = api.score(
        truth, prediction, ignore=ignore, classes=names, skip_missing=skip_missing, order=order, base=base,
        size=_size(size), foreground=foreground, boundary=boundary, tolerance=tolerance,
    )  # fmt: skip
    print(_json(result.to_json()) if json else result.table())


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="Folder of masks, table, COCO file or vector file.")],
    out: Annotated[Path, typer.Argument(help="Folder, .csv, .csv.gz, .json, .geojson, .gpkg or .fgb.")],
    like: Annotated[Path | None, typer.Option("--like", help="Images with size and CRS, or a sample table.")] = None,
    to: Annotated[str | None, typer.Option("--to", help="geotiff or layers for a folder, wkt for a table.")] = None,
    classes: Annotated[str | None, typer.Option("--classes", help="Names of the labels 0, 1, …: a,b,c.")] = None,
    foreground: Annotated[bool, typer.Option("--foreground", help="Take every value above 0 as one class.")] = False,
    ignore: Annotated[int | None, typer.Option("--ignore", help="Value of mask files that is no class.")] = None,
    simplify: Annotated[float, typer.Option("--simplify", help="Pixels by which outlines may move.")] = 0.0,
    min_area: Annotated[float, typer.Option("--min-area", help="Leave out smaller parts; in pixels.")] = 0.0,
    order: Annotated[str, typer.Option("--order", help="How run lengths count pixels: row or column.")] = "row",
    base: Annotated[int, typer.Option("--base", help="Number of the first pixel in run lengths: 0 or 1.")] = 1,
    size: Annotated[str | None, typer.Option("--size", help="HEIGHTxWIDTH where nothing else tells.")] = None,
    grid: Annotated[Path | None, typer.Option("--grid", help="grid_sizes.csv of the Dstl contest, for WKT.")] = None,
) -> None:
    """Convert masks between PNG and GeoTIFF folders, run lengths, COCO, WKT tables, GeoJSON, GeoPackage, FlatGeobuf."""
    from maskloom import api

    names = classes.split(",") if classes else None
    with _terminal() as terminal:
        done = api.convert(
            source, out, like=like, to=to, classes=names, foreground=foreground, ignore=ignore, simplify=simplify,
            min_area=min_area, order=order, base=base, size=_size(size), grid=grid, progress=terminal,
        )  # fmt: skip
    print(f"{done.num_images} images in {done.out} ({done.kind})")


@app.command()
def inspect(
    data: Annotated[Path, typer.Argument(help="Folder, table or COCO file with images and masks.")],
    out: Annotated[Path | None, typer.Option("--out", help="Write the page here. Default: inspection.html.")] = None,
    settings: Settings = None,
) -> None:
    """Show what is in the data: sizes, classes, duplicates, damaged files, suspicious masks."""
    from maskloom import api

    page = out or Path("inspection.html")
    with _terminal() as terminal:
        table = api.inspect(data, page=page, settings=settings or [], progress=terminal)
    print(table)
    print(f"page with pictures: {page}")


@app.command(name="import-weights")
def import_weights(
    file: Annotated[Path, typer.Argument(help="A checkpoint: safetensors, or any file of torch.save.")],
    name: Annotated[str, typer.Option("--as", help="The published network, for instance ternaus-unet11.")],
    out: Annotated[Path, typer.Option("--out", help="Write the bundle here.")],
) -> None:
    """Make a bundle of a published network's checkpoint; nothing in the file is executed."""
    from maskloom import api

    print(api.import_weights(file, name=name, out=out))


@app.command()
def report(run: Run) -> None:
    """Write a run's report page again and print where it is."""
    from maskloom import api

    print(api.open_run(run).report())


@app.command()
def recipes() -> None:
    """List the recipes by name."""
    from maskloom import api

    for name, first_line in api.recipes().items():
        print(f"{name:<16} {first_line}")


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder for the generated data and the run.")] = Path("demo"),
    device: DeviceOption = None,
) -> None:
    """Draw a small photo set, train and predict on it, and write the report."""
    from maskloom import api

    with _terminal() as terminal:
        result = api.demo(out, device=device, progress=terminal)
    print(result.summary())


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    height, _, width = text.lower().replace("×", "x").partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        raise UserError(f"--size {text}: expected HEIGHTxWIDTH in pixels, for instance 1280x1918")
    return int(height), int(width)


def _terminal() -> Terminal:
    from maskloom.console import Terminal

    return Terminal()


def _json(value: object) -> str:
    import json

    return json.dumps(value, indent=2, ensure_ascii=False)


def main() -> None:
    """Runs the command line; a ``UserError`` becomes one line and exit code 2, Ctrl-C exit code 130, SIGTERM 143."""
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
    with terminable() as terminated:
        try:
            app(obj=terminated)
        except UserError as error:
            from maskloom.console import print_error

            print_error(str(error))
            sys.exit(2)
        except OSError as error:
            full = error.errno in FULL_DISK
            if not full and not error.filename:
                raise
            from maskloom.console import print_error

            place = str(error.filename or "while writing")[:300]
            if full:
                print_error(
                    f"{place}: the disk is full; free some space and start the same command again, it continues"
                )
            elif error.errno == errno.EROFS:  # which only writing meets
                print_error(
                    f"{place}: cannot be written ({error.strerror}); make the disk writable and start the same "
                    "command again, it continues, or choose another folder"
                )
            else:
                print_error(f"{place}: {error.strerror or 'cannot be used'}; check the path and its permissions")
            sys.exit(2)
        except SystemExit as stop:
            if stop.code == INTERRUPTED:
                print("stopped; start the same command again to continue", file=sys.stderr)
                stop.code = TERMINATED if terminated else INTERRUPTED
            raise
