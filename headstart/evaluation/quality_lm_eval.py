"""Tasks of lm-evaluation-harness (the package `lm_eval`), run on this engine through a thin adapter."""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from headstart.engine.llm import LLM
from headstart.engine.params import SamplingParams
from headstart.errors import HeadstartError, did_you_mean
from headstart.evaluation.quality_text import token_logprobs
from headstart.evaluation.tasks.base import MissingDataError

# Metrics that count from 0 to 1.
SHARES = ("acc", "acc_norm", "exact_match", "f1")
_INSTALL = "pip install 'headstart[lm-eval]'"


def lm_eval_scores(llm: LLM, name: str, limit: int) -> tuple[str, float, dict[str, float]]:
    """Run one task → (its main metric's name, that metric as lm_eval gives it, all its metrics).

    Args:
        llm: the model.
        name: the task's name in lm_eval.
        limit: examples.

    Raises:
        MissingDataError: lm_eval is not installed, or the task cannot run here: its data is not at hand, mostly.
        HeadstartError: lm_eval does not know the task.
    """
    if find_spec("lm_eval") is None:
        raise MissingDataError(f"the task lm_eval:{name} needs lm_eval, which is not installed; {_INSTALL}")
    from lm_eval import simple_evaluate  # pyright: ignore[reportMissingImports]
    from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]

    known = TaskManager().all_tasks
    if name not in known:
        raise HeadstartError(f"lm_eval knows no task {name!r}{did_you_mean(name, known)}")
    try:
        found: Any = simple_evaluate(model=adapter(llm), tasks=[name], limit=limit, bootstrap_iters=0)
    except Exception as error:  # its tasks raise whatever their code and their downloads raise
        reason = str(error).strip().split("\n", 1)[0] or type(error).__name__
        raise MissingDataError(f"lm_eval cannot run the task {name!r} here: {reason}") from None
    values = {
        metric.split(",")[0]: float(value)
        for metric, value in found["results"][name].items()
        if isinstance(value, float) and "stderr" not in metric
    }
    if not values:
        raise HeadstartError(f"lm_eval gives no number for the task {name!r}")
    first = next((metric for metric in SHARES if metric in values), next(iter(values)))
    return first, values[first], values


def adapter(llm: LLM) -> Any:
    """An `lm_eval.api.model.LM` over this engine. The class is made here since its base may not be installed."""
    from lm_eval.api.model import LM  # pyright: ignore[reportMissingImports]

    class HeadstartLM(LM):
        """Requests carry their arguments in `.args`; see lm_eval's model guide for what each must return."""

        def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
            return continuation_logprobs(llm, [request.args for request in requests])

        def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
            return [rolling_logprob(llm, request.args[0]) for request in requests]

        def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
            return generate_until(llm, [request.args for request in requests])

    return HeadstartLM()


def continuation_logprobs(llm: LLM, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
    """For each context and continuation: the continuation's summed log-probability in nats, and whether greedy
    decoding would give it. A context that is too long loses its beginning."""
    prompts, starts = [], []
    for context, continuation in pairs:
        ids, start = _joined(llm, context, continuation)
        cut = max(0, len(ids) - (llm.max_model_len - 1))
        prompts.append({"prompt_token_ids": ids[cut:]})
        starts.append(max(1, start - cut))
    params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
    found = []
    for result, start in zip(llm.generate(prompts, params), starts, strict=True):
        assert result.prompt_logprobs is not None
        behind = zip(result.prompt_token_ids[start:], result.prompt_logprobs[start:], strict=True)
        entries = [entry[token] for token, entry in behind if entry is not None]
        found.append((sum(entry.logprob for entry in entries), all(entry.rank == 1 for entry in entries)))
    return found


def _joined(llm: LLM, context: str, continuation: str) -> tuple[list[int], int]:
    """Token ids of both, and where the continuation's begin."""
    # Tokenizers put a space before the word that follows it, so a space at the end of the context goes over.
    bare = context.rstrip()
    ids = llm.encode(context + continuation)
    start = len(llm.encode(bare)) if bare else 0
    opening = _opening(llm)
    if start == 0 and opening is not None and ids[:1] != [opening]:
        ids = [opening, *ids]
    return ids, min(max(start, 1), len(ids) - 1)


def _opening(llm: LLM) -> int | None:
    """The token that stands for the beginning of a text."""
    bos = llm.tokenizer.bos_token_id
    return llm.tokenizer.eos_token_id if bos is None else bos


def rolling_logprob(llm: LLM, text: str) -> float:
    """Summed log-probability of a text in nats: each token once, in windows of the model's length.

    The last window begins early enough to be full; its tokens that were scored before are not counted again.
    """
    opening = _opening(llm)
    ids = [*([] if opening is None else [opening]), *llm.encode(text, add_special_tokens=False)]
    size = llm.max_model_len - 1
    total, scored = 0.0, 1
    while scored < len(ids):
        end = min(scored - 1 + size, len(ids))
        (logprobs,) = token_logprobs(llm, [ids[max(0, end - size) : end]])
        total += sum(logprobs[-(end - scored) :])
        scored = end
    return total


def generate_until(llm: LLM, pairs: Sequence[tuple[str, dict[str, Any]]]) -> list[str]:
    """Continue each context under lm_eval's options: `until`, `max_gen_toks`, `do_sample`, `temperature`."""
    prompts, params = [], []
    for context, options in pairs:
        stop = options.get("until") or []
        tokens = min(int(options.get("max_gen_toks", 256)), llm.max_model_len // 2)
        prompts.append({"prompt_token_ids": llm.encode(context)[-(llm.max_model_len - tokens) :]})
        temperature = float(options.get("temperature", 1.0)) if options.get("do_sample") else 0.0
        stop = [stop] if isinstance(stop, str) else list(stop)
        params.append(SamplingParams(max_tokens=tokens, temperature=temperature, stop=stop, seed=0))
    return [result.outputs[0].text for result in llm.generate(prompts, params)]
