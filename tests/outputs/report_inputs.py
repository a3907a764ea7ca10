"""What tests of the report page share: a parser that checks the page, and the input of a small one."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np

from maskloom.data.folds import FoldRow, FoldTable
from maskloom.data.statistics import RecordFacts, Survey
from maskloom.errors import BadFile, UserError
from maskloom.outputs.report import Example, LookAlikes, ReportInput
from maskloom.records import Task, TaskKind

EVIL = '<script>alert("1")</script>&'
CLASSES: dict[TaskKind, tuple[str, ...]] = {
    "binary": ("car",),
    "multiclass": ("background", "road", "tree"),
    "multilabel": ("water", "crops"),
}
VOID = {"meta", "link", "img", "br"}


class Page(HTMLParser):
    """Collects tags and text, and checks that tags are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.headings: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        values = dict(attributes)
        self.links += [value or "" for name, value in attributes if name in {"src", "href", "xlink:href"}]
        self.ids += [values["id"] or ""] if "id" in values else []
        if tag not in VOID and self.get_starttag_text() and not (self.get_starttag_text() or "").endswith("/>"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self._open and self._open[-1] == tag:
            self._open.pop()
        else:
            assert tag in {"path", "rect", "circle"}, f"</{tag}> closes {self._open[-1:]}"

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] == "h2":
            self.headings.append(data)


def summary(mean: float, classes: tuple[str, ...], folds: int = 2) -> dict[str, Any]:
    values = [round(mean - 0.01 + 0.02 * fold / max(folds - 1, 1), 6) for fold in range(folds)]
    scores = dict.fromkeys(classes, mean)
    return {"mean": mean, "std": 0.01, "folds": values, "all_images": mean, "classes": scores}


def survey(kind: TaskKind, classes: tuple[str, ...], root: Path) -> Survey:
    records = tuple(
        RecordFacts(
            id=f"r{index}", group=f"g{index // 2}", size=(20, 30), dtype="uint8", mean=(1.0,) * 3, std=(2.0,) * 3,
            class_pixels=(60,) * len(classes), ignored=0, valid=600, digest=str(index),
            thumbnail=np.zeros((32, 32), np.uint8),
        )
        for index in range(12)
    )  # fmt: skip
    bad = (("r99", BadFile(root / "images" / "r99.jpg", "the image data is cut off")),)
    return Survey(task=Task(kind=kind, classes=classes), records=records, bad=bad, root=root)


def report_input(kind: TaskKind, classes: tuple[str, ...] | None = None, **changes: Any) -> ReportInput:
    names = classes or CLASSES[kind]
    shape = (len(names), 20, 30) if kind == "multilabel" else (20, 30)
    truth = np.zeros(shape, np.uint8)
    truth[..., 5:10, 5:20] = 1
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    epochs = [{"epoch": n, "loss": 1 / n, "score": 0.9 if n == 3 else None, "seconds": n * 1.0} for n in (1, 2, 3)]
    curve = np.linspace(0.5, 0.9, 256).tolist()
    page = ReportInput(
        name="a-run",
        data="photos",
        layout="folder",
        recipe_yaml="name: default\nseed: 0\n",
        evaluation={
            "metric": "iou" if kind == "multiclass" else "dice",
            "oof": summary(0.9, names),
            "fitted_on_all": summary(0.91, names),
            "half": summary(0.89, names),
            "members": {"unet": {**summary(0.88, names), "without_views": summary(0.87, names)}},
            "thresholds": [120] * len(names),
            "weights": {"unet": 1.0},
        },
        classes=names,
        task_kind=kind,
        learning_curves={"unet/fold0": epochs, "unet/fold1": epochs},
        image_scores=[0.8, 0.9, 0.95] * 4,
        threshold_curve=[] if kind == "multiclass" else [curve] * len(names),
        survey=survey(kind, names, Path("photos")),
        folds=FoldTable(tuple(FoldRow(f"r{index}", f"g{index // 2}", index // 2 % 2) for index in range(12))),
        near_duplicates=[{"first": "r0", "second": "r2", "similarity": 0.97}],
        look_alikes=[LookAlikes(ids=("r0", "r2"), images=(image, image))],
        left_out=(UserError("r77: the mask has another size"),),
        notes=("masks hold 0 and 1",),
        num_unlabelled=3,
        hardware={"processor": "a processor", "cores": 2, "device": "cpu"},
        seconds={"train/unet/fold0": 61.0, "train/unet/fold1": 59.0, "survey": 0.4, "oof/unet": 5.0},
        examples=[
            Example(id="r0", kind="worst", score=0.8, image=image, truth=truth, prediction=0 * truth, fold=0),
            Example(id="r1", kind="best", score=0.95, image=image, truth=truth, prediction=truth, fold=1),
        ],
    )
    return replace(page, **changes)
