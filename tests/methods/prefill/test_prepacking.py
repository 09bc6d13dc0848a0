"""Prepacking: bins hold, prompts in one row know nothing of each other, and keys are those of each prompt alone."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headstart.engine.params import SamplingParams
from headstart.errors import MethodError
from headstart.methods.prefill.prepacking.prepacking import Prepacking
from headstart.methods.prefill.prepacking.rectangles import Rectangle, first_fit_decreasing
from tests.conformance import models
from tests.conformance.lab import make_engine

PARAMS = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True, output_kind="final")


@settings(max_examples=200, deadline=None)
@given(lengths=st.lists(st.integers(1, 50), min_size=1, max_size=40), more=st.integers(0, 20))
def test_bins(lengths, more):
    """Every item in one bin, no bin too full, and no more bins than items or than twice what is needed."""
    capacity = max(lengths) + more
    bins = first_fit_decreasing(lengths, capacity)
    assert sorted(item for items in bins for item in items) == list(range(len(lengths)))
    assert all(0 < sum(lengths[item] for item in items) <= capacity for items in bins)
    assert -(-sum(lengths) // capacity) <= len(bins) <= min(len(lengths), 2 * -(-sum(lengths) // capacity))


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=6),
    window=st.none() | st.integers(1, 6),
    alone=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_rows_attend_within_their_prompt(lengths, window, alone, seed):
    """Against each prompt by itself in float64; what stands at empty places does not matter."""
    generator = torch.Generator().manual_seed(seed)
    starts = [sum(lengths[:item]) for item in range(len(lengths))]
    q, k, v = (torch.randn(sum(lengths), heads, 8, generator=generator, dtype=torch.float64) for heads in (4, 2, 2))
    bins = [[item] for item in range(len(lengths))] if alone else first_fit_decreasing(lengths, 12)
    rectangle = Rectangle.of(bins, starts, lengths, torch.device("cpu"))
    source = torch.from_numpy(rectangle.sources.reshape(-1))
    there = source >= 0
    spread = [torch.where(there[:, None, None], x[source.clamp(min=0)], torch.tensor(7.0).double()) for x in (q, k, v)]
    out = rectangle.attend(*spread, 0.3, window)
    assert out.isfinite().all()
    for start, length in zip(starts, lengths, strict=True):
        rows = slice(start, start + length)
        scores = torch.einsum("qhd,khd->hqk", q[rows], k[rows].repeat_interleave(2, 1)) * 0.3
        place = torch.arange(length)
        far = place[:, None] - place
        scores.masked_fill_((far < 0) | (far >= (window or length)), -torch.inf)
        want = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v[rows].repeat_interleave(2, 1))
        at = torch.tensor([int((source == row).nonzero()) for row in range(start, start + length)])
        torch.testing.assert_close(out[at], want, atol=1e-12, rtol=1e-12)


def keys_after_reading(prompts, *use):
    """Per prompt and layer the keys and values that one step leaves in the cache, and the methods' counts."""
    engine = make_engine("gqa", *use, max_num_batched_tokens=1000, enable_prefix_caching=False)
    for number, prompt in enumerate(prompts):
        engine.submit(engine.prepare(f"{number}", prompt, PARAMS))
    engine.step()
    found = []
    for request in engine.requests.values():
        pages, length = request.sequences[0].pages, request.sequences[0].num_prompt
        pools = [pool for layer in range(2) for pool in engine.store.layer(layer)]
        found.append(torch.stack([pool[pages].flatten(0, 1)[:length] for pool in pools]).clone())
    return found, engine.stats().methods


@pytest.mark.parametrize("rows", ["packed", "padded", "sorted"])
def test_keys_are_those_of_each_prompt_alone(rows):
    """With lengths 1 and equal ones among them; the order of the prompts permutes the result."""
    rng = random.Random(0)
    lengths = [1, 30, 7, 7, 1, 18, 60, 3, 29, 12, 5]
    prompts = [models.ids(length, seed) for seed, length in enumerate(lengths)]
    want, _ = keys_after_reading(prompts)
    got, counts = keys_after_reading(prompts, Prepacking(rows))
    for mine, its in zip(got, want, strict=True):
        torch.testing.assert_close(mine, its, atol=1e-4, rtol=1e-4)
    order = rng.sample(range(len(prompts)), len(prompts))
    permuted, _ = keys_after_reading([prompts[place] for place in order], Prepacking(rows))
    for place, mine in zip(order, permuted, strict=True):
        torch.testing.assert_close(mine, want[place], atol=1e-4, rtol=1e-4)
    counted = counts["prepacking"]
    assert (counted["prompts"], counted["tokens"]) == (len(lengths), sum(lengths))
    bins = len(first_fit_decreasing(lengths, max(lengths)))
    ordered = sorted(lengths)
    places = {"packed": bins * 60, "padded": 11 * 60, "sorted": 8 * ordered[7] + 3 * 60}[rows]
    assert counted["places"] == places


def test_a_neighbour_leaves_no_trace():
    """Other tokens in one prompt leave the keys of all others as they were, bit by bit."""
    prompts = [models.ids(length, seed) for seed, length in enumerate([40, 9, 9, 9, 9])]
    before, _ = keys_after_reading(prompts, Prepacking())
    prompts[2] = models.ids(9, 99)
    after, _ = keys_after_reading(prompts, Prepacking())
    assert not torch.equal(before[2], after[2])
    assert all(torch.equal(before[place], after[place]) for place in (0, 1, 3, 4))


def test_capacity_out_of_range():
    """It is refused in a sentence."""
    with pytest.raises(MethodError, match=r"^prepacking: "):
        Prepacking(capacity=-1)
