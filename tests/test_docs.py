"""The documentation says what is there: settings, recipe files, commands, imports, links and tests that it names."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import yaml
from PIL import Image

from maskloom.api import plan
from maskloom.config import override
from maskloom.data.stated_classes import read_classes_yaml
from maskloom.recipe import Recipe
from maskloom.stages.postprocess import check_postprocess
from maskloom.stages.pseudo_views import teachers_of

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
NUM_CARS = 7
"""As many as the largest number of folds on the pages."""


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks(page: Path, language: str) -> list[str]:
    """Returns the fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def cars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smallest data that every recipe on the pages can be planned for."""
    folder = tmp_path_factory.mktemp("cars")
    for name in ("train", "train_masks", "test"):
        (folder / name).mkdir()
    for number in range(NUM_CARS):
        mask = np.zeros((6, 8), np.uint8)
        mask[1:4, 1 : 2 + number % 5] = 1
        Image.fromarray(mask, "L").save(folder / "train_masks" / f"car{number}_01_mask.gif")
        Image.fromarray(np.full((6, 8, 3), 9 * number, np.uint8)).save(folder / "train" / f"car{number}_01.jpg")
    Image.fromarray(np.full((6, 8, 3), 99, np.uint8)).save(folder / "test" / "new_01.jpg")
    return folder


# --- the reference ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    """The script that writes recipe.md."""
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "reference" / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_is_what_the_code_says(generate: ModuleType) -> None:
    text = generate.PAGE.read_text(encoding="utf-8")
    assert generate.page(text) == text, "run python docs/reference/generate.py"


def test_every_plain_meaning_is_of_a_setting(generate: ModuleType) -> None:
    waiting, seen = [Recipe], set()
    while waiting:
        kind = waiting.pop()
        if kind not in seen:
            seen.add(kind)
            waiting += [one for field in kind.model_fields.values() for one in generate.models(field.annotation)]
    assert set(generate.PLAIN) <= {f"{kind.__name__}.{name}" for kind in seen for name in kind.model_fields}


# --- recipe files, classes and commands ------------------------------------------------------------------------------


def files(page: Path) -> Iterator[str]:
    """Yields the YAML files of a page: a block that begins no file of its own goes on with the one before it."""
    text = ""
    for block in blocks(page, "yaml"):
        begins = re.match(r"(#.*\n)*(base|name|task|classes):", block) is not None
        if begins and text:
            yield text
        text = block if begins else text + block
    if text:
        yield text


FILES = [(page, number, text) for page in PAGES for number, text in enumerate(files(page))]


@pytest.mark.parametrize("text", [pytest.param(text, id=f"{named(page)}-{number}") for page, number, text in FILES])
def test_files_on_the_pages_are_understood(text: str, cars: Path, tmp_path: Path) -> None:
    path = tmp_path / "classes.yaml"
    path.write_text(text, encoding="utf-8")
    if "classes" in yaml.safe_load(text):
        task, _ = read_classes_yaml(path)
        assert task.classes
        return
    recipe, source = plan(path, cars, settings=(), device="cpu")
    stated = yaml.safe_load(text)
    assert [member.name for member in recipe.members][: len(stated.get("members", ()))] == [
        member["name"] for member in stated.get("members", ())
    ]
    check_postprocess(recipe, source.task)
    for number in range(len(recipe.pseudo)):
        assert teachers_of(recipe, number)
    leaves = set() if recipe.ensemble.tree is None else set(recipe.ensemble.tree.leaves())
    assert leaves <= set(recipe.names)


def test_files_are_found() -> None:
    assert len(FILES) >= 10


def commands(page: Path) -> Iterator[tuple[str, ...]]:
    """Yields the settings of each command, or of each part of one in the text, that can be read as they stand."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    for part in re.split(r"[`\n]", text):
        found = re.findall(r"""--set (?:'([^']+)'|"([^"]+)"|([^\s)]+))""", part)
        settings = ["".join(forms) for forms in found]
        stated = tuple(each for each in settings if not re.search(r"…|\||^key=|=FOLDER$|^scale=", each))
        if stated:
            yield stated


OF_THEIR_RECIPE = ("docs/signate-system.md",)
"""Pages whose settings are laid over the recipe that they are about, by its own tests."""
SETTINGS = sorted(
    {(settings, named(page)) for page in PAGES for settings in commands(page) if named(page) not in OF_THEIR_RECIPE}
)


def test_settings_are_found() -> None:
    assert len(SETTINGS) >= 30


@pytest.mark.parametrize(("settings", "page"), SETTINGS)
def test_settings_in_commands_exist(settings: tuple[str, ...], page: str, cars: Path) -> None:
    recipe, _ = plan("default", cars, settings=(), device="cpu")
    override(recipe, [re.sub(r"^members\.\d+\.", "members.0.", setting) for setting in settings])


# --- programs, tests and links ---------------------------------------------------------------------------------------

PROGRAMS = [pytest.param(text, id=named(page)) for page in PAGES for text in blocks(page, "python")]


@pytest.mark.parametrize("text", PROGRAMS)
def test_programs_import_what_is_there(text: str) -> None:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("maskloom"):
            module = importlib.import_module(str(node.module))
            assert all(hasattr(module, alias.name) for alias in node.names), node.module


@cache
def functions_in(file: str) -> frozenset[str]:
    body = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
    return frozenset(node.name for node in ast.walk(body) if isinstance(node, ast.FunctionDef))


@pytest.mark.parametrize("page", [pytest.param(page, id=named(page)) for page in PAGES])
def test_tests_that_a_page_names_exist(page: Path) -> None:
    for file, name in re.findall(r"`(?:tests/)?([\w/]+\.py)::(\w+)`", page.read_text(encoding="utf-8")):
        assert name in functions_in(file), f"{file} has no {name}"


@pytest.mark.parametrize(("page", "least"), [("carvana-systems", 21), ("dstl-system", 16), ("signate-system", 16)])
def test_modules_in_the_table_of_systems_exist(page: str, least: int) -> None:
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    places = set(re.findall(r"`([a-z_]+(?:/[a-z_]+)+)`", text))
    assert len(places) >= least
    assert all((ROOT / "src" / "maskloom" / f"{place}.py").is_file() for place in places)


@pytest.mark.parametrize("page", [pytest.param(page, id=named(page)) for page in PAGES])
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith(("http://", "https://")):
            continue
        place, _, anchor = target.partition("#")
        file = page.parent / place if place else page
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in slugs, target
