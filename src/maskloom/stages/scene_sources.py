"""Which rasters are predicted: a scene per TIFF below a folder, its further bands, and where it lies on the ground.

Headers are read and nothing else, so a scene may be of any size. Knows nothing about networks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from maskloom.data.sources.base import first_problem
from maskloom.data.sources.folder import image_files
from maskloom.errors import BadFile, UserError, closest
from maskloom.files import OWNER, fingerprint
from maskloom.rasters.georeference import Georeference, same_crs
from maskloom.rasters.stack import open_stack
from maskloom.records import BandFile, Record
from maskloom.stages.images import by_output_name

SUFFIXES = (".tif", ".tiff")
"""File suffixes, in lower case, that a folder is searched for."""


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
    note: Callable[[str], None] = lambda _: None,
) -> list[Scene]:
    """Returns a scene per TIFF below a folder (or of one file), sorted by path; problems go to ``bad`` if given.

    Hidden files, folders of predictions, and files that are ``bands`` of a scene (by id) are passed over.
    """
    if not scenes.exists():
        raise UserError(f"{scenes}: expected a TIFF raster or a folder of them, found no such path")
    root = scenes if scenes.is_dir() else scenes.parent
    if out.resolve() == root.resolve():
        raise UserError(f"{out}: --out is the scenes' own folder, where rasters would overwrite them; choose another")
    further = {band.path.resolve() for each in bands.values() for band in each}
    paths = list(_images(root, out, note)) if scenes.is_dir() else [scenes]
    paths = [path for path in paths if path.suffix.lower() in SUFFIXES and path.resolve() not in further]
    if not paths:
        raise UserError(f"{scenes}: expected TIFF rasters ({' '.join(SUFFIXES)}), found none")
    by_id = by_output_name(paths, root)
    for name in bands:
        if name not in by_id:
            raise UserError(f"bands: no scene is called {name!r}; {closest(name, by_id)}")
    found: list[Scene] = []
    problems: list[BadFile] = []
    for scene_id, path in by_id.items():
        try:
            found.append(_scene(scene_id, path, tuple(bands.get(scene_id, ()))))
        except BadFile as problem:
            problems.append(problem)
    if problems and bad is None:
        raise first_problem(problems)
    if bad is not None:
        bad += problems
    return found


def _images(root: Path, out: Path, note: Callable[[str], None]) -> Iterator[Path]:
    """Yields the images below ``root`` but those in ``out`` or another folder of predictions."""
    target = out.resolve()
    num_passed_over = 0
    for path in sorted(image_files(root)):
        folders = [folder for folder in path.parents if folder != root and folder.is_relative_to(root)]
        if any((folder / OWNER).is_file() or folder.resolve() == target for folder in folders):
            num_passed_over += 1
        else:
            yield path
    if num_passed_over:
        note(f"{num_passed_over} images below {root} lie in folders of predictions and are passed over")


def _scene(scene_id: str, path: Path, bands: tuple[BandFile, ...]) -> Scene:
    with open_stack(path, bands) as raster:
        record = Record(id=scene_id, image=path, size=raster.size, bands=bands)
        georeference = raster.georeference
    files = {str(file): file.stat() for file in (path, *(band.path for band in bands))}
    facts = [(name, found.st_size, found.st_mtime_ns) for name, found in files.items()]
    brought = [(band.resampling, band.moved) for band in bands]
    return Scene(
        record=record, georeference=georeference, fingerprint=fingerprint(scene_id, record.size, facts, brought)
    )


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
