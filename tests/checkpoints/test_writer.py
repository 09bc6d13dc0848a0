"""Writing checkpoints that Transformers loads with equal logits."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from headstart.checkpoints.random_init import random_checkpoint
from headstart.checkpoints.reader import load_checkpoint
from headstart.checkpoints.writer import save_checkpoint
from headstart.errors import CheckpointError
from headstart.models.decoder import Decoder
from tests.checkpoints.tiny_tokenizer import write_tokenizer
from tests.models.configs import FAMILIES, VOCAB_SIZE, make_pair
from tests.models.naive_attention import NaiveCache

pytestmark = pytest.mark.filterwarnings("ignore")
LENGTH = 12
IDS = torch.randint(VOCAB_SIZE, (LENGTH,), generator=torch.Generator().manual_seed(3))


def ours(decoder: Decoder) -> torch.Tensor:
    with torch.inference_mode():
        lengths = torch.full((LENGTH,), LENGTH)
        return decoder.logits(decoder(IDS, torch.arange(LENGTH), NaiveCache().attend, lengths))


def theirs(directory: Path) -> torch.Tensor:
    model, info = AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.inference_mode():
        return model(IDS[None]).logits[0].float()


@pytest.mark.parametrize("name", FAMILIES)
def test_transformers_loads_what_was_written(name: str, tmp_path: Path) -> None:
    model, directory = make_pair(name, tmp_path)
    checkpoint = load_checkpoint(directory, skip_tokenizer_init=True)
    save_checkpoint(checkpoint, tmp_path / "out")
    with torch.inference_mode():
        assert torch.equal(theirs(tmp_path / "out"), model(IDS[None]).logits[0])
    original, written = (load_file(d / "model.safetensors") for d in (directory, tmp_path / "out"))
    assert original.keys() == written.keys()
    assert all(torch.equal(original[key], written[key]) for key in original)


@pytest.mark.parametrize("name", ["llama", "gemma2", "qwen3_moe"])
@pytest.mark.parametrize("bound", [1, 30_000, 1 << 30])
def test_shards(name: str, bound: int, tmp_path: Path) -> None:
    _, directory = make_pair(name, tmp_path)
    checkpoint = load_checkpoint(directory, skip_tokenizer_init=True)
    out = tmp_path / "out"
    save_checkpoint(checkpoint, out, max_shard_bytes=bound)
    files = sorted(out.glob("*.safetensors"))
    sizes = [sum(t.nbytes for t in load_file(path).values()) for path in files]
    assert all(size <= bound or len(load_file(path)) == 1 for path, size in zip(files, sizes, strict=True))
    assert (out / "model.safetensors.index.json").exists() == (len(files) > 1)
    if len(files) > 1:
        index = json.loads((out / "model.safetensors.index.json").read_text())
        assert index["metadata"]["total_size"] == sum(sizes)
    reloaded = load_checkpoint(out, skip_tokenizer_init=True)
    torch.testing.assert_close(theirs(out), ours(reloaded.decoder), rtol=0, atol=1e-4)


def test_dtype_that_it_ran_in_is_written(tmp_path: Path) -> None:
    _, directory = make_pair("qwen3", tmp_path)
    checkpoint = load_checkpoint(directory, dtype="bfloat16", skip_tokenizer_init=True)
    save_checkpoint(checkpoint.decoder, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    assert load_checkpoint(tmp_path / "out", skip_tokenizer_init=True).decoder.dtype == torch.bfloat16


def test_tokenizer_and_generation_config_go_along(tmp_path: Path) -> None:
    config = json.loads((make_pair("llama", tmp_path)[1] / "config.json").read_text())
    source = tmp_path / "source"
    size = write_tokenizer(source, chat_template="{{ messages[0].content }}")
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "tool_use.jinja").write_text("T")
    (source / "generation_config.json").write_text('{"temperature": 0.3}')
    checkpoint = random_checkpoint(config | {"vocab_size": size})
    save_checkpoint(checkpoint, tmp_path / "out", tokenizer_from=source)
    loaded = load_checkpoint(tmp_path / "out")
    assert loaded.tokenizer is not None and loaded.generation_config.temperature == 0.3
    assert loaded.tokenizer.apply_chat_template([{"role": "user", "content": "hi"}]) == "hi"
    reference = PreTrainedTokenizerFast.from_pretrained(tmp_path / "out")
    assert loaded.tokenizer.encode("the old king") == reference.encode("the old king")


def test_a_directory_is_replaced_only_when_told(tmp_path: Path) -> None:
    _, directory = make_pair("llama", tmp_path)
    checkpoint = load_checkpoint(directory, skip_tokenizer_init=True)
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("x")
    with pytest.raises(CheckpointError, match="is there already; choose another directory or pass overwrite=True"):
        save_checkpoint(checkpoint, out)
    assert [path.name for path in out.iterdir()] == ["mine.txt"]
    save_checkpoint(checkpoint, out, overwrite=True)
    assert not (out / "mine.txt").exists() and (out / "model.safetensors").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"llama", "out"}


def test_nothing_is_left_when_writing_fails(tmp_path: Path) -> None:
    _, directory = make_pair("llama", tmp_path)
    checkpoint = load_checkpoint(directory, skip_tokenizer_init=True)
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match=r"file/out cannot be written"):
        save_checkpoint(checkpoint, tmp_path / "file" / "out")
    checkpoint.decoder.config.raw["bad"] = object()
    with pytest.raises(TypeError):
        save_checkpoint(checkpoint, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"llama", "file"}


def test_random_checkpoints_need_a_sensible_spread(tmp_path: Path) -> None:
    config = json.loads((make_pair("llama", tmp_path)[1] / "config.json").read_text())
    for bad in ("x", -1.0, [], float("nan")):
        with pytest.raises(CheckpointError, match=r"^initializer_range in the config of 'random' must be a number"):
            random_checkpoint(config | {"initializer_range": bad})


def test_random_checkpoints_follow_their_seed(tmp_path: Path) -> None:
    config = json.loads((make_pair("gemma3", tmp_path)[1] / "config.json").read_text())
    same, again, other = (random_checkpoint(config, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(ours(same.decoder), ours(again.decoder))
    assert not torch.equal(ours(same.decoder), ours(other.decoder))
    assert ours(same.decoder).isfinite().all()
    assert same.tokenizer is None and same.path is None
    save_checkpoint(same, tmp_path / "out")
    torch.testing.assert_close(theirs(tmp_path / "out"), ours(same.decoder), rtol=0, atol=1e-4)
