"""maskloom: from a folder of images and masks to the most accurate masks that the hardware and the deadline allow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = [
    "compare",
    "convert",
    "fit",
    "import_weights",
    "inspect",
    "load_bundle",
    "open_run",
    "score",
    "status",
    "verify",
]

if TYPE_CHECKING:
    from maskloom.api import (
        compare,
        convert,
        fit,
        import_weights,
        inspect,
        load_bundle,
        open_run,
        score,
        status,
        verify,
    )


def __getattr__(name: str) -> Any:
    """Loads the Python door on first use, so that importing the package costs nothing."""
    if name in __all__:
        from maskloom import api

        return getattr(api, name)
    raise AttributeError(f"module 'maskloom' has no attribute {name!r}")


def __dir__() -> list[str]:
    """Returns what there is, for completion."""
    return sorted({*globals(), *__all__})
