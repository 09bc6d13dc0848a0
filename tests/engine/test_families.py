"""Every model family through the paged cache: chunks, decodes and neighbours give Transformers' logits."""

import pytest
import torch

from headstart.checkpoints.reader import load_checkpoint
from headstart.engine.args import EngineArgs
from headstart.engine.engine import Engine
from headstart.engine.params import SamplingParams
from tests.models.configs import FAMILIES, make_pair

LENGTHS = [37, 1, 12]


def reference_logits(model, prompt: list[int], output: list[int]) -> torch.Tensor:
    """Transformers' logits `[N, V]`: the prompt in one pass, then token by token, as its `generate` does it."""
    with torch.inference_mode():
        step = model(torch.tensor([prompt]), use_cache=True)
        rows = [step.logits[0]]
        for token in output:
            step = model(torch.tensor([[token]]), past_key_values=step.past_key_values, use_cache=True)
            rows.append(step.logits[0])
    return torch.cat(rows).float()


@pytest.mark.parametrize("name", FAMILIES)
def test_prompt_and_output_logprobs_equal_transformers(name, tmp_path):
    """Three neighbours in chunks of 5 over pages of 4: every prompt token's and every output token's
    log-probability is Transformers' within 1e-4."""
    model, directory = make_pair(name, tmp_path, seed=0)
    checkpoint = load_checkpoint(directory, dtype="float32", skip_tokenizer_init=True)
    args = EngineArgs(
        device="cpu",
        skip_tokenizer_init=True,
        page_size=4,
        max_num_batched_tokens=5,
        num_pages=64,
        max_model_len=48,  # beyond the 32 positions that the dynamic RoPE starts from
    )
    engine = Engine(args, checkpoint)
    params = SamplingParams(max_tokens=9, temperature=0, ignore_eos=True, logprobs=0, prompt_logprobs=0)
    generator = torch.Generator().manual_seed(1)
    vocab = checkpoint.config.vocab_size
    prompts = [torch.randint(3, vocab, (length,), generator=generator).tolist() for length in LENGTHS]
    for i, ids in enumerate(prompts):
        engine.submit(engine.prepare(str(i), ids, params))
    done = {}
    while engine.has_work:
        done |= {output.request_id: output for output in engine.step()}
    for i, ids in enumerate(prompts):
        output = done[str(i)].outputs[0]
        tokens = [*ids, *output.token_ids]
        entries = [*done[str(i)].prompt_logprobs[1:], *output.logprobs]
        got = torch.tensor([entry[token].logprob for entry, token in zip(entries, tokens[1:], strict=True)])
        logits = reference_logits(model, ids, output.token_ids[:-1])
        want = torch.log_softmax(logits, -1).gather(1, torch.tensor(tokens[1:])[:, None])[:, 0]
        torch.testing.assert_close(got, want, atol=1e-4, rtol=0)
    engine.store.check()
