"""Streamed requests: show the text as it comes, keep the whole for the report."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headstart.engine.outputs import RequestOutput


def follow(deltas: Iterable["RequestOutput"], show: Callable[[str], None]) -> "RequestOutput | None":
    """Hand every piece of text of a request's only output to `show`; return the request made whole.



    Args:
        deltas: what `LLM.stream` yields with `output_kind="delta"`.
        show: called with each piece of text that is not empty.

    Returns:
        the last delta with text, token ids and logprobs of all; None if there was none.
    """
    last = None
    text: list[str] = []
    token_ids: list[int] = []
    logprobs: list[dict] = []
    for last in deltas:
        for output in last.outputs:
            text.append(output.text)
            token_ids += output.token_ids
            logprobs += output.logprobs or []
            if output.text:
                show(output.text)
    if last is None:
        return None
    whole = [replace(o, text="".join(text), token_ids=token_ids, logprobs=logprobs or None) for o in last.outputs]
    return replace(last, outputs=whole)
