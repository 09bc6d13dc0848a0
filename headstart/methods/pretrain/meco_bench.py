"""The bench of MeCo on the rig: six sources, four arms, losses with and without the line, and steering."""

from __future__ import annotations

import math
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
CALIBRATION = 1000
"""Documents of each source that the classifier of the steering figure is fitted on."""

RECOMMENDED, ALWAYS, CONTROL = "meco", "no cooldown", "fixed line"

_PLAIN, _PLAIN_EARLY = "held-out loss", f"loss of the first {EARLY} tokens"
_LINE, _LINE_EARLY = "loss with the line", f"loss of the first {EARLY} tokens with the line"
_STEERING, _CEILING = "steering accuracy", "accuracy of its classifier on held-out text"


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
            f"Steering: {SAMPLES} samples for each source at temperature 1, classified by runs of three characters; "
            "chance is one over the number of sources. The baseline gets no line, so that it stands at chance.",
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
        **_steering(arm, line),
    }


def _line_of(arm: str) -> MeCo | None:
    if arm.startswith(BASELINE):
        return None
    return MeCo(tag="fixed") if arm == CONTROL else MeCo()


def _with_line(line: MeCo, documents: Iterable[Document], arm: TrainedArm) -> list[Document]:
    tokenizer = arm.corpus.tokenizer
    context = DocumentContext("", 0, lambda text: tokenizer.encode(text, False), numpy_stream(0))
    return [each for document in documents for each in line(document, context)]


def _mean(losses: Mapping[str, Sequence[np.ndarray]], first: int | None = None) -> float:
    """The mean over sources of the mean over tokens."""
    return float(np.mean([np.concatenate([each[:first] for each in found]).mean() for found in losses.values()]))


def _steering(arm: TrainedArm, line: MeCo | None) -> dict[str, float]:
    """The share of samples that are classified to the source whose line was given, and what the classifier can do."""
    from headstart import LLM, SamplingParams

    corpus = arm.corpus
    classifier = Trigrams({name: _texts(arm, corpus.train(name)[:CALIBRATION]) for name in corpus.names})
    llm = LLM(str(arm.export()), dtype="float32")
    asked = [name for name in corpus.names for _ in range(SAMPLES)]
    prompts = [
        {"prompt_token_ids": (line or MeCo(template="")).prompt(corpus.tokenizer, "", source=name)} for name in asked
    ]
    params = [
        SamplingParams(temperature=1.0, max_tokens=SAMPLE_TOKENS, seed=arm.seed * len(asked) + number)
        for number in range(len(asked))
    ]
    samples = [output.outputs[0].text for output in llm.generate(prompts, params)]
    real = [(name, text) for name in corpus.names for text in _texts(arm, corpus.held_out(name), SAMPLE_TOKENS)]
    return {
        _STEERING: float(np.mean([classifier(text) == name for name, text in zip(asked, samples, strict=True)])),
        _CEILING: float(np.mean([classifier(text) == name for name, text in real])),
    }


def _texts(arm: TrainedArm, documents: Iterable[Document], first: int | None = None) -> list[str]:
    return [arm.corpus.tokenizer.decode(document.token_ids[:first].tolist()) for document in documents]


class Trigrams:
    """Naive Bayes over runs of three characters, each class equally likely: a bag of words for text without words.

    Args:
        texts: by class.
    """

    def __init__(self, texts: Mapping[str, Iterable[str]]) -> None:
        counts = {name: Counter(run for text in found for run in _runs(text)) for name, found in texts.items()}
        vocabulary = set().union(*counts.values())
        self._log: dict[str, dict[str, float]] = {}
        for name, found in counts.items():
            total = math.log(sum(found.values()) + len(vocabulary))
            self._log[name] = {run: math.log(found[run] + 1) - total for run in vocabulary}

    def __call__(self, text: str) -> str:
        """The likeliest class; runs that no class has say nothing."""
        known = [run for run in _runs(text) if run in next(iter(self._log.values()))]
        return max(self._log, key=lambda name: sum(self._log[name][run] for run in known))


def _runs(text: str) -> list[str]:
    return [text[i : i + 3] for i in range(len(text) - 2)]
