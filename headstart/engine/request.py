"""A request and its sequences: tokens known, tokens computed, and how it ends."""

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from headstart.engine.outputs import Logprob, RequestMetrics
from headstart.engine.params import SamplingParams
from headstart.engine.pooling import Pooler
from headstart.engine.seams import PageLease

if TYPE_CHECKING:
    from headstart.engine.detokenizer import Detokenizer
    from headstart.engine.stack import Stack


@dataclass(eq=False)
class Sequence:
    """One output of a request. There is no prefill or decode phase: each step lets `num_computed` catch up with
    `len(tokens)`.

    Attributes:
        request: the request it belongs to.
        index: its number among the request's outputs.
        tokens: prompt and output ids known so far.
        num_prompt: how many of them are the prompt.
        num_ahead: drawn tokens that are still on the device only: they are computed on, but not yet in `tokens`.
        draw_row: the row of the newest of those among the tokens drawn in its step.
        num_computed: how many have been through the model.
        num_dropped: how many of those have no keys in the cache any more (`Retention`).
        num_drafts: drafts made for it so far.
        lease: its pages while it runs.
        seed: with the output position, determines every random draw.
    """

    request: "Request"
    index: int
    tokens: list[int]
    num_prompt: int
    seed: int
    detokenizer: "Detokenizer | None" = None
    matcher: Any = None
    num_ahead: int = 0
    draw_row: int = 0
    num_computed: int = 0
    num_dropped: int = 0
    num_drafts: int = 0
    lease: PageLease | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    cumulative_logprob: float = 0.0
    logprobs: list[dict[int, Logprob]] = field(default_factory=list)

    @property
    def params(self) -> SamplingParams:
        """The request's sampling parameters."""
        return self.request.params

    @property
    def stack(self) -> "Stack":
        """The methods that run it."""
        assert self.request.stack is not None, "this request was not prepared by an engine"
        return self.request.stack

    @property
    def needs_whole_prompt(self) -> bool:
        """Whether a method needs its prompt in one piece."""
        return self.request.stack is not None and self.request.stack.whole_prompts

    @property
    def output_ids(self) -> list[int]:
        """The generated ids so far."""
        return self.tokens[self.num_prompt :]

    @property
    def num_output(self) -> int:
        """How many ids were generated so far."""
        return len(self.tokens) - self.num_prompt

    @property
    def num_uncomputed(self) -> int:
        """Tokens whose keys are not in the cache yet: 1 while decoding."""
        return len(self.tokens) + self.num_ahead - self.num_computed

    @property
    def kv_length(self) -> int:
        """Keys in the cache."""
        return self.num_computed - self.num_dropped

    @property
    def pages(self) -> list[int]:
        """The page table."""
        return self.lease.pages if self.lease is not None else []

    @property
    def decoding(self) -> bool:
        """Whether only its newest token is uncomputed, with a prompt already read."""
        return self.num_uncomputed == 1 and self.num_computed >= self.num_prompt

    @property
    def next_position(self) -> int:
        """The output position that is drawn next."""
        return self.num_output + self.num_ahead

    @property
    def spent(self) -> bool:
        """Whether it has drawn as many tokens as it may, though some may still be on the device."""
        return self.next_position >= self.request.max_tokens

    @property
    def draws_blindly(self) -> bool:
        """Whether its next draw needs to know no more of the tokens before it than how many they are."""
        params = self.params
        return (
            self.matcher is None
            and self.request.pooler is None
            and self.logprob_count is None
            and not self.wants_prompt_rows
            and not params.has_penalties
            and not params.logit_bias
            and self.next_position >= params.min_tokens
        )

    @property
    def finished(self) -> bool:
        """Whether it has ended, for whatever reason."""
        return self.finish_reason is not None

    @property
    def logprob_count(self) -> int | None:
        """How many alternatives to note beside each token; None for no log-probabilities at all."""
        # `best_of` chooses by log-probability.
        choosing = self.params.generated > self.params.n
        return 0 if self.params.logprobs is None and choosing else self.params.logprobs

    @property
    def wants_prompt_logprobs(self) -> bool:
        """Whether logits of prompt rows are wanted from this sequence."""
        return self.index == 0 and self.params.prompt_logprobs is not None and not self.request.prompt_done

    @property
    def wants_prompt_rows(self) -> bool:
        """Whether hidden states of all prompt rows are wanted from this sequence, for whatever purpose."""
        pooler = self.request.pooler
        return self.wants_prompt_logprobs or (pooler is not None and pooler.wants_all)


@dataclass(eq=False)
class Request:
    """What was asked. `sequences` has one entry per generated output.

    Attributes:
        namespace: under which its keys are shared; None shares nothing.
        own_namespace: whether the namespace ends with the request.
        tenant: the digest of whose it is.
        chunks: (start, end) of the parts of the prompt that are likely to come again in others, ascending.
        chunk_namespace: under which the keys of such parts are shared.
        pooler: makes the prompt's embedding; None generates.
        use: the methods of its own, as it names them; None has none.
        stack: the methods that run it.
        num_sent: per output, the tokens and characters already handed out to a stream of deltas.
        closed: the outputs whose end such a stream has been told.
    """

    request_id: str
    prompt: str | None
    prompt_ids: list[int]
    params: SamplingParams
    max_tokens: int
    namespace: str | None
    own_namespace: bool
    metrics: RequestMetrics
    tenant: str = ""
    chunks: tuple[tuple[int, int], ...] = ()
    chunk_namespace: str | None = None
    sequences: list[Sequence] = field(default_factory=list)
    prompt_logprobs: list[dict[int, Logprob] | None] | None = None
    prompt_done: bool = False
    pooler: Pooler | None = None
    use: Seq[Any] | str | None = None
    stack: "Stack | None" = None
    num_cached: int = 0
    num_sent: dict[int, tuple[int, int]] = field(default_factory=dict)
    closed: set[int] = field(default_factory=set)

    def bare(self) -> "Request":
        """A copy without what cannot travel between processes; `Preparation.completed` adds it again."""
        return replace(self, sequences=[], pooler=None, stack=None)

    @property
    def finished(self) -> bool:
        """Whether every output has ended."""
        return all(sequence.finished for sequence in self.sequences)
