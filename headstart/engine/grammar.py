"""Structured output: which tokens a grammar allows next, as bitmasks over the vocabulary."""

import json
import re
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from threading import Lock, Thread
from typing import Any

import llguidance
import tokenizers
import torch

from headstart.engine.params import StructuredOutputs
from headstart.errors import InvalidRequestError

CACHED_GRAMMARS = 64
# A schema of a few thousand properties takes about a second; the library's own limits end what takes much longer.
COMPILE_SECONDS = 10.0
# Every optional property is a way to go on. The library allows 2,000 at once, which 500 properties reach; its limit
# for a whole step of the parser, which bounds the time, is as much as this.
LIMITS = llguidance.LLParserLimits(max_items_in_row=50_000, verbose_errors=False)
# llguidance 1.9 recurses without end on constants from -2**63 to -2**63 + 8, and takes the process with it.
_FATAL = re.compile(r"-92233720368547758\d\d(?!\d)")
# How the library reports that no text leads from here to the end of the grammar.
_DEAD_END = "NoExtensionBias"
# JSON allows white space without end between its parts, and a small model can then write nothing else until
# its tokens run out. One space, or one line break with its indentation, keeps every usual layout possible.
JSON_OPTIONS: Any = {"whitespace_pattern": r"( |\n {0,32})?"}


class Matcher:
    """Follows one output through its grammar: `fill` before each token, `accept` after it.

    Once the grammar is complete, `finished` is true and `fill` allows the end-of-sequence tokens alone: the output
    must end, even if its request ignores the end of sequence. Where the grammar cannot be followed any further (a
    token was not accepted, the parser reached its limits, or nothing can complete it), `fill` allows no more than
    that either, and `check` raises.

    Args:
        matcher: at the start of the grammar.
        grammar_vocab: number of ids the matcher knows.
        vocab_size: V, the number of logits.
        invalid: makes the error of a report on the grammar.
    """

    def __init__(
        self,
        matcher: llguidance.LLMatcher,
        grammar_vocab: int,
        vocab_size: int,
        invalid: Callable[[str], InvalidRequestError],
    ) -> None:
        self._matcher, self._invalid = matcher, invalid
        # The tokenizer may know more ids than the model has logits; the parser needs room for all of them.
        self._mask = torch.zeros(_words(grammar_vocab), dtype=torch.int32)
        self.vocab_size = vocab_size

    def fill(self, mask_row: torch.Tensor) -> None:
        """Write what is allowed next to `mask_row` `[ceil(V/32)]`, int32 on the CPU.

        Token i is bit i % 32 of word i // 32.
        """
        self._matcher.unsafe_compute_mask_ptr(self._mask.data_ptr(), self._mask.numel() * 4)
        mask_row.copy_(self._mask[: mask_row.numel()])

    def accept(self, token_id: int) -> bool:
        """Move past `token_id`; False if the grammar does not allow it there."""
        return self._matcher.consume_token(token_id)

    def check(self) -> None:
        """Refuse to go on where the grammar cannot be followed any further.

        Raises:
            InvalidRequestError: says why.
        """
        if self._matcher.is_error():
            raise self._invalid(self._matcher.get_error())
        if self._matcher.is_stopped() and not self._matcher.is_accepting():
            raise self._invalid(_DEAD_END)

    @property
    def finished(self) -> bool:
        """Whether the grammar is complete, and nothing but the end of the sequence may follow."""
        return self._matcher.is_stopped() and self._matcher.is_accepting()


