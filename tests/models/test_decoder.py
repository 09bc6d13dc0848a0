"""Every family against Transformers: prefill, chunked prefill and decode, alone and in company."""

import random
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from headstart.checkpoints.reader import load_checkpoint
from headstart.models.decoder import Decoder
from tests.models.configs import FAMILIES, VOCAB_SIZE, make_pair
from tests.models.naive_attention import NaiveBatch

TOLERANCE = 1e-4
DECODED = 6

pytestmark = pytest.mark.filterwarnings("ignore")


def reference_logits(model: PreTrainedModel, ids: Tensor, prompt_length: int) -> Tensor:
    """Logits `[T, vocab]`: the prompt at once, then token by token with Transformers' cache."""
    with torch.inference_mode():
        # Transformers keeps angles of the longest sequence seen; a short one resets them.
        model(ids[None, :1])
        outputs = model(ids[None, :prompt_length], use_cache=True)
        rows = [outputs.logits[0]]
        for at in range(prompt_length, len(ids)):
            outputs = model(ids[None, at : at + 1], past_key_values=outputs.past_key_values, use_cache=True)
            rows.append(outputs.logits[0])
    return torch.cat(rows)


def load(directory: Path) -> Decoder:
    return load_checkpoint(directory, skip_tokenizer_init=True).decoder


def sequence(seed: int, length: int) -> Tensor:
    return torch.randint(VOCAB_SIZE, (length,), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_equal_transformers(name: str, tmp_path: Path) -> None:
    model, directory = make_pair(name, tmp_path)
    decoder = load(directory)
    # One prompt crosses the original length of extended RoPEs in decode, the other begins above it.
    prompt_lengths = [29, 38]
    ids = [sequence(number, length + DECODED) for number, length in enumerate(prompt_lengths)]
    expected = [reference_logits(model, *pair) for pair in zip(ids, prompt_lengths, strict=True)]
    with torch.inference_mode():
        whole = NaiveBatch(decoder, prompt_lengths)
        got = [[rows] for rows in whole.step({n: ids[n][:length] for n, length in enumerate(prompt_lengths)}).values()]
        for offset in range(DECODED):
            step = {n: ids[n][length + offset, None] for n, length in enumerate(prompt_lengths)}
            for number, rows in whole.step(step).items():
                got[number].append(rows)
    for rows, reference in zip(got, expected, strict=True):
        torch.testing.assert_close(torch.cat(rows), reference, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", FAMILIES)
def test_any_chunks_and_company_give_the_same(name: str, tmp_path: Path) -> None:
    model, directory = make_pair(name, tmp_path, seed=1)
    decoder = load(directory)
    rng = random.Random(name)
    prompt_lengths = [rng.randint(20, 44) for _ in range(3)]
    ids = [sequence(10 + number, length) for number, length in enumerate(prompt_lengths)]
    batch = NaiveBatch(decoder, prompt_lengths)
    got: list[list[Tensor]] = [[] for _ in ids]
    with torch.inference_mode():
        while any(batch.done[n] < length for n, length in enumerate(prompt_lengths)):
            waiting = [n for n, length in enumerate(prompt_lengths) if batch.done[n] < length]
            chosen = rng.sample(waiting, rng.randint(1, len(waiting)))
            chunks = {n: ids[n][batch.done[n] :][: rng.choice([1, 2, 5, 13])] for n in chosen}
            for number, rows in batch.step(chunks).items():
                got[number].append(rows)
    for number, length in enumerate(prompt_lengths):
        expected = reference_logits(model, ids[number], length)
        torch.testing.assert_close(torch.cat(got[number]), expected, rtol=0, atol=TOLERANCE)
