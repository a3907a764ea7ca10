"""The Carvana Image Masking Challenge (Kaggle, 2017): its layout on disk, its submission, and published systems.

Each of the other modules is one system as its authors published it, as a recipe.
"""

from __future__ import annotations

from maskloom.contests.carvana.layout import open_carvana, recognise
from maskloom.contests.carvana.submission import SUBMISSION

__all__ = ["SUBMISSION", "open_carvana", "recognise"]
