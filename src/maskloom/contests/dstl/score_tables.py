"""A submission scored against a table of truth by the contest's metric, from the command line.

Knows nothing about where the tables come from.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from maskloom.contests.dstl.scoring import Areas, DstlScore, polygon_areas, score
from maskloom.contests.dstl.submission import read_submission
from maskloom.errors import UserError, some_of

if TYPE_CHECKING:
    from shapely import Polygon

Image = dict[int, list["Polygon"]]
"""The areas of an image by label, in grid coordinates."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TableScore:
    """The score of one table against another; images of the ``truth`` alone count as found empty."""

    score: DstlScore
    num_images: int
    missing: tuple[str, ...]
    """Images of the truth that the prediction has no row of."""
    extra: tuple[str, ...]
    """Images of the prediction that the truth has no row of, and which count nowhere."""


def score_tables(truth: Path, prediction: Path) -> TableScore:
    """Returns the contest's score of a submission; ``truth`` has the columns of a submission, as published truth has.

    Areas are those of grid coordinates, summed over the images of the truth. Both tables may be gzipped. Raises
    ``BadFile`` for a damaged table, and ``UserError`` for two tables without a common image.
    """
    true, found = _by_image(truth), _by_image(prediction)
    if not true.keys() & found.keys():
        names = f"{some_of(sorted(true), 2)} and {some_of(sorted(found), 2)}"
        raise UserError(f"{prediction}: expected images of {truth.name}, found none in common ({names})")
    areas = Areas.zero()
    for image, polygons in true.items():
        areas += polygon_areas(polygons, found.get(image, {}))
    return TableScore(
        score=score(areas),
        num_images=len(true),
        missing=tuple(sorted(true.keys() - found.keys())),
        extra=tuple(sorted(found.keys() - true.keys())),
    )


def _by_image(path: Path) -> dict[str, Image]:
    images: dict[str, Image] = {}
    for row in read_submission(path):
        images.setdefault(row.image, {}).setdefault(row.label, []).extend(row.polygons)
    return images


def main(arguments: Sequence[str] | None = None) -> None:
    """The door: ``python -m maskloom.contests.dstl.score_tables TRUTH PREDICTION``."""
    parser = argparse.ArgumentParser(description="Scores a submission as the Dstl contest does.")
    parser.add_argument("truth", type=Path, help="a table ImageId, ClassType, MultipolygonWKT")
    parser.add_argument("prediction", type=Path, help="a submission")
    given = parser.parse_args(arguments)
    try:
        found = score_tables(given.truth, given.prediction)
    except UserError as error:
        parser.exit(2, f"{error}\n")
    print(f"score: {found.score.mean:.6f} over {found.num_images} images")
    for name, value in found.score.jaccard.items():
        print(f"  {name}: {value:.6f}")
    for kind, names in (("absent", found.score.absent), ("missing", found.missing), ("extra", found.extra)):
        if names:
            print(f"{kind}: {some_of(names)}")


if __name__ == "__main__":
    main()
