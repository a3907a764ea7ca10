"""The published fold schemes: how each system dealt cars, always whole, into training and validation.

Seeds are the published ones; they shuffle cars before dealing, in an order of this program's own, so that the scheme
is the published one and the single deal is not. Where an area decides, a seed only decides between equal areas.
"""

from __future__ import annotations

from maskloom.data.folds import FoldSettings

RANDOM_7 = FoldSettings(kind="kfold", count=7, seed=1993)
"""Cars shuffled with seed 1993 (1st place, scratch)."""

AREA_BINS_7 = FoldSettings(kind="kfold", count=7, stratify="area_bins", seed=1993)
"""Stratified by a car's total mask area: 35 bins, merged until each holds 7 cars (1st place, vgg11v1).

No seed is published for it; it is that of the same author's other folds.
"""

AREA_5 = FoldSettings(kind="kfold", count=5, stratify="area_dealt")
"""Cars sorted by the sum of their mask areas, dealt round-robin modulo 5 (1st place, "fma"; 4th place)."""

HELD_OUT = AREA_5.model_copy(update={"kind": "holdout"})
"""One network: what the first of these folds validates is kept out, everything else trains (7th place, which had no
folds)."""

VIEW_AREA_5 = FoldSettings(kind="kfold", count=5, stratify="area_dealt", area_of={"view": "05"})
"""The same by the area in view 05 alone (1st place, "f04a")."""

RANDOM_5 = FoldSettings(kind="kfold", count=5)
"""Five folds by car; that is all that is published (1st place, ternaus; 3rd place)."""

RANDOM_6 = FoldSettings(kind="kfold", count=6)
"""Six folds by car (3rd place, at 1920×1280)."""
