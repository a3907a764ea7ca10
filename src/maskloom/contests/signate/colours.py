"""The 20 categories of Signate's AI Edge contest with the colours of their annotations, in order, and the scored four.

Knows nothing about classes: which category is learnt as what is a table's matter.
"""

from __future__ import annotations

from collections.abc import Mapping

from maskloom.data.mask_coding import Colour

COLOURS: Mapping[str, Colour] = {
    "car": (0, 0, 255),
    "pedestrian": (255, 0, 0),
    "lane": (69, 47, 142),
    "bus": (193, 214, 0),
    "truck": (180, 0, 129),
    "svehicle": (255, 121, 166),
    "motorbike": (65, 166, 1),
    "bicycle": (208, 149, 1),
    "signal": (255, 255, 0),
    "signs": (255, 134, 0),
    "sky": (0, 152, 225),
    "building": (0, 203, 151),
    "natural": (85, 255, 50),
    "wall": (92, 136, 125),
    "ground": (136, 45, 66),
    "sidewalk": (0, 255, 255),
    "roadshoulder": (215, 0, 255),
    "obstacle": (180, 131, 135),
    "others": (81, 99, 0),
    "own": (86, 62, 67),
}
"""The colour of each category, (red, green, blue); "svehicle" is a special vehicle, "own" the bonnet of one's own."""

CATEGORIES = tuple(COLOURS)
"""Their names, in the published order; where nothing is merged, a category's place is its label."""

SCORED = ("car", "pedestrian", "lane", "signal")
"""The categories that a submission holds and the contest scores."""
