"""Each seam is really asked: small methods that change what it answers, seen from outside."""

from dataclasses import replace

import pytest
import torch

from headstart.checkpoints.default import default_checkpoint_path
from headstart.checkpoints.random_init import random_checkpoint
from headstart.checkpoints.tokenizer import Tokenizer
from headstart.engine.args import EngineArgs
from headstart.engine.cache import PagedKVStore
from headstart.engine.engine import Engine
from headstart.engine.params import SamplingParams
from headstart.engine.seams import (
    Attention,
    EveryLayer,
    FullLayout,
    LinearOp,
    LogitRule,
    PagedAttention,
    PromptRule,
    Retention,
    Tokenization,
)
from headstart.errors import MethodError
from headstart.methods.registry import MethodCard
from tests.engine.test_engine import CHECKPOINT, TINY, run_alone

GREEDY = SamplingParams(max_tokens=20, temperature=0, ignore_eos=True)
PROMPT = [3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13]


def as_method(seam: type, exact: bool = False, **traits):
    """An instance of a seam's implementation with the card that the decorator would give it."""
    card = MethodCard(seam.__name__, "test", None, exact, "any", (), 0, "A test.", seam, seam.slots)
    return type(seam.__name__, (seam,), {"card": replace(card, **traits)})()


def run(*methods, checkpoint=CHECKPOINT, prompt=PROMPT, params=GREEDY, **settings):
    args = EngineArgs(device="cpu", skip_tokenizer_init=True, page_size=4, num_pages=40, use=methods, **settings)
    engine = Engine(args, checkpoint)
    engine.submit(engine.prepare("r", prompt, params))
    outputs = []
    while engine.has_work:
        outputs += engine.step()
        engine.store.check()
    assert engine.store.num_leased == 0
    return outputs[-1].outputs[0].token_ids, engine


class KeepSinksAndRecent(Retention):
    """Keeps the first key and the eight newest."""

    def retain(self, sequence, store):
        if sequence.kv_length <= 10:
            return None
        return torch.tensor([0, *range(sequence.kv_length - 8, sequence.kv_length)])


class KeepAll(Retention):
    """Names every key."""

    def retain(self, sequence, store):
        return torch.arange(sequence.kv_length)


def test_retention_that_keeps_everything_changes_nothing():
    """Naming every key is the plain engine."""
    assert run(as_method(KeepAll))[0] == run_alone(PROMPT, GREEDY)[0]


@pytest.mark.parametrize("caching", [True, False])
def test_retention_frees_pages_and_decodes_on_what_is_left(caching):
    """Dropping keys bounds a sequence's pages for real, also when its prompt was shared, and the next tokens are
    those of a dense computation over the kept keys at their old positions."""
    peak = 0

    class Watched(KeepSinksAndRecent):
        def retain(self, sequence, store):
            nonlocal peak
            peak = max(peak, len(sequence.pages))
            return super().retain(sequence, store)

    long = SamplingParams(max_tokens=60, temperature=0, ignore_eos=True)
    tokens, engine = run(as_method(Watched), params=long, enable_prefix_caching=caching)
    assert peak <= 4, "ten or eleven keys fit in three pages of four, and a copy takes one more at most"
    assert tokens == reference_of_sinks_and_recent(PROMPT, 60)
    assert not engine.exact


@pytest.mark.parametrize("budget", [1, 4, 7])
def test_retention_within_a_prompt(budget):
    """Keys dropped between the chunks of a prompt free pages that later chunks take again."""
    long = SamplingParams(max_tokens=10, temperature=0, ignore_eos=True)
    prompt = [3 + i % 11 for i in range(40)]
    tokens, engine = run(as_method(KeepSinksAndRecent), prompt=prompt, params=long, max_num_batched_tokens=budget)
    assert len(tokens) == 10 and engine.stats().preemptions == 0


