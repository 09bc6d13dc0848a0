"""Text from tokens as they come: never half a character, never part of a stop string."""

from headstart.checkpoints.tokenizer import Tokenizer

# Enough of the prompt's end for tokenizers whose first token reads differently from the next ones.
_CONTEXT = 6
_HALF = "\ufffd"
# Held back for longer than this, bytes are no half character but none at all.
_LONGEST_CHARACTER = 8


class Detokenizer:
    """Turns one sequence's output ids into text, piece by piece.

    Bytes that do not yet form a character are held back until they do, or until the end. Once a stop string stands
    in the text, `stopped_by` names it and the text ends before it.

    Args:
        tokenizer: of the model.
        prompt_ids: what comes before the output; its end decides how the first piece reads (a leading space).
        stop: strings that end the output.
        keep_stop: leave the stop string in the text.
        min_tokens: stop strings are not looked for within this many output tokens.
        skip_special_tokens: leave special tokens out.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt_ids: list[int],
        stop: list[str],
        keep_stop: bool = False,
        min_tokens: int = 0,
        skip_special_tokens: bool = True,
    ) -> None:
        self.tokenizer = tokenizer
        self.stop = stop
        self.keep_stop = keep_stop
        self.min_tokens = min_tokens
        self.skip_special_tokens = skip_special_tokens
        self.text = ""
        self.stopped_by: str | None = None
        self._ids = list(prompt_ids[-_CONTEXT:])
        self._read = len(self._ids)  # ids whose text has been taken
        self._context = 0  # ids before this one no longer influence what comes
        self._num_output = 0
        self._searchable = 0  # text before this was produced by the first min_tokens tokens
        self._held = max((len(s) for s in stop), default=1) - 1

    def add(self, token_id: int) -> None:
        """Take one more output id. After a stop string was found, nothing more is taken."""
        if self.stopped_by is not None:
            return
        self._ids.append(token_id)
        self._num_output += 1
        before = self._decode(self._ids[self._context : self._read])
        now = self._decode(self._ids[self._context :])
        if now == before:
            self._ids.pop()  # a token without text, such as a special one, changes nothing that comes
        elif not now.endswith(_HALF) or len(self._ids) - self._read > _LONGEST_CHARACTER:
            self._take(now[len(before) :])
            self._context, self._read = self._read, len(self._ids)

    def finish(self) -> None:
        """No more ids will come: let go of what was held back, half characters included."""
        if self.stopped_by is not None:
            return
        before = self._decode(self._ids[self._context : self._read])
        self._take(self._decode(self._ids[self._context :])[len(before) :])
        self._read = len(self._ids)

    def ready(self, finished: bool) -> int:
        """How many characters may be streamed: all but an end that could yet become a stop string."""
        if finished or self.stopped_by is not None or not self._held:
            return len(self.text)
        return max(0, len(self.text) - self._held)

    def _decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=self.skip_special_tokens) if ids else ""

    def _take(self, piece: str) -> None:
        start = max(self._searchable, len(self.text) - self._held)
        self.text += piece
        if self._num_output <= self.min_tokens:
            self._searchable = len(self.text)
            return
        found = [(self.text.find(s, start), s) for s in self.stop if self.text.find(s, start) >= 0]
        if found:
            at, self.stopped_by = min(found)
            self.text = self.text[: at + len(self.stopped_by) if self.keep_stop else at]
