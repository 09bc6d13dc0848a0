"""The defaults for generation: what is taken from which file, and what is refused."""

from typing import Any

import pytest

from headstart.checkpoints.generation import GenerationConfig
from headstart.errors import CheckpointError
from headstart.models.fields import Fields

VOCAB_SIZE = 100


def read(given: dict[str, Any], config: dict[str, Any] | None = None) -> GenerationConfig:
    return GenerationConfig.from_fields(
        Fields(given, "generation_config.json"), Fields(config or {}, "config.json"), VOCAB_SIZE
    )


@pytest.mark.parametrize(
    ("given", "config", "expected"),
    [
        (None, None, []),
        (7, None, [7]),
        (None, 7, [7]),
        ([7, 8], 9, [7, 8]),
        (0, 9, [0]),
        ([], 9, []),
        ([99, 100, 101, 10**30], None, [99]),
        (100, None, []),
        (None, [3, 100], [3]),
    ],
)
def test_end_tokens(given: Any, config: Any, expected: list[int]) -> None:
    assert read({"eos_token_id": given}, {"eos_token_id": config}).eos_token_ids == expected


@pytest.mark.parametrize("junk", [-1, [2, -1], "2", [2, "3"], True, [False], 2.0, [None], {}, [[2]], float("nan")])
def test_end_tokens_that_are_no_ids(junk: Any) -> None:
    said = r"must be a token id of at least 0 or a list of such ids, not "
    with pytest.raises(CheckpointError, match=r"^eos_token_id in generation_config.json " + said):
        read({"eos_token_id": junk})
    with pytest.raises(CheckpointError, match=r"^eos_token_id in config.json " + said):
        read({}, {"eos_token_id": junk})


def test_tokens_that_nothing_reads_may_be_anything() -> None:
    # Published Llama files have -1 for a padding token that there is not.
    assert read({"pad_token_id": -1, "bos_token_id": 10**9}).eos_token_ids == []


def test_recommended_sampling() -> None:
    given = {"temperature": 0, "top_p": 1, "top_k": -1, "repetition_penalty": 1.1}
    found = read(given)
    assert (found.temperature, found.top_p, found.top_k, found.repetition_penalty) == (0.0, 1.0, -1, 1.1)
    found = read(given | {"do_sample": False})
    assert (found.temperature, found.top_p, found.top_k, found.repetition_penalty) == (None, None, None, 1.1)
    assert read({"temperature": None}).temperature is None


@pytest.mark.parametrize(
    "bad",
    [
        {"temperature": -0.1},
        {"temperature": "hot"},
        {"temperature": float("inf")},
        {"top_p": 1.5},
        {"top_p": 0},
        {"top_p": True},
        {"top_k": 2.5},
        {"top_k": -2},
        {"repetition_penalty": 0},
        {"do_sample": "yes"},
    ],
)
def test_sampling_out_of_range(bad: dict[str, Any]) -> None:
    (name,) = bad
    with pytest.raises(CheckpointError, match=rf"^{name} in generation_config.json must be .*, not "):
        read(bad)
