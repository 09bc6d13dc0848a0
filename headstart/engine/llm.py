"""The offline API, with the names and fields of vLLM's: `LLM(model).generate(prompts, SamplingParams(...))`."""

import sys
import threading
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from dataclasses import fields, replace
from itertools import count
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from headstart.checkpoints.tokenizer import Tokenizer
from headstart.engine.args import EngineArgs
from headstart.engine.intake import Prompt, encode_parts
from headstart.engine.outputs import RequestOutput
from headstart.engine.params import SamplingParams
from headstart.engine.pooling import Pooling, unit
from headstart.engine.ranks import start_engine
from headstart.engine.request import Request
from headstart.engine.seams import Piece
from headstart.errors import HeadstartError, InvalidRequestError, did_you_mean

Message = Mapping[str, Any]


class LLM:
    """A model in this process.

    Args:
        model: a Hugging Face directory or hub id; None is the checkpoint that comes with the package.
        **settings: the other fields of `EngineArgs`: dtype, max_model_len, max_num_seqs, max_num_batched_tokens,
            enable_prefix_caching, seed, use, and so on.

    Raises:
        HeadstartError: what keeps the model from running, in one sentence.
    """

    def __init__(self, model: str | None = None, **settings: Any) -> None:
        known = {field.name for field in fields(EngineArgs)}
        for name in settings:
            if name not in known:
                raise HeadstartError(f"LLM has no setting {name!r}{did_you_mean(name, known)}")
        self.engine = start_engine(EngineArgs(model=model, **settings))
        # One caller at a time: the engine is not for several threads, and users do not always know theirs.
        self._lock = threading.RLock()
        self._ids = count()
        # Outputs by request: several streams may be open, and whoever steps the engine steps it for all.
        self._arrived: dict[str, deque[RequestOutput]] = {}

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        if self.engine.tokenizer is None:
            raise InvalidRequestError("this model runs without a tokenizer")
        return self.engine.tokenizer

    @property
    def max_model_len(self) -> int:
        """The longest prompt plus output, in tokens."""
        return self.engine.max_model_len

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """A text's token ids, as the engine reads prompts."""
        return self.engine.encode(text, add_special_tokens)

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = False,
        use: Sequence[Any] | None = None,
    ) -> list[RequestOutput]:
        """Complete prompts: a string, `{"prompt_token_ids": [...]}`, or a list of either.

        Args:
            prompts: one or many. A dict may name `chunks` that come again in other prompts: texts that stand in its
                `prompt`, or pairs of start and end within its token ids.
            sampling_params: for all, or one for each; default: the checkpoint's recommendation, 16 tokens.
            use_tqdm: show progress on a terminal.
            use: methods for these prompts alone, as keys with options or as instances, in the place of the engine's
                as far as those can be a request's own: not a scheduler, or what decides the cache's form or the
                weights. An empty list leaves the plain model; None (default) the engine's own.

        Returns:
            One `RequestOutput` per prompt, in their order.

        Raises:
            InvalidRequestError: a prompt, parameter or method that cannot be served; nothing runs then.
        """
        many = _as_list(prompts)
        if isinstance(sampling_params, Sequence):
            if len(sampling_params) != len(many):
                raise InvalidRequestError(
                    f"there are {len(many)} prompts but {len(sampling_params)} sampling params: give one, or one each"
                )
            each = list(sampling_params)
        else:
            each = [sampling_params or self.default_sampling_params()] * len(many)
        for params in each:
            if not isinstance(params, SamplingParams):
                raise InvalidRequestError(f"sampling_params must be SamplingParams, not {type(params).__name__}")
        requests = [
            self.engine.prepare(str(next(self._ids)), prompt, replace(params, output_kind="final"), use=use)
            for prompt, params in zip(many, each, strict=True)
        ]
        order = [request.request_id for request in requests]
        with self._lock:
            try:
                for place in self._arranged(requests):
                    self._submit(requests[place])
                return self._run(order, use_tqdm and sys.stderr.isatty())
            finally:
                self._close(order)

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = False,
        chat_template: str | None = None,
        add_generation_prompt: bool = True,
        tools: list[dict[str, Any]] | None = None,
        use: Sequence[Any] | None = None,
        chunks: Sequence[str] | None = None,
    ) -> list[RequestOutput]:
        """Answer one conversation, or several: lists of `{"role": ..., "content": ...}`; `use` as for `generate`.
        `chunks` are texts in each of them that come again in others."""
        several = bool(messages) and not isinstance(messages[0], Mapping)
        conversations = messages if several else [messages]
        extra = {"chat_template": chat_template} if chat_template else {}
        prompts = []
        for conversation in conversations:
            text = self.tokenizer.apply_chat_template(
                list(conversation),  # type: ignore[arg-type]
                tools=tools,
                add_generation_prompt=add_generation_prompt,
                **extra,
            )
            if chunks is None:
                prompts.append({"prompt_token_ids": self.encode(text, add_special_tokens=False)})
            else:
                ids, spans = encode_parts(text, chunks, self.encode, add_special_tokens=False)
                prompts.append({"prompt_token_ids": ids, "chunks": spans})
        return self.generate(prompts, sampling_params, use_tqdm, use)

    def embed(
        self,
        prompts: Prompt | Sequence[Prompt],
        pooling: Pooling = "auto",
        normalize: bool = True,
        dimensions: int | None = None,
    ) -> list[list[float]]:
        """Embeddings of prompts: one `[dimensions]` each, from the last layer's hidden states.

        Args:
            prompts: as for `generate`.
            pooling: "last" token's state, "mean" over all tokens, or "auto" for what the checkpoint says.
            normalize: make their length 1.
            dimensions: how many numbers of each, from its first (default: the model's hidden size).

        Raises:
            InvalidRequestError: a prompt that cannot be read, or more dimensions than the model has.
        """
        outputs = self.generate(prompts, SamplingParams(max_tokens=1, pooling=pooling, dimensions=dimensions))
        vectors = [output.embedding or [] for output in outputs]
        return [unit(vector) for vector in vectors] if normalize else vectors

    def stream(
        self, prompt: Prompt, sampling_params: SamplingParams | None = None, use: Sequence[Any] | None = None
    ) -> Generator[RequestOutput, None, None]:
        """Complete one prompt piece by piece: each item's outputs hold only what is new; `use` as for `generate`."""
        params = replace(sampling_params or self.default_sampling_params(), output_kind="delta")
        request = self.engine.prepare(str(next(self._ids)), prompt, params, use=use)
        try:
            with self._lock:
                self._submit(request)
            arrived = self._arrived[request.request_id]
            while arrived or not request.finished:
                with self._lock:
                    if not arrived and not request.finished:
                        self._step()
                while arrived:
                    yield arrived.popleft()
        finally:
            self._close([request.request_id])

    def default_sampling_params(self, max_tokens: int = 16) -> SamplingParams:
        """What the checkpoint's `generation_config.json` recommends."""
        found = self.engine.checkpoint.generation_config
        given = {
            name: value
            for name in ("temperature", "top_p", "top_k", "repetition_penalty")
            if (value := getattr(found, name)) is not None
        }
        return SamplingParams(max_tokens=max_tokens, **given)

    def close(self) -> None:
        """End the processes of a model with several ranks; without it they end with this object."""
        with self._lock:
            self.engine.close()

    def _run(self, order: list[str], show: bool) -> list[RequestOutput]:
        """Step until all are done."""
        done: dict[str, RequestOutput] = {}
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, disable=not show, transient=True) as progress:
            task = progress.add_task("prompts", total=len(order))
            waiting = set(order)
            while waiting:
                self._step()
                ended = {request_id for request_id in waiting if self._arrived[request_id]}
                done |= {request_id: self._arrived[request_id].pop() for request_id in ended}
                waiting -= ended
                progress.advance(task, len(ended))
        return [done[request_id] for request_id in order]

    def _arranged(self, requests: Sequence[Request]) -> list[int]:
        """The order in which the scheduler wants them, now that all are known."""
        job = [Piece(request.request_id, request.prompt_ids, request.max_tokens) for request in requests]
        return self.engine.arrange(job)

    def _submit(self, request: Request) -> None:
        self._arrived[request.request_id] = deque()
        self.engine.submit(request)

    def _step(self) -> None:
        """Run one step and put each output where its reader looks."""
        for output in self.engine.step():
            self._arrived[output.request_id].append(output)

    def _close(self, order: list[str]) -> None:
        """Forget requests, and end those that still run."""
        with self._lock:
            for request_id in order:
                self.engine.abort(request_id)
                self._arrived.pop(request_id, None)


def _as_list(prompts: Any) -> list[Prompt]:
    """One prompt (text, dict or token ids) or many, as many."""
    if isinstance(prompts, str | Mapping):
        return [prompts]
    if not isinstance(prompts, list | tuple):
        raise InvalidRequestError(f"prompts are text, token ids or a list of them, not {type(prompts).__name__}")
    return [list(prompts)] if prompts and type(prompts[0]) is int else list(prompts)
