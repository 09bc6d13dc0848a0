"""MeCo: the line is read and never trained, and taking it away gives plain training."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from headstart import LLM, SamplingParams
from headstart.checkpoints.tokenizer import Tokenizer
from headstart.errors import MethodError
from headstart.methods import registry
from headstart.methods.pretrain.meco import FIXED, MeCo
from headstart.models.config import ModelConfig
from headstart.models.decoder import Decoder
from headstart.training.data.mixture import Draws, InOrder
from headstart.training.data.packing import IGNORED, PackedBatch, PackedRow, Packer, collate
from headstart.training.data.staged import Staged
from headstart.training.documents import Document
from headstart.training.errors import TrainingError
from headstart.training.initialise import initialise_
from headstart.training.language_model import LanguageModel
from headstart.training.loop import Trainer
from headstart.training.random_streams import numpy_stream, torch_stream
from headstart.training.recipe import recipe_of
from headstart.training.seams import Callback, DocumentContext, NextToken
from tests.methods.contract.lab import watched
from tests.training import workbench
from tests.training.workbench import CONFIG, make_corpus, phase, recipe, small_tokenizer

BOS, EOS = 1, 2
FIRST: dict[str, Any] = workbench.FIRST
TOKENIZER = small_tokenizer()
URLS = ["https://en.wikipedia.org/wiki/Mole", "http://news.example.com/a/b?c=d", "plain.org/x", "  https://a.b  "]
HOSTS = ["en.wikipedia.org", "news.example.com", "plain.org", "a.b"]


def encode(text: str) -> list[int]:
    return TOKENIZER.encode(text, False)


def documents(count: int = 24, seed: int = 0, masked: bool = False) -> list[Document]:
    """Documents of random tokens and lengths with a URL each."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(count):
        length = int(rng.integers(1, 30))
        ids = rng.integers(3, 280, length).astype(np.int32)
        trained = rng.random(length) < 0.6 if masked else None
        found.append(Document(ids, trained, f"d{number}", {"url": URLS[number % len(URLS)], "topic": f"t{number % 3}"}))
    return found


def staged(found: list[Document], *stages: MeCo) -> Draws:
    draws = InOrder("web", found)
    return Staged(draws, stages, lambda source, n, i: DocumentContext(source, n, encode, numpy_stream(0, n, i)))


def rows(draws: Draws, length: int = 64, **options: Any) -> list[PackedRow]:
    return list(Packer(draws, length, bos=BOS, eos=EOS, keep_last=True, **options))


def segments(found: list[PackedRow]) -> list[tuple[tuple[str, str], list[int], list[int]]]:
    """Document, tokens and targets of every segment."""
    result = []
    for row in found:
        starts = np.cumsum([0, *row.lengths])
        for document, start, end in zip(row.documents, starts, starts[1:], strict=False):
            assert row.positions[start:end].tolist() == list(range(end - start)), "positions restart"
            result.append((document, row.token_ids[start:end].tolist(), row.targets[start:end].tolist()))
    return result


@pytest.mark.parametrize("masked", [False, True])
def test_taking_the_line_away_gives_the_plain_stream(masked: bool) -> None:
    """Same documents in the same order, each with its line's tokens behind BOS; text targets are the same."""
    found = documents(masked=masked)
    # One row holds all, so that no document is cut.
    plain, tagged = segments(rows(staged(found), 4096)), segments(rows(staged(found, MeCo()), 4096))
    assert [name for name, _, _ in plain] == [name for name, _, _ in tagged]
    for number, ((_, ids, targets), (_, longer, masks)) in enumerate(zip(plain, tagged, strict=True)):
        line = encode(f"URL: {HOSTS[number % 4]}\n\n")
        assert longer == [BOS, *line, *ids[1:]]
        assert masks[len(line) + 1 :] == targets[1:], "text and EOS are predicted as without the line"
        assert masks[: len(line)] == [IGNORED] * len(line), "no token of the line is predicted"
        assert masks[len(line)] == targets[0], "the first token of the text is predicted from the line's last"
        if not masked:
            assert sum(target != IGNORED for target in masks) == len(ids) - 1, "text tokens and EOS"


def test_an_empty_line_is_plain_training() -> None:
    """Without a template, and without a value where that is allowed, the stream is bit-equal to the plain one."""
    found = documents(masked=True)
    for stage in (MeCo(template=""), MeCo(field="absent", missing="plain")):
        for options in ({}, {"complete": True}, {"lanes": 3}):
            plain, same = rows(staged(found), **options), rows(staged(found, stage), **options)
            for ours, theirs in zip(same, plain, strict=True):
                assert np.array_equal(ours.token_ids, theirs.token_ids)
                assert np.array_equal(ours.targets, theirs.targets)
                assert ours.documents == theirs.documents


