"""What a run would take."""

import dataclasses
from pathlib import Path

import pytest
from rich.console import Console

from headstart.errors import HeadstartError
from headstart.training.data.shards import ShardSource
from headstart.training.distributed import ONE_PROCESS
from headstart.training.dry_run import DryRun, dry_run
from headstart.training.recipe import Recipe, recipe_of
from headstart.training.run import Run, RunOptions
from headstart.training.seams import Callback
from headstart.training.select import Select, SelectError
from tests.training import workbench
from tests.training.workbench import FIRST, phase, recipe


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return workbench.make_corpus(tmp_path_factory.mktemp("corpus"))


def tried(base: Path, wanted: Recipe) -> DryRun:
    before = sorted(base.rglob("*"))
    found = dry_run(wanted, RunOptions(base / "never", base, "cpu", console=Console(quiet=True)))
    assert sorted(base.rglob("*")) == before
    return found


def test_counts(base: Path) -> None:
    wanted = recipe_of(
        recipe(
            phase("one", 50, eval={"sources": {"v": "held-out"}}, **FIRST),
            phase("two", 30, sequence_length=64, global_batch_tokens=256, tokens=30 * 256),
        ),
        "r",
    )
    found = tried(base, wanted)
    run = Run(wanted, RunOptions(base / "never", base, "cpu"), ONE_PROCESS)
    parameters = sum(p.numel() for p in run.network.parameters())
    assert (found.parameters, found.trained) == (parameters, parameters)
    assert found.weight_bytes == found.gradient_bytes == 4 * parameters
    # Two moments, and a step counter of 4 bytes for each tensor.
    assert found.optimizer_bytes == 8 * parameters + 4 * len(list(run.network.parameters()))
    assert found.peak_bytes is None
    assert [(each.name, each.steps, each.tokens) for each in found.phases] == [("one", 50, 6400), ("two", 30, 7680)]
    prose = ShardSource(base / "prose").tokens
    assert found.phases[0].epochs["prose"] == pytest.approx(6400 * 2 / 3 / prose)
    matrices = sum(p.numel() for p in run.network.parameters() if p.ndim == 2)
    attention = 2 * 4 * 4 * 8 * sum(range(1, 33)) / 32
    assert found.phases[0].flops == pytest.approx(3 * (2 * matrices + attention) * 6400)
    assert all(each.tokens_per_second > 0 and 4 < each.loss < 7 for each in found.phases)


def test_groups_and_selectors_name_what_they_match(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Chosen(Callback):
        card = dataclasses.make_dataclass("Card", ["key"])("chosen")

        def __init__(self, pattern: str) -> None:
            self.select, self.other = Select((pattern,)), 3

    real = Run.__init__

    def with_method(pattern: str) -> None:
        def made(self: Run, *arguments: object) -> None:
            real(self, *arguments)  # type: ignore[arg-type]
            self.stacks[0].methods.append(Chosen(pattern))

        monkeypatch.setattr(Run, "__init__", made)

    with_method("layers.*.mlp.*.weight")
    found = tried(base, recipe_of(recipe(), "r")).selected
    assert found["embeddings"] == {"embedding.weight": 1}
    assert found["matrices"]["layers.*.attention.qkv.weight"] == 2
    assert found["vectors"]["norm.weight"] == 1
    assert found["chosen:select"] == {"layers.*.mlp.gate_up.weight": 2, "layers.*.mlp.down.weight": 2}
    with_method("layers.*.mpl.*")
    with pytest.raises(SelectError, match=r"'layers.\*.mpl.\*' matches nothing"):
        tried(base, recipe_of(recipe(), "r"))


def test_what_would_fail_later_fails_now(base: Path) -> None:
    content = recipe(phase("one", **FIRST), phase("two", sources={"gone": {"path": "gone"}}))
    with pytest.raises(HeadstartError, match="gone holds no token shards"):
        tried(base, recipe_of(content, "r"))
