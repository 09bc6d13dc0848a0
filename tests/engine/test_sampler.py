"""The sampler against Transformers' logits processors and, for the draws themselves, against chi-square."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from headstart.engine.params import SamplingParams
from headstart.engine.request import Request, Sequence
from headstart.engine.sampler import Sampler, uniform

VOCAB = 40


def make_sequence(params: SamplingParams, prompt=(1,), output=(), seed=0) -> Sequence:
    request = Request("r", None, list(prompt), params, 10**6, None, False, SimpleNamespace())
    return Sequence(request, 0, [*prompt, *output], len(prompt), seed)


def make_sampler(eos=(2,)) -> Sampler:
    return Sampler(list(eos), lambda token: f"<{token}>")


def draws(logits, params, count=4000, prompt=(1,)) -> np.ndarray:
    """How often each token is drawn over many seeds."""
    sequences = [make_sequence(params, prompt, seed=seed) for seed in range(count)]
    rows = logits.expand(count, -1).clone()
    tokens = [drawn.token_id for drawn in make_sampler().sample(rows, sequences)]
    return np.bincount(tokens, minlength=logits.shape[-1])


def chi_square(observed: np.ndarray, probabilities: np.ndarray) -> float:
    """Distance from the expected counts in standard deviations of the chi-square statistic."""
    kept = probabilities > 0
    assert observed[~kept].sum() == 0, "a token without probability was drawn"
    expected = probabilities[kept] * observed.sum()
    statistic = ((observed[kept] - expected) ** 2 / expected).sum()
    freedom = max(1, kept.sum() - 1)
    return (statistic - freedom) / math.sqrt(2 * freedom)


@pytest.mark.parametrize(
    ("params", "warpers"),
    [
        (SamplingParams(), []),
        (SamplingParams(temperature=0.7), [TemperatureLogitsWarper(0.7)]),
        (SamplingParams(top_k=5), [TopKLogitsWarper(5)]),
        (SamplingParams(top_p=0.6), [TopPLogitsWarper(0.6)]),
        (SamplingParams(min_p=0.2), [MinPLogitsWarper(0.2)]),
        (
            SamplingParams(temperature=1.5, top_k=12, top_p=0.8),
            [TemperatureLogitsWarper(1.5), TopKLogitsWarper(12), TopPLogitsWarper(0.8)],
        ),
    ],
    ids=["plain", "temperature", "top_k", "top_p", "min_p", "all"],
)
def test_draws_follow_transformers_distribution(params, warpers):
    """Over 4,000 seeds the draws fit the distribution that Transformers' warpers leave (5 deviations: one false
    alarm in a million), and never leave its support."""
    logits = torch.randn(VOCAB, generator=torch.Generator().manual_seed(3)) * 2
    want = logits[None]
    for warper in warpers:
        want = warper(torch.tensor([[1]]), want)
    assert chi_square(draws(logits, params), torch.softmax(want[0], -1).double().numpy()) < 5


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    vocab=st.sampled_from([3, 40, 3000]),
    top_k=st.integers(0, 50),
    top_p=st.floats(0.05, 1.0),
    min_p=st.floats(0.0, 0.5),
)
def test_support_is_transformers(seed, vocab, top_k, top_p, min_p):
    """What a draw can reach is what Transformers keeps: the extreme draws fall on its first and last token."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(1, vocab, generator=generator) * 3
    want = logits
    if min_p:
        want = MinPLogitsWarper(min_p)(None, want)
    if top_k:
        want = TopKLogitsWarper(min(top_k, vocab))(None, want)
    if top_p < 1:
        want = TopPLogitsWarper(top_p)(None, want)
    kept = set(torch.nonzero(want[0] > -torch.inf).flatten().tolist())
    params = SamplingParams(top_k=top_k, top_p=top_p, min_p=min_p)
    sequences = [make_sequence(params, seed=s) for s in range(64)]
    tokens = {d.token_id for d in make_sampler().sample(logits.expand(64, -1).clone(), sequences)}
    assert tokens <= kept


@settings(max_examples=60, deadline=None)
@given(
    prompt=st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=20),
    output=st.lists(st.integers(0, VOCAB - 1), max_size=20),
    repetition=st.floats(0.5, 2.0),
    presence=st.floats(-2, 2),
    frequency=st.floats(-2, 2),
    seed=st.integers(0, 2**31),
)
def test_penalties_follow_their_definitions(prompt, output, repetition, presence, frequency, seed):
    """Repetition is Transformers'; presence and frequency are OpenAI's formula, counted by hand."""
    logits = torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(seed))
    want = RepetitionPenaltyLogitsProcessor(repetition)(torch.tensor([prompt + output]), logits.clone())
    for token in range(VOCAB):
        count = output.count(token)
        want[0, token] -= frequency * count + presence * (count > 0)
    params = SamplingParams(
        temperature=0, repetition_penalty=repetition, presence_penalty=presence, frequency_penalty=frequency
    )
    sampler = make_sampler()
    half = len(output) // 2
    sequence = make_sequence(params, prompt, output[:half])
    sampler._restrict(logits.clone(), [sequence])
    sequence.tokens += output[half:]
    got = sampler._restrict(logits.clone(), [sequence])
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


