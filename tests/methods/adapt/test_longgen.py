"""LongGen: what is served is what was trained, what is out of reach is out of mind, and the bytes are gone."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from headstart.checkpoints.random_init import random_checkpoint
from headstart.checkpoints.reader import BASE_FIELD, Checkpoint, load_checkpoint
from headstart.checkpoints.writer import save_checkpoint
from headstart.engine.args import EngineArgs
from headstart.engine.engine import Engine
from headstart.errors import CheckpointError, HeadstartError, MethodError
from headstart.methods.adapt.longgen.convert import LongGenConvert
from headstart.methods.adapt.longgen.form import Form
from headstart.methods.adapt.longgen.longgen import LongGen
from headstart.methods.prefill.lazyllm import LazyLLM
from headstart.models.decoder import Decoder
from headstart.ops.attention.reach import Reach, seen_mask
from headstart.ops.packed_attention import PackedMask, Segments, packed_attention, reach_block_mask
from tests.conformance import models
from tests.conformance.lab import GREEDY, assert_same, serve
from tests.methods.contract.lab import logits

LAYERS = 6
FORM = {"block": 8, "sink": 1, "local": 2, "stride": 4}


def checkpoint_of(family: str = "gqa", layers: int = LAYERS) -> Checkpoint:
    sizes = models._BASE | models._FAMILIES[family] | {"num_hidden_layers": layers, "max_position_embeddings": 256}
    return random_checkpoint(sizes, dtype="float32", seed=0, name=family)


def converted(**options) -> Decoder:
    """The network that is trained."""
    network = checkpoint_of().decoder
    LongGenConvert(**FORM | options).apply_(network)
    return network


def engine_on(checkpoint: Checkpoint, *use, **settings) -> Engine:
    given = {"page_size": 4, "num_pages": 200, "skip_tokenizer_init": True} | settings
    return Engine(EngineArgs(device="cpu", use=use, **given), checkpoint)


@pytest.mark.parametrize(
    "settings",
    [{}, {"max_num_batched_tokens": 7}, {"max_num_batched_tokens": 16, "num_pages": 60}, {"page_size": 8}],
    ids=str,
)
def test_what_is_served_is_what_was_trained(settings: dict) -> None:
    """Prompts in pieces, decodes and prompts found in the cache, in little memory too, have the log-probabilities of
    the network that is trained under the rule's mask."""
    network = converted()
    engine = engine_on(checkpoint_of(), LongGen(True, **FORM), **settings)
    prompts = [models.ids(length, length) for length in (1, 8, 9, 33, 100, 180)]
    for turn in range(2):
        answers = serve(engine, prompts, replace(GREEDY, max_tokens=12))
        for prompt, answer in zip(prompts, answers, strict=True):
            text = [*prompt, *answer.tokens]
            want = torch.log_softmax(logits(network, torch.tensor(text[:-1])).float(), -1)
            chosen = want.gather(1, torch.tensor(text[1:])[:, None])[:, 0].tolist()
            assert answer.logprobs == pytest.approx(chosen[len(prompt) - 1 :], abs=1e-4)
        if turn and "num_pages" not in settings:
            assert sum(answer.cached for answer in answers) > 100


@pytest.mark.parametrize("reach", [Reach(16, 1, 2, 4), Reach(8, 0, 1), Reach(64, 1, 1, 2), Reach(32, 2, 3)], ids=str)
def test_the_gpu_kernel_is_told_the_same(reach: Reach) -> None:
    """The block mask of packed documents, seen by its rule within the blocks that it names, is the rule written out."""
    lengths = (300, 77, 500, 140)
    segments = Segments.of(lengths, torch.cat([torch.arange(length) for length in lengths]))
    made = reach_block_mask(segments.start, reach)
    size = sum(lengths)
    place = torch.arange(size)
    none = torch.zeros(1, dtype=torch.int64)
    inside = made.mask_mod(none, none, place[:, None], place[None])
    named = made.to_dense()[0, 0].bool().repeat_interleave(128, 0).repeat_interleave(128, 1)[:size, :size]
    want = torch.block_diag(*(seen_mask(reach, length).int() for length in lengths)).bool()
    assert torch.equal(inside & named, want)
    assert not named.all()


def test_gradients_flow_where_keys_are_seen() -> None:
    q, k, v = (torch.randn(40, heads, 8, requires_grad=True) for heads in (4, 2, 2))
    mask = PackedMask(Segments.of((40,), torch.arange(40)))
    out = packed_attention(q, k, v, mask, scale=0.3, reach=Reach(8, 1, 1))
    out[39].sum().backward()
    assert k.grad is not None
    seen = k.grad.abs().sum((1, 2)) > 0
    assert seen.tolist() == [place < 8 or place >= 32 for place in range(40)]


