"""New scenes' further files, registered as the run's recipe registers those that it learns from.

Every scene leaves a small file beside what is predicted, so a killed process goes on where it stood, and of several
processes each scene is registered by one. Knows nothing about networks.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from maskloom.data.band_registration import RegistrationSettings, registered
from maskloom.data.sources.base import first_problem
from maskloom.errors import BadFile, UserError
from maskloom.files import fingerprint
from maskloom.integrity import read_sealed, write_sealed
from maskloom.progress import Progress
from maskloom.rasters.registration import Registration
from maskloom.stages.claims import Claims
from maskloom.stages.registration import moved_bands
from maskloom.stages.scene_sources import UNMOVED, Scene, with_bands

FOLDER = "registration"
"""The folder, beside what is written, of a file per scene: the place of each further file, and its correlation."""
PAUSE_SECONDS = 0.2
"""So long a process waits while others register what is left."""

_THREADS = 4


def register_scenes(
    scenes: Sequence[Scene],
    settings: RegistrationSettings,
    *,
    out: Path,
    claims: Path,
    bad: list[BadFile] | None,
    progress: Progress,
) -> list[Scene]:
    """Returns the scenes, their further files where they lie on the image by ``settings``; what is found is noted.

    Scenes of one file are returned as they are, and those of which a file was moved before. Results are stored in
    ``out``; ``claims`` is the file by which processes share the work. A scene that cannot be registered goes to ``bad``
    if given, else the first one raises ``BadFile``; where the settings say that files may stay as they lie, they do,
    and it is noted.
    """
    asked = [_Asked.of(scene, number, settings, out) for number, scene in enumerate(scenes) if _is_asked(scene)]
    if not asked:
        return list(scenes)
    waiting = [one for one in asked if one.stored() is None]
    progress.stage("register", cached=not waiting)
    problems: dict[str, BadFile] = {}
    done = len(asked) - len(waiting)
    with Claims(claims) as shared, ThreadPoolExecutor(_THREADS) as pool:
        while waiting:
            left = []
            for one, answer in zip(waiting, pool.map(lambda one: one.find(settings, shared), waiting), strict=True):
                if answer is None:
                    left.append(one)
                elif isinstance(answer, BadFile):
                    problems[one.scene.id] = answer
                else:
                    for text in answer:
                        progress.note(text)
                done += answer is not None
                progress.advance(done, len(asked), one.scene.id)
            if len(left) == len(waiting):
                time.sleep(PAUSE_SECONDS)
            waiting = left
    if problems and bad is None:
        raise first_problem(list(problems.values()))
    if bad is not None:
        bad += problems.values()
    placed = {one.scene.id: one.placed() for one in asked if one.scene.id not in problems}
    return [placed.get(scene.id, scene) for scene in scenes if scene.id not in problems]


def _is_asked(scene: Scene) -> bool:
    return bool(scene.record.bands) and all(band.moved == UNMOVED for band in scene.record.bands)


@dataclass(frozen=True, slots=True)
class _Asked:
    """One scene to be registered: its number among all, and where the result is stored, under which mark."""

    scene: Scene
    number: int
    path: Path
    mark: str

    @classmethod
    def of(cls, scene: Scene, number: int, settings: RegistrationSettings, out: Path) -> _Asked:
        """Returns the scene as it is asked for, with a mark of its files and of the settings."""
        mark = fingerprint(scene.fingerprint, settings.model_dump(mode="json"))
        return cls(scene, number, out / FOLDER / f"{scene.id}.json", mark)

    def stored(self) -> dict[int, Registration] | None:
        """Returns what was found for the files by their number, None where that is to be found (again)."""
        try:
            values = read_sealed(self.path) if self.path.is_file() else None
            if values is None or values.get("mark") != self.mark:
                return None
            return {int(number): Registration.from_json(place) for number, place in values["files"].items()}
        except (UserError, KeyError, AttributeError):  # damaged from outside
            return None

    def placed(self) -> Scene:
        """Returns the scene with its further files where they were found to lie."""
        places = self.stored()
        if places is None:
            raise UserError(f"{self.path}: was removed or changed meanwhile; start the same command again")
        return with_bands(self.scene, moved_bands(self.scene.record, places))

    def find(self, settings: RegistrationSettings, claims: Claims) -> list[str] | BadFile | None:
        """Returns words on what was found and stored, or what is wrong; None while another process is at it."""
        if not claims.take(self.number):
            return None
        try:
            return [] if self.stored() is not None else self._found(settings)
        except BadFile as problem:
            return problem
        finally:
            claims.give_back(self.number)

    def _found(self, settings: RegistrationSettings) -> list[str]:
        record = self.scene.record
        try:
            places, problems = registered(record, settings.model_copy(update={"failed": "leave"}))
        except UserError as error:
            raise BadFile(record.image, f"scene {record.id!r}: {error}") from None
        if problems and settings.failed == "stop":
            raise BadFile(
                record.image, f"scene {record.id!r} cannot be predicted: {problems[0]}; --skip-bad leaves it out"
            )
        files = {str(number): place.to_json() for number, place in places.items()}
        write_sealed(self.path, {"mark": self.mark, "files": files})
        notes = [
            f"{record.id}: {record.bands[number].path.name} {_words(place)}, correlation {place.correlation:.3f}"
            for number, place in places.items()
        ]
        return [*notes, *(f"{record.id}: left as it lies: {problem}" for problem in problems)]


def _words(place: Registration) -> str:
    if place.motion == "affine":
        return "is registered by an affine map"
    return f"is registered by a shift of ({place.moved[2]:+.2f}, {place.moved[5]:+.2f}) pixels"
