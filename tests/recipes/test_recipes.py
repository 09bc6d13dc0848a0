"""Every recipe in the repository: its files are read, and it trains on what its data settings make."""

from pathlib import Path

import pytest

from headstart.training.data.settings import read_settings
from headstart.training.recipe import read_recipe

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*/train*.yaml")), ids=lambda path: path.parent.name)
def test_a_recipe_is_read(path: Path) -> None:
    recipe = read_recipe(path)
    config = recipe.model.config
    longest = max(phase.sequence_length for phase in recipe.phases)
    assert config is None or longest <= config["max_position_embeddings"]
    assert (path.parent / "README.md").is_file()


@pytest.mark.parametrize("name", ["headstart-base", "headstart-small"])
def test_sources_are_made_by_the_data_settings_of_the_base(name: str) -> None:
    settings = {"": "data.yaml", "retrieval/": "retrieval.yaml"}
    made = {
        f"../../shards/{directory}{source}"
        for directory, file in settings.items()
        for source in read_settings(RECIPES / "headstart-base" / file).sources
    }
    phases = read_recipe(RECIPES / name / "train.yaml").phases
    used = {str(Path(source.path).parent) for phase in phases for source in phase.sources.values()}
    assert used and used <= made
