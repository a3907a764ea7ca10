"""Images without masks: a fingerprint of them, and whether networks of the labelled ones take them."""

from __future__ import annotations

from collections import Counter

from maskloom.data.image_kinds import Accepted, read_kinds
from maskloom.data.record_images import image_files
from maskloom.data.sources.base import DataSource, first_problem
from maskloom.errors import BadFile
from maskloom.files import fingerprint
from maskloom.stages.context import Context
from maskloom.stages.data import load_survey


def unlabelled_fingerprint(source: DataSource) -> str:
    """Returns a fingerprint of the images to be predicted, by name, length and time of change.

    Reading a large test set to hash it costs more than it tells.
    """
    found = [
        (record.id, [(facts.st_size, facts.st_mtime_ns) for facts in (path.stat() for path in image_files(record))])
        for record in source.unlabelled
    ]
    return fingerprint(found)


def check_unlabelled(context: Context) -> None:
    """Raises ``BadFile`` for images that networks of the surveyed ones do not take, before hours go into these.

    Goes by the headers of images of one file. Where the recipe leaves damaged records out, says how many will be.
    """
    surveyed = load_survey(context).records
    records = [record for record in context.source.unlabelled if not record.bands]
    if not surveyed or not records:
        return
    ((dtype, _),) = Counter(facts.dtype for facts in surveyed).most_common(1)
    accepted = Accepted(channels=context.num_channels(), dtype=dtype, takes_grey=context.recipe.takes_grey)
    reasons = [accepted.problem(kind) for kind in read_kinds([record.image for record in records])]
    unfit = [BadFile(record.image, reason) for record, reason in zip(records, reasons, strict=True) if reason]
    if not unfit:
        return
    if not context.recipe.data.skip_bad:
        raise first_problem(unfit)
    context.progress.note(f"{len(unfit)} of {len(records)} images without masks will be left out: {unfit[0]}")
