"""How many of the draft's guesses stand: `python acceptance.py OUT.json` asks for chat, a story and retrieval.

The story is the package's own, which neither the model nor the draft was trained on.
"""

import json
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import torch

from headstart.engine.llm import LLM
from headstart.engine.params import SamplingParams
from headstart.evaluation.ledger import code_version, now
from headstart.evaluation.machine import describe_machine
from headstart.evaluation.tasks import task
from headstart.texts import wild_wood

LENGTH, ANSWER, PROMPTS = 4, 64, 6
QUESTIONS = (
    "Who is the Mole looking for?",
    "What does the Rat say?",
    "Where does Mr. Badger live?",
    "What happens in this story?",
    "How does the Mole feel in the wood?",
    "What do they eat?",
)


def prompts(llm: LLM) -> dict[str, list[list[int]]]:
    """Token ids of each kind's prompts."""
    text, bos = wild_wood().text, llm.tokenizer.bos_token_id
    stretches = [text[at : at + 2000] for at in range(5000, 5000 + PROMPTS * 9000, 9000)]
    talk = [
        llm.tokenizer.apply_chat_template(
            [{"role": "user", "content": f"{stretch}\n\n{question}"}], add_generation_prompt=True
        )
        for stretch, question in zip(stretches, QUESTIONS, strict=True)
    ]
    found = {
        "chat": [llm.encode(each, add_special_tokens=False) for each in talk],
        "story": [[bos, *llm.encode(each, add_special_tokens=False)] for each in stretches],
        "retrieval": [],
    }
    for name in ("niah_multivalue", "kv_retrieval"):
        for example in task(name).examples(llm.tokenizer, 1024, PROMPTS // 2, 0):
            found["retrieval"].append(llm.encode(example.text))
    return found


def measure(llm: LLM, asked: list[list[int]], temperature: float) -> dict[str, float]:
    """Counters of one kind at one temperature; mean guesses that stand per draft, and their share."""
    before = dict(llm.engine.stats().drafts)
    params = [
        SamplingParams(max_tokens=ANSWER, temperature=temperature, seed=seed, ignore_eos=temperature > 0)
        for seed in range(len(asked))
    ]
    llm.generate([{"prompt_token_ids": ids} for ids in asked], params)
    counts = {name: count - before.get(name, 0) for name, count in llm.engine.stats().drafts.items()}
    drafts, accepted = counts["drafts"], counts.get("accepted", 0)
    return {**counts, "accepted per draft": accepted / drafts, "share accepted": accepted / counts["drafted"]}


def main(out: Path) -> None:
    """Measure, print and write."""
    began = time.monotonic()
    llm = LLM(use=[f"speculative:draft=headstart-draft,length={LENGTH},guard=false"], max_model_len=2048)
    rows: list[dict[str, Any]] = []
    for kind, asked in prompts(llm).items():
        for temperature in (0.0, 1.0):
            rows.append({"prompts": kind, "temperature": temperature, **measure(llm, asked, temperature)})
            print(f"{kind:<10} T={temperature:g}  {rows[-1]['accepted per draft']:.2f} of {LENGTH}", flush=True)
    commit, dirty = code_version()
    found = {
        "command": shlex.join(["python", "recipes/headstart-draft/acceptance.py", *sys.argv[1:]]),
        "commit": commit,
        "dirty": dirty,
        "created": now().isoformat(),
        "machine": describe_machine().model_dump(),
        "torch": torch.__version__,
        "length": LENGTH,
        "answer_tokens": ANSWER,
        "seconds": round(time.monotonic() - began, 1),
        "rows": rows,
    }
    out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
