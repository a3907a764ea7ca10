"""A finished run: its scores and report, and new images through it.

Heavy rooms are imported by the function that needs them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskloom.errors import UserError
from maskloom.heartbeat import Heartbeat
from maskloom.progress import Progress, Several, Silent
from maskloom.registry import open_scenes, scorers
from maskloom.run_directory import RunDirectory
from maskloom.run_lock import held
from maskloom.storage.places import local_data, origin_of, readable_run, working_run

if TYPE_CHECKING:
    import numpy as np

    from maskloom.encodings.polygon_settings import PolygonChanges
    from maskloom.stages.images import Opened, Prediction


def open_run(run: Path | str, *, device: str | None = None) -> Run:
    """Returns a finished run, to predict with and to read; raises ``UserError`` when there is none at ``run``."""
    folder = RunDirectory.existing(readable_run(run))
    folder.decision()
    return Run(folder=folder, device=device)


@dataclass(frozen=True, kw_only=True)
class Run:
    """A finished run."""

    folder: RunDirectory
    device: str | None = None

    def evaluate(self) -> dict[str, Any]:
        """Returns the out-of-fold scores: ``metric``, ``oof`` (mean, std, folds; cross-fitted) and ``members``.

        With post-processing also ``postprocess``: the ``steps`` taken, ``scores`` without and with, and their ``gain``.
        ``pixels`` are IoU and Dice per class of the pixels of all images together, ``boundary`` the boundary F-score of
        exclusive classes, ``contest`` the contest's own score where it has one; runs of earlier versions lack some.
        """
        from maskloom.stages.evaluation import evaluation

        return evaluation(self.folder, scorers())

    def summary(self) -> str:
        """Returns the scores as lines for a terminal, and where the report is."""
        from maskloom.stages.evaluation import score_lines

        return "\n".join([*score_lines(self.evaluate()), f"report: {self.folder.report}"])

    def predict(
        self,
        images: Path | str,
        *,
        out: Path | str,
        to: str = "png",
        probabilities: bool = False,
        uncertainty: bool = False,
        simplify: float | None = None,
        min_area: float | None = None,
        min_hole: float | None = None,
        buffer: float | None = None,
        units: str | None = None,
        grid: Path | str | None = None,
        skip_bad: bool = False,
        on: str | None = None,
        processes: int | None = None,
        progress: Progress | None = None,
    ) -> Prediction:
        """Returns what was written for an image or a folder of images.

        ``to`` is "png" (masks), "colours" (masks in the colours of those that were learnt from), "prob" (8-bit maps),
        "rle" (``predictions.csv.gz``) or "coco" (``predictions.json``). Images already written by the same run are
        skipped; the two tables are made by as many processes as are started with the same arguments. Or, for TIFF
        rasters of any size, "geotiff" (masks; with ``probabilities`` and ``uncertainty`` also those, 8 bits),
        "geojson", "gpkg", "fgb" or "wkt" (polygons of all scenes in one file): these are predicted block by block, by
        as many processes, too. Outlines are cleaned by ``simplify``, ``min_area``, ``min_hole`` and ``buffer``, in
        ``units`` ("pixels" or "crs"), and where these are None as the recipe's ``delivery.polygons`` says. ``grid`` is
        a table of grid sizes in whose coordinates WKT is written (Dstl).

        Of rasters, ``images`` may also be a table of scenes of several files (CSV: id, image, band, band_2 …; see
        ``stages.scene_table``), or a folder in the Dstl layout or, where the run learnt from stacks
        (``data.bands``), of scenes whose files are named so; files are registered where the run's recipe does so.

        ``on`` and ``processes`` say where networks are asked, as in ``maskloom.fit``: workers load them once each and
        are given shards of the images or blocks; this process writes tables, rasters and polygons.
        """
        from maskloom.executors.sites import Work, open_site
        from maskloom.outputs.convert_target import on_this_machine
        from maskloom.runtime import keep_freed_memory
        from maskloom.stages.image_files import FORMATS
        from maskloom.stages.images import accepted_by, open_decisions, predict_images
        from maskloom.stages.scene_files import SCENE_FORMATS
        from maskloom.stages.scenes import predict_scenes

        if to not in (*FORMATS, *SCENE_FORMATS):
            raise UserError(f"to={to!r}: expected one of {', '.join((*FORMATS, *SCENE_FORMATS))}")
        out, grid = on_this_machine(out), None if grid is None else on_this_machine(grid)
        shapes: PolygonChanges = {
            "simplify": simplify,
            "min_area": min_area,
            "min_hole": min_hole,
            "buffer": buffer,
            "units": units,
        }
        of_scenes, images, folder = to in SCENE_FORMATS, local_data(images), self.folder
        if on is not None:  # workers may be in another folder
            images, out, folder = images.absolute(), out.absolute(), RunDirectory(folder.root.absolute())
        if not of_scenes and (
            probabilities or uncertainty or grid is not None or any(value is not None for value in shapes.values())
        ):
            raise UserError(
                f"to={to!r}: probabilities, uncertainty, grid, {', '.join(shapes)} are for {', '.join(SCENE_FORMATS)}; "
                "leave them out"
            )
        with open_site(on, device=self.device, processes=processes) as site:
            if site.device.type == "cpu":
                keep_freed_memory()
            heartbeat = Heartbeat(
                folder.root,
                command="predict",
                target=str(out),
                device=str(site.device),
                unit="blocks" if of_scenes else "images",
            )
            work = Work(
                run=folder.root,
                command="predict",
                target=str(out),
                unit="blocks" if of_scenes else "images",
                sees=(images,),
                writes=(out,),
            )
            with heartbeat:
                common: dict[str, Any] = {
                    "out": out,
                    "to": to,
                    "opened": lambda: self._opened_now() if on is None else open_decisions(folder),
                    "skip_bad": skip_bad,
                    "progress": Several((progress or Silent(), heartbeat)),
                    "workers": lambda: site.workers(work, progress or Silent()),
                    "accepted": lambda: accepted_by(folder),
                }
                if not of_scenes:
                    return predict_images(folder, images, **common)
                return predict_scenes(
                    folder,
                    images,
                    probabilities=probabilities,
                    uncertainty=uncertainty,
                    **shapes,
                    grid=grid,
                    layout=open_scenes,
                    **common,
                )

    def predict_array(self, image: np.ndarray) -> np.ndarray:
        """Returns the labels uint8 H×W (multilabel C×H×W) of one image H×W×C as stored."""
        return self._opened.predict(image)

    @cached_property
    def _opened(self) -> Opened:
        """The networks, loaded at the first prediction."""
        from maskloom.stages.images import open_for_prediction

        return open_for_prediction(self.folder, self.device)

    def _opened_now(self) -> Opened:
        """Returns the networks, loaded again where the run was fitted anew since they were."""
        if self._opened.decision != self.folder.decision():
            del self.__dict__["_opened"]
        return self._opened

    def report(self) -> Path:
        """Returns the path of the report page after writing it again.

        Raises ``UserError``, naming who, where another process works in the run.
        """
        from maskloom.stages.reporting import write_report

        with working_run(origin_of(self.folder.root)), held(self.folder.root):  # of a URL, published, too
            report = write_report(self.folder, scorers())
            self.folder.accept("report", report)
        return report
