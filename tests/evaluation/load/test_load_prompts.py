"""Prompts: exact lengths, the same for the same seed, and prefixes shared exactly as a trace's hashes say."""

import asyncio
import itertools
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headstart.evaluation.load.plan import Ask, plan
from headstart.evaluation.load.prompts import LOAD, PROBE, WARM_UP, WORDS, Count, Prompts, one_token_words
from headstart.evaluation.load.settings import LoadError, LoadSettings
from tests.conftest import data_directory

# So many ids that two blocks hardly ever begin with the same one.
MANY = np.arange(10**7)


def make(prompts: Prompts, ask: Ask, stream: int = LOAD) -> list[int] | str:
    return asyncio.run(prompts.prompt(ask, stream))


@hypothesis.settings(max_examples=40, deadline=None)
@given(st.integers(1, 300), st.integers(0, 50), st.integers(0, 5))
def test_token_ids_have_the_length_and_come_from_the_pool(length: int, index: int, seed: int) -> None:
    ask = Ask(index, 0.0, length, 1)
    prompt = make(Prompts([3, 5, 8, 13], seed), ask)
    assert len(prompt) == length
    assert set(prompt) <= {3, 5, 8, 13}
    assert all(type(token) is int for token in prompt)
    assert make(Prompts([3, 5, 8, 13], seed), ask) == prompt


def test_prompts_differ_by_number_seed_and_purpose() -> None:
    pool = range(100)
    found = [
        make(Prompts(pool, seed), Ask(index, 0.0, 32, 1), stream)
        for seed, index, stream in itertools.product(range(3), range(3), (LOAD, WARM_UP, PROBE))
    ]
    assert len({tuple(prompt) for prompt in found}) == len(found)


@hypothesis.settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 6), min_size=1, max_size=4), min_size=2, max_size=6),
    st.integers(1, 20),
    st.data(),
)
def test_equal_names_are_equal_blocks_and_others_differ(
    names: list[list[int]], block: int, data: st.DataObject
) -> None:
    lengths = [data.draw(st.integers((len(blocks) - 1) * block + 1, len(blocks) * block)) for blocks in names]
    prompts = Prompts(MANY, seed=4)
    made = [
        make(prompts, Ask(index, 0.0, length, 1, tuple(blocks), block))
        for index, (blocks, length) in enumerate(zip(names, lengths, strict=True))
    ]
    assert [len(prompt) for prompt in made] == lengths
    blocks_of = {}
    for prompt, blocks in zip(made, names, strict=True):
        for place, name in enumerate(blocks):
            tokens = prompt[place * block : (place + 1) * block]
            known = blocks_of.setdefault(name, tokens)
            shorter = min(len(known), len(tokens))
            assert tokens[:shorter] == known[:shorter]
            blocks_of[name] = max(known, tokens, key=len)
    first_tokens = [tokens[0] for tokens in blocks_of.values()]
    assert len(set(first_tokens)) == len(first_tokens)


@pytest.mark.parametrize("scale", [1.0, 0.1])
def test_prompts_of_the_mooncake_trace_share_what_its_hashes_say(scale: float) -> None:
    path = data_directory() / "traces" / "mooncake_conversation_trace.jsonl.xz"
    if not path.is_file():
        pytest.skip(f"needs the trace {path}; set HEADSTART_DATA to where the data lies")
    asks = list(plan(LoadSettings(trace=str(path), num_requests=40, length_scale=scale)))
    prompts = Prompts(MANY, seed=0)
    made = [make(prompts, ask) for ask in asks]
    for (a, first), (b, second) in itertools.combinations(zip(asks, made, strict=True), 2):
        assert a.blocks is not None and b.blocks is not None
        shared_names = sum(
            1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(a.blocks, b.blocks, strict=False))
        )
        shared = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))
        assert shared == min(shared_names * a.block_tokens, len(first), len(second))


def counting(special: int = 1) -> Count:
    """A tokenizer that makes a token of each word but two of long ones, and special tokens before."""

    async def count(text: str) -> int:
        return special + sum(2 if len(word) > 5 else 1 for word in text.split())

    return count


async def tokens_in(count: Count, text: str) -> int:
    return await count(text)


def words_of(prompts: Prompts, ask: Ask) -> list[str]:
    text = make(prompts, ask)
    assert isinstance(text, str)
    return text.split()


@hypothesis.settings(max_examples=40, deadline=None)
@given(st.integers(2, 200), st.integers(0, 20))
def test_texts_have_exactly_the_wanted_number_of_tokens(length: int, index: int) -> None:
    count = counting()
    words = asyncio.run(one_token_words(count))
    assert set(words) == {word for word in WORDS if len(word) <= 5}
    text = make(Prompts(words, 0, count), Ask(index, 0.0, length, 1))
    assert isinstance(text, str)
    assert asyncio.run(tokens_in(count, text)) == length


def test_texts_share_the_words_of_equal_blocks() -> None:
    count = counting(special=0)
    prompts = Prompts(WORDS[:20], 0, count)
    first = words_of(prompts, Ask(0, 0.0, 25, 1, (1, 2, 3), 10))
    second = words_of(prompts, Ask(1, 0.0, 30, 1, (1, 2, 4), 10))
    assert first[:20] == second[:20]
    assert first[20:] != second[20:25]


def test_a_tokenizer_that_cannot_be_matched_gets_a_sentence() -> None:
    async def even(text: str) -> int:
        return 2 * len(text.split())

    with pytest.raises(LoadError, match="no text of exactly 7 tokens"):
        make(Prompts(WORDS, 0, even), Ask(0, 0.0, 7, 1))
    with pytest.raises(LoadError, match="no common English words"):
        asyncio.run(one_token_words(even))


def test_a_prompt_shorter_than_the_special_tokens_gets_a_sentence(tmp_path: Path) -> None:
    count = counting(special=3)
    with pytest.raises(LoadError, match="no text of exactly 2 tokens"):
        make(Prompts(WORDS[:5], 0, count), Ask(0, 0.0, 2, 1))
