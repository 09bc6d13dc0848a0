"""The training benchmark: both sides train the same rows, and what it says comes from their figures."""

import pytest

from headstart.evaluation.sides import BenchmarkError
from headstart.evaluation.train_bench import TrainBenchSettings, run_train_bench

TINY = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "vocab_size": 8192,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
}


class Steps:
    """Hears what is done."""

    def __init__(self) -> None:
        self.steps: list[str] = []

    def say(self, text: str) -> None: ...

    def begin(self, total: int) -> None:
        self.total = total

    def step(self, description: str) -> None:
        self.steps.append(description)

    def done(self) -> None: ...


def test_both_sides_train_the_same_rows_and_are_compared() -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    settings = TrainBenchSettings(TINY, lengths=(64,), batch_tokens=128, steps=2, repeats=1, target=None)
    steps = Steps()
    entry = run_train_bench(settings, steps, command="headstart bench train", key="train")
    assert len(steps.steps) == steps.total == 2
    ours, theirs = entry.rows
    assert (ours.side, theirs.side) == ("headstart", "transformers")
    assert all(row.values[0] > 0 and 0 < row.details["mfu"] < 1 for row in entry.rows)
    (ratio,) = entry.ratios
    assert ratio.value == pytest.approx(ours.median / theirs.median)


@pytest.mark.parametrize(("field", "value"), [("steps", 0), ("lengths", (60,)), ("repeats", 0)])
def test_settings_that_make_no_sense_are_refused(field: str, value: object) -> None:
    with pytest.raises(BenchmarkError):
        TrainBenchSettings(TINY, **{"lengths": (64,), "batch_tokens": 128, field: value})