def test_bias_min_tokens_and_logprobs():
    """A bias moves the choice, the end is forbidden within min_tokens, and log-probabilities are the raw model's."""
    logits = torch.zeros(4, VOCAB)
    logits[:, 2], logits[:, 7] = 5.0, 4.0
    raw = torch.log_softmax(logits, -1)
    sequences = [
        make_sequence(SamplingParams(temperature=0, logprobs=2)),
        make_sequence(SamplingParams(temperature=0, logit_bias={9: 50.0}, logprobs=1)),
        make_sequence(SamplingParams(temperature=0, min_tokens=1)),
        make_sequence(SamplingParams(temperature=0, min_tokens=1, stop_token_ids=[7]), output=()),
    ]
    drawn = make_sampler().sample(logits.clone(), sequences)
    assert [d.token_id for d in drawn[:3]] == [2, 9, 7]
    assert drawn[3].token_id not in (2, 7)
    entries = drawn[0].logprobs
    assert entries is not None and list(entries) == [2, 7]
    assert entries[2].rank == 1 and entries[7].rank == 2
    assert entries[7].logprob == pytest.approx(raw[0, 7].item())
    biased = drawn[1].logprobs
    assert biased is not None and biased[9].logprob == pytest.approx(raw[1, 9].item()) and biased[9].rank > 2


def test_rows_do_not_influence_each_other():
    """Each row draws what it draws alone, in any order and company."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(30, VOCAB, generator=generator)
    kinds = [
        SamplingParams(temperature=0.9),
        SamplingParams(temperature=0),
        SamplingParams(top_p=0.5),
        SamplingParams(top_k=3, frequency_penalty=1.0),
        SamplingParams(min_p=0.1),
    ]
    sequences = [make_sequence(kinds[i % 5], output=[3] * i, seed=i) for i in range(30)]
    sampler = make_sampler()
    alone = [sampler.sample(logits[i : i + 1].clone(), [s])[0].token_id for i, s in enumerate(sequences)]
    order = torch.randperm(30, generator=generator).tolist()
    together = sampler.sample(logits[order].clone(), [sequences[i] for i in order])
    assert [d.token_id for d in together] == [alone[i] for i in order]


def test_uniform_numbers_are_fresh_for_every_position_and_seed():
    """No number repeats over seeds and positions, and they spread evenly (Kolmogorov distance)."""
    numbers = np.array([uniform(seed, position) for seed in range(60) for position in range(60)])
    assert len(set(numbers.tolist())) == 3600
    distance = np.abs(np.sort(numbers) - (np.arange(3600) + 0.5) / 3600).max()
    assert distance < 2.7 / math.sqrt(3600), "less likely than one in a million"


def test_extremes():
    """A tiny temperature is greedy; a huge one still draws a token that exists."""
    logits = torch.randn(1, VOCAB)
    best = int(logits.argmax())
    for params in (SamplingParams(temperature=1e-30), SamplingParams(top_k=1), SamplingParams(top_p=1e-60)):
        assert make_sampler().sample(logits.clone(), [make_sequence(params)])[0].token_id == best
    wild = make_sampler().sample(logits * 1e4, [make_sequence(SamplingParams(temperature=10**400), seed=4)])
    assert 0 <= wild[0].token_id < VOCAB


def test_ties_at_the_edge_do_not_depend_on_neighbours():
    """Logits full of ties, as bfloat16 makes them: a row that needs the whole vocabulary changes nobody else's
    choice."""
    logits = torch.randn(2, 5000, generator=torch.Generator().manual_seed(0)).bfloat16().float()
    logits[0] = logits[0].round()
    choosy, hot = SamplingParams(top_k=20), SamplingParams(temperature=50.0, top_p=0.999)
    for seed in range(200):
        alone = make_sampler().sample(logits[:1].clone(), [make_sequence(choosy, seed=seed)])[0]
        pair = [make_sequence(choosy, seed=seed), make_sequence(hot, seed=seed)]
        assert make_sampler().sample(logits.clone(), pair)[0] == alone
