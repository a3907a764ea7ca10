"""Lets torchvision be imported beside a torch that its compiled operators do not fit.

The registry's torchvision wheel is built against the CUDA build of torch. Beside a CPU-only torch its library cannot
be loaded, and torchvision then fails while it describes ``nms`` and ``qnms``, two operators nobody has declared.
Declaring them is enough: this package uses neither, only timm and segmentation-models-pytorch, which import
torchvision. Call ``ensure`` before either is imported.
"""

from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch

_OPERATORS = ("nms", "qnms")
_kept: list[torch.library.Library] = []  # a declaration lives as long as its library object


def ensure() -> bool:
    """Returns whether ``nms`` and ``qnms`` were declared here, which happens when the compiled ones cannot be loaded.

    Does nothing when torchvision is absent, already imported, or whole; may be called any number of times.
    """
    if _kept or "torchvision" in sys.modules:
        return False
    spec = importlib.util.find_spec("torchvision")
    if spec is None or _load_compiled([Path(folder) for folder in spec.submodule_search_locations or ()]):
        return False
    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for name in _OPERATORS:
        library.define(  # type: ignore[no-untyped-call]
            f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        )
    _kept.append(library)
    return True


def _load_compiled(folders: list[Path]) -> bool:
    """Returns whether torchvision's compiled operators are there; loads its library as torchvision itself would."""
    candidates = [folder / f"_C{suffix}" for folder in folders for suffix in EXTENSION_SUFFIXES]
    for path in candidates:
        if path.is_file():
            try:
                torch.ops.load_library(path)  # type: ignore[no-untyped-call]
            except OSError:
                continue
            return all(hasattr(torch.ops.torchvision, name) for name in _OPERATORS)
    return False