def changed_rows(network: Decoder, at: int, length: int = 120) -> Tensor:
    """Which rows' logits change with the token at a place."""
    ids = torch.tensor(models.ids(length, 3))
    other = ids.clone()
    other[at] = (ids[at] - 3 + 1) % (models.VOCAB_SIZE - 3) + 3
    return (logits(network, ids) - logits(network, other)).abs().amax(-1) > 1e-6


def test_full_layers_reach_everywhere_and_sparse_ones_do_not() -> None:
    far = {"block": 4, "sink": 0, "local": 1, "stride": 0}
    assert changed_rows(converted(**far), 2)[110:].all()
    alone = converted(**far, full=0)
    assert not changed_rows(alone, 2)[4:].any(), "a block that is not seen changes what comes after it"


def test_kept_bytes_are_those_of_the_formula() -> None:
    """Held pages and the pools themselves fall as the share of what is kept."""
    length = 240
    settings = {"page_size": 4, "num_pages": 64, "max_num_batched_tokens": 8, "enable_prefix_caching": False}
    plain, ours = engine_on(checkpoint_of(), **settings), engine_on(checkpoint_of(), LongGen(True, **FORM), **settings)
    held = {}
    for engine in (plain, ours):
        engine.submit(engine.prepare("one", models.ids(length), GREEDY))
        while not engine.requests["one"].sequences[0].num_output:
            engine.step()
        held[engine] = engine.store.bytes_held  # type: ignore[attr-defined]
    form = Form(**FORM, full=2)
    kept = len(form.reach.pages(length, length, 4)) * 4
    assert held[ours] / held[plain] == pytest.approx(2 / 6 + 4 / 6 * kept / length, abs=4 / 6 * 8 / length)
    pools = sum(part.keys.nbytes + part.values.nbytes for index in range(LAYERS) for part in ours.store.parts(index))
    whole = sum(part.keys.nbytes + part.values.nbytes for index in range(LAYERS) for part in plain.store.parts(index))
    most = form.reach.most_pages(256, 4) + 8 // 4 + 3
    assert pools <= whole * (2 / 6 + 4 / 6 * most / 64)


def test_more_tokens_fit_into_the_same_memory() -> None:
    memory = {"num_pages": None, "kv_cache_memory": 400_000, "max_num_batched_tokens": 8}
    plain, ours = engine_on(checkpoint_of(), **memory), engine_on(checkpoint_of(), LongGen(True, **FORM), **memory)
    assert ours.store.num_pages > 1.2 * plain.store.num_pages
    store = ours.store
    assert store.num_pages * store.bytes_per_page + store.num_twins * store.bytes_per_twin <= 400_000  # type: ignore[attr-defined]


def test_the_middle_third_is_full() -> None:
    config = checkpoint_of(layers=8).config
    assert Form(**FORM, full=3).sparse(config) == [0, 1, 5, 6, 7]
    assert Form(**FORM, full=0).sparse(config) == list(range(8))


@pytest.fixture
def directories(tmp_path: Path) -> tuple[Path, Path]:
    """A converted checkpoint, stretched to twice the length, and the model that it was."""
    network = checkpoint_of().decoder
    transform = LongGenConvert(**FORM, length=512, theta=20000.0)
    transform.apply_(network)
    transform.fold(network)
    save_checkpoint(network, tmp_path / "long")
    save_checkpoint(checkpoint_of(), tmp_path / "plain")
    return tmp_path / "long", tmp_path / "plain"


def test_a_checkpoint_says_what_it_is(directories: tuple[Path, Path]) -> None:
    """Without the method it is refused in a sentence that names the flag; its length and RoPE are the new ones."""
    long, _ = directories
    with pytest.raises(CheckpointError, match=r"was trained for the method longgen .*: add --use longgen$"):
        load_checkpoint(long, skip_tokenizer_init=True)
    loaded = load_checkpoint(long, skip_tokenizer_init=True, methods=["longgen"])
    assert loaded.config.max_position == 512 and loaded.config.ropes["full_attention"].theta == 20000.0
    network = checkpoint_of().decoder
    LongGenConvert(**FORM, length=512, theta=20000.0).apply_(network)
    (answer,) = serve(engine_on(loaded, LongGen()), [models.ids(300)], GREEDY)
    text = torch.tensor([*models.ids(300), *answer.tokens])
    want = torch.log_softmax(logits(network, text[:-1]).float(), -1).gather(1, text[1:, None])[299:, 0]
    assert answer.logprobs == pytest.approx(want.tolist(), abs=1e-4)


