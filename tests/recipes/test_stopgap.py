"""The stopgap model: what is shipped, and the recipe that made it."""

import json
import lzma
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from headstart import LLM, SamplingParams
from headstart.checkpoints.default import default_checkpoint_path

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "stopgap"
DEFAULT = default_checkpoint_path()


def transformers_greedy(directory: Path, ids: list[int], count: int) -> list[int]:
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    made = model.generate(torch.tensor([ids]), max_new_tokens=count, min_new_tokens=count, do_sample=False)
    return made[0, len(ids) :].tolist()


def test_the_shipped_weights_are_few_and_small() -> None:
    with safe_open(DEFAULT / "model.safetensors", "pt") as weights:
        tensors = [weights.get_tensor(name) for name in weights.keys()]  # noqa: SIM118
    assert sum(tensor.numel() for tensor in tensors) < 900_000
    assert all(tensor.isfinite().all() for tensor in tensors)
    assert sum(path.stat().st_size for path in DEFAULT.iterdir()) < 2 * 2**20


def test_transformers_loads_the_shipped_model_whole_and_agrees() -> None:
    _, report = AutoModelForCausalLM.from_pretrained(DEFAULT, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    llm = LLM()
    prompt = "The little girl opened the door, and"
    params = SamplingParams(temperature=0, max_tokens=40, min_tokens=40, ignore_eos=True)
    ours = llm.generate(prompt, params)[0]
    ids = AutoTokenizer.from_pretrained(DEFAULT)(prompt)["input_ids"]
    assert ours.prompt_token_ids == ids
    assert ours.outputs[0].token_ids == transformers_greedy(DEFAULT, ids, 40)


@pytest.mark.parametrize("messages", [
    [{"role": "user", "content": "Tell me a story."}],
    [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hello!\n"},
        {"role": "assistant", "content": "Once"},
        {"role": "user", "content": "Go on."},
    ],
])  # fmt: skip
def test_the_chat_template_means_the_same_in_transformers(messages: list[dict[str, str]]) -> None:
    theirs = AutoTokenizer.from_pretrained(DEFAULT)
    ours = LLM().tokenizer
    text = ours.apply_chat_template(messages)
    assert text == theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text.endswith("<|assistant|>")
    ids = theirs.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert ours.encode(text, add_special_tokens=False) == ids


def test_any_text_survives_the_tokenizer() -> None:
    tokenizer = LLM().tokenizer
    rng = random.Random(0)
    for _ in range(200):
        text = "".join(chr(rng.choice([rng.randint(32, 126), rng.randint(0x80, 0xD7FF)])) for _ in range(20))
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_chat_replies_end() -> None:
    """The model has learnt to close its turn: some replies end before the limit."""
    params = SamplingParams(n=16, temperature=0.8, top_p=0.95, seed=0, max_tokens=300)
    outputs = LLM().chat([{"role": "user", "content": "Tell me a story."}], params)[0].outputs
    assert any(output.finish_reason == "stop" for output in outputs)


def test_the_readmes_say_what_was_measured() -> None:
    training = json.loads((DEFAULT / "training.json").read_text())
    for path in (DEFAULT / "README.md", RECIPE / "README.md"):
        text = path.read_text(encoding="utf-8")
        assert f"{training['held_out_bits_per_byte']['mean']:.2f} bits per byte" in text
        assert f"{training['weights']:,} weights" in text


def test_the_recipe_makes_a_checkpoint_that_runs(tmp_path: Path) -> None:
    rng = random.Random(1)
    words = ["the", "king", "queen", "fox", "was", "in", "sea", "said", "boat", "little", "a", "to", "house"]
    paragraphs = [" ".join(rng.choices(words, k=30)) + "." for _ in range(400)]
    text = "\n\n".join(paragraphs)
    data = tmp_path / "data" / "text"
    data.mkdir(parents=True)
    book = {"author": "L. Frank Baum", "title": "A Book", "text": f"## One\n\n{text}"}
    for name in ("books-core", "books-val"):
        with lzma.open(data / f"{name}.jsonl.xz", "wt", encoding="utf-8") as file:
            file.write(json.dumps(book) + "\n")
    out = tmp_path / "out"
    subprocess.run(
        [
            *(sys.executable, str(RECIPE / "train.py"), "--data", str(tmp_path / "data"), "--out", str(out)),
            *("--steps", "6", "--tokens-per-step", "2048", "--vocab-size", "320"),
        ],
        check=True,
        capture_output=True,
    )
    training = json.loads((out / "training.json").read_text())
    assert 0 < training["held_out_bits_per_byte"]["mean"] < 8
    ids = list(range(4, 40))
    params = SamplingParams(temperature=0, max_tokens=16, min_tokens=16, ignore_eos=True)
    ours = LLM(str(out)).generate({"prompt_token_ids": ids}, params)[0].outputs[0].token_ids
    assert ours == transformers_greedy(out, ids, 16)


def test_conversations_alternate_and_end() -> None:
    sys.path.insert(0, str(RECIPE))
    try:
        from corpus import conversation
    finally:
        sys.path.remove(str(RECIPE))
    paragraphs = [f"There was a dragon, and the castle was number {i}." for i in range(60)]
    for seed in range(50):
        text = conversation(paragraphs, random.Random(seed))
        assert text.endswith("<|end|><|endoftext|>")
        assert text.startswith("<|user|>")
        turns = text.count("<|user|>")
        assert 1 <= turns <= 4
        assert text.count("<|assistant|>") == turns
        assert text.count("<|end|>") == 2 * turns