def reference_of_sinks_and_recent(prompt, count):
    """The same rule with a plain list of keys per layer instead of a cache."""
    kept: dict[int, list] = {}

    def attend(spec, q, k, v):
        old = kept.setdefault(spec.layer, [])
        before = len(old)
        old += list(zip(k, v, strict=True))
        keys = torch.stack([key for key, _ in old])
        values = torch.stack([value for _, value in old])
        group = spec.num_heads // spec.num_kv_heads
        scores = torch.einsum("qhd,khd->hqk", q, keys.repeat_interleave(group, 1)) * spec.scale
        hidden = torch.arange(len(old)) > before + torch.arange(len(q))[:, None]
        weights = torch.softmax(scores.masked_fill(hidden, -torch.inf), -1)
        return torch.einsum("hqk,khd->qhd", weights, values.repeat_interleave(group, 1))

    decoder, tokens, computed = CHECKPOINT.decoder, list(prompt), 0
    while len(tokens) < len(prompt) + count:
        rows = torch.tensor(tokens[computed:])
        with torch.inference_mode():
            hidden = decoder(rows, torch.arange(computed, len(tokens)), attend)
            nxt = int(decoder.logits(hidden[-1:]).argmax())
        computed = len(tokens)
        tokens.append(nxt)
        for layer, pairs in kept.items():
            if len(pairs) > 10:
                kept[layer] = [pairs[0], *pairs[-8:]]
    return tokens[len(prompt) :]


def test_retention_is_refused_on_windowed_models():
    """A window counts places in the cache, which dropping would shift."""
    windowed = {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 8}
    with pytest.raises(MethodError, match="sliding windows"):
        run(as_method(KeepAll), checkpoint=random_checkpoint(TINY | windowed, dtype="float32"))


def test_linear_op_is_asked_for_every_dense_weight():
    """A method can take over single weights; taking one over by the plain product changes nothing."""
    names = []

    class Doubled(LinearOp):
        def bind(self, name, module):
            names.append(name)
            if not name.endswith("down"):
                return None
            return lambda x: torch.nn.functional.linear(x, module.weight, module.bias)

    checkpoint = random_checkpoint(TINY, dtype="float32", seed=0)
    assert run(as_method(Doubled), checkpoint=checkpoint)[0] == run_alone(PROMPT, GREEDY)[0]
    assert len([name for name in names if name.endswith("down")]) == 2


def test_a_linear_op_leaves_the_callers_model_alone():
    """An engine takes weights over for itself: the checkpoint that it was given answers others as ever, while the
    engine lives and after it, and its weights are not held twice."""

    calls = []

    class Watched(LinearOp):
        def bind(self, name, module):
            return lambda x: (calls.append(name), torch.nn.functional.linear(x, module.weight, module.bias))[1]

    checkpoint = random_checkpoint(TINY, dtype="float32", seed=0)
    _, engine = run(as_method(Watched), checkpoint=checkpoint)
    asked = len(calls)
    assert asked > 0
    run(checkpoint=checkpoint)
    assert len(calls) == asked, "the plain engine multiplies as the other's method says"
    pairs = zip(engine.checkpoint.decoder.parameters(), checkpoint.decoder.parameters(), strict=True)
    assert all(mine is its for mine, its in pairs)


def test_logit_rule_prompt_rule_and_tokenization():
    """Rules that force a token, replace the prompt and spell text are seen in the output."""

    class Force(LogitRule):
        def apply(self, logits, sequences):
            logits[:, 7] += 1000.0
            return logits

    class Replace(PromptRule):
        def rewrite(self, token_ids):
            return [5, *token_ids[:2]]

    class Spell(Tokenization):
        def encode(self, text, tokenizer, add_special_tokens):
            return [3 + ord(letter) - ord("a") for letter in text]

    assert run(as_method(Force))[0] == [7] * 20
    assert run(as_method(Replace))[0] == run_alone([5, 3, 4], GREEDY)[0]
    checkpoint = replace(CHECKPOINT, tokenizer=Tokenizer.from_directory(default_checkpoint_path()))
    params = replace(GREEDY, detokenize=False)
    assert (
        run(as_method(Spell), checkpoint=checkpoint, prompt="abc", params=params)[0] == run_alone([3, 4, 5], GREEDY)[0]
    )