def model() -> LanguageModel:
    decoder = Decoder(ModelConfig.from_hf(CONFIG, "test")).requires_grad_()
    initialise_(decoder, torch_stream(0, "init"))
    return LanguageModel(decoder)


def loss_and_gradients(language_model: LanguageModel, batch: PackedBatch) -> tuple[float, list[torch.Tensor]]:
    language_model.zero_grad()
    loss = language_model(batch, NextToken())
    loss.total.backward()
    return loss.total.item(), [p.grad.clone() for p in language_model.parameters() if p.grad is not None]


def test_the_line_is_read_and_not_trained() -> None:
    """The loss is that of text and EOS alone, and another line changes it and its gradients."""
    found = documents(8)
    batch = collate(rows(staged(found, MeCo()), 4096))
    loss, gradients = loss_and_gradients(model(), batch)
    changed, other = loss_and_gradients(model(), collate(rows(staged(found, MeCo(template="SRC: {}\\n\\n")), 4096)))
    assert changed != loss and not all(map(torch.equal, gradients, other))
    # By hand: the summed loss is that over text and EOS alone.
    language_model = model()
    network: Any = language_model.network
    logits = network.logits(language_model.hidden(batch)).detach()
    kept = batch.targets != IGNORED
    assert kept.sum() == sum(len(document) + 1 for document in found)
    by_hand = torch.nn.functional.cross_entropy(logits[kept], batch.targets[kept], reduction="sum").item()
    assert loss == pytest.approx(by_hand, rel=1e-5)


def test_no_line_leaks_into_the_next_document() -> None:
    """Logits of every document in a row equal those of the document alone."""
    found = documents(6)
    language_model = model()
    with torch.no_grad():
        together = language_model.hidden(collate(rows(staged(found, MeCo()), 4096)))
        alone = [language_model.hidden(collate(rows(staged([each], MeCo()), 4096))) for each in found]
    assert (together - torch.cat(alone)).abs().max() <= 1e-5


class Trace(Callback):
    """What a run does at each step."""

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.read: list[set[tuple[str, str]]] = [set()]
        self.states: list[tuple[list[torch.Tensor], list[torch.Tensor]]] = []
        self.masked: list[int] = []

    def on_start(self, trainer: Trainer) -> None:
        self.read.append(set())
        self.states.append(self._state(trainer))

    def on_batch(self, trainer: Trainer, batch: PackedBatch) -> None:
        self.read[-1] |= {each for row in batch.documents for each in row}
        self.masked.append(len(batch.targets) - batch.trained_tokens - len(batch.lengths))

    def on_step(self, trainer: Trainer) -> None:
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    def on_end(self, trainer: Trainer) -> None:
        self.states.append(self._state(trainer))

    def _state(self, trainer: Trainer) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        moments = [value.clone() for state in trainer.optimizers[0].state.values() for value in state.values()]
        return [p.detach().clone() for p in trainer.model.parameters()], moments


def test_the_cooldown_goes_on_where_the_line_ends(tmp_path: Path) -> None:
    """At the switch weights, moments and step stay, rates follow one schedule, and no document is read twice."""
    data = make_corpus(tmp_path)
    keys: dict[str, Any] = {"packing": "complete", "sequence_length": 64, "global_batch_tokens": 128}
    phases = [
        phase("conditioned", use=["meco"], tokens=128 * 9, **FIRST, **keys),
        phase("cooldown", tokens=128 * 3, **keys),
    ]
    run, _ = watched(recipe_of(recipe(*phases), "test"), data, tmp_path / "switch")
    trace = Trace()
    for stack in run.stacks:
        stack.methods.append(trace)
    run.execute()
    whole, _ = watched(recipe_of(recipe(phase(tokens=128 * 12, **FIRST, **keys)), "test"), data, tmp_path / "whole")
    straight = Trace()
    whole.stacks[0].methods.append(straight)
    whole.execute()
    assert trace.rates == straight.rates, "one schedule spans both phases"
    end, start = trace.states[1], trace.states[2]
    assert all(map(torch.equal, end[0], start[0])), "weights"
    assert start[1] and all(map(torch.equal, end[1], start[1])), "moments and steps"
    _, conditioned, cooldown = trace.read
    assert conditioned and cooldown and not conditioned & cooldown, "the cooldown reads unseen documents"


