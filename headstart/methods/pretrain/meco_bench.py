"""The bench of MeCo on the rig: six sources, four arms, losses with and without the line, and steering."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from headstart.evaluation.rig.spec import BASELINE, Expectation, Metric, RigArm, RigBench, RigPhase
from headstart.methods.pretrain.meco import MeCo
from headstart.training.documents import Document
from headstart.training.random_streams import numpy_stream
from headstart.training.seams import DocumentContext

if TYPE_CHECKING:
    from headstart.evaluation.rig.runner import TrainedArm

EARLY = 16
"""Tokens at the beginning of a document, where its source is not plain from the text yet."""
SAMPLES, SAMPLE_TOKENS = 12, 192
CALIBRATION = 200
"""Documents of each source that the classifier of the steering figure is fitted on."""

RECOMMENDED, ALWAYS, CONTROL = "meco", "no cooldown", "fixed line"

_PLAIN, _PLAIN_EARLY = "held-out loss", f"loss of the first {EARLY} tokens"
_LINE, _LINE_EARLY = "loss with the line", f"loss of the first {EARLY} tokens with the line"
_STEERING = "steering accuracy"


def bench() -> RigBench:
    """The arms at equal tokens, the lines of metadata counted."""
    line, fixed = "meco", "meco:tag=fixed"
    return RigBench(
        arms={
            RECOMMENDED: RigArm((RigPhase(0.9, (line,)), RigPhase(0.1))),
            ALWAYS: RigArm((RigPhase(1.0, (line,)),)),
            CONTROL: RigArm((RigPhase(0.9, (fixed,)), RigPhase(0.1))),
        },
        metrics=(
            Metric(_PLAIN_EARLY),
            Metric(_LINE),
            Metric(_LINE_EARLY),
            Metric(_STEERING, "share of samples", higher_is_better=True),
        ),
        measure=measure,
        expectations=(
            Expectation(RECOMMENDED, _PLAIN, "same"),
            Expectation(RECOMMENDED, _LINE_EARLY, "better"),
            Expectation(ALWAYS, _PLAIN, "worse"),
            Expectation(CONTROL, _PLAIN, "same"),
            Expectation(RECOMMENDED, _STEERING, "better"),
            Expectation(RECOMMENDED, _STEERING, "better", against=CONTROL),
        ),
        comparisons=((RECOMMENDED, CONTROL), (RECOMMENDED, ALWAYS)),
        sources=("novels", "noisy-novels", "plays", "textbooks", "reference", "code"),
        phase={"packing": "complete"},
        notes=(
            "The lines are part of the equal tokens, so that arms with them read that much less text.",
            "Losses with the line show the arm its own line; the baseline has none and is given the plain text.",
            f"Steering: {SAMPLES} samples for each source at temperature 1, classified by their words; chance is one "
            "over the number of sources. The baseline gets no line, so that it stands at chance.",
        ),
    )


def measure(arm: TrainedArm) -> Mapping[str, float]:
    """Losses over all sources with and without the arm's line, and the steering accuracy."""
    line = _line_of(arm.arm)
    held_out = {name: arm.corpus.held_out(name) for name in arm.corpus.names}
    plain = {name: arm.losses(documents) for name, documents in held_out.items()}
    shown = plain
    if line is not None:
        shown = {name: arm.losses(_with_line(line, documents, arm)) for name, documents in held_out.items()}
    return {
        _PLAIN_EARLY: _mean(plain, EARLY),
        _LINE: _mean(shown),
        _LINE_EARLY: _mean(shown, EARLY),
        _STEERING: _steering(arm, line),
    }


def _line_of(arm: str) -> MeCo | None:
    return {BASELINE: None, CONTROL: MeCo(tag="fixed")}.get(arm, MeCo())


def _with_line(line: MeCo, documents: Iterable[Document], arm: TrainedArm) -> list[Document]:
    tokenizer = arm.corpus.tokenizer
    context = DocumentContext("", 0, lambda text: tokenizer.encode(text, False), numpy_stream(0))
    return [each for document in documents for each in line(document, context)]


def _mean(losses: Mapping[str, Sequence[np.ndarray]], first: int | None = None) -> float:
    """The mean over sources of the mean over tokens."""
    return float(np.mean([np.concatenate([each[:first] for each in found]).mean() for found in losses.values()]))


def _steering(arm: TrainedArm, line: MeCo | None) -> float:
    """The share of samples that are classified to the source whose line was given."""
    from headstart import LLM, SamplingParams

    corpus = arm.corpus
    classifier = BagOfWords({name: _texts(arm, corpus.train(name)[:CALIBRATION]) for name in corpus.names})
    llm = LLM(str(arm.export()), dtype="float32")
    asked = [name for name in corpus.names for _ in range(SAMPLES)]
    prompts = [
        {"prompt_token_ids": (line or MeCo(template="")).prompt(corpus.tokenizer, "", source=name)} for name in asked
    ]
    params = [
        SamplingParams(temperature=1.0, max_tokens=SAMPLE_TOKENS, seed=arm.seed * len(asked) + number)
        for number in range(len(asked))
    ]
    outputs = llm.generate(prompts, params)
    found = [classifier(output.outputs[0].text) for output in outputs]
    return float(np.mean([name == guess for name, guess in zip(asked, found, strict=True)]))


def _texts(arm: TrainedArm, documents: Iterable[Document]) -> list[str]:
    return [arm.corpus.tokenizer.decode(document.token_ids.tolist()) for document in documents]


class BagOfWords:
    """Naive Bayes over words and marks, each class equally likely.

    Args:
        texts: by class.
    """

    def __init__(self, texts: Mapping[str, Iterable[str]]) -> None:
        counts = {name: Counter(word for text in found for word in _words(text)) for name, found in texts.items()}
        vocabulary = set().union(*counts.values())
        self._log: dict[str, dict[str, float]] = {}
        for name, found in counts.items():
            total = math.log(sum(found.values()) + len(vocabulary))
            self._log[name] = {word: math.log(found[word] + 1) - total for word in vocabulary}

    def __call__(self, text: str) -> str:
        """The likeliest class; unknown words say nothing."""
        words = Counter(_words(text))
        return max(
            self._log,
            key=lambda name: sum(n * self._log[name][word] for word, n in words.items() if word in self._log[name]),
        )


def _words(text: str) -> list[str]:
    # Short pieces, since what a small model writes has the look of words rather than words.
    return re.findall(r"[a-z]{1,3}|[A-Z]+|\d|[^\w\s]|\n| {2,}", text)
