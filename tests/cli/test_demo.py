"""`headstart demo`: runs on what is in the package, and shows the cache at work."""

from collections.abc import Callable
from typing import Any

from headstart import LLM
from headstart.cli.demo import ENDINGS, passage

Run = Callable[..., Any]


def test_the_second_reading_comes_from_the_cache(headstart: Run) -> None:
    ran = headstart("demo", "--json", "--max-tokens", "4")
    assert (ran.code, ran.err) == (0, "")
    cold, warm, batch = (ran.json[name] for name in ("cold", "warm", "batch"))
    assert cold["cached_tokens"] == 0
    assert cold["output_tokens"] == warm["output_tokens"] == 4
    assert warm["cached_tokens"] > 0.9 * warm["prompt_tokens"]
    assert batch["together_tokens_per_second"] > 0


def test_it_tells_a_story(headstart: Run) -> None:
    ran = headstart("demo", "--max-tokens", "4")
    assert ran.code == 0
    for words in ("read for the first time", "cached", "sooner", "16 requests", "together", "headstart serve"):
        assert words in ran.out


def test_the_passage_is_long_and_fits() -> None:
    llm = LLM()
    lengths = [len(llm.tokenizer.encode(passage() + ending)) for ending in ENDINGS]
    assert all(1000 < length < llm.max_model_len - 100 for length in lengths)
