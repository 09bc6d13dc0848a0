"""SwiftKV: what is served is what was trained, identical projections change nothing, and the savings are counted."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from headstart.checkpoints.random_init import random_checkpoint
from headstart.checkpoints.reader import Checkpoint, load_checkpoint
from headstart.checkpoints.writer import save_checkpoint
from headstart.engine.args import EngineArgs
from headstart.engine.engine import Engine
from headstart.engine.params import SamplingParams
from headstart.errors import CheckpointError, HeadstartError, MethodError
from headstart.methods.distil.swiftkv.attention import SwiftAttention, change_, fold_
from headstart.methods.distil.swiftkv.distil import SwiftKVDistil
from headstart.methods.distil.swiftkv.form import Form
from headstart.methods.distil.swiftkv.swiftkv import SwiftKV
from headstart.models.decoder import Decoder
from tests.conformance import models
from tests.conformance.lab import ANSWER, GREEDY, assert_same, make_engine, plain_answers, serve
from tests.methods.contract.lab import logits

LAYERS = 6
SCORED = replace(GREEDY, prompt_logprobs=0)
FAMILIES = {**models._FAMILIES, "olmo": {"architectures": ["Olmo2ForCausalLM"], "model_type": "olmo2"}}


def checkpoint_of(family: str, seed: int = 0) -> Checkpoint:
    """Six layers; where some slide, every other one."""
    sizes = models._BASE | FAMILIES[family] | {"num_hidden_layers": LAYERS}
    if family == "window":
        sizes["layer_types"] = ["full_attention", "full_attention", "sliding_attention"] * 2
    return random_checkpoint(sizes, dtype="float32", seed=seed, name=family)


def distilled(family: str, form: Form) -> tuple[Checkpoint, Decoder]:
    """A checkpoint as training would export it, and the network that was trained, with projections of its own."""
    made = checkpoint_of(family)
    network = checkpoint_of(family).decoder
    change_(network, form)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, SwiftAttention):
                for linear in filter(None, (module.query, module.key_value)):
                    linear.weight += 0.3 * torch.randn(linear.weight.shape, generator=generator)
    folded = checkpoint_of(family).decoder
    change_(folded, form)
    folded.load_state_dict(network.state_dict())
    fold_(folded, form)
    config = replace(folded.config, raw=form.mark(made.config.raw))
    folded.config = config
    return replace(made, decoder=folded, config=config), network


def engine_on(checkpoint: Checkpoint, *use, **settings) -> Engine:
    given = {"page_size": 4, "num_pages": 100, "skip_tokenizer_init": True} | settings
    return Engine(EngineArgs(device="cpu", use=use, **given), checkpoint)


FORMS = [Form(3), Form(3, 2), Form(2, 4), Form(0, 3), Form(5)]


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_served_is_what_was_trained(family: str, form: Form) -> None:
    """Prompts in chunks, decodes and their log-probabilities are those of the network that runs every token through
    every layer."""
    checkpoint, network = distilled(family, form)
    for budget in (512, 5):
        engine = engine_on(checkpoint, SwiftKV(), max_num_batched_tokens=budget)
        prompts = [models.ids(length, length) for length in (1, 2, 9, 23, 40)]
        answers = serve(engine, prompts, GREEDY)
        scored = serve(engine, prompts, SCORED)
        for prompt, answer, also in zip(prompts, answers, scored, strict=True):
            assert answer.tokens == also.tokens
            text = [*prompt, *answer.tokens]
            want = torch.log_softmax(logits(network, torch.tensor(text[:-1])).float(), -1)
            chosen = want.gather(1, torch.tensor(text[1:])[:, None])[:, 0].tolist()
            got = also.prompt_logprobs + also.logprobs
            assert got == pytest.approx(chosen, abs=3e-4)
            assert answer.logprobs == pytest.approx(chosen[len(prompt) - 1 :], abs=3e-4)


@pytest.mark.parametrize("model", models.EVERY)
def test_identical_projections_change_nothing(model: str) -> None:
    """With all layers ordinary, or all but the last, whose input is the shared stream itself."""
    count = models.shared(model).config.num_layers
    for depth in (count, count - 1):
        engine = make_engine(model, SwiftKV(weights="untrained", depth=depth))
        assert_same(serve(engine, models.prompts(model)), plain_answers(model, "greedy"), f"depth={depth}")


def test_a_prompt_leaves_half_way() -> None:
    """Rows are counted by layer, and floating-point operations by PyTorch: half, and the keys of the later layers."""
    checkpoint = checkpoint_of("mha")
    engines = {form: engine_on(checkpoint, SwiftKV("untrained", form.depth, form.group)) for form in FORMS[:2]}
    length = 60
    flops = {None: _flops(engine_on(checkpoint), length)} | {f: _flops(e, length) for f, e in engines.items()}
    config = checkpoint.config
    kv = 2 * config.hidden_size * 2 * config.num_kv_heads * config.head_dim
    layer = sum(2 * p.numel() for p in checkpoint.decoder.layers[0].parameters() if p.dim() == 2)
    for form, engine in engines.items():
        counted = engine.stats().methods["swiftkv"]
        assert [counted[f"tokens of layer {i}"] for i in range(LAYERS)] == [length] * 3 + [1] * 3
        products = (length - 1) * (3 * layer - kv * len(form.members(config)))
        assert flops[None] - flops[form] >= products
        assert flops[form] < (0.75 if form.group == 1 else 0.68) * flops[None]


def _flops(engine: Engine, length: int) -> int:
    """Of the step that reads a prompt."""
    engine.submit(engine.prepare("one", models.ids(length), GREEDY))
    with FlopCounterMode(display=False) as counter:
        engine.step()
    return counter.get_total_flops()


def test_a_chunk_in_the_middle_runs_no_later_layer() -> None:
    engine = engine_on(checkpoint_of("gqa"), SwiftKV("untrained", 3), max_num_batched_tokens=10)
    engine.submit(engine.prepare("one", models.ids(25), GREEDY))
    for ran in (0, 0, 1):
        engine.step()
        assert engine.stats().methods["swiftkv"].get("tokens of layer 3", 0) == ran


@pytest.mark.parametrize(("form", "kept"), [(Form(3), 6), (Form(3, 2), 5), (Form(2, 4), 3), (Form(0, 6), 1)], ids=str)
def test_shared_caches_are_one(form: Form, kept: int) -> None:
    """Bytes of a page fall with the layers that keep keys; neighbours that rotate keys otherwise share nothing."""
    checkpoint = checkpoint_of("gqa")
    plain, ours = engine_on(checkpoint), engine_on(checkpoint, SwiftKV("untrained", form.depth, form.group))
    assert ours.store.bytes_per_page * LAYERS == plain.store.bytes_per_page * kept  # type: ignore[attr-defined]
    config = checkpoint_of("window").config
    for leader, members in form.members(config).items():
        assert {config.layer_kinds[layer] for layer in members} == {config.layer_kinds[leader]}
    assert sorted(form.leaders(config)) == list(range(form.depth, LAYERS))


def test_more_pages_fit_into_the_same_memory() -> None:
    checkpoint = checkpoint_of("gqa")
    memory = {"num_pages": None, "kv_cache_memory": 96_000}
    plain, ours = engine_on(checkpoint, **memory), engine_on(checkpoint, SwiftKV("untrained", 3, 3), **memory)
    assert ours.store.num_pages == plain.store.num_pages * 6 // 4


def test_other_weights_are_other_keys() -> None:
    """What is cached under one distillation never serves another, though both have the same name."""
    first, second = distilled("gqa", Form(3))[0], checkpoint_of("gqa", seed=5)
    marked = replace(second.config, raw=Form(3).mark(second.config.raw))
    engines = [engine_on(c, SwiftKV()) for c in (first, replace(second, config=marked), first)]
    names = [engine.prepare("a", models.ids(9), GREEDY).namespace for engine in engines]
    assert names[0] == names[2] != names[1]


def test_guesses_of_a_draft_stand_or_fall_as_without(tmp_path: Path) -> None:
    """Drafted rows are decode rows: the greedy text is that without drafts."""
    from headstart.methods.decode.speculative import Speculative
    from tests.conformance.examples import write_draft

    checkpoint, _ = distilled("gqa", Form(3, 2))
    draft = write_draft(checkpoint_of("gqa"), tmp_path).removeprefix("draft=")
    want = serve(engine_on(checkpoint, SwiftKV()), [models.ids(20)], GREEDY)
    engine = engine_on(checkpoint, SwiftKV(), Speculative(draft, guard=False))
    assert_same(serve(engine, [models.ids(20)], GREEDY), want, "with drafts")
    assert engine.stats().drafts["drafts"] > 0 and ANSWER > 1


@pytest.fixture
def directories(tmp_path: Path) -> tuple[Path, Path]:
    """A distilled checkpoint, and the model that it was distilled from."""
    checkpoint, _ = distilled("gqa", Form(3, 2))
    save_checkpoint(checkpoint, tmp_path / "swift")
    save_checkpoint(checkpoint_of("gqa"), tmp_path / "plain")
    return tmp_path / "swift", tmp_path / "plain"


def answers_of(model: Path, *use: str) -> list:
    engine = Engine(EngineArgs(model=str(model), use=use, device="cpu", skip_tokenizer_init=True, num_pages=60))
    return serve(engine, [models.ids(12), models.ids(30)], SamplingParams(max_tokens=8, temperature=0, logprobs=2))


def test_a_checkpoint_says_what_it_is(directories: tuple[Path, Path]) -> None:
    """Without the method it is refused in a sentence that names the flag; with it, and as the projections of the plain
    model, it gives the same."""
    swift, plain = directories
    want = answers_of(swift, "swiftkv")
    assert_same(answers_of(plain, f"swiftkv:weights={swift}"), want, "as projections")
    assert_same(answers_of(plain, f"swiftkv:weights={swift},depth=3,group=2"), want, "with its form")
    for load in (lambda: answers_of(swift), lambda: load_checkpoint(swift, skip_tokenizer_init=True)):
        with pytest.raises(CheckpointError, match=r"was trained for the method swiftkv .*: add --use swiftkv$"):
            load()
    with pytest.raises(CheckpointError, match="add --use swiftkv"):
        engine_on(distilled("gqa", Form(3))[0])


@pytest.mark.parametrize(
    ("use", "sentence"),
    [
        ("swiftkv", "no projections that were distilled for plain"),
        ("swiftkv:weights=untrained", "needs depth"),
        ("swiftkv:weights=untrained,depth=7", "depth must be 0 to 6 for this model of 6 layers, not 7"),
        ("swiftkv:weights=untrained,depth=-1", "depth must be 0 to 6"),
        ("swiftkv:weights=untrained,depth=3,group=0", "group must be at least 1"),
        ("swiftkv:weights=SWIFT,depth=2", "was distilled with depth=3, not 2"),
        ("swiftkv:weights=SWIFT,group=1", "was distilled with group=2, not 1"),
        ("swiftkv:weights=PLAIN", "were not distilled for it"),
        ("swiftkv:weights=/nowhere", "there is no directory"),
    ],
)
def test_bad_input_is_one_sentence(use: str, sentence: str, directories: tuple[Path, Path]) -> None:
    swift, plain = directories
    with pytest.raises(HeadstartError, match=sentence) as refusal:
        answers_of(plain, use.replace("SWIFT", str(swift)).replace("PLAIN", str(plain)))
    assert "\n" not in str(refusal.value)


def test_weights_beside_a_distilled_model_are_refused(directories: tuple[Path, Path]) -> None:
    swift, _ = directories
    with pytest.raises(MethodError, match="was distilled itself: leave out weights"):
        answers_of(swift, f"swiftkv:weights={swift}")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"depth": 7}, "depth must be 0 to 6"),
        ({"depth": 6}, "nothing to train"),
        ({"depth": 3, "group": 0}, "group must be at least 1"),
        ({"depth": 3, "temperature": 0.0}, "temperature must be above 0"),
        ({"depth": 3, "stream": -1.0}, "stream must be 0 or above"),
    ],
)
def test_bad_distillations_are_refused(options: dict, sentence: str) -> None:
    with pytest.raises(MethodError, match=sentence):
        SwiftKVDistil(**options).apply_(checkpoint_of("gqa").decoder)
