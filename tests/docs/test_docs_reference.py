"""The reference of recipes and data settings says what the classes that read them say: all keys, types, defaults."""

import re
import typing
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from headstart.docs.pages import filled
from headstart.docs.reference import DocsError, descriptions, keys_of, resolve
from headstart.training.assembly import OPTIMIZERS, SCHEDULES
from headstart.training.data import settings as data_settings
from headstart.training.data.settings import DataSettings
from headstart.training.recipe import Named, Recipe

DOCS = Path(__file__).parents[2] / "docs"
PAGES = {Recipe: DOCS / "recipe.md", DataSettings: DOCS / "data.md"}


def models_under(model: type[BaseModel]) -> set[type[BaseModel]]:
    """A model, and every one that its fields are of."""
    found, waiting = set(), [model]
    while waiting:
        each = waiting.pop()
        if isinstance(each, type) and issubclass(each, BaseModel):
            if each not in found:
                found.add(each)
                waiting += [field.annotation for field in each.model_fields.values()]
        else:
            waiting += typing.get_args(each)
    return found


def tables(page: Path) -> dict[str, list[list[str]]]:
    """Rows of cells by the anchor that stands before a table, of the page as it is rendered."""
    text = filled(page.read_text(encoding="utf-8"), {})
    pattern = re.compile(r'<span id="(\w+)"></span>\n\n((?:\|.*\|\n)+)')
    return {
        name: [[cell.strip() for cell in line.strip("|").split(" | ")] for line in body.splitlines()[2:]]
        for name, body in pattern.findall(text)
    }


@pytest.mark.parametrize("root", PAGES, ids=lambda root: root.__name__)
def test_every_model_has_a_table_with_all_its_keys_and_defaults(root: type[BaseModel]) -> None:
    found = tables(PAGES[root])
    for model in models_under(root) - {Named}:
        rows = found[model.__name__.lower()]
        assert [row[0].strip("`") for row in rows] == list(model.model_fields)
        for row, field in zip(rows, model.model_fields.values(), strict=True):
            assert (row[2] == "required") == field.is_required()
            if not field.is_required():
                assert yaml.safe_load(row[2].strip("`")) == plain(field.get_default(call_default_factory=True))


def plain(value: Any) -> Any:
    """A default as YAML holds it; a model is shown as what is left out of it: nothing."""
    if isinstance(value, BaseModel):
        assert value == type(value)()
        return {}
    return list(value) if isinstance(value, tuple) else value


def test_every_optimizer_schedule_and_stage_has_a_table() -> None:
    recipe, data = tables(PAGES[Recipe]), tables(PAGES[DataSettings])
    for kind in [*OPTIMIZERS.values(), *SCHEDULES.values()]:
        assert [row[0].strip("`") for row in recipe[kind.__name__.lower()]] == list(kind.__dataclass_fields__)
    assert set(data_settings._STAGES) <= set(data)


def test_types_are_said_as_readers_of_yaml_know_them() -> None:
    found = {key.name: key.type for key in keys_of(resolve("headstart.training.recipe:PhaseRecipe"))}
    assert found["packing"] == '`"split"` or `"complete"`'
    assert found["use"] == "list of text"
    assert found["micro_batch_tokens"] == "whole number or `null`"
    assert found["tokens"] == "whole number, above 0"
    assert found["sources"] == "mapping of names to source, at least 1"


def test_descriptions_come_from_the_docstring_however_long() -> None:
    def example(first: int, second: int, third: int) -> None:
        """Does something.

        Args:
            first, second: two numbers, which are
                described together.
            third: another; None is none.

        Raises:
            ValueError: never.
        """

    pair = "two numbers, which are described together."
    assert descriptions(example) == {"first": pair, "second": pair, "third": "another; `null` is none."}


def test_what_is_not_there_is_refused() -> None:
    for path in ("headstart.nowhere:Thing", "headstart.errors:Thing", "headstart.errors"):
        with pytest.raises(DocsError, match="which is not there"):
            resolve(path)
