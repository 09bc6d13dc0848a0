"""Distance between next-token distributions: against dense logits, and for methods whose effect is known."""

from dataclasses import replace

import pytest
import torch

from headstart.checkpoints.random_init import random_checkpoint
from headstart.engine.args import EngineArgs
from headstart.engine.engine import Engine
from headstart.engine.params import SamplingParams
from headstart.engine.seams import LogitRule, Retention
from headstart.errors import HeadstartError
from headstart.evaluation.quality import Run
from headstart.evaluation.quality_divergence import divergence, exact_twin, forced_logits
from headstart.evaluation.quality_results import ResultFile
from headstart.evaluation.quality_settings import LOGITS, QualitySettings
from headstart.methods.registry import MethodCard
from tests.engine.test_engine import CHECKPOINT, TINY
from tests.evaluation.test_quality import Listener
from tests.models.naive_attention import NaiveBatch

PROMPT = [5, 9, 3, 17, 4, 8, 16, 3, 6, 11, 12, 7, 7, 18, 3, 9, 10]
CONTINUATION = [4, 15, 9, 14, 5]


class Cold(LogitRule):
    """Doubles the logits."""

    def apply(self, logits, sequences):
        return logits * 2


class Recent(Retention):
    """Keeps the six newest keys."""

    def retain(self, sequence, store):
        return torch.arange(max(0, sequence.kv_length - 6), sequence.kv_length)


def as_method(seam: type):
    card = MethodCard(seam.__name__, "decode", None, False, "any", (), 0, "A test.", seam, seam.slots)
    return type(seam.__name__, (seam,), {"card": replace(card)})()


def engine(*methods, **settings) -> Engine:
    args = EngineArgs(device="cpu", skip_tokenizer_init=True, page_size=4, num_pages=64, use=methods, **settings)
    return Engine(args, CHECKPOINT)


def dense_logits() -> torch.Tensor:
    """The same rows by a dense cache: after the prompt, and after each further token but the last."""
    batch = NaiveBatch(CHECKPOINT.decoder, [len(PROMPT)])
    with torch.inference_mode():
        rows = [batch.step({0: torch.tensor(PROMPT)})[0][-1]]
        rows += [batch.step({0: torch.tensor([token])})[0][-1] for token in CONTINUATION[:-1]]
    return torch.stack(rows)


def test_forced_logits_are_those_of_the_prompt_and_its_continuation() -> None:
    for settings in ({}, {"max_num_batched_tokens": 3}):
        found = forced_logits(engine(**settings), PROMPT, CONTINUATION)
        assert found.shape == (len(CONTINUATION), CHECKPOINT.config.vocab_size)
        torch.testing.assert_close(found, dense_logits().float(), atol=1e-4, rtol=1e-4)


def test_an_engine_draws_as_before_after_it_was_forced() -> None:
    plain, forced = engine(), engine()
    forced_logits(forced, PROMPT, CONTINUATION)
    outputs = []
    for each in (plain, forced):
        each.submit(each.prepare("r", PROMPT, SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)))
        while each.has_work:
            found = each.step()
        outputs.append(found[-1].outputs[0].token_ids)
        each.store.check()
    assert outputs[0] == outputs[1]


def test_a_busy_engine_is_refused() -> None:
    busy = engine()
    busy.submit(busy.prepare("r", PROMPT, SamplingParams(max_tokens=8)))
    with pytest.raises(HeadstartError, match="has requests"):
        forced_logits(busy, PROMPT, CONTINUATION)


def test_a_stack_is_no_distance_from_itself() -> None:
    stack = engine()
    twins = (exact_twin(stack), exact_twin(stack, len(PROMPT) + len(CONTINUATION)))
    sides = [forced_logits(side, PROMPT, CONTINUATION) for side in (*twins, stack, stack)]
    for other in sides[1:]:
        found = divergence(sides[0], other)
        assert found.mean_kl == 0
        assert found.top1 == 100


def test_a_rule_on_logits_has_the_distance_that_follows_from_it() -> None:
    """Doubled logits: the same likeliest token, and a divergence known in closed form."""
    stack = engine(as_method(Cold))
    found = divergence(
        forced_logits(exact_twin(stack), PROMPT, CONTINUATION), forced_logits(stack, PROMPT, CONTINUATION)
    )
    logits = dense_logits().double()
    p, q = logits.log_softmax(-1), (2 * logits).log_softmax(-1)
    expected = (p.exp() * (p - q)).sum(-1).tolist()
    assert found.top1 == 100
    assert found.kl == pytest.approx(expected, abs=1e-4)
    assert found.mean_kl > 0


def test_keys_that_are_dropped_are_missed_when_decoding() -> None:
    """The row after the prompt is exact, since dropping comes after reading; the later ones are not."""
    stack = engine(as_method(Recent))
    found = divergence(
        forced_logits(exact_twin(stack), PROMPT, CONTINUATION), forced_logits(stack, PROMPT, CONTINUATION)
    )
    assert found.kl[0] == pytest.approx(0, abs=1e-9)
    assert min(found.kl[1:]) > 1e-9


def test_divergence_of_known_distributions() -> None:
    p = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]).log()
    q = torch.tensor([[0.25, 0.5, 0.25], [0.1, 0.8, 0.1]]).log()
    found = divergence(p, q + 3.0)
    assert found.kl == pytest.approx([0.25 * torch.log(torch.tensor(2.0)).item(), 0], abs=1e-7)
    assert found.agree == [False, True]
    # A forbidden token is no reason for a number that is none.
    forbidden = torch.tensor([[0.0, 1.0, -torch.inf]])
    assert divergence(forbidden, forbidden).kl == [0]


def test_random_weights_without_a_tokenizer_will_do() -> None:
    class Model:
        """As much of `LLM` as the task needs."""

        def __init__(self) -> None:
            args = EngineArgs(device="cpu", skip_tokenizer_init=True, use=[as_method(Recent)])
            self.engine = Engine(args, random_checkpoint(TINY, dtype="float32", seed=3))
            self.max_model_len = self.engine.max_model_len

    asked = QualitySettings((LOGITS,), lengths=(48,), count=2)
    (score,) = Run(Model(), asked, ResultFile(None, "x"), Listener()).scores()  # type: ignore[arg-type]
    assert score.count == 2
    assert score.score is not None
    assert score.score > 0
    assert score.values["first_kl"] < score.score
