"""Mask sets whose classes may overlap: a folder of ``<name>/<class>.png``, as ``convert --to layers`` writes it.

Such a folder says itself which classes it has; of another one they must be stated. Knows nothing about scores or runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from maskloom.data.image_io import IMAGE_SUFFIXES, image_size, read_mask_values
from maskloom.errors import BadFile, UserError
from maskloom.files import OWNER, read_json
from maskloom.outputs.maps import class_paths
from maskloom.outputs.mask_sets import painted
from maskloom.records import BadSize, Size


@dataclass(frozen=True, slots=True)
class LayerMasks:
    """Files of one class each, 0 and one other value; all of an image are of one size."""

    origin: Path
    files: Mapping[str, Mapping[int, Path]]
    """By name and label value."""
    labels_of: Mapping[str, int]

    @classmethod
    def open(cls, folder: Path, labels_of: Mapping[str, int]) -> LayerMasks:
        """Returns the files of these classes; raises ``UserError`` for an image that lacks one, or has others."""
        files: dict[str, Mapping[int, Path]] = {}
        for name, found in _by_image(folder).items():
            expected = class_paths(folder, name, tuple(labels_of))
            if set(expected) != set(found):
                others = sorted(set(expected) ^ set(found))
                raise UserError(
                    f"{folder}: expected one file per class in {name} ({', '.join(labels_of)}), found "
                    f"{'none' if others[0] in expected else 'also a'} {others[0].name}; make them agree"
                )
            files[name] = dict(zip(labels_of.values(), expected, strict=True))
        if not files:
            raise UserError(f"{folder}: expected <name>/<class>.png, found none")
        return cls(folder, files, labels_of)

    @property
    def names(self) -> Iterable[str]:
        """The names, each once."""
        return self.files.keys()

    def size(self, name: str) -> Size:
        """Returns (height, width) from the header of the first class's file."""
        return image_size(next(iter(self.files[name].values())))

    def values(self, name: str, size: Size) -> np.ndarray:
        """Returns the label values, H×W, of classes that do not overlap."""
        return painted(self.layers(name, size).items(), size, f"{self.origin}: {name}")

    def layers(self, name: str, size: Size) -> dict[int, np.ndarray]:
        """Returns a bool mask H×W per label value that occurs; they may overlap."""
        found = {value: _mask(path, size) for value, path in self.files[name].items()}
        return {value: mask for value, mask in found.items() if mask.any()}


def stated_labels(folder: Path, classes: Sequence[str] | None) -> dict[str, int] | None:
    """Returns the label value of each class of a folder of layers, or None where it is a folder of whole masks.

    The folder states them; else several ``classes`` do, where every image has exactly a file for each. Raises
    ``UserError`` where what the folder states is none.
    """
    marker = folder / OWNER
    stated = read_json(marker) if marker.is_file() else None
    if isinstance(stated, dict) and "classes" in stated:
        labels = stated["classes"]
        if isinstance(labels, dict) and labels and all(type(value) is int and value >= 0 for value in labels.values()):
            return labels
        raise UserError(f"{marker}: expected the label value of each class of these layers, found none; convert again")
    if classes is None or len(classes) < 2:
        return None
    images = _by_image(folder)
    are_layers = all(name and set(found) == set(class_paths(folder, name, classes)) for name, found in images.items())
    return {name: value for value, name in enumerate(classes)} if images and are_layers else None


def _by_image(folder: Path) -> dict[str, list[Path]]:
    """Returns the visible mask files by the folder that they lie in, "" for those that lie in none."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if path.suffix.lower() in IMAGE_SUFFIXES and not any(part.startswith(".") for part in inside.parts):
            parent = inside.parent.as_posix()
            found.setdefault("" if parent == "." else parent, []).append(path)
    return found


def _mask(path: Path, size: Size) -> np.ndarray:
    stored = read_mask_values(path)
    if stored.shape[:2] != size:
        raise BadSize(str(path), size, (stored.shape[0], stored.shape[1]))
    mask: np.ndarray = stored != 0
    if stored.ndim != 2 or len(np.unique(stored[mask])) > 1:
        raise BadFile(path, "expected a mask of one class, 0 and one other value, found more values; give such files")
    return mask
