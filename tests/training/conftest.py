"""What the tests of the training loop share: a few images on disk, and one thread."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from tiny_job import write_images

from maskloom.records import Record


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
