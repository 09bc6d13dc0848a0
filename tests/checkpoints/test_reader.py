"""Loading directories: what is read, and the one sentence for everything that can be wrong with them."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from headstart.checkpoints.reader import load_checkpoint
from headstart.errors import CheckpointError
from headstart.models.decoder import Decoder
from tests.checkpoints.tiny_tokenizer import write_tokenizer
from tests.models.configs import VOCAB_SIZE, make_pair
from tests.models.naive_attention import NaiveCache

pytestmark = pytest.mark.filterwarnings("ignore")
LENGTH = 9
IDS = torch.randint(VOCAB_SIZE, (LENGTH,), generator=torch.Generator().manual_seed(0))


def logits(decoder: Decoder) -> Tensor:
    with torch.inference_mode():
        return decoder.logits(decoder(IDS, torch.arange(LENGTH), NaiveCache().attend))


def load(directory: Path, **options: Any) -> Decoder:
    return load_checkpoint(directory, skip_tokenizer_init=True, **options).decoder


def edit_weights(directory: Path, edit: Callable[[dict[str, Tensor]], Any]) -> None:
    tensors = load_file(directory / "model.safetensors")
    edit(tensors)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def edit_config(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return make_pair("llama", tmp_path)[1]


def test_everything_is_there(llama: Path) -> None:
    edit_config(llama, vocab_size=VOCAB_SIZE, eos_token_id=[2, 3])
    (llama / "generation_config.json").write_text(json.dumps({"temperature": 0.6, "top_k": 20}))
    checkpoint = load_checkpoint(llama, skip_tokenizer_init=True)
    assert (checkpoint.path, checkpoint.name, checkpoint.tokenizer) == (llama, "llama", None)
    assert checkpoint.config.vocab_size == VOCAB_SIZE
    generation = checkpoint.generation_config
    assert generation.eos_token_ids == [2, 3]
    assert (generation.temperature, generation.top_k, generation.top_p) == (0.6, 20, None)
    assert not any(parameter.requires_grad for parameter in checkpoint.decoder.parameters())


def test_names_are_those_of_directories_and_ids(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def name_of(given: str | Path) -> str:
        return load_checkpoint(given, skip_tokenizer_init=True).name

    monkeypatch.setenv("HOME", str(llama.parent))
    (llama / "inside").mkdir()
    (llama.parent / "link").symlink_to(llama)
    monkeypatch.chdir(llama)
    for given in (".", Path("."), "./", "inside/..", llama, f"{llama}/", "~/llama", "../llama"):
        assert name_of(given) == "llama", given
    assert name_of("../link") == "link"
    monkeypatch.chdir(llama / "inside")
    assert name_of("..") == "llama"
    monkeypatch.setattr("headstart.checkpoints.reader.resolve", lambda name: llama)
    assert name_of("owner/name") == "owner/name"


def test_tokenizer_comes_along(llama: Path) -> None:
    size = write_tokenizer(llama)
    with pytest.raises(CheckpointError, match=rf"has {size} tokens, but config.json says vocab_size {VOCAB_SIZE}"):
        load_checkpoint(llama)
    (llama / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no tokenizer.json"):
        load_checkpoint(llama)


@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma3_scaled", "qwen3_moe", "phi3", "mixtral"])
def test_shards_give_the_same_as_one_file(name: str, tmp_path: Path) -> None:
    model, directory = make_pair(name, tmp_path)
    model.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 3
    assert torch.equal(logits(load(directory)), logits(load(tmp_path / "sharded")))


def test_slices_of_any_size_give_the_same(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = logits(load(llama))
    for size in (1, 700, 5000):
        monkeypatch.setattr("headstart.checkpoints.shard._SLICE_BYTES", size)
        assert torch.equal(logits(load(llama)), expected)


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "olmoe"])
def test_experts_stacked_in_one_tensor(name: str, tmp_path: Path) -> None:
    model, directory = make_pair(name, tmp_path)
    expected = logits(load(directory))
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, directory / "model.safetensors")
    assert any(key.endswith("experts.down_proj") for key in load_file(directory / "model.safetensors"))
    assert torch.equal(logits(load(directory)), expected)


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
def test_text_part_of_gemma3_with_images(prefix: str, tmp_path: Path) -> None:
    _, directory = make_pair("gemma3", tmp_path)
    expected = logits(load(directory))
    config = json.loads((directory / "config.json").read_text())
    outer = {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "text_config": config}
    (directory / "config.json").write_text(json.dumps(outer))

    def wrap(tensors: dict[str, Tensor]) -> None:
        for name in list(tensors):
            tensors[prefix + name.removeprefix("model.")] = tensors.pop(name)
        tensors["vision_tower.vision_model.embeddings.position_embedding.weight"] = torch.zeros(2, 2)
        tensors["model.multi_modal_projector.mm_soft_emb_norm.weight"] = torch.zeros(2)

    edit_weights(directory, wrap)
    assert torch.equal(logits(load(directory)), expected)


def test_leftovers_of_old_files_are_passed_over(tmp_path: Path) -> None:
    _, directory = make_pair("qwen2_window", tmp_path)
    expected = logits(load(directory))
    leftovers = {"lm_head.weight": torch.zeros(VOCAB_SIZE, 48)}
    leftovers["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(8)
    edit_weights(directory, lambda tensors: tensors.update(leftovers))
    assert torch.equal(logits(load(directory)), expected)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", torch.bfloat16])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes_convert_on_the_way(dtype: str | torch.dtype, stored: torch.dtype, tmp_path: Path) -> None:
    model, directory = make_pair("qwen2", tmp_path)
    model.to(stored).save_pretrained(directory)
    run_dtype = dtype if isinstance(dtype, torch.dtype) else getattr(torch, dtype)
    decoder = load(directory, dtype=dtype)
    assert {parameter.dtype for parameter in decoder.parameters()} == {run_dtype}
    expected = model.model.layers[1].mlp.down_proj.weight.to(run_dtype)
    assert torch.equal(decoder.layers[1].mlp.down.weight, expected)
    assert load(directory).dtype == stored


def test_bad_dtype_is_named(llama: Path) -> None:
    with pytest.raises(CheckpointError, match="dtype must be auto, float32, bfloat16, float16, not 'int8'"):
        load(llama, dtype="int8")


@pytest.mark.parametrize("named", ["float8_e4m3fn", 5, {"text_config": "bfloat16"}])
def test_dtype_of_the_config_that_models_cannot_run_in(llama: Path, named: Any) -> None:
    edit_config(llama, dtype=named)
    with pytest.raises(CheckpointError, match=r"cannot run in .*, the dtype in config.json; ask for one of float32"):
        load(llama)
    assert load(llama, dtype="bfloat16").dtype == torch.bfloat16


def test_no_directory() -> None:
    with pytest.raises(CheckpointError, match="there is no directory '/nowhere/at/all'"):
        load_checkpoint("/nowhere/at/all")


def test_directory_without_config(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no config.json"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(("text", "said"), [("{", "cannot be read as JSON"), ("[1]", "must hold a JSON object")])
def test_damaged_config(llama: Path, text: str, said: str) -> None:
    (llama / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=rf"config.json {said}"):
        load(llama)


def test_config_without_a_field(llama: Path) -> None:
    config = json.loads((llama / "config.json").read_text())
    del config["hidden_size"]
    (llama / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=rf"^{llama}/config.json has no field 'hidden_size'"):
        load(llama)


def test_no_weights(llama: Path) -> None:
    (llama / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"has no model.safetensors and no model.safetensors.index.json$"):
        load(llama)
    (llama / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin is in a format that is not read"):
        load(llama)


def test_missing_shard(tmp_path: Path) -> None:
    model, _ = make_pair("llama", tmp_path)
    model.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    gone = sorted((tmp_path / "sharded").glob("*.safetensors"))[1]
    gone.unlink()
    with pytest.raises(CheckpointError, match=rf"the weights file '{gone.name}' that .*index.json names is missing"):
        load(tmp_path / "sharded")


@pytest.mark.parametrize("keep", [0, 5, 100, 0.5, -1])
def test_truncated_file(llama: Path, keep: float) -> None:
    path = llama / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    with pytest.raises(CheckpointError, match=rf"the weights file {path} is truncated"):
        load(llama)


def test_file_of_another_format(llama: Path) -> None:
    path = llama / "model.safetensors"
    path.write_bytes(b"PK\x03\x04" + bytes(500))
    with pytest.raises(CheckpointError, match=r"model.safetensors (is truncated|has a header)"):
        load(llama)
    header = json.dumps({"x": {"dtype": "F32", "shape": [3], "data_offsets": [0, 4]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(CheckpointError, match=r"is damaged: tensor 'x' of shape \[3\] has 4 bytes"):
        load(llama)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj.weight", "model.norm.weight"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_that_are_no_numbers(llama: Path, name: str, value: float, dtype: torch.dtype) -> None:
    def spoil(tensors: dict[str, Tensor]) -> None:
        tensors[name] = tensors[name].to(dtype)
        tensors[name].view(-1)[-1] = value

    edit_weights(llama, spoil)
    with pytest.raises(CheckpointError, match=rf"tensor '{name}' in .*model.safetensors holds NaN or infinity"):
        load(llama)


def test_large_numbers_are_not_taken_for_infinity(llama: Path) -> None:
    edit_weights(llama, lambda tensors: tensors["model.embed_tokens.weight"].fill_(3e38))
    load(llama)
    with pytest.raises(CheckpointError, match="numbers too large for float16"):
        load(llama, dtype="float16")


def test_wrong_shape(llama: Path) -> None:
    edit_config(llama, vocab_size=VOCAB_SIZE + 1)
    with pytest.raises(
        CheckpointError,
        match=rf"'(model.embed_tokens|lm_head).weight' in .* has shape \[{VOCAB_SIZE}, 48\], but config.json makes it "
        rf"\[{VOCAB_SIZE + 1}, 48\]",
    ):
        load(llama)


def test_wrong_dtype(llama: Path) -> None:
    edit_weights(llama, lambda t: t.update({"model.norm.weight": torch.zeros(48, dtype=torch.int8)}))
    with pytest.raises(CheckpointError, match=r"'model.norm.weight' in .* has dtype int8, which is not supported"):
        load(llama)


def test_missing_and_unexpected_tensors(llama: Path) -> None:
    edit_weights(llama, lambda tensors: tensors.pop("model.layers.2.self_attn.k_proj.weight"))
    with pytest.raises(CheckpointError, match=r"lack tensor.* 'model.layers.2.self_attn"):
        load(llama)
    _, other = make_pair("qwen3", llama.parent)
    edit_weights(other, lambda t: t.update({"model.layers.0.self_attn.sinks": torch.zeros(3)}))
    with pytest.raises(CheckpointError, match=r"hold the unexpected tensor 'model.layers.0.self_attn.sinks'"):
        load(other)


@pytest.mark.parametrize("name", ["llama", "phi3", "mixtral", "olmo2"])
def test_what_is_missing_is_named_and_nothing_else(name: str, tmp_path: Path) -> None:
    _, directory = make_pair(name, tmp_path)
    whole = load_file(directory / "model.safetensors")
    for missing in whole:
        save_file({key: value for key, value in whole.items() if key != missing}, directory / "model.safetensors")
        with pytest.raises(CheckpointError, match=rf"lack tensor '{re.escape(missing)}'; they do not fit"):
            load(directory)


def test_a_piece_given_twice_does_not_stand_for_another(llama: Path) -> None:
    def spoil(tensors: dict[str, Tensor]) -> None:
        # The second name is the one that files of the network without its output layer have.
        tensors["layers.0.self_attn.k_proj.weight"] = tensors["model.layers.0.self_attn.k_proj.weight"].clone()
        del tensors["model.layers.0.self_attn.v_proj.weight"]

    edit_weights(llama, spoil)
    with pytest.raises(CheckpointError, match=r"lack tensor 'model.layers.0.self_attn.v_proj.weight'; they do not fit"):
        load(llama)


def test_more_layers_than_config(llama: Path) -> None:
    edit_config(llama, num_hidden_layers=2)
    with pytest.raises(CheckpointError, match=r"hold the unexpected tensors 'model.layers.2.* and \d+ more"):
        load(llama)


def test_bad_generation_config(llama: Path) -> None:
    path = llama / "generation_config.json"
    for content, said in (
        ("{", f"{path} cannot be read as JSON"),
        ("[" * 100_000, f"{path} cannot be read as JSON"),
        ('{"top_k": "x"}', f"top_k in {path} must be a whole number, not 'x'"),
    ):
        path.write_text(content)
        with pytest.raises(CheckpointError, match=said):
            load(llama)


def test_end_tokens_outside_the_vocabulary(llama: Path) -> None:
    (llama / "generation_config.json").unlink()
    edit_config(llama, eos_token_id=[2, VOCAB_SIZE, VOCAB_SIZE - 1])
    checkpoint = load_checkpoint(llama, skip_tokenizer_init=True)
    assert checkpoint.generation_config.eos_token_ids == [2, VOCAB_SIZE - 1]
    edit_config(llama, eos_token_id=-1)
    (llama / "model.safetensors").unlink()
    with pytest.raises(
        CheckpointError, match=rf"^eos_token_id in {llama}/config.json must be a token id of at least 0"
    ):
        load(llama)


def test_default_checkpoint_is_inside_the_package(monkeypatch: pytest.MonkeyPatch, llama: Path) -> None:
    monkeypatch.setattr("headstart.checkpoints.reader.default_checkpoint_path", lambda: llama)
    assert load_checkpoint(skip_tokenizer_init=True).path == llama


def test_package_does_not_import_transformers() -> None:
    code = (
        "import sys, headstart.checkpoints.reader, headstart.checkpoints.writer; "
        "sys.exit('transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


MEASURE = """
import resource, sys, torch
from headstart.checkpoints.reader import load_checkpoint
def peak():
    return int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1]) * 1024
load_checkpoint(sys.argv[1], skip_tokenizer_init=True)
open("/proc/self/clear_refs", "w").write("5")
before = peak()
decoder = load_checkpoint(sys.argv[2], dtype=sys.argv[3], skip_tokenizer_init=True).decoder
weights = sum(p.nbytes for p in decoder.parameters())
print((peak() - before) / weights, weights)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="needs Linux's account of peak memory")
@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("run", ["bfloat16", "float32"])
def test_peak_memory_is_little_above_the_weights(llama: Path, tmp_path: Path, stored: torch.dtype, run: str) -> None:
    config = json.loads((llama / "config.json").read_text())
    config |= {"vocab_size": 20_000, "hidden_size": 768, "intermediate_size": 3_072, "head_dim": 256}
    model = LlamaForCausalLM(LlamaConfig(**config)).to(stored)
    model.save_pretrained(tmp_path / "large")
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(llama), str(tmp_path / "large"), run],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    ratio, weights = map(float, done.stdout.split())
    assert weights > 100e6
    assert ratio < 1.3
