"""Which rasters are predicted: every scene's image, its further files, and where it lies on the ground.

Scenes are the TIFFs below a folder (or one file), the rows of a table, or what a layout of data says. Headers are read
and nothing else, so a scene may be of any size. Knows nothing about networks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from maskloom.data.image_kinds import Accepted, ImageKind, stored_type
from maskloom.data.record_images import MOVED_RIM, image_files
from maskloom.data.sources.base import DataSource, first_problem
from maskloom.data.sources.folder import image_files as images_below
from maskloom.errors import BadFile, UserError, closest
from maskloom.files import OWNER, fingerprint
from maskloom.rasters.georeference import Georeference, same_crs
from maskloom.rasters.stack import REFLECTED, Stack, open_stack
from maskloom.records import BandFile, Record
from maskloom.stages.images import by_output_name
from maskloom.stages.scene_table import COLUMNS, RASTER_SUFFIXES, SceneFiles, is_table, read_scene_table

UNMOVED = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
"""``BandFile.moved`` of a file that stays as it lies."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """One raster to be predicted."""

    record: Record
    georeference: Georeference | None
    fingerprint: str
    """Of its files, by name, length and time of change, and of how they are brought together."""

    @property
    def id(self) -> str:
        """Its name in what is written."""
        return self.record.id


def find_scenes(
    scenes: Path,
    *,
    out: Path,
    bands: Mapping[str, Sequence[BandFile]],
    bad: list[BadFile] | None,
    channels: int | None = None,
    takes_grey: bool = True,
    accepted: Accepted | None = None,
    layout: Callable[[Path], DataSource | None] = lambda _: None,
    note: Callable[[str], None] = lambda _: None,
) -> list[Scene]:
    """Returns the scenes of a table (in its order), of a layout, or one per TIFF below a folder, sorted by path.

    ``layout`` opens a folder of a known layout (None: it is in none): all its images are scenes, with truth or without.
    Of other folders, hidden files, folders of predictions, and files that are ``bands`` of a scene (by id) are passed
    over. Scenes must have ``channels`` bands over all their files, or be grey where three are asked for and it
    ``takes_grey``, and be of the depth ``accepted``. Problems of single scenes go to ``bad`` if given; otherwise the
    first one is raised.
    """
    if not scenes.exists():
        raise UserError(f"{scenes}: expected TIFF rasters, a folder or a table of them, found no such path")
    root = scenes if scenes.is_dir() else scenes.parent
    if out.resolve() == root.resolve():
        raise UserError(f"{out}: --out is the scenes' own folder, where rasters would overwrite them; choose another")
    problems: list[BadFile] = []
    opened = layout(scenes) if scenes.is_dir() else None
    if opened is None and not is_table(scenes):
        named = _rasters(scenes, root, out, bands, note)
    elif bands:
        raise UserError("bands: expected none beside a table or a layout, which name every scene's files; leave it out")
    elif opened is None:
        named = read_scene_table(scenes, note=note)
    else:
        named = _of_layout(opened, problems, note)
    found: list[Scene] = []
    for files in named:
        try:
            found.append(_scene(files, channels, takes_grey, accepted))
        except BadFile as problem:
            problems.append(problem)
    if problems and bad is None:
        raise first_problem(problems)
    if bad is not None:
        bad += problems
    return found


def _rasters(
    scenes: Path, root: Path, out: Path, bands: Mapping[str, Sequence[BandFile]], note: Callable[[str], None]
) -> list[SceneFiles]:
    """Returns the scenes of a TIFF or of a folder of them."""
    further = {band.path.resolve() for each in bands.values() for band in each}
    paths = list(_images(root, out, note)) if scenes.is_dir() else [scenes]
    paths = [path for path in paths if path.suffix.lower() in RASTER_SUFFIXES and path.resolve() not in further]
    if not paths:
        raise UserError(
            f"{scenes}: expected TIFF rasters ({' '.join(RASTER_SUFFIXES)}) or a table of scenes (.csv with the "
            f"columns {COLUMNS}), found none"
        )
    by_id = by_output_name(paths, root)
    for name in bands:
        if name not in by_id:
            raise UserError(f"bands: no scene is called {name!r}; {closest(name, by_id)}")
    return [SceneFiles(scene_id, path, tuple(bands.get(scene_id, ()))) for scene_id, path in by_id.items()]


def _images(root: Path, out: Path, note: Callable[[str], None]) -> Iterator[Path]:
    """Yields the images below ``root`` but those in ``out`` or another folder of predictions."""
    target = out.resolve()
    num_passed_over = 0
    for path in sorted(images_below(root)):
        folders = [folder for folder in path.parents if folder != root and folder.is_relative_to(root)]
        if any((folder / OWNER).is_file() or folder.resolve() == target for folder in folders):
            num_passed_over += 1
        else:
            yield path
    if num_passed_over:
        note(f"{num_passed_over} images below {root} lie in folders of predictions and are passed over")


def _of_layout(source: DataSource, problems: list[BadFile], note: Callable[[str], None]) -> list[SceneFiles]:
    """Returns the scenes of opened data, sorted by id; what is wrong with others goes to ``problems``."""
    records = sorted((*source.records, *source.unlabelled), key=lambda record: record.id)
    note(f"{source.root}: read as the layout {source.layout}: {len(records)} scenes, with truth or without")
    problems += [
        problem if isinstance(problem, BadFile) else BadFile(source.root, str(problem)) for problem in source.problems
    ]
    return [SceneFiles(record.id, record.image, record.bands) for record in records]


def _scene(files: SceneFiles, channels: int | None, takes_grey: bool, accepted: Accepted | None) -> Scene:
    if any(part.startswith(".") for part in files.id.split("/")):
        raise BadFile(files.image, f"expected a scene's name without hidden parts, found {files.id!r}; rename it")
    for path in (files.image, *(band.path for band in files.bands)):
        if not path.is_file():
            raise BadFile(path, f"no such file, but scene {files.id!r} needs it; restore it or correct its name")
    with open_stack(files.image, files.bands) as raster:
        _check_count(files, raster, channels, takes_grey)
        reason = accepted.problem(ImageKind(dtype=stored_type(raster.dtype.name))) if accepted is not None else ""
        if reason:
            raise BadFile(files.image, reason)
        record = Record(id=files.id, image=files.image, size=raster.size, bands=files.bands)
        return Scene(record=record, georeference=raster.georeference, fingerprint=_fingerprint(record))


def _check_count(files: SceneFiles, raster: Stack, channels: int | None, takes_grey: bool) -> None:
    if channels is None or raster.count == channels or (takes_grey and (raster.count, channels) == (1, 3)):
        return
    found = str(raster.count)
    if files.bands:
        found += f" ({' + '.join(str(layer.raster.count) for layer in raster.layers)} of {len(raster.layers)} files)"
    raise BadFile(
        files.image,
        f"expected {channels} band(s) for scene {files.id!r} as the networks take, found {found}; give all its files, "
        f"and no others (further files stand in a table with the columns {COLUMNS})",
    )


def _fingerprint(record: Record) -> str:
    found = {str(path): path.stat() for path in image_files(record)}
    facts = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in found.items()]
    return fingerprint(record.id, record.size, facts, [(band.resampling, band.moved) for band in record.bands])


def with_bands(scene: Scene, bands: Sequence[BandFile]) -> Scene:
    """Returns the scene with its further files as given, the same ones on another place."""
    record = replace(scene.record, bands=tuple(bands))
    return replace(scene, record=record, fingerprint=_fingerprint(record))


@contextmanager
def open_scene(record: Record) -> Iterator[Stack]:
    """Yields a scene's files on one grid, as training reads them: files that were moved are mirrored at their rims."""
    is_moved = any(band.moved != UNMOVED for band in record.bands)
    with open_stack(record.image, record.bands, reflected=MOVED_RIM if is_moved else REFLECTED) as raster:
        yield raster


def shared_crs(scenes: Sequence[Scene]) -> str | None:
    """Returns the one CRS of all scenes, None where none has one; raises ``UserError`` naming two that differ."""
    expected = _crs(scenes[0])
    for scene in scenes:
        found = _crs(scene)
        if found != expected and (found is None or expected is None or not same_crs(found, expected)):
            raise UserError(
                f"polygons share one file, which has one CRS, found {expected or 'none'} ({scenes[0].id}) and "
                f"{found or 'none'} ({scene.id}); predict the scenes of each CRS by themselves, or --to geotiff"
            )
    return expected


def _crs(scene: Scene) -> str | None:
    return None if scene.georeference is None else scene.georeference.crs
