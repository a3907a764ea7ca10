"""Typed settings: loading, overriding, and the closest name for a wrong one."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from pydantic import Field, field_validator

from maskloom.config import Config, load_yaml, override, parse, to_yaml
from maskloom.errors import UserError


class Inner(Config):
    """Settings inside a list."""

    epochs: int = 3
    size: tuple[int, int] | None = None


class Outer(Config):
    """Settings with a list of settings."""

    seed: int = 0
    members: tuple[Inner, ...] = (Inner(), Inner())
    table: Inner | None = None


def test_overrides_reach_lists_and_every_element() -> None:
    changed = override(Outer(), ["seed=4", "members.0.epochs=9", "members.*.size=[2, 3]"])
    assert changed == Outer(seed=4, members=(Inner(epochs=9, size=(2, 3)), Inner(size=(2, 3))))
    assert Outer().seed == 0


def test_overrides_below_an_absent_part_make_it() -> None:
    assert override(Outer(), ["table.epochs=2"]).table == Inner(epochs=2)


@pytest.mark.parametrize(
    ("assignment", "answer"),
    [
        ("sead=1", "did you mean 'seed'"),
        ("members.0.epoch=1", "did you mean 'epochs'"),
        ("members.7.epochs=1", "number below 2"),
        ("seed", "expected key=value"),
        ("seed.more=1", "plain value"),
        ("seed=many", "found 'many'"),
        ("seed=[", "not YAML"),
        ("membrs.0.epochs=1", "did you mean 'members'"),
    ],
)
def test_wrong_overrides_are_answered(assignment: str, answer: str) -> None:
    with pytest.raises(UserError, match=answer) as caught:
        override(Outer(), [assignment])
    assert "\n" not in str(caught.value)


def test_a_misspelt_key_hides_behind_no_other_complaint() -> None:
    with pytest.raises(UserError) as caught:
        parse(Outer, {"members": [{"epoch": 3}]}, origin="mine.yaml")
    assert str(caught.value) == "mine.yaml: unknown key 'members.0.epoch', did you mean 'epochs'?"


class Checked(Config):
    """Settings whose check has words of its own."""

    members: tuple[Inner, ...] = Field(min_length=1)
    name: str = "a"

    @field_validator("name")
    @classmethod
    def _is_short(cls, name: str) -> str:
        if len(name) > 2:
            raise UserError(f"expected a short name, found {name!r}; shorten it")
        return name


def test_a_list_of_wrong_elements_is_not_called_too_short() -> None:
    with pytest.raises(UserError) as caught:
        parse(Checked, {"members": [{"epochs": "many"}]})
    assert str(caught.value).startswith("settings: members.0.epochs: ")
    assert "at least" not in str(caught.value)
    with pytest.raises(UserError, match="at least 1 item"):
        parse(Checked, {"members": []})


def test_a_check_says_once_what_it_found() -> None:
    with pytest.raises(UserError) as caught:
        parse(Checked, {"members": [{}], "name": "long"})
    assert str(caught.value) == "settings: name: expected a short name, found 'long'; shorten it"


def test_settings_survive_yaml() -> None:
    settings = Outer(members=(Inner(size=(4, 5)),))
    assert parse(Outer, yaml.safe_load(to_yaml(settings))) == settings


def test_unreadable_files_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        load_yaml(tmp_path / "absent.yaml")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(UserError, match="expected YAML"):
        load_yaml(tmp_path / "bad.yaml")


def test_settings_cannot_be_changed_in_place() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Outer().seed = 3


def test_a_folder_is_no_yaml_file(tmp_path: Path) -> None:
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(UserError, match=r"folder.yaml: expected a YAML file, it cannot be read \(Is a directory\)"):
        load_yaml(tmp_path / "folder.yaml")
