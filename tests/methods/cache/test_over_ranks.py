"""Heads that keep or read little, cut over two ranks: each decides for its own, and all count pages alike."""

import json
from pathlib import Path

import pytest

from headstart import LLM, SamplingParams
from headstart.checkpoints.default import default_checkpoint_path
from headstart.checkpoints.random_init import random_checkpoint
from headstart.checkpoints.writer import save_checkpoint
from tests.conformance import models
from tests.conformance.examples import write_heads

GREEDY = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)


@pytest.mark.parametrize("method", ["longgen", "lserve", "qwen2.5-1m"])
def test_two_ranks_answer_as_one(method: str, tmp_path: Path) -> None:
    """Also from the cache, and in memory so small that sequences are preempted, whose answers are those of a recomputed
    prompt then."""
    sizes = models._BASE | {"vocab_size": 8192, "max_position_embeddings": 192}
    checkpoint = random_checkpoint(sizes, "float32")
    save_checkpoint(checkpoint.decoder, tmp_path / "model", tokenizer_from=default_checkpoint_path())
    heads = write_heads(checkpoint, tmp_path)
    # All streaming heads are on one rank.
    content = json.loads((tmp_path / "heads.json").read_text())
    (tmp_path / "heads.json").write_text(json.dumps(content | {"losses": [[1.0, 0.0], [1.0, 0.0]]}))
    use = {
        "longgen": "longgen:untrained=true,block=8,sink=1,local=2,stride=4",
        "lserve": f"lserve:{heads},sink=8,recent=8,budget=16,block=8,logical=4",
        "qwen2.5-1m": "qwen2.5-1m:chunk=64,local=16,block=8,sparse_from=1,vertical=8,slash=8,sink=1,recent=0",
    }[method]
    settings = {"device": "cpu", "dtype": "float32", "page_size": 4, "max_num_batched_tokens": 16}
    prompts = [[(7 * i + j) % 97 for j in range(30 + 30 * i)] for i in range(4)]

    def answers(ranks: int, pages: int) -> list:
        llm = LLM(str(tmp_path / "model"), tensor_parallel_size=ranks, num_pages=pages, use=[use], **settings)
        try:
            return [[o.outputs[0].token_ids for o in llm.generate(prompts, GREEDY)] for _ in range(2)]
        finally:
            llm.close()

    assert answers(2, 300) == answers(1, 300)
    assert [len(tokens) for turn in answers(2, 70) for tokens in turn] == [8] * 8