def test_attention_slots_and_min_context():
    """A decode attention is asked for decodes of long contexts only; the prefill slot keeps its default."""
    asked = []

    class Watched(PagedAttention):
        slots = ("attention.decode",)

        def attend(self, spec, q, keys, values, layout, selection):
            asked.append((layout.query_lengths, layout.kv_lengths))
            return super().attend(spec, q, keys, values, layout, selection)

    assert run(as_method(Watched, exact=True, min_context=20))[0] == run_alone(PROMPT, GREEDY)[0]
    assert asked and all(q == [1] and kv[0] >= 20 for q, kv in asked)
    assert isinstance(as_method(Watched), Attention)


def test_prefill_and_layout_seams_drive_the_layers():
    """A prefill that runs the layers by hand gives the same; a layout in which one layer reads another's pages
    takes half the memory, and gives the same however the prompt is cut."""
    calls = []

    class ByHand(EveryLayer):
        def forward(self, decoder, batch, attend):
            x = decoder.embed(batch.token_ids)
            rows = decoder.rope_rows(batch.positions, batch.lengths)
            for layer, kind in zip(decoder.layers, decoder.config.layer_kinds, strict=True):
                calls.append(len(x))
                x = layer(x, rows[kind], attend)
            return decoder.norm(x).index_select(0, batch.logit_rows)

    class Shared(FullLayout):
        def layers(self, specs, dtype):
            first, second = super().layers(specs, dtype)
            return [first, replace(second, alias_of=0)]

    tokens, plain = run(as_method(ByHand, exact=True))
    assert tokens == run_alone(PROMPT, GREEDY)[0] and calls[:2] == [11, 11]
    whole, shared = run(as_method(Shared))
    assert run(as_method(Shared), max_num_batched_tokens=3)[0] == whole
    assert shared.store.bytes_per_page * 2 == plain.store.bytes_per_page


def test_whole_prompts_are_not_cut():
    """A method that needs the prompt whole gets it whole, whatever the budget."""
    lengths = []

    class Whole(EveryLayer):
        def forward(self, decoder, batch, attend):
            lengths.append(batch.layout.num_rows)
            return super().forward(decoder, batch, attend)

    run(as_method(Whole, exact=True, chunking="whole"), max_num_batched_tokens=4)
    assert lengths[0] == 11
    lengths.clear()
    run(as_method(Whole, exact=True), max_num_batched_tokens=4)
    assert lengths[:3] == [4, 4, 3]


def test_what_cannot_be_honoured_is_refused():
    """A slot that does not exist, one of another seam, and a trait that the slot ignores, each in a sentence."""

    class Typo(LogitRule):
        slots = ("logit_rules",)

        def apply(self, logits, sequences):
            return logits

    class Wrong(Typo):
        slots = ("scheduler",)

    class Right(Typo):
        slots = ("logit_rule",)

    for seam, traits, sentence in [
        (Typo, {}, "'logit_rules', which does not exist; did you mean 'logit_rule'"),
        (Wrong, {}, "is no Scheduler"),
        (Right, {"min_context": 9}, "min_context"),
    ]:
        with pytest.raises(MethodError, match=sentence):
            run(as_method(seam, **traits))


def test_a_kv_store_can_be_replaced():
    """The engine allocates whatever fills the slot."""

    class Counting(PagedKVStore):
        written = 0

        def write(self, index, k, v, slots):
            self.written += len(slots)
            super().write(index, k, v, slots)

    method = as_method(Counting, exact=True)
    tokens, engine = run(method)
    assert tokens == run_alone(PROMPT, GREEDY)[0]
    assert engine.store is method and method.written == 2 * (len(PROMPT) + 19)
