"""What a drawn token does to its request: text, grammar, log-probabilities, and the end of outputs and requests."""

import time
from collections import Counter
from collections.abc import Collection

from headstart.engine.outputs import RequestOutput
from headstart.engine.planner import StepPlanner
from headstart.engine.report import render
from headstart.engine.request import Request, Sequence
from headstart.engine.sampler import Sampled, Sampler
from headstart.engine.seams import KVStore
from headstart.engine.speculation import Speculation
from headstart.engine.watch import Watch


class Answers:
    """Brings requests on by the tokens that were drawn for them, and ends them.

    Args:
        requests: those that are unfinished, by id; who ends leaves it.
        planner: plans steps; it gives up the pages of what ends.
        sampler, speculation: forget what ends.
        store: drops the pages of a request's own namespace.
        watch: knows the chunks in which a prompt was read.
        eos_ids: tokens that end an output.

    Attributes:
        num_tokens: drawn so far.
        finished: outputs that ended, by reason.
    """

    def __init__(
        self,
        requests: dict[str, Request],
        planner: StepPlanner,
        sampler: Sampler,
        speculation: Speculation | None,
        store: KVStore,
        watch: Watch,
        eos_ids: Collection[int],
    ) -> None:
        self._requests = requests
        self._planner = planner
        self._sampler = sampler
        self._speculation = speculation
        self._store = store
        self._watch = watch
        self._eos_ids = eos_ids
        self.num_tokens = 0
        self.finished: Counter[str] = Counter()

    def append(self, sequence: Sequence, drawn: Sampled) -> None:
        """Take a drawn token: text, grammar, log-probabilities, and whether the output ends with it."""
        request = sequence.request
        now = time.monotonic()
        if not request.prompt_done:
            request.prompt_done = True
            self._planner.waiting.extendleft(reversed(request.sequences[1:]))
        request.metrics.first_token_time = request.metrics.first_token_time or now
        request.metrics.last_token_time = now
        self.num_tokens += 1
        sequence.tokens.append(drawn.token_id)
        if drawn.logprobs is not None:
            sequence.logprobs.append(drawn.logprobs)
            sequence.cumulative_logprob += drawn.logprobs[drawn.token_id].logprob
        self._end_if_due(sequence, drawn.token_id)

    def finish(self, sequence: Sequence, reason: str, stop_reason: str | int | None = None) -> None:
        """End one output and free its pages."""
        sequence.finish_reason, sequence.stop_reason = reason, stop_reason
        if sequence.detokenizer is not None:
            sequence.detokenizer.finish()
            if reason != "abort" and sequence.detokenizer.stopped_by and sequence.stop_reason is None:
                sequence.finish_reason, sequence.stop_reason = "stop", sequence.detokenizer.stopped_by
        self._planner.release(sequence)
        self._sampler.forget(sequence)
        if self._speculation is not None:
            self._speculation.forget(sequence)
        self.finished[sequence.finish_reason] += 1

    def report(self, request: Request) -> RequestOutput | None:
        """What the request wants said now; a finished one leaves the engine."""
        if request.finished:
            self.retire(request)
        quiet = request.params.output_kind == "final" or request.params.generated > request.params.n
        return None if quiet and not request.finished else render(request)

    def retire(self, request: Request) -> None:
        """Let go of a request whose outputs have all ended."""
        request.metrics.finished_time = time.monotonic()
        request.metrics.chunks = self._watch.chunks(request.request_id)
        del self._requests[request.request_id]
        if request.stack is not None:
            request.stack.holders -= 1
        if request.own_namespace and request.namespace is not None:
            self._store.drop(request.namespace)

    def _end_if_due(self, sequence: Sequence, token: int) -> None:
        params = sequence.params
        early = sequence.num_output <= params.min_tokens
        closed = False
        if sequence.matcher is not None:
            # Found out by the mask that this token was drawn with, in which the end may stand for want of another.
            sequence.matcher.check()
        if token in self._eos_ids and not early and not params.ignore_eos:
            return self.finish(sequence, "stop")
        if token in (params.stop_token_ids or ()) and not early:
            if params.include_stop_str_in_output and sequence.detokenizer is not None:
                sequence.detokenizer.add(token)
            return self.finish(sequence, "stop", token)
        if sequence.matcher is not None:
            sequence.matcher.accept(token)
            sequence.matcher.check()
            closed = sequence.matcher.finished
        if sequence.detokenizer is not None:
            sequence.detokenizer.add(token)
            if sequence.detokenizer.stopped_by is not None:
                return self.finish(sequence, "stop", sequence.detokenizer.stopped_by)
        if closed:
            # The grammar is complete: nothing may follow but the end, whatever min_tokens or ignore_eos say.
            return self.finish(sequence, "stop")
        if sequence.num_output >= sequence.request.max_tokens:
            return self.finish(sequence, "length")
        return None
