"""Examples as prompts of an engine, and what answering them costs."""

import time
from collections.abc import Sequence

from headstart.engine.llm import LLM
from headstart.engine.params import SamplingParams
from headstart.evaluation.quality_results import Record
from headstart.evaluation.tasks import Example, Task

_PROBE_TOKENS = 512
_PROBE_STEPS = 16
_KEPT_OUTPUT = 400
# Answers share steps, but seldom with a full batch.
_ANSWERS_PER_STEP = 2


class Prompts:
    """Examples as token ids: as plain text, or through the chat template with the answer's opening behind it.

    Attributes:
        overhead: tokens that the template adds to a question.
    """

    def __init__(self, llm: LLM, chat: bool) -> None:
        self._llm = llm
        self._chat = chat
        plain = Example("", "a", ("a",), "", 1)
        self.overhead = max(0, len(self.ids(plain)) - len(llm.encode("a"))) if chat else 0

    def ids(self, example: Example) -> list[int]:
        """The prompt."""
        if not self._chat:
            return self._llm.encode(example.text)
        text = self._llm.tokenizer.apply_chat_template(example.messages)
        return self._llm.encode(text + example.answer_prefix.lstrip(), add_special_tokens=False)


def answer(llm: LLM, prompts: Prompts, examples: Sequence[Example]) -> list[str]:
    """What the model says, greedily."""
    results = llm.generate(
        [{"prompt_token_ids": prompts.ids(example)} for example in examples],
        [SamplingParams(max_tokens=e.max_tokens, temperature=0.0, stop=list(e.stop)) for e in examples],
    )
    return [result.outputs[0].text for result in results]


def judged(task: Task, length: int, index: int, example: Example, output: str) -> Record:
    """An output with its scores."""
    return Record(
        task=task.key,
        length=length,
        index=index,
        score=task.score(example, output),
        values=task.extras(example, output),
        groups={name: example.metadata[name] for name in ("depth", "turn") if name in example.metadata},
        asked=example.prompt.rstrip().rsplit("\n", 1)[-1][-300:] + example.answer_prefix[-200:],
        expected=", ".join(example.answers),
        output=output[:_KEPT_OUTPUT],
    )


def seconds_ahead(llm: LLM, work: Sequence[tuple[int, int]]) -> float:
    """About how long (prompt tokens, output tokens) take, from a short measurement.

    Long prompts cost more per token than the one measured, and cached beginnings less.
    """
    size = min(_PROBE_TOKENS, llm.max_model_len - _PROBE_STEPS - 1)
    if not work or size < 1:
        return 0.0
    times = []
    for first, tokens in enumerate((1, 1, 1 + _PROBE_STEPS)):
        # Another beginning each time, so that nothing is found in the cache.
        ids = [(first + at) % min(50, llm.engine.vocab_size) for at in range(size)]
        params = SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True)
        started = time.perf_counter()
        llm.generate([{"prompt_token_ids": ids}], params)
        times.append(time.perf_counter() - started)
    # The first request pays for what only first requests pay.
    per_prompt_token, per_step = times[1] / size, max(0.0, times[2] - times[1]) / _PROBE_STEPS
    steps = sum(output for _, output in work) / _ANSWERS_PER_STEP
    return sum(prompt for prompt, _ in work) * per_prompt_token + steps * per_step
