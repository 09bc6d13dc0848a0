"""Steps that fail: the request at fault ends alone, the others go on, and an engine that is broken says so."""

from collections import deque
from itertools import count

import torch

from headstart.engine.engine import Engine
from headstart.engine.outputs import RequestOutput
from headstart.engine.params import SamplingParams
from headstart.engine.request import Request

Failures = list[tuple[str, Exception]]
# A canary writes one token; a scheduler that has not run it after so many steps is broken.
_CANARY_STEPS = 16


class StepGuard:
    """Runs an engine's steps.

    When one raises, the sequences in it give back their pages and wait. If the engine can still write a token for a
    request of its own (the canary), each request of that step then runs alone until it has written one: those that
    raise again are at fault and are ended, the others go on as if they had been preempted.

    Args:
        engine: whose steps.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        engine.failures = []
        self._suspects: deque[Request] = deque()
        self._written = -1
        self._numbers = count()

    def step(self) -> tuple[list[RequestOutput], Failures]:
        """Run a step: the outputs it produced, and the requests that it ended with what they raised.

        Raises:
            Exception: what the step raised, when the engine cannot even write a token for the canary.
        """
        while self._suspects and self._suspects[0].finished:
            self._next_suspect()
        if self._suspects:
            return self._examine(self._suspects[0])
        try:
            return self.engine.step(), self._own_failures()
        except Exception as error:
            if self.engine.group.ranks.size > 1:
                raise  # Ranks that stand in the middle of a step cannot be set back together.
            if isinstance(error, torch.OutOfMemoryError):
                # What it holds in pieces too small for this step may do for the next, which has one request only.
                torch.cuda.empty_cache()
            running = list(dict.fromkeys(sequence.request for sequence in self.engine.planner.running))
            self._recover(error)
            self._suspects = deque(running)
            return [], self._own_failures()

    def _own_failures(self) -> Failures:
        """Requests that the engine itself found at fault while it took their tokens."""
        found, self.engine.failures = self.engine.failures or [], []
        for request_id, _ in found:
            self.engine.abort(request_id)
        return found

    def _examine(self, suspect: Request) -> tuple[list[RequestOutput], Failures]:
        """A step for one request alone."""
        planner = self.engine.planner
        line = list(planner.waiting)
        others = [sequence for sequence in line if sequence.request is not suspect]
        planner.waiting = planner.waiting.fresh(sequence for sequence in line if sequence.request is suspect)
        if self._written < 0:
            self._written = _written(suspect)
        ahead, self.engine.runs_ahead = self.engine.runs_ahead, False
        try:
            outputs, failures = self.engine.step(), self._own_failures()
            if suspect.finished or _written(suspect) > self._written:
                self.engine.set_back()
                self._next_suspect()
            return outputs, failures
        except Exception as error:
            self.engine.set_back()
            self.engine.abort(suspect.request_id)
            self._next_suspect()
            self._check(error)
            return [], [(suspect.request_id, error), *self._own_failures()]
        finally:
            planner.waiting.extend(others)
            self.engine.runs_ahead = ahead

    def _next_suspect(self) -> None:
        self._suspects.popleft()
        self._written = -1

    def _recover(self, error: Exception) -> None:
        try:
            self.engine.set_back()
        except Exception:
            raise error from None
        self._check(error)

    def _check(self, error: Exception) -> None:
        """Raise `error` unless the engine can write a token for a request of its own."""
        engine, planner = self.engine, self.engine.planner
        waiting, planner.waiting = planner.waiting, planner.waiting.fresh()
        ahead, engine.runs_ahead = engine.runs_ahead, False
        request_id = f"canary-{next(self._numbers)}"
        params = SamplingParams(max_tokens=1, temperature=0, ignore_eos=True, detokenize=False, output_kind="final")
        try:
            request = engine.prepare(request_id, [0], params)
            engine.submit(request)
            for _ in range(_CANARY_STEPS):
                if request.finished:
                    return
                engine.step()
        except Exception:
            raise error from None
        finally:
            engine.abort(request_id)
            planner.waiting.extend(waiting)
            engine.runs_ahead = ahead
        raise error


def _written(request: Request) -> int:
    return sum(sequence.num_output for sequence in request.sequences)
