"""The Dstl Satellite Imagery Feature Detection challenge (Kaggle, 2017): its layout on disk, submission and rules.

Source of the published rules: github.com/ternaus/kaggle_dstl_submission and arXiv:1706.06169 (3rd place).
"""

from __future__ import annotations

from maskloom.contests.dstl.layout import open_dstl, recognise
from maskloom.contests.dstl.submission import DstlWriter, validate

__all__ = ["DstlWriter", "open_dstl", "recognise", "validate"]
