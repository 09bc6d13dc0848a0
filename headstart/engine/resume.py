"""Going on with a request that another engine has begun: its tokens are known, their keys are computed or found."""

from collections.abc import Sequence
from itertools import repeat

from headstart.engine.client import Written
from headstart.engine.engine import Engine
from headstart.engine.request import Request
from headstart.errors import InvalidRequestError


def resume(engine: Engine, request: Request, written: Sequence[Written]) -> None:
    """Give a request that has just been submitted the outputs that it has already, as if it had been preempted here.

    Draws depend on seed and position alone, so that with the same seed it goes on as it would have gone on there.

    Raises:
        InvalidRequestError: more outputs than the request has, or one that has already ended.
    """
    if len(written) > len(request.sequences):
        engine.abort(request.request_id)
        raise InvalidRequestError(f"{len(written)} outputs are written of a request of {len(request.sequences)}")
    for sequence, part in zip(request.sequences, written, strict=False):
        for token, logprobs in zip(part.token_ids, part.logprobs or repeat(None), strict=False):
            engine.take_over(sequence, token, logprobs)
        request.num_sent[sequence.index] = (part.sent, part.characters)
    if request.finished:
        engine.abort(request.request_id)
        raise InvalidRequestError("the request has ended where it was written: there is nothing to go on with")
