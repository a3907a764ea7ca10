"""Signate's AI Edge contest on street scenes (2018): its layout on disk, submission and score, and a published system.

Source of the published rules: github.com/EvgenyKashin/signate_segmentation (22nd place of 402).
"""

from __future__ import annotations

from maskloom.contests.signate.layout import open_signate, recognise
from maskloom.contests.signate.submission import SignateWriter, read_submission, validate

__all__ = ["SignateWriter", "open_signate", "read_submission", "recognise", "validate"]
