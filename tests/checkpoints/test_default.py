"""The model that comes with the package: whole, the same in Transformers, and able to find what a long text says."""

import json
import os
import random
import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from headstart import LLM, SamplingParams
from headstart.checkpoints.default import default_checkpoint_path
from headstart.evaluation.tasks import registry
from headstart.texts import wild_wood

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "recipes" / "headstart-base" / "results"
DEFAULT = default_checkpoint_path()
LENGTHS = [64, *([16_384] if os.environ.get("HEADSTART_SLOW") else [])]
"""HEADSTART_SLOW=1 adds the length that takes minutes on a CPU."""


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM(dtype="float32")


def test_the_files_are_few_and_small() -> None:
    shards = sorted(DEFAULT.glob("*.safetensors"))
    count = 0
    for path in shards:
        assert path.stat().st_size < 16 * 2**20
        with safe_open(path, "pt") as weights:
            tensors = [weights.get_tensor(name) for name in weights.keys()]  # noqa: SIM118
        assert all(tensor.isfinite().all() and tensor.dtype == torch.bfloat16 for tensor in tensors)
        count += sum(tensor.numel() for tensor in tensors)
    assert f"{count:,} weights" in (DEFAULT / "README.md").read_text(encoding="utf-8")
    assert sum(path.stat().st_size for path in DEFAULT.iterdir()) < 64_000_000


@pytest.mark.parametrize("length", LENGTHS)
def test_transformers_has_the_same_logits(llm: LLM, length: int) -> None:
    model, report = AutoModelForCausalLM.from_pretrained(DEFAULT, dtype=torch.float32, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    ids = AutoTokenizer.from_pretrained(DEFAULT)(wild_wood().text)["input_ids"][:length]
    assert ids == llm.encode(wild_wood().text)[:length]
    with torch.no_grad():
        theirs = model.eval()(torch.tensor([ids]), logits_to_keep=1).logits[0, -1].double().log_softmax(-1)
    params = SamplingParams(max_tokens=1, temperature=0.0, logprobs=20, ignore_eos=True)
    (ours,) = llm.generate({"prompt_token_ids": ids}, params)[0].outputs[0].logprobs or []
    for token, found in ours.items():
        assert found.logprob == pytest.approx(theirs[token].item(), abs=1e-4)


@pytest.mark.parametrize("messages", [
    [{"role": "user", "content": "Tell me a story."}],
    [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hello!\n"},
        {"role": "assistant", "content": "Once"},
        {"role": "user", "content": "Go on."},
    ],
])  # fmt: skip
def test_the_chat_template_means_the_same_in_transformers(llm: LLM, messages: list[dict[str, str]]) -> None:
    theirs, ours = AutoTokenizer.from_pretrained(DEFAULT), llm.tokenizer
    text = ours.apply_chat_template(messages)
    assert text == theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text.endswith("<|assistant|>")
    ids = theirs.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert ours.encode(text, add_special_tokens=False) == ids


def test_any_text_survives_the_tokenizer(llm: LLM) -> None:
    rng = random.Random(0)
    for _ in range(200):
        text = "".join(chr(rng.choice([rng.randint(32, 126), rng.randint(0x80, 0xD7FF)])) for _ in range(20))
        assert llm.tokenizer.decode(llm.tokenizer.encode(text)) == text


def test_chat_replies_end(llm: LLM) -> None:
    talk = [[{"role": "user", "content": text}] for text in ("Hello! Who are you?", "What can you do?", "Thank you!")]
    replies = [result.outputs[0] for result in llm.chat(talk, SamplingParams(max_tokens=60, temperature=0.0))]
    assert [reply.finish_reason for reply in replies] == ["stop"] * 3
    assert all(re.fullmatch(r"[A-Z][A-Za-z ,.!']+[.!]", reply.text.strip()) for reply in replies)


@pytest.mark.parametrize("key", ["niah_single_2", "niah_multikey_1", "kv_retrieval"])
def test_it_finds_what_a_text_says(llm: LLM, key: str) -> None:
    task = registry.task(key)
    examples = list(task.examples(llm.tokenizer, 1024, 4, 7))
    params = [SamplingParams(max_tokens=min(e.max_tokens, 60), temperature=0.0, stop=list(e.stop)) for e in examples]
    answers = [result.outputs[0].text for result in llm.generate([e.text for e in examples], params)]
    assert sum(task.score(*pair) for pair in zip(examples, answers, strict=True)) >= 75 * len(examples)


def test_the_pages_say_what_was_measured() -> None:
    scores = json.loads((RESULTS / "long-context.json").read_text())["scores"]
    by_task: dict[str, list[float]] = {}
    for score in scores:
        by_task.setdefault(score["task"], []).append(score["score"])
    for page in (DEFAULT / "README.md", ROOT / "recipes" / "headstart-base" / "README.md"):
        rows = re.findall(r"^\|[^|]*\(`(\w+)`\) \|(.*)\|$", page.read_text(encoding="utf-8"), re.MULTILINE)
        assert len(rows) == len(by_task)
        for task, figures in rows:
            assert [float(figure) for figure in figures.split("|")] == by_task[task]
