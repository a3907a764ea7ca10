"""Descriptions of cars without any file: what a recipe is planned from."""

from __future__ import annotations

from pathlib import Path

from maskloom.data.mask_coding import MaskCoding
from maskloom.data.sources.base import DataSource
from maskloom.records import Record, Size, Task

PUBLISHED = (1280, 1918)


def described(cars: int, *, test_cars: int = 1, size: Size = PUBLISHED, kind: str = "binary") -> DataSource:
    """Returns a source of ``cars`` × 16 photos with masks and ``test_cars`` × 16 without; its files do not exist."""
    classes = ("car",) if kind == "binary" else ("background", "car")
    return DataSource(
        layout="carvana",
        root=Path("cars"),
        task=Task(kind=kind, classes=classes),  # type: ignore[arg-type]
        coding=MaskCoding(kind="values", values=((0, 0), (1, 1))),
        records=photos("car", cars, size),
        unlabelled=photos("test", test_cars, size),
        submission="carvana",
    )


def photos(name: str, cars: int, size: Size) -> tuple[Record, ...]:
    return tuple(
        Record(
            id=f"{name}{car:03d}_{view:02d}",
            image=Path(f"{name}{car:03d}_{view:02d}.jpg"),
            size=size,
            group=f"{name}{car:03d}",
            attributes={"view": f"{view:02d}"},
        )
        for car in range(cars)
        for view in range(1, 17)
    )
