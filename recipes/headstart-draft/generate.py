"""Lets the built-in model go on with beginnings of texts: `python generate.py SHARDS OUT [SECONDS] [TOKENS]`.

What it says becomes token shards of which only the answers are trained, with the beginning of each to read. Half of the
answers are sampled, half are what it finds most likely.
"""

import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from headstart.engine.llm import LLM
from headstart.engine.params import SamplingParams
from headstart.training.data.shards import ShardSource, ShardWriter
from headstart.training.documents import Document

# Where beginnings come from, by weight, and how many tokens they have at most.
SOURCES = {"books": 3, "textbooks": 2, "python": 2, "chat": 3, "retrieval-2k": 3, "retrieval-8k": 1}
LONGEST = {"retrieval-8k": 4096, "chat": 4096}
ANSWER, AT_ONCE = 256, 512


def beginnings(shards: Path, seed: int) -> Iterator[list[int]]:
    """Prompts without end: of prose a stretch from anywhere, of exercises and talk all before one of the answers."""
    random = np.random.default_rng(seed)
    sources = {name: ShardSource(shards / name / "train") for name in SOURCES}
    shares = np.array(list(SOURCES.values())) / sum(SOURCES.values())
    while True:
        name = str(random.choice(list(SOURCES), p=shares))
        document = sources[name][int(random.integers(len(sources[name])))]
        ids, trained = document.token_ids, document.trained
        if trained is None:
            start = int(random.integers(max(1, len(ids) - 64)))
            yield ids[start : start + int(random.integers(16, 256))].tolist()
            continue
        begins = np.flatnonzero(trained & ~np.concatenate([[False], trained[:-1]]))
        begins = begins[(begins > 0) & (begins < LONGEST.get(name, 2048))]
        if len(begins):
            yield ids[: int(random.choice(begins))].tolist()


def main(shards: Path, out: Path, seconds: float = 60.0, tokens: int = 8_000_000) -> None:
    """Generate until the time is over or there is enough."""
    at_once = min(AT_ONCE, tokens // ANSWER)
    llm = LLM(max_num_seqs=at_once, max_num_batched_tokens=16384, max_model_len=8192, kv_cache_memory=8 << 30)
    bos, prompts = llm.tokenizer.bos_token_id, beginnings(shards, seed=0)
    began, said, number = time.monotonic(), 0, 0
    with ShardWriter(out, llm.tokenizer) as writer:
        while said < tokens and time.monotonic() - began < seconds:
            asked = [[bos, *ids] for ids in islice(prompts, 2 * at_once)]
            params = [
                SamplingParams(max_tokens=ANSWER, temperature=float(place % 2), seed=number + place, detokenize=False)
                for place in range(2 * at_once)
            ]
            for output in llm.generate([{"prompt_token_ids": ids} for ids in asked], params):
                prompt, answer = output.prompt_token_ids[1:], output.outputs[0].token_ids
                trained = np.arange(len(prompt) + len(answer)) >= len(prompt)
                writer.add(Document(np.array([*prompt, *answer], np.int32), trained, f"generated-{number}"))
                said, number = said + len(answer), number + 1
            print(f"{said:,} tokens in {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *map(float, sys.argv[3:4]), *map(int, sys.argv[4:5]))
