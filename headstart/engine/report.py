"""What a request has to say for itself: its state as a `RequestOutput`."""

from headstart.engine.outputs import CompletionOutput, RequestOutput
from headstart.engine.request import Request, Sequence


def render(request: Request) -> RequestOutput:
    """The request's outputs so far, or only what is new since the last call when it streams deltas."""
    params, done = request.params, request.finished
    chosen = request.sequences
    if params.generated > params.n:
        chosen = sorted(chosen, key=_likelihood, reverse=True)[: params.n]
    delta = params.output_kind == "delta" and params.generated == params.n
    outputs = []
    complete = all(sequence.finish_reason == "stop" for sequence in request.sequences)
    for index, sequence in enumerate(chosen):
        output = _delta(request, sequence) if delta else _cumulative(sequence)
        if output is not None:
            output.index = index
            outputs.append(output)
    return RequestOutput(
        request_id=request.request_id,
        prompt=request.prompt,
        prompt_token_ids=request.prompt_ids,
        outputs=outputs,
        finished=done,
        metrics=request.metrics,
        prompt_logprobs=request.prompt_logprobs,
        num_cached_tokens=request.num_cached,
        exact=request.stack is None or request.stack.exact,
        embedding=None if request.pooler is None or not complete else request.pooler.vector(),
    )


def _likelihood(sequence: Sequence) -> float:
    """Mean log-probability per token, by which `best_of` chooses."""
    return sequence.cumulative_logprob / max(1, sequence.num_output)


def _cumulative(sequence: Sequence) -> CompletionOutput:
    text = ""
    if sequence.detokenizer is not None:
        text = sequence.detokenizer.text[: sequence.detokenizer.ready(sequence.finished)]
    wants = sequence.params.logprobs is not None
    return CompletionOutput(
        index=sequence.index,
        text=text,
        token_ids=sequence.output_ids,
        cumulative_logprob=sequence.cumulative_logprob if wants else None,
        logprobs=list(sequence.logprobs) if wants else None,
        finish_reason=sequence.finish_reason,
        stop_reason=sequence.stop_reason,
    )


def _delta(request: Request, sequence: Sequence) -> CompletionOutput | None:
    """What is new in one output; None when nothing is."""
    tokens, characters = request.num_sent.get(sequence.index, (0, 0))
    whole = sequence.detokenizer
    ready = 0 if whole is None else whole.ready(sequence.finished)
    if sequence.index in request.closed or (tokens == sequence.num_output and not sequence.finished):
        return None
    if sequence.finished:
        request.closed.add(sequence.index)
    request.num_sent[sequence.index] = (sequence.num_output, max(ready, characters))
    wants = sequence.params.logprobs is not None
    return CompletionOutput(
        index=sequence.index,
        text="" if whole is None else whole.text[characters:ready],
        token_ids=sequence.tokens[sequence.num_prompt + tokens :],
        cumulative_logprob=sequence.cumulative_logprob if wants else None,
        logprobs=sequence.logprobs[tokens:] if wants else None,
        finish_reason=sequence.finish_reason,
        stop_reason=sequence.stop_reason,
    )