def test_a_checkpoint_may_hold_what_is_new_alone(tmp_path: Path) -> None:
    """Weights that are not there are those of the checkpoint of the package that it names."""
    import json

    from safetensors.torch import save_file

    from headstart.checkpoints.default import default_checkpoint_path

    default = load_checkpoint(None, "float32", skip_tokenizer_init=True)
    new = {"model.layers.0.self_attn.q_proj.weight": torch.zeros(512, 512)}
    (tmp_path / "small").mkdir()
    save_file(new, tmp_path / "small" / "model.safetensors")
    raw = json.loads((default_checkpoint_path() / "config.json").read_text())
    (tmp_path / "small" / "config.json").write_text(json.dumps(raw | {BASE_FIELD: "default"}))
    loaded = load_checkpoint(tmp_path / "small", "float32", skip_tokenizer_init=True)
    assert not loaded.decoder.layers[0].attention.qkv.weight[:512].any()  # type: ignore[union-attr]
    for name, weight in loaded.decoder.named_parameters():
        assert name == "layers.0.attention.qkv.weight" or torch.equal(weight, default.decoder.get_parameter(name))
    (tmp_path / "small" / "config.json").write_text(json.dumps(raw | {BASE_FIELD: "nobody"}))
    with pytest.raises(CheckpointError, match="builds on 'nobody', but the package comes with"):
        load_checkpoint(tmp_path / "small", skip_tokenizer_init=True)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({}, "gqa was not converted: make a model with"),
        ({"untrained": True, "local": 0}, "local must be 1 to .*, since 0 leaves a token nothing to see, not 0"),
        ({"untrained": True, "full": 7}, "full must be 0 to 6 for this model of 6 layers, not 7"),
        ({"untrained": True, "block": 6}, "blocks of 6 tokens are not made of whole pages of 4"),
    ],
    ids=str,
)
def test_bad_input_is_one_sentence(options: dict, sentence: str) -> None:
    with pytest.raises(MethodError, match=sentence) as refusal:
        engine_on(checkpoint_of(), LongGen(**options))
    assert "\n" not in str(refusal.value)


def test_what_does_not_fit_is_refused(directories: tuple[Path, Path], tmp_path: Path) -> None:
    long, _ = directories
    loaded = load_checkpoint(long, skip_tokenizer_init=True, methods=["longgen"])
    with pytest.raises(MethodError, match="was converted with local=2, not 3: leave out local"):
        engine_on(loaded, LongGen(local=3))
    with pytest.raises(MethodError, match="sliding windows already"):
        engine_on(checkpoint_of("window", 2), LongGen(True))
    with pytest.raises(MethodError, match="longgen drops keys by a rule of its own, and lazyllm counts on all"):
        engine_on(checkpoint_of(), LongGen(True, **FORM), LazyLLM())
    with pytest.raises(MethodError, match="which no --kv-tier can hold"):
        engine_on(checkpoint_of(), LongGen(True, **FORM), kv_tier="cpu=1MB")
    for options, sentence in (
        ({"length": 100}, "reads 256 tokens already"),
        ({"theta": 1.0}, "theta must be above 1"),
        ({"full": 9}, "full must be 0 to 6"),
    ):
        with pytest.raises(HeadstartError, match=sentence):
            LongGenConvert(**options).apply_(checkpoint_of().decoder)


def test_other_forms_are_other_keys() -> None:
    engines = [engine_on(checkpoint_of(), LongGen(True, **FORM | more)) for more in ({}, {"local": 3}, {})]
    names = [engine.prepare("a", models.ids(9), GREEDY).namespace for engine in engines]
    assert names[0] == names[2] != names[1]


def test_guesses_of_a_draft_stand_or_fall_as_without(tmp_path: Path) -> None:
    from headstart.methods.decode.speculative import Speculative
    from tests.conformance.examples import write_draft

    draft = write_draft(checkpoint_of(), tmp_path).removeprefix("draft=")
    want = serve(engine_on(checkpoint_of(), LongGen(True, **FORM)), [models.ids(60)], GREEDY)
    engine = engine_on(checkpoint_of(), LongGen(True, **FORM), Speculative(draft, guard=False))
    assert_same(serve(engine, [models.ids(60)], GREEDY), want, "with drafts")
    assert engine.stats().drafts["drafts"] > 0
