"""LazyLLM: the rule written out with plain dictionaries, work done once, and what is refused."""

from math import ceil

import pytest
import torch

from headstart.checkpoints.random_init import random_checkpoint
from headstart.engine.args import EngineArgs
from headstart.engine.cache import PagedKVStore
from headstart.engine.engine import Engine
from headstart.engine.params import SamplingParams
from headstart.errors import MethodError
from headstart.methods.prefill.lazyllm import LazyLLM
from tests.conformance import models
from tests.conformance.lab import Answer, as_method, assert_same, make_engine, serve

LAYERS = 4
CHECKPOINT = random_checkpoint(models._BASE | {"num_hidden_layers": LAYERS}, dtype="float32", seed=3)
DROPS = {1: 0.6, 2: 0.4, 3: 0.2}
USE = LazyLLM(keep="0.6/0.4/0.2", layers="1/2/3")
ASKED = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True, logprobs=2)


def engine_with(*use, **settings):
    args = EngineArgs(device="cpu", skip_tokenizer_init=True, page_size=4, num_pages=60, use=use, **settings)
    return Engine(args, CHECKPOINT)


class Reference:
    """The rule token by token: `keys[l][i]` are token i's key and value at layer l, `parked[i]` what it gives next."""

    def __init__(self, prompt: int) -> None:
        self.prompt = prompt
        self.keys: list[dict[int, tuple[torch.Tensor, torch.Tensor]]] = [{} for _ in range(LAYERS)]
        self.parked: dict[int, torch.Tensor] = {}
        self.revived = 0

    def step(self, tokens: list[int], start: int) -> torch.Tensor:
        """Log-probabilities after the last of the tokens, of which those from `start` on are new."""
        decoder = CHECKPOINT.decoder
        active = list(range(len(tokens)))
        for i in active[start:]:
            self.parked[i] = decoder.embed(torch.tensor([tokens[i]]))[0]
        for index, (kind, layer) in enumerate(zip(decoder.config.layer_kinds, decoder.layers, strict=True)):
            now = [i for i in active if i not in self.keys[index]]
            self.revived += sum(i < start for i in now)
            scores = {}

            def attend(spec, q, k, v, index=index, now=now, active=active, scores=scores):
                self.keys[index] |= {i: (k[at], v[at]) for at, i in enumerate(now)}
                group = spec.num_heads // spec.num_kv_heads
                out = torch.empty_like(q)
                for at, i in enumerate(now):
                    seen = [j for j in active if j <= i]
                    for h in range(spec.num_heads):
                        key = torch.stack([self.keys[index][j][0][h // group] for j in seen])
                        value = torch.stack([self.keys[index][j][1][h // group] for j in seen])
                        weights = torch.softmax(key @ q[at, h] * spec.scale, 0)
                        out[at, h] = weights @ value
                        if i == active[-1]:
                            for j, weight in zip(seen, weights.tolist(), strict=True):
                                scores[j] = scores.get(j, 0.0) + weight / spec.num_heads
                return out

            places = torch.tensor(now)
            rows = decoder.rope_rows(places, (places + 1).clamp(min=self.prompt))[kind]
            out = layer(torch.stack([self.parked[i] for i in now]), rows, attend)
            self.parked |= dict(zip(now, out, strict=True))
            if index + 1 in DROPS:
                count = ceil(DROPS[index + 1] * len(tokens))
                best = sorted(active[:-1], key=lambda i: -scores[i])[: count - 1]
                active = sorted([*best, active[-1]])
        hidden = decoder.norm(self.parked[len(tokens) - 1][None])
        return torch.log_softmax(decoder.logits(hidden)[0], -1)


@torch.inference_mode()
def reference(prompt: list[int], count: int) -> tuple[Answer, Reference]:
    rule = Reference(len(prompt))
    tokens, start, said = list(prompt), 0, Answer([])
    for _ in range(count):
        best = rule.step(tokens, start).topk(2)
        start = len(tokens)
        tokens.append(int(best.indices[0]))
        said.tokens.append(tokens[-1])
        said.logprobs.append(float(best.values[0]))
        said.lead.append(float(best.values[0] - best.values[1]))
    return said, rule


def test_it_follows_the_rule():
    """Prefill, decodes and revivals of several sequences in one batch, against the rule written out."""
    prompts = [models.ids(length, length) for length in (1, 2, 9, 30)]
    want, rules = zip(*(reference(prompt, 12) for prompt in prompts), strict=True)
    engine = engine_with(USE)
    assert_same(serve(engine, prompts, ASKED), want, "in a batch")
    counted = engine.stats().methods["lazyllm"]
    assert counted["revived"] == sum(rule.revived for rule in rules) > 0
    for layer in range(LAYERS):
        assert counted[f"tokens of layer {layer}"] == sum(len(rule.keys[layer]) for rule in rules)


def test_no_token_passes_a_layer_twice():
    """Every slot of every layer is written at most once, and the prompt's deep layers run on its share alone."""

    class Watched(PagedKVStore):
        def write(self, index, k, v, slots):
            written.extend((index, slot) for slot in slots.tolist())
            super().write(index, k, v, slots)

    written: list[tuple[int, int]] = []
    engine = engine_with(LazyLLM(keep="0.6/0.4/0.2", layers="1/2/3"), as_method(Watched(), "watched"))
    engine.submit(engine.prepare("one", models.ids(40), ASKED))
    engine.step()
    assert [sum(layer == index for layer, _ in written) for index in range(LAYERS)] == [40, 24, 16, 8]
    while engine.has_work:
        engine.step()
    assert len(set(written)) == len(written) <= LAYERS * (40 + 11)


def test_the_places_of_the_drops():
    """By default a third, a half and two thirds down; on a shallow model they meet and the last share holds."""
    method = LazyLLM()
    method.start(CHECKPOINT)
    assert method._drops == {1: 0.7, 2: 0.5, 3: 0.3}
    shallow = LazyLLM()
    shallow.start(models.shared(models.PLAIN))
    assert shallow._drops == {1: 0.3}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"keep": "0.5/0"}, "0 leaves nothing"),
        ({"keep": "0.5/nan"}, "0 leaves nothing"),
        ({"keep": "1.5"}, "up to 1"),
        ({"keep": "0.3/0.5"}, "must fall"),
        ({"keep": "half"}, "numbers with slashes"),
        ({"keep": "0.5", "layers": "1/2"}, "one for each share"),
        ({"keep": "0.5/0.4", "layers": "2/1"}, "must rise"),
        ({"keep": "0.5", "layers": "4"}, "1 to 3 for this model of 4 layers, not '4'"),
        ({"keep": "0.5", "layers": "0"}, "1 to 3 for this model of 4 layers, not '0'"),
    ],
)
def test_bad_schedules_are_refused(options, sentence):
    """Each in a sentence that says what is wrong."""
    with pytest.raises(MethodError, match=sentence):
        engine_with(LazyLLM(**options))


def test_what_it_cannot_run_with_is_refused():
    """Sliding windows."""
    with pytest.raises(MethodError, match="sliding windows"):
        make_engine("window", LazyLLM())
