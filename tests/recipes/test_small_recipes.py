"""The recipes that make something for the built-in model: their files are read, and fit together."""

import sys
from pathlib import Path

import pytest

from headstart.training.data.settings import read_settings
from headstart.training.recipe import read_recipe
from headstart.training.stack import TrainingStack

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.mark.parametrize(
    ("name", "use", "made"),
    [("headstart-swiftkv", ("swiftkv-distil:depth=4,group=2",), set()), ("headstart-draft", (), {"generated"})],
)
def test_the_files_are_read(name: str, use: tuple[str, ...], made: set[str]) -> None:
    recipe = read_recipe(RECIPES / name / "train.yaml", (), use)
    sources = set(read_settings(RECIPES / "headstart-swiftkv" / "data.yaml").sources) | made
    for phase in recipe.phases:
        TrainingStack(phase.use)
        for source in phase.sources.values():
            assert Path(source.path).parts[:4] == ("..", "..", "shards", "part")
            assert Path(source.path).parts[4] in sources


def test_beginnings_end_where_an_answer_begins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of exercises, and anywhere in prose."""
    from tests.training.workbench import small_tokenizer, write_source

    monkeypatch.syspath_prepend(str(RECIPES / "headstart-draft"))
    monkeypatch.delitem(sys.modules, "generate", raising=False)
    import generate  # pyright: ignore[reportMissingImports]

    from headstart.training.data.shards import ShardSource

    for place, name in enumerate(generate.SOURCES):
        masked = name.startswith("retrieval")
        write_source(tmp_path / name / "train", small_tokenizer(), [80, 200, 300], seed=place, masked=masked)
    prompts = generate.beginnings(tmp_path, seed=0)
    answers = set()
    for name in generate.SOURCES:
        for document in (ShardSource(tmp_path / name / "train")[i] for i in range(3)):
            ids, trained = document.token_ids.tolist(), document.trained
            for end in range(1, len(ids)):
                if trained is not None and trained[end] and not trained[end - 1]:
                    answers.add(tuple(ids[:end]))
    found = [tuple(next(prompts)) for _ in range(200)]
    assert all(1 <= len(prompt) < 300 for prompt in found)
    assert sum(prompt in answers for prompt in found) > 20
