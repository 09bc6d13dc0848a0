"""What the endpoints share: the engine, prompts made into tokens, and requests run and measured."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from headstart.checkpoints.token_texts import TokenTexts
from headstart.engine.client import EngineClient, EngineDeadError
from headstart.engine.intake import encode_parts
from headstart.engine.outputs import RequestOutput
from headstart.engine.params import SamplingParams
from headstart.errors import HeadstartError, InvalidRequestError
from headstart.server.errors import ApiError, unavailable
from headstart.server.lifecycle import Lifecycle
from headstart.server.messages import Message, Tool
from headstart.server.metrics import Metrics
from headstart.server.own_methods import OwnMethods
from headstart.server.places import Alarm, Places
from headstart.server.streams import together
from headstart.server.tenants import Limits, current_tenant
from headstart.server.tracing import Tracing

# Shorter texts are tokenized at once: handing them to a thread would take longer.
LONG_TEXT = 4096
# What a request says elsewhere, or must not bring along: a template is a program.
RESERVED_TEMPLATE_ARGUMENTS = frozenset({"add_generation_prompt", "chat_template", "messages", "tools"})

T = TypeVar("T")


@dataclass
class Job:
    """One prompt to run: its token ids, its text where there is one, how to sample, the request's field it is, and
    where chunks that recur begin and end in it; None where the request does not say."""

    token_ids: list[int]
    text: str | None
    params: SamplingParams
    field: str = "prompt"
    chunks: list[tuple[int, int]] | None = None

    @property
    def prompt(self) -> dict[str, Any]:
        """As the engine takes it."""
        given = {} if self.chunks is None else {"chunks": self.chunks}
        return {"prompt_token_ids": self.token_ids} | given


class Service:
    """One engine under one served name.

    Args:
        engine: runs the requests.
        model_name: the name that requests must give, if they give one.
        max_queued_requests: at most so many outputs wait for the engine; None is no limit.
        methods: those that requests may bring for themselves (default: none).

    Attributes:
        open_outputs: those taken that have not ended.
    """

    def __init__(
        self,
        engine: EngineClient,
        model_name: str,
        max_queued_requests: int | None = None,
        methods: OwnMethods | None = None,
    ) -> None:
        self.methods = methods or OwnMethods()
        self.engine, self.model_name, self.max_queued_requests = engine, model_name, max_queued_requests
        self.open_outputs = 0
        self.tokenizer = engine.tokenizer
        self.lifecycle = Lifecycle()
        self.metrics = Metrics(engine, model_name)
        self.tracing: Tracing | None = None
        self.texts = TokenTexts(self.tokenizer)
        self.created = int(time.time())
        vocabulary = self.tokenizer.inner.get_vocab(with_added_tokens=True)
        self._longest_token = max(map(len, vocabulary))

    def check_model(self, name: str | None) -> None:
        """Refuse a request for another model with 404."""
        if name is not None and name != self.model_name:
            message = f"the model {name!r} is not served here; this server has {self.model_name!r}"
            raise ApiError(404, message, kind="not_found_error", param="model", code="model_not_found")

    def check_alive(self) -> None:
        """Raise 503 if the engine has died."""
        if self.engine.errored is None:
            return
        if self.engine.restarting:
            raise unavailable("the engine has stopped after an error and is being started again", "engine_restarting")
        raise unavailable("the engine has stopped after an error and the server must be restarted", "engine_dead")

    async def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text` as the engine reads it; a long one is tokenized in a thread."""
        return await off_loop(len(text), self.engine.encode, text, add_special_tokens)

    async def decode(self, token_ids: list[int], skip_special_tokens: bool = True) -> str:
        """The text of token ids; ids beyond the vocabulary are refused."""
        size = self.tokenizer.vocab_size
        beyond = next((token for token in token_ids if not 0 <= token < size), None)
        if beyond is not None:
            raise ApiError(400, f"there is no token {beyond}: ids are 0 to {size - 1}", param="tokens")
        # Of the tokenizer's ways to decode, the one for batches lets other threads run meanwhile.
        decode = self.tokenizer.inner.decode_batch
        return (await off_loop(len(token_ids), decode, [token_ids], skip_special_tokens))[0]

    async def encode_prompts(self, prompts: Sequence[str | list[int]], field: str) -> list[list[int]]:
        """Token ids of a request's prompts; if one cannot fit the model, none is tokenized.

        Args:
            prompts: as texts, or as token ids already.
            field: what the request calls them.
        """
        texts = [prompt for prompt in prompts if isinstance(prompt, str)]
        for text in texts:
            self._check_fits(text, field)

        def encode() -> list[list[int]]:
            return [self.engine.encode(prompt, True) if isinstance(prompt, str) else prompt for prompt in prompts]

        return await off_loop(sum(map(len, texts)), encode)

    async def encode_chat(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool,
        template_arguments: dict[str, Any] | None,
        tools: Sequence[Tool] = (),
        chunks: Sequence[str] | None = None,
    ) -> tuple[list[int], list[tuple[int, int]] | None]:
        """Token ids of a chat, through the model's template, which writes its own special tokens; and the places of
        its chunks, if it names some.

        Args:
            messages: the turns.
            add_generation_prompt: end with the opening of the assistant's turn.
            template_arguments: further variables of the template.
            tools: described to the model by the template.
            chunks: texts within the messages that are likely to come again in others.

        Raises:
            HeadstartError: the model has no template, the template refuses the messages, or a chunk is not in them.
        """
        arguments = template_arguments or {}
        if self.tokenizer.chat_template is None and not tools:
            raise ApiError(400, "this model has no chat template; send a prompt to /v1/completions", param="messages")
        if reserved := RESERVED_TEMPLATE_ARGUMENTS & set(arguments):
            message = f"chat_template_kwargs cannot set {min(reserved)}"
            raise ApiError(400, message, param="chat_template_kwargs")
        turns = [message.for_template() for message in messages]
        described = [tool.model_dump(exclude_none=True) for tool in tools] or None
        length = sum(len(turn["content"]) for turn in turns) + len(str(described))
        text = await off_loop(
            length,
            partial(self.tokenizer.apply_chat_template, turns, described, add_generation_prompt, **arguments),
        )
        if chunks is not None:
            return await self.encode_parts(text, chunks, "messages", add_special_tokens=False)
        self._check_fits(text, "messages")
        return await self.encode(text, add_special_tokens=False), None

    async def encode_parts(
        self, text: str, chunks: Sequence[str], field: str, *, add_special_tokens: bool = True
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids of a text, and the places of these chunks of it.

        Raises:
            HeadstartError: a text that cannot fit the model, or a chunk that is not in it.
        """
        self._check_fits(text, field)
        return await off_loop(len(text), encode_parts, text, chunks, self.engine.encode, add_special_tokens)

    def check_text(self, text: str, field: str) -> None:
        """Refuse a text, before it is tokenized, that has more tokens than its key may send.

        Raises:
            ApiError: 400.
        """
        most = self._most_prompt_tokens
        if most is not None and len(text) > most * self._longest_token:
            raise _too_long(f"{len(text)} characters", most, field)

    def _check_fits(self, text: str, field: str) -> None:
        self.check_text(text, field)
        if len(text) > self.engine.max_model_len * self._longest_token:
            raise ApiError(
                400,
                f"the prompt has {len(text)} characters, more than can fit in the model's "
                f"{self.engine.max_model_len} tokens",
                param=field,
                code="context_length_exceeded",
            )

    def output_length(
        self, prompt_length: int, asked: int | None, default: int | None, field: str, prompt_field: str
    ) -> int:
        """`max_tokens` of a request: what it asks for, or else the default as far as there is room.

        Args:
            prompt_length: tokens of the prompt.
            asked: what the request says.
            default: where it says nothing; None is all the room.
            field: what it calls the length.
            prompt_field: what it calls the prompt.

        Raises:
            ApiError: prompt and output together are longer than the model takes.
        """
        longest = self.engine.max_model_len
        room = longest - prompt_length
        if asked is None and room < 1:
            message = f"the prompt has {prompt_length} tokens, which leaves none of the model's {longest} to answer"
            raise ApiError(400, message, param=prompt_field, code="context_length_exceeded")
        if asked is not None and asked > room:
            raise ApiError(
                400,
                f"the prompt has {prompt_length} tokens and {field} asks for {asked}, together more than "
                f"the model's {longest}",
                param=field,
                code="context_length_exceeded",
            )
        return min(default or room, room) if asked is None else asked

    def sampling_defaults(self) -> dict[str, float | int]:
        """Sampling parameters that the checkpoint recommends, for what a request leaves out."""
        config = self.engine.generation_config
        names = ("temperature", "top_p", "top_k", "repetition_penalty")
        found = {name: getattr(config, name) for name in names} if config is not None else {}
        return {name: value for name, value in found.items() if value is not None}

    def run(
        self,
        jobs: Sequence[Job],
        request_id: str,
        cache_salt: str | None,
        arrival: float,
        use: Sequence[str] | None = None,
    ) -> AsyncGenerator[tuple[int, RequestOutput], None]:
        """The jobs' outputs as they come, each with its job's index. Closing it aborts what still runs.

        Args:
            jobs: what to run.
            request_id: the name that theirs are made from.
            cache_salt: cached keys are shared only with requests of the same salt.
            arrival: when the request came in, by `time.monotonic()`; the times in the metrics begin there.
            use: methods of their own; None leaves the engine's.
        """
        own = self.methods.check(use)
        self.check_alive()
        tenant = current_tenant.get()
        limits = Limits() if tenant is None else tenant.limits
        for job in jobs:
            self.check_prompt(len(job.token_ids), job.field)
        salt = cache_salt if tenant is None else tenant.cache_salt(cache_salt)
        until = None if limits.request_timeout is None else arrival + limits.request_timeout
        places = Places(self, tenant, sum(job.params.generated for job in jobs))
        streams = [
            self._run(job, f"{request_id}-{index}", salt, arrival, until, places, own) for index, job in enumerate(jobs)
        ]
        return self._admitted(places, together(streams))

    def check_prompt(self, tokens: int, field: str) -> None:
        """Refuse a prompt of so many tokens, which the request calls `field`, if its key may not send it.

        Raises:
            ApiError: 400.
        """
        most = self._most_prompt_tokens
        if most is not None and tokens > most:
            raise _too_long(f"{tokens} tokens", most, field)

    @property
    def _most_prompt_tokens(self) -> int | None:
        """What the key of the request that is being answered may send as one prompt; None is no limit."""
        tenant = current_tenant.get()
        return None if tenant is None else tenant.limits.max_prompt_tokens

    def check_queue(self, outputs: int) -> None:
        """Refuse a request for so many outputs if more of them would wait than the line takes.

        Raises:
            ApiError: 503 while the line is too full; 400 if they are too many for an empty one.
        """
        if self.max_queued_requests is None:
            return
        most, seats = self.max_queued_requests, self.engine.max_num_seqs
        if outputs > seats + most:
            message = f"the request asks for {outputs} outputs at once, more than the {seats + most} that are taken"
            raise ApiError(400, message, code="too_many_outputs")
        # The engine's own count is as old as its last step, and knows nothing of those that came since.
        waiting = self.engine.stats().num_waiting
        queued = max(waiting, self.open_outputs - seats)
        free = 0 if waiting else max(0, seats - self.open_outputs)
        if queued + outputs - free > most:
            self.metrics.refused("queue_full")
            raise unavailable(f"{queued} requests are waiting already; try again later", "queue_full")

    @staticmethod
    async def _admitted(places: Places, stream: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
        """The stream of a request that holds its places until it ends."""
        try:
            places.take()
            async with aclosing(stream):
                async for item in stream:
                    yield item
        finally:
            places.give_back()

    async def _run(
        self,
        job: Job,
        request_id: str,
        cache_salt: str | None,
        arrival: float,
        until: float | None,
        places: Places,
        use: tuple[str, ...] | None,
    ) -> AsyncGenerator[RequestOutput, None]:
        tenant = current_tenant.get()
        charged: Callable[[float], None] = (lambda tokens: None) if tenant is None else tenant.tokens.spend
        charged(len(job.token_ids))
        generated: dict[int, int] = {}
        last_time: dict[int, float] = {}
        alarm = Alarm(self.engine, request_id, until)
        trace = self.tracing and self.tracing.begin(
            request_id, self.model_name, job.params, len(job.token_ids), arrival
        )
        source = self.engine.generate(
            job.prompt, job.params, request_id, cache_salt=cache_salt, arrival_time=arrival, use=use
        )
        if trace is not None:
            source = trace.follow(source, lambda: self.engine.abort(request_id))
        try:
            async with aclosing(source) as outputs:
                async for output in outputs:
                    alarm.check(output)
                    before = sum(generated.values())
                    self._measure(output, generated, last_time, streamed=job.params.output_kind == "delta")
                    charged(sum(generated.values()) - before)
                    yield output
        except (InvalidRequestError, ApiError):
            raise
        except EngineDeadError as error:
            raise unavailable(str(error), "engine_dead") from None
        except HeadstartError as error:
            self.check_alive()
            raise unavailable(str(error)) from None
        finally:
            places.give_back(job.params.generated)
            alarm.cancel()
            if trace is not None:
                trace.end()

    def _measure(
        self, output: RequestOutput, generated: dict[int, int], last_time: dict[int, float], *, streamed: bool
    ) -> None:
        now = time.monotonic()
        for choice in output.outputs:
            new = len(choice.token_ids)
            if streamed and new and choice.index in last_time:
                self.metrics.inter_token(now - last_time[choice.index], new)
            elif streamed and new > 1:
                # Tokens that have joined the first one while nobody read.
                times = output.metrics
                self.metrics.inter_token((times.last_token_time or now) - (times.first_token_time or now), new - 1)
            if new:
                last_time[choice.index] = now
            generated[choice.index] = generated.get(choice.index, 0) + new
        if output.finished and generated:
            self.metrics.request_finished(
                output.metrics, len(output.prompt_token_ids), max(generated.values()), sum(generated.values())
            )


async def off_loop(length: int, work: Callable[..., T], *arguments: Any) -> T:
    """`work(*arguments)`, in a thread if its text is long enough to keep other requests waiting."""
    return work(*arguments) if length < LONG_TEXT else await asyncio.to_thread(work, *arguments)


def _too_long(length: str, most: int, field: str) -> ApiError:
    message = f"the prompt has {length}, more than the {most} tokens that this key may send"
    return ApiError(400, message, param=field, code="context_length_exceeded")
