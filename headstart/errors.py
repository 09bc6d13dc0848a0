"""What goes wrong because of the input, said in one sentence."""

from collections.abc import Iterable
from difflib import get_close_matches


class HeadstartError(Exception):
    """Bad input of any kind. The message is one sentence: what is wrong, where, what to do."""


class CheckpointError(HeadstartError):
    """A checkpoint directory that cannot be read: missing, truncated, inconsistent or unsupported."""


class MethodError(HeadstartError):
    """A `--use` that cannot be honoured: unknown key or option, a conflict, an unmet need."""


class InvalidRequestError(HeadstartError, ValueError):
    """A request that cannot be served as asked.

    Args:
        message: the sentence for the user.
        param: the request field at fault, as the OpenAI error body names it.
    """

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the nearest known word, or an empty string when none is near."""
    near = get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""
