"""The worked examples of `docs/write-a-method.md` are methods that work, and keep what they say."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from headstart import LLM, SamplingParams
from headstart.errors import MethodError
from headstart.methods import registry
from headstart.training.metrics import read_metrics
from tests.methods.contract.checks import CHECKS
from tests.methods.contract.examples import Example
from tests.training.workbench import FIRST, losses, make_corpus, phase, recipe, run

PAGE = Path(__file__).parents[2] / "docs" / "write-a-method.md"


@pytest.fixture
def example() -> Iterator[None]:
    """The methods of the page, registered for one test."""
    registry.catalogue()
    before = dict(registry._METHODS)
    blocks = [code for code in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S) if "@method" in code]
    assert len(blocks) == 2
    for code in blocks:
        assert len(code.splitlines()) < 60
        exec(code, {"__name__": "example"})
    yield
    registry._METHODS.clear()
    registry._METHODS.update(before)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tokenizer and shards."""
    return make_corpus(tmp_path_factory.mktemp("corpus"))


def test_the_example_keeps_what_it_says(example, stories):
    """With room for every page the answer is the plain one; with little it differs only beyond `min_context`."""
    greedy = SamplingParams(max_tokens=300, temperature=0, ignore_eos=True)
    plain = LLM(stories, dtype="float32").generate("Once upon a time", greedy)[0].outputs[0].token_ids
    wide = LLM(stories, dtype="float32", use=["recent-pages:keep=1000"])
    assert not wide.engine.exact
    assert wide.generate("Once upon a time", greedy)[0].outputs[0].token_ids == plain
    narrow = LLM(stories, dtype="float32", use=["recent-pages:keep=1"])
    output = narrow.generate("Once upon a time", greedy)[0]
    assert not output.exact
    short = 256 - len(output.prompt_token_ids)
    assert output.outputs[0].token_ids[:short] == plain[:short]
    assert output.outputs[0].token_ids != plain


def test_the_example_plays_with_the_exact_attention_of_neighbours(example, stories):
    """Short contexts beside long ones keep the default attention in the same step."""
    llm = LLM(stories, dtype="float32", use=["recent-pages:keep=1"])
    greedy = SamplingParams(max_tokens=40, temperature=0, ignore_eos=True)
    story = "Once upon a time there was a little dog. " * 26
    alone = LLM(stories, dtype="float32").generate("Lily and Tom", greedy)[0].outputs[0].token_ids
    long, short = llm.generate([story, "Lily and Tom"], greedy)
    assert len(long.prompt_token_ids) > 256
    assert short.outputs[0].token_ids == alone


@pytest.mark.parametrize("contract", CHECKS)
def test_the_training_example_keeps_every_contract(example, corpus: Path, tmp_path: Path, contract: str) -> None:
    CHECKS[contract](Example("z-loss"), corpus, tmp_path)


def test_the_training_example_with_weight_zero_is_next_token_prediction(example, corpus: Path, tmp_path: Path) -> None:
    for name, use in (("plain", []), ("zero", ["z-loss:weight=0"])):
        run(corpus, tmp_path / name, recipe(phase(steps=8, use=use, **FIRST)))
    plain, zero = losses(tmp_path / "plain"), losses(tmp_path / "zero")
    assert plain.keys() == zero.keys()
    assert max(abs(plain[step] - zero[step]) for step in plain) < 1e-5


def test_the_training_example_draws_logits_towards_a_sum_of_one(example, corpus: Path, tmp_path: Path) -> None:
    """The squared logarithm of the softmax's sum, which it logs, is smaller at the end than without a price."""
    ends = {}
    for weight in ("0", "0.1"):
        run(corpus, tmp_path / weight, recipe(phase(steps=40, use=[f"z-loss:weight={weight}"], **FIRST)))
        ends[weight] = read_metrics(tmp_path / weight / "metrics.jsonl")[-1]["z"]
    assert ends["0.1"] < ends["0"] / 2


def test_the_training_example_computes_the_formula(example) -> None:
    """One document of random logits, against the formula written out."""

    class Stub:
        network = property(lambda self: self)

        def hidden(self, batch):
            return logits

        def logits(self, hidden):
            return hidden

    logits = torch.randn(5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3
    targets = torch.tensor([3, -100, 0, 6, -100])
    batch = type("Batch", (), {"targets": targets})()
    loss = registry.build("z-loss:weight=0.5", "training").loss(Stub(), batch)
    expected = 0.0
    for row, target in zip(logits.tolist(), targets.tolist(), strict=True):
        if target >= 0:
            sum_ = sum(torch.tensor(row).exp().tolist())
            log = float(torch.tensor(sum_, dtype=torch.float64).log())
            expected += log - row[target] + 0.5 * log**2
    assert float(loss.total) == pytest.approx(expected, rel=1e-5)
    assert int(loss.tokens) == 3


def test_the_training_example_refuses_a_negative_weight(example) -> None:
    with pytest.raises(MethodError, match="must not be negative"):
        registry.build("z-loss:weight=-1", "training")