@pytest.mark.parametrize(
    ("options", "metadata", "line"),
    [
        ({}, {"url": "https://en.wikipedia.org/wiki/Mole"}, "URL: en.wikipedia.org\n\n"),
        ({}, {"url": "en.wikipedia.org/wiki"}, "URL: en.wikipedia.org\n\n"),
        ({}, {"source": "python/peps"}, "URL: python/peps\n\n"),
        ({}, {"source": "http://a.org/b"}, "URL: a.org\n\n"),
        ({}, {}, "URL: web\n\n"),
        ({"field": "author"}, {"author": " Kenneth\nGrahame ", "url": "x"}, "URL: Kenneth Grahame\n\n"),
        ({"field": "author+year"}, {"author": "Grahame", "year": 1908}, "URL: Grahame, 1908\n\n"),
        ({"field": "author+year"}, {"year": 1908}, "URL: 1908\n\n"),
        ({"field": "author", "missing": "unknown"}, {}, "URL: unknown\n\n"),
        ({"field": "author", "missing": "plain"}, {}, ""),
        ({"template": "<{}>\\n"}, {"url": "x"}, "<x>\n"),
        ({"tag": "fixed"}, {"url": "x"}, f"URL: {FIXED}\n\n"),
        ({"tag": "fixed", "field": "author"}, {}, f"URL: {FIXED}\n\n"),
    ],
)
def test_lines(options: dict[str, Any], metadata: dict[str, Any], line: str) -> None:
    """What stands before a document, from its metadata."""
    assert MeCo(**options).line(metadata, "web") == line


def test_a_random_id_stands_for_a_value() -> None:
    """The same value has the same id, another one another, and neither shows the value."""
    stage = MeCo(tag="id")
    lines = [stage.line({"url": url}) for url in ("https://a.org/1", "https://a.org/2", "https://b.org/1")]
    assert lines[0] == lines[1] != lines[2]
    assert all(re.fullmatch(r"URL: [0-9a-f]{16}\n\n", line) for line in lines)


def test_what_cannot_be_meant_gets_one_sentence(tmp_path: Path) -> None:
    """A field that no document has, a template without a place for the value."""
    with pytest.raises(TrainingError, match="document 'd0' has no metadata field 'autor'; it has url, topic"):
        rows(staged(documents(1), MeCo(field="autor")))
    for template in ("URL\\n\\n", "{} {}"):
        with pytest.raises(MethodError, match=r"must hold \{\} once"):
            registry.build(f"meco:template={template}")
    with pytest.raises(MethodError, match="option tag cannot be 'hash'"):
        registry.build("meco:tag=hash")
    data = make_corpus(tmp_path)
    run, _ = watched(recipe_of(recipe(phase(**FIRST, use=["meco:field=autor"])), "test"), data, tmp_path / "run")
    with pytest.raises(TrainingError, match="no metadata field 'autor'; it has none"):
        run.execute()


def test_a_prompt_is_what_training_read(tmp_path: Path) -> None:
    """Ids of a conditional prompt are the beginning of a document as packed, and the engine takes them."""
    stage = MeCo()
    text = " the ships\n\nwere waiting"
    document = Document(np.array(encode(text), np.int32), None, "d", {"url": URLS[0]})
    marked = Tokenizer(TOKENIZER.inner, {"bos_token": "<|endoftext|>"}, {}, "test")
    assert marked.bos_token_id is not None
    packed = Packer(staged([document], stage), 4096, bos=marked.bos_token_id, eos=None, keep_last=True)
    prompt = stage.prompt(marked, text, url=URLS[0])
    assert prompt == next(packed).token_ids.tolist()
    assert stage.prompt(TOKENIZER, text, url=URLS[0]) == prompt[1:], "no BOS where training puts none"
    assert MeCo(template="").prompt(TOKENIZER, text) == encode(text)

    data = make_corpus(tmp_path)
    run, _ = watched(recipe_of(recipe(phase(steps=1, **FIRST)), "test"), data, tmp_path / "run")
    run.execute()
    run.export(tmp_path / "model")
    llm = LLM(str(tmp_path / "model"), dtype="float32")
    greedy = SamplingParams(max_tokens=4, temperature=0, ignore_eos=True)
    output = llm.generate({"prompt_token_ids": stage.prompt(llm.tokenizer, text, url=URLS[0])}, greedy)[0]
    assert output.prompt_token_ids == encode(f"URL: {HOSTS[0]}\n\n") + encode(text)


def test_the_recipe_of_the_docstring_is_one() -> None:
    """It splits at 90%, and the cooldown goes on with optimizer and schedule."""
    text = re.search(r"( {4}phases:\n.*?)\n\n", MeCo.__doc__ or "", re.S)
    assert text is not None
    content = yaml.safe_load(text.group(1))
    conditioned, cooldown = recipe_of(recipe() | content, "the docstring").phases
    assert conditioned.tokens == 9 * cooldown.tokens
    assert (conditioned.use, cooldown.use) == (("meco",), ())
    assert cooldown.optimizer is None and cooldown.schedule is None
    assert conditioned.sources == cooldown.sources
