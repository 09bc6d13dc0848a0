"""From what was asked to a request that the engine can run: read, checked, its grammars compiled."""

import time
from collections.abc import Sequence as Seq
from typing import Any

from headstart.checkpoints.reader import Checkpoint
from headstart.engine.args import EngineArgs
from headstart.engine.detokenizer import Detokenizer
from headstart.engine.grammar import GrammarCompiler
from headstart.engine.intake import Prompt, Span, read_prompt
from headstart.engine.outputs import RequestMetrics
from headstart.engine.params import SamplingParams
from headstart.engine.pooling import Pooler
from headstart.engine.request import Request, Sequence
from headstart.engine.seams import PromptRule, Tokenization
from headstart.engine.stack import Stack
from headstart.engine.stacks import Stacks
from headstart.engine.watch import namespace_of, tenant_digest
from headstart.errors import InvalidRequestError


class Preparation:
    """Makes requests of prompts and parameters. Touches no state of the engine's: safe to call from any thread.

    Args:
        args: the engine's settings.
        stacks: the methods in force, and those of single requests.
        checkpoint: the model that is served.
        max_model_len: most tokens of prompt and output together.

    Attributes:
        grammars: compiles structured outputs; None without a tokenizer.
    """

    def __init__(self, args: EngineArgs, stacks: Stacks, checkpoint: Checkpoint, max_model_len: int) -> None:
        self._args, self._stacks, self._checkpoint = args, stacks, checkpoint
        self._max_model_len = max_model_len
        self._tokenizer = checkpoint.tokenizer
        self._vocab_size = checkpoint.config.vocab_size
        self._tokenization = stacks.base.get("tokenization", Tokenization)
        self.grammars: GrammarCompiler | None = None
        if self._tokenizer is not None:
            eos_ids = checkpoint.generation_config.eos_token_ids
            self.grammars = GrammarCompiler(self._tokenizer.inner, eos_ids, self._vocab_size)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """A text's token ids, as the engine reads prompts.

        Raises:
            InvalidRequestError: there is no tokenizer.
        """
        if self._tokenizer is None:
            raise InvalidRequestError("this model runs without a tokenizer: give token ids", "prompt")
        return self._tokenization.encode(text, self._tokenizer, add_special_tokens)

    def request(
        self,
        request_id: str,
        prompt: Prompt,
        params: SamplingParams,
        cache_salt: str | None = None,
        arrival_time: float | None = None,
        use: Seq[Any] | str | None = None,
    ) -> Request:
        """Turn a prompt into a request, as `Engine.prepare` says."""
        arrived = time.monotonic() if arrival_time is None else arrival_time
        text, ids, chunks = read_prompt(prompt, self._tokenizer, self._tokenization, self._vocab_size)
        stack = self._stacks.of(use)
        rule = stack.optional("prompt_rule", PromptRule)
        if rule is not None:
            ids, chunks = rule.rewrite(ids), None
        self._check(ids, params)
        namespace = self._namespace(stack, request_id, len(ids), params, cache_salt)
        room = self._max_model_len - len(ids)
        request = Request(
            request_id=request_id,
            prompt=text,
            prompt_ids=ids,
            params=params,
            max_tokens=room if params.max_tokens is None else min(params.max_tokens, room),
            namespace=namespace,
            own_namespace=namespace is not None and not self._args.enable_prefix_caching,
            tenant=tenant_digest(cache_salt),
            chunks=self._chunks(stack, ids, chunks, params),
            chunk_namespace=namespace_of(cache_salt, "chunk", stack.chunk_identity),
            metrics=RequestMetrics(arrival_time=arrived),
            use=use,
        )
        return self.completed(request)

    def completed(self, request: Request) -> Request:
        """A bare request with its stack, its sequences, and its pooler."""
        params = request.params
        request.stack = self._stacks.of(request.use)
        request.pooler = self._pooler(params)
        request.sequences = [self._sequence(request, index) for index in range(params.generated)]
        return request

    def _pooler(self, params: SamplingParams) -> Pooler | None:
        if params.pooling is None:
            return None
        has = self._checkpoint.config.hidden_size
        if params.dimensions is not None and params.dimensions > has:
            raise InvalidRequestError(
                f"this model's embeddings have {has} dimensions, not {params.dimensions}", "dimensions"
            )
        return Pooler(params.pooling, self._checkpoint.path, params.dimensions)

    def _namespace(
        self, stack: Stack, request_id: str, length: int, params: SamplingParams, cache_salt: str | None
    ) -> str | None:
        """Under which name the prompt's keys are shared; without a prefix cache, among its own outputs alone."""
        if not stack.shares_keys:
            return None
        if self._args.enable_prefix_caching:
            reuse_salt = self._checkpoint.decoder.reuse_salt(length)
            return namespace_of(cache_salt, stack.identity(length), reuse_salt)
        return f"request:{request_id}" if params.generated > 1 else None

    def _chunks(
        self, stack: Stack, ids: list[int], given: list[Span] | None, params: SamplingParams
    ) -> tuple[Span, ...]:
        """The chunks of a prompt: those given, else what the prefill method takes for such. Whoever wants to know
        something of every token has none, since the keys of a chunk do not tell it."""
        if params.prompt_logprobs is not None or params.pooling is not None:
            return ()
        found = stack.prefill.chunks(ids, self._tokenizer) if given is None else given
        return tuple(span for span in found if span[0] < span[1])

    def _check(self, ids: list[int], params: SamplingParams) -> None:
        """Refuse what can never be served, with its numbers."""
        if len(ids) >= self._max_model_len:
            raise InvalidRequestError(
                f"the prompt has {len(ids)} tokens, but this model serves at most {self._max_model_len} tokens of "
                "prompt and output together; shorten the prompt",
                "prompt",
            )
        if params.priority and not self._args.scheduling_policy.startswith("priority"):
            raise InvalidRequestError(
                "priority is only for engines with --scheduling-policy priority; this one serves in order of arrival",
                "priority",
            )
        for name, tokens in (("logit_bias", params.logit_bias), ("stop_token_ids", params.stop_token_ids)):
            beyond = [token for token in tokens or () if not 0 <= token < self._vocab_size]
            if beyond:
                raise InvalidRequestError(
                    f"{name} names token {beyond[0]}, but the vocabulary ends at {self._vocab_size - 1}", name
                )
        if self._tokenizer is None and (params.stop or params.structured_outputs):
            raise InvalidRequestError("stop strings and structured outputs need a tokenizer", "stop")

    def _sequence(self, request: Request, index: int) -> Sequence:
        params, ids = request.params, request.prompt_ids
        sequence = Sequence(request, index, list(ids), len(ids), seed=0)
        if self._tokenizer is not None and (params.detokenize or params.stop):
            sequence.detokenizer = Detokenizer(
                self._tokenizer,
                ids,
                list(params.stop or ()),
                params.include_stop_str_in_output,
                params.min_tokens,
                params.skip_special_tokens,
            )
        if params.structured_outputs is not None:
            assert self.grammars is not None
            sequence.matcher = self.grammars.compile(params.structured_outputs)
        return sequence