class GrammarCompiler:
    """Turns the `structured_outputs` of requests into matchers over one tokenizer. Safe to use from threads.

    Args:
        tokenizer: the model's tokenizer, whose tokens' bytes the grammars are matched against.
        eos_token_id: the id or ids that end an output; allowed where the grammar may end.
        vocab_size: V, the number of logits; ids above the tokenizer's own are never allowed.
        compile_seconds: a grammar that takes longer to compile is refused.
    """

    def __init__(
        self,
        tokenizer: tokenizers.Tokenizer,
        eos_token_id: int | Sequence[int] | None,
        vocab_size: int,
        compile_seconds: float = COMPILE_SECONDS,
    ) -> None:
        self._compile_seconds = compile_seconds
        self._tokenizer = tokenizer
        self._eos = [eos_token_id] if isinstance(eos_token_id, int) else list(eos_token_id or []) or None
        self._grammar_vocab = max(vocab_size, tokenizer.get_vocab_size(with_added_tokens=True))
        self._vocab_size = vocab_size
        self._trie: llguidance.LLTokenizer | None = None
        self._compiled: OrderedDict[str, llguidance.LLMatcher] = OrderedDict()
        self._lock = Lock()

    def compile(self, outputs: StructuredOutputs) -> Matcher:
        """A matcher at the start of the grammar; compiled grammars are kept for the next request.

        Raises:
            InvalidRequestError: the schema, expression or grammar is malformed, unsatisfiable, unsupported, or takes
                too long to compile.
        """
        grammar, kind = _grammar_of(outputs)
        invalid = partial(_invalid, kind, outputs.param)
        if _FATAL.search(grammar):
            raise invalid("it has a number too close to the least 64-bit integer")
        with self._lock:
            prototype = self._compiled.get(grammar)
            trie = self._tokenizer_trie()
        if prototype is None:
            prototype = self._compiled_in_time(grammar, invalid, trie)
        with self._lock:
            self._compiled[grammar] = prototype
            self._compiled.move_to_end(grammar)
            if len(self._compiled) > CACHED_GRAMMARS:
                self._compiled.popitem(last=False)
        return Matcher(prototype.deep_copy(), self._grammar_vocab, self._vocab_size, invalid)

    def _compiled_in_time(
        self, grammar: str, invalid: Callable[[str], InvalidRequestError], trie: llguidance.LLTokenizer
    ) -> llguidance.LLMatcher:
        """A grammar's matcher, unless it takes too long: its thread then runs on to the library's limits alone."""
        made: Future[llguidance.LLMatcher] = Future()

        def work() -> None:
            try:
                matcher = llguidance.LLMatcher(trie, grammar, log_level=0, limits=LIMITS)
                # A grammar that nothing satisfies is found out by its first mask.
                matcher.compute_bitmask()
                made.set_result(matcher)
            except BaseException as error:
                made.set_exception(error)

        Thread(target=work, name="headstart-grammar", daemon=True).start()
        try:
            matcher = made.result(self._compile_seconds)
        except TimeoutError:
            raise invalid(f"it takes more than {self._compile_seconds:g} seconds to compile") from None
        if matcher.is_error():
            raise invalid(matcher.get_error())
        return matcher

    def _tokenizer_trie(self) -> llguidance.LLTokenizer:
        # Built on first use: it takes a second for a vocabulary of 100 thousand, and most runs never need it.
        if self._trie is None:
            self._trie = llguidance.LLTokenizer(
                self._tokenizer.to_str(), n_vocab=self._grammar_vocab, eos_token=self._eos
            )
        return self._trie


def allowed_bitmask(matchers: Sequence[Matcher]) -> torch.Tensor:
    """The tokens each of N matchers allows next, as int32 `[N, ceil(V/32)]` on the CPU."""
    masks = torch.zeros(len(matchers), _words(matchers[0].vocab_size) if matchers else 0, dtype=torch.int32)
    for row, matcher in zip(masks, matchers, strict=True):
        matcher.fill(row)
    return masks


def apply_bitmask_(logits: torch.Tensor, rows: torch.Tensor | Sequence[int], bitmasks: torch.Tensor) -> None:
    """Set to minus infinity, in place, what is not allowed.

    Args:
        logits: `[N, V]`, on any device.
        rows: `[R]` row indices into `logits`, each at most once.
        bitmasks: int32 `[R, ceil(V/32)]`, one per row, as `allowed_bitmask` returns them.
    """
    device = logits.device
    rows = torch.as_tensor(rows, dtype=torch.long).to(device)
    bits = torch.arange(32, dtype=torch.int32, device=device)
    allowed = ((bitmasks.to(device).unsqueeze(-1) >> bits) & 1).bool().flatten(1)[:, : logits.shape[1]]
    logits[rows] = logits[rows].masked_fill(~allowed, float("-inf"))


def _words(vocab_size: int) -> int:
    return (vocab_size + 31) // 32


def _grammar_of(outputs: StructuredOutputs) -> tuple[str, str]:
    """The grammar in llguidance's form, and what to call it to the user."""
    if outputs.regex is not None:
        return llguidance.LLMatcher.grammar_from_regex(outputs.regex), "regular expression"
    if outputs.grammar is not None:
        return llguidance.LLMatcher.grammar_from_lark(outputs.grammar), "grammar"
    schema = {"type": "object"} if outputs.json_object else outputs.json
    text = schema if isinstance(schema, str) else json.dumps(schema)
    try:
        return llguidance.LLMatcher.grammar_from_json_schema(text, defaults=JSON_OPTIONS), "JSON schema"
    except ValueError as error:
        raise _invalid("JSON schema", outputs.param, str(error)) from None


def _invalid(kind: str, param: str, report: str) -> InvalidRequestError:
    """One sentence on what the request calls `param`, from a report that may span lines and draw carets."""
    lines = [line.strip() for line in report.splitlines() if line.strip()] or ["it is not understood"]
    # Rust's regex parser gives its reason on a line of its own, below the expression it quotes.
    reason = next((line.removeprefix("error: ") for line in lines if line.startswith("error: ")), lines[0])
    if reason.startswith(_DEAD_END):
        reason = "nothing can complete it"
    return InvalidRequestError(f"the {kind} in {param} cannot be used: {reason[:200]}", param)
