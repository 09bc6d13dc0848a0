"""Every recipe in the repository: its files are read, and it trains on what its own data settings make."""

from pathlib import Path

import pytest

from headstart.training.data.settings import read_settings
from headstart.training.recipe import read_recipe

RECIPES = Path(__file__).parents[2] / "recipes"
DATA = {"headstart-base": "headstart-base", "headstart-small": "headstart-base"}
"""Whose data settings make the shards of a recipe."""


def test_every_recipe_is_known_here() -> None:
    assert {path.parent.name for path in RECIPES.glob("*/train.yaml")} == set(DATA)


@pytest.mark.parametrize("name", DATA)
def test_a_recipe_is_read_and_its_sources_are_made_by_its_data_settings(name: str) -> None:
    recipe = read_recipe(RECIPES / name / "train.yaml")
    settings = {"": "data.yaml", "retrieval/": "retrieval.yaml"}
    made = {
        f"../../shards/{directory}{source}"
        for directory, file in settings.items()
        for source in read_settings(RECIPES / DATA[name] / file).sources
    }
    used = {str(Path(source.path).parent) for phase in recipe.phases for source in phase.sources.values()}
    assert used and used <= made
    longest = max(phase.sequence_length for phase in recipe.phases)
    assert recipe.model.config is None or longest <= recipe.model.config["max_position_embeddings"]
