"""What tests of whole runs share: a tiny generated data set, and one finished run of it."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the tests run in parallel; more threads each would only wait

from pathlib import Path

import pytest
from hypothesis import settings

from maskloom.data.studio import write_studio
from small import SMALL

settings.register_profile("shared machines", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("shared machines")


@pytest.fixture(scope="session")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generated data set in the Carvana layout: 4 objects × 3 views, 1 test object."""
    folder = tmp_path_factory.mktemp("studio") / "data"
    write_studio(folder, objects=4, views=3, size=(96, 144), seed=1, test_objects=1)
    return folder


@pytest.fixture(scope="session")
def finished_run(studio: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the default recipe at smoke scale."""
    import maskloom

    folder = tmp_path_factory.mktemp("run") / "run"
    maskloom.fit("default", studio, run=folder, settings=SMALL, device="cpu", workers=0)
    return folder
