"""The random model that all sides load: reproducible, and the same in every format."""

import random
from pathlib import Path

import pytest
import torch

from headstart.checkpoints.tokenizer import Tokenizer
from headstart.evaluation.compare_peers import LlamaCppSide, TransformersSide
from headstart.evaluation.compare_subject import Subject
from headstart.evaluation.random_checkpoint import write_checkpoint, write_gguf, write_tokenizer
from headstart.evaluation.shape import SHAPES, LlamaShape
from headstart.evaluation.sides import HeadstartSide, SideSettings

TINY = SHAPES["tiny"]
ODD = LlamaShape(
    hidden=96, layers=2, heads=6, kv_heads=2, head_dim=32, ffn=160, vocab=200, max_positions=256, init_std=0.2
)


def _settings(side: str, path: Path, dtype: str = "float32") -> SideSettings:
    return SideSettings(
        side=side,
        dtype=dtype,
        checkpoint=str(path),
        threads=1,
        max_length=160,
        max_concurrent_length=40,
        max_sequences=5,
        engine_options={},
    )


def _prompts(shape: LlamaShape, lengths: list[int]) -> list[list[int]]:
    draw = random.Random(0)
    return [[draw.randrange(3, shape.vocab) for _ in range(length)] for length in lengths]


def test_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_checkpoint(tmp_path / name, TINY, seed=seed)
    read = {name: (tmp_path / name / "model.safetensors").read_bytes() for name in "abc"}
    assert read["a"] == read["b"] != read["c"]


def test_transformers_finds_every_weight(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    write_checkpoint(tmp_path, ODD, seed=0)
    model, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert model.config.rope_parameters["rope_theta"] == ODD.rope_theta
    assert model.dtype == torch.bfloat16
    spread = model.model.layers[1].mlp.up_proj.weight.detach().float().std()
    assert spread == pytest.approx(ODD.init_std, rel=0.05)


@pytest.mark.parametrize("shape", [TINY, ODD], ids=["tiny", "odd"])
def test_gguf_computes_what_transformers_does(tmp_path: Path, shape: LlamaShape) -> None:
    for package in ("transformers", "llama_cpp", "gguf"):
        pytest.importorskip(package)
    write_checkpoint(tmp_path / "hf", shape, seed=3)
    write_gguf(tmp_path / "model.gguf", tmp_path / "hf", shape, torch.float32)
    ours = LlamaCppSide(_settings("llama.cpp", tmp_path / "model.gguf"))
    reference = TransformersSide(_settings("transformers", tmp_path / "hf"))

    for prompt in _prompts(shape, [1, 2, 31, 97]):
        token, logprob = ours.next_token(prompt)
        expected, expected_logprob = reference.next_token(prompt)
        assert token == expected
        assert logprob == pytest.approx(expected_logprob, abs=1e-4)

    same_length = _prompts(shape, [20] * 5)
    expected_ids = reference.serial(same_length, 12).token_ids
    assert reference.concurrent(same_length, 12).token_ids == expected_ids
    assert ours.concurrent(same_length, 12).token_ids == expected_ids
    assert ours.serial(same_length, 12).token_ids == expected_ids
    assert ours.decode(same_length, 11).token_ids == expected_ids
    # The model must attend to be checked at all: it does not merely repeat its last token.
    assert len({tuple(ids[-4:]) for ids in expected_ids}) > 1
    assert any(ids[0] != prompt[-1] for ids, prompt in zip(expected_ids, same_length, strict=True))


def test_bfloat16_gguf_holds_the_same_numbers(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    write_checkpoint(tmp_path / "hf", TINY, seed=0)
    read = {}
    for dtype in (torch.float32, torch.bfloat16):
        path = tmp_path / f"{dtype}.gguf"
        write_gguf(path, tmp_path / "hf", TINY, dtype)
        read[dtype] = {t.name: t for t in gguf.GGUFReader(path).tensors}
    assert read[torch.float32].keys() == read[torch.bfloat16].keys()
    for name, tensor in read[torch.float32].items():
        other = read[torch.bfloat16][name]
        assert list(tensor.shape) == list(other.shape)
        expected = torch.tensor(tensor.data)
        found = torch.tensor(other.data)
        if expected.dim() == 2:
            found = found.view(torch.bfloat16)
        assert torch.equal(found.float(), expected)


def test_tokenizer_has_a_word_for_every_id(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, 50)
    tokenizer = Tokenizer.from_directory(tmp_path)
    assert tokenizer.encode("t7 t49 t3", add_special_tokens=False) == [7, 49, 3]
    assert tokenizer.inner.get_vocab_size() == 50


def test_a_real_llama_becomes_gguf_too(tmp_path: Path, stories: str) -> None:
    """A trained model: its own RoPE base, norms and vocabulary."""
    pytest.importorskip("gguf")
    pytest.importorskip("llama_cpp")
    subject = Subject.of_model(stories, device="cpu")
    prompt = subject.prompt(60, "x")
    theirs = LlamaCppSide(_settings("llama.cpp", subject.gguf(tmp_path, "float32"))).next_token(prompt)
    ours = HeadstartSide(_settings("headstart", subject.path)).next_token(prompt)
    assert theirs[0] == ours[0] and theirs[1] == pytest.approx(ours[1], abs=1e-3)
