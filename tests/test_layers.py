"""The architecture as a test: imports inside the package point to lower floors only."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "maskloom"

FLOORS: tuple[tuple[str, ...], ...] = (
    (
        "errors",
        "records",
        "windows",
        "config",
        "files",
        "runtime",
        "progress",
        "termination",
        "heartbeat",
        "integrity",
        "run_lock",
        "storage",
        "executors",
    ),
    ("encodings", "masks", "rasters"),
    ("data",),
    ("models", "losses", "metrics", "boundary_score"),
    ("inference",),
    ("training",),
    ("ensembling", "outputs"),
    ("members", "recipe", "recipes", "run_directory", "run_status", "stages", "pipeline"),
    ("contests",),
    ("registry",),
    ("api", "fitting", "runs", "console", "cli", "__init__", "__main__"),
)
ROOMS_THAT_IGNORE_EACH_OTHER = ({"models", "losses", "metrics"}, {"ensembling", "outputs"})
WITHOUT_TORCH = (
    "errors", "records", "windows", "config", "files", "progress", "heartbeat", "encodings", "masks", "rasters",
    "outputs", "run_status", "storage", "executors",
)  # fmt: skip


def floor_of(room: str) -> int:
    for number, rooms in enumerate(FLOORS):
        if room in rooms:
            return number
    pytest.fail(f"{room} stands on no floor: add it to FLOORS and to the map in the README")


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    rooms: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import; write the full name"
            names = [node.module]
            if node.module == "maskloom":
                names = [f"maskloom.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        rooms |= {name.split(".")[1] for name in names if name.startswith("maskloom.")}
    return rooms


def top_level_imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
        elif isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
    return names


def test_every_module_is_found() -> None:
    assert len(modules()) > 30


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    room = room_of(path)
    own_floor = floor_of(room)
    for other in imported_rooms(path) - {room}:
        assert floor_of(other) <= own_floor, f"{path.name} on floor {own_floor} imports {other} above it"
        for strangers in ROOMS_THAT_IGNORE_EACH_OTHER:
            assert not {room, other} <= strangers, f"{room} and {other} must not know each other"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_light_rooms_load_no_heavy_library(path: Path) -> None:
    heavy = {"timm", "segmentation_models_pytorch", "torchvision", "pandas", "pyarrow", "rasterio"}
    if room_of(path) in WITHOUT_TORCH:
        heavy.add("torch")
    assert not top_level_imports(path) & heavy


def test_what_is_imported_is_asked_for() -> None:
    """Also inside functions: what only the tests install is not there for users."""
    project = tomllib.loads((PACKAGE.parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    asked = [
        *project["dependencies"],
        *(each for name in extras if name not in ("dev", "bench") for each in extras[name]),
    ]
    declared = {_canonical(re.split(r"[\[<>=!~;, ]", each)[0]) for each in asked}
    distributions = packages_distributions()
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""] if node.level == 0 else []
            else:
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in {each.split(".")[0] for each in names} - sys.stdlib_module_names - {"maskloom"}:
                found = {_canonical(each) for each in distributions.get(name, [name])}
                assert found & declared, f"{path.name} imports {name}, which pyproject.toml does not ask for"


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
