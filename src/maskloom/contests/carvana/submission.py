"""The submission of the Carvana challenge: its columns, names and run lengths.

Source: kaggle.com/c/carvana-image-masking-challenge, "Evaluation": one row for each of the 100,064 test photos.
"""

from __future__ import annotations

from maskloom.outputs.tables import SubmissionFormat

SUBMISSION = SubmissionFormat(columns=("img", "rle_mask"), name_suffix=".jpg", order="row", base=1)
"""``img,rle_mask``; the image with its suffix; row-major run lengths from 1."""
