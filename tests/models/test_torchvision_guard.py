"""The guard in fresh interpreters: torchvision and timm can be imported after it, whatever torch was installed."""

from __future__ import annotations

import subprocess
import sys


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-W", "error", "-c", code], check=False, capture_output=True, text=True)


def test_torchvision_can_be_imported_after_it() -> None:
    done = run(
        "from maskloom.models import torchvision_guard as guard\n"
        "guard.ensure()\n"
        "import torchvision, torch\n"
        "assert hasattr(torch.ops.torchvision, 'nms') and hasattr(torch.ops.torchvision, 'qnms')\n"
        "assert not guard.ensure()\n"
    )
    assert done.returncode == 0, done.stderr


def test_without_torchvision_it_does_nothing() -> None:
    done = run(
        "import importlib.util\n"
        "find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name: None if name == 'torchvision' else find(name)\n"
        "from maskloom.models import torchvision_guard as guard\n"
        "assert not guard.ensure()\n"
    )
    assert done.returncode == 0, done.stderr
