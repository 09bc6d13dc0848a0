"""The sides of the engine benchmark: this engine and its peers, each behind the same four measurements."""

import ctypes
import logging
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any, Protocol

import torch

from headstart.errors import HeadstartError


class BenchmarkError(HeadstartError):
    """A benchmark that cannot run as asked, or a side of it that failed."""


@dataclass(frozen=True)
class SideSettings:
    """What a side needs to load.

    Args:
        side: which implementation, a key of `SIDES`.
        dtype: "bfloat16" or "float32", of weights and cache.
        checkpoint: the Hugging Face directory, or the GGUF file for llama.cpp.
        threads: of the side's thread pool.
        max_length: tokens of the longest request, prompt plus output.
        max_concurrent_length: the same of the requests that run at once.
        max_sequences: requests at once.
        engine_options: further arguments of `headstart.LLM`; peers have none.
    """

    side: str
    dtype: str
    checkpoint: str
    threads: int
    max_length: int
    max_concurrent_length: int
    max_sequences: int
    engine_options: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """A dict that JSON can hold and `SideSettings(**it)` reads."""
        return asdict(self)


@dataclass(frozen=True)
class Measured:
    """One measurement: seconds (tokens per second for decode), and the greedy token ids per request."""

    value: float
    token_ids: list[list[int]]


class Side(Protocol):
    """One implementation with the model loaded; all generation is greedy and ignores end of sequence."""

    def versions(self) -> dict[str, str]:
        """Package names to versions."""
        ...

    def prefill(self, prompt: list[int]) -> Measured:
        """Seconds from the request to its first token, with an empty cache."""
        ...

    def decode(self, prompt: list[int], tokens: int) -> Measured:
        """Tokens per second over `tokens` tokens that follow the prompt's first output token."""
        ...

    def concurrent(self, prompts: list[list[int]], tokens: int) -> Measured:
        """Seconds to answer all prompts, that arrive together, with `tokens` tokens each."""
        ...

    def serial(self, prompts: list[list[int]], tokens: int) -> Measured:
        """The same one request after the other."""
        ...

    def next_token(self, prompt: list[int]) -> tuple[int, float]:
        """The likeliest next token and its log-probability."""
        ...


class HeadstartSide:
    """This engine through its offline API."""

    def __init__(self, settings: SideSettings) -> None:
        from headstart import LLM

        self.llm = LLM(
            settings.checkpoint,
            dtype=settings.dtype,
            device="cpu",
            skip_tokenizer_init=True,
            max_model_len=settings.max_length,
            max_num_seqs=settings.max_sequences,
            enable_prefix_caching=False,
            seed=0,
            **settings.engine_options,
        )

    def versions(self) -> dict[str, str]:
        import headstart

        return {"headstart": headstart.__version__, "torch": torch.__version__}

    def _generate(self, prompts: list[list[int]], tokens: int, logprobs: int | None = None) -> list[Any]:
        from headstart import SamplingParams

        params = SamplingParams(
            max_tokens=tokens, temperature=0.0, ignore_eos=True, detokenize=False, logprobs=logprobs
        )
        return self.llm.generate([{"prompt_token_ids": p} for p in prompts], params, use_tqdm=False)

    def prefill(self, prompt: list[int]) -> Measured:
        return self.concurrent([prompt], 1)

    def decode(self, prompt: list[int], tokens: int) -> Measured:
        (output,) = self._generate([prompt], tokens + 1)
        metrics = output.metrics
        return Measured(tokens / (metrics.last_token_time - metrics.first_token_time), [output.outputs[0].token_ids])

    def concurrent(self, prompts: list[list[int]], tokens: int) -> Measured:
        start = time.perf_counter()
        outputs = self._generate(prompts, tokens)
        seconds = time.perf_counter() - start
        return Measured(seconds, [o.outputs[0].token_ids for o in outputs])

    def serial(self, prompts: list[list[int]], tokens: int) -> Measured:
        return _one_by_one(self, prompts, tokens)

    def next_token(self, prompt: list[int]) -> tuple[int, float]:
        (output,) = self._generate([prompt], 1, logprobs=1)
        completion = output.outputs[0]
        token = completion.token_ids[0]
        return token, completion.logprobs[0][token].logprob


class TransformersSide:
    """Transformers with SDPA in a bare loop over its model, free of what `generate` does per token."""

    def __init__(self, settings: SideSettings) -> None:
        from transformers import AutoModelForCausalLM

        self.model = AutoModelForCausalLM.from_pretrained(
            settings.checkpoint, dtype=getattr(torch, settings.dtype), attn_implementation="sdpa"
        ).eval()

    def versions(self) -> dict[str, str]:
        return {"transformers": version("transformers"), "torch": torch.__version__}

    def _step(self, ids: torch.Tensor, cache: Any) -> torch.Tensor:
        """Logits `[B, V]` after the tokens `[B, T]`; the cache grows by them."""
        return self.model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]

    @torch.inference_mode()
    def _greedy(self, prompts: list[list[int]], tokens: int) -> tuple[torch.Tensor, float]:
        """Greedy tokens `[B, tokens]` of prompts of one length, and the time of the first token."""
        from transformers import DynamicCache

        cache = DynamicCache(config=self.model.config)
        ids = self._step(torch.tensor(prompts), cache).argmax(-1, keepdim=True)
        first_token = time.perf_counter()
        found = [ids]
        for _ in range(tokens - 1):
            ids = self._step(ids, cache).argmax(-1, keepdim=True)
            found.append(ids)
        return torch.cat(found, dim=1), first_token

    def prefill(self, prompt: list[int]) -> Measured:
        return self.concurrent([prompt], 1)

    def decode(self, prompt: list[int], tokens: int) -> Measured:
        ids, first_token = self._greedy([prompt], tokens + 1)
        return Measured(tokens / (time.perf_counter() - first_token), ids.tolist())

    def concurrent(self, prompts: list[list[int]], tokens: int) -> Measured:
        start = time.perf_counter()
        ids, _ = self._greedy(prompts, tokens)
        return Measured(time.perf_counter() - start, ids.tolist())

    def serial(self, prompts: list[list[int]], tokens: int) -> Measured:
        return _one_by_one(self, prompts, tokens)

    @torch.inference_mode()
    def next_token(self, prompt: list[int]) -> tuple[int, float]:
        logits = self.model(torch.tensor([prompt]), use_cache=False, logits_to_keep=1).logits[0, -1]
        logprob, token = logits.float().log_softmax(-1).max(-1)
        return int(token), float(logprob)


class LlamaCppSide:
    """llama.cpp through the C functions of llama-cpp-python, with its own batching over sequences."""

    def __init__(self, settings: SideSettings) -> None:
        import llama_cpp  # pyright: ignore[reportMissingImports]

        logging.getLogger("llama-cpp-python").setLevel(logging.ERROR)
        self.api: Any = llama_cpp
        self.settings = settings
        params = self.api.llama_model_default_params()
        params.n_gpu_layers = 0
        self.model = self.api.llama_model_load_from_file(settings.checkpoint.encode(), params)
        if not self.model:
            raise BenchmarkError(f"llama.cpp could not load {settings.checkpoint}")
        self.vocab = self.api.llama_vocab_n_tokens(self.api.llama_model_get_vocab(self.model))
        self.chunk = self.api.llama_context_default_params().n_batch
        self.batch = self.api.llama_batch_init(self.chunk, 0, 1)
        self.contexts: dict[int, Any] = {}

    def versions(self) -> dict[str, str]:
        return {"llama-cpp-python": version("llama-cpp-python")}

    def _context(self, sequences: int) -> Any:
        """An emptied context for so many sequences, each with its own cache; made on first use and kept."""
        if sequences not in self.contexts:
            params = self.api.llama_context_default_params()
            length = self.settings.max_length if sequences == 1 else self.settings.max_concurrent_length
            params.n_ctx = length * sequences
            params.n_seq_max = sequences
            params.n_threads = params.n_threads_batch = self.settings.threads
            if self.settings.dtype == "float32":
                # By default cache and flash attention compute in float16, good to three digits only.
                params.type_k = params.type_v = self.api.GGML_TYPE_F32
                params.flash_attn_type = self.api.LLAMA_FLASH_ATTN_TYPE_DISABLED
            context = self.api.llama_init_from_model(self.model, params)
            if not context:
                raise BenchmarkError(f"llama.cpp could not make a context of {params.n_ctx} tokens")
            self.contexts[sequences] = context
        context = self.contexts[sequences]
        self.api.llama_memory_clear(self.api.llama_get_memory(context), False)
        return context

    def _run(self, context: Any, rows: list[tuple[int, int, int, bool]]) -> Iterator[torch.Tensor]:
        """Run rows (token, position, sequence, wanted) and yield the logits `[V]` of the wanted ones.

        The logits lie in llama.cpp's memory and hold until the iterator is asked for the next.
        """
        batch = self.batch
        for start in range(0, len(rows), self.chunk):
            part = rows[start : start + self.chunk]
            batch.n_tokens = len(part)
            for i, row in enumerate(part):
                batch.token[i], batch.pos[i], batch.seq_id[i][0], batch.logits[i] = row
                batch.n_seq_id[i] = 1
            if self.api.llama_decode(context, batch) != 0:
                raise BenchmarkError(f"llama.cpp refused a batch of {len(part)} tokens")
            for i, row in enumerate(part):
                if row[3]:
                    yield self._logits(context, i)

    def _logits(self, context: Any, row: int) -> torch.Tensor:
        """Logits `[V]` of a row of the last batch."""
        address = ctypes.addressof(self.api.llama_get_logits_ith(context, row).contents)
        return torch.frombuffer((ctypes.c_float * self.vocab).from_address(address), dtype=torch.float32)

    def _greedy(self, prompts: list[list[int]], tokens: int) -> tuple[list[list[int]], float]:
        """Greedy tokens per prompt, all prompts batched, and the time of the first tokens."""
        context = self._context(len(prompts))
        found = [[int(logits.argmax())] for logits in self._run(context, _prompt_rows(prompts))]
        first_token = time.perf_counter()
        for step in range(tokens - 1):
            rows = [(found[s][-1], len(p) + step, s, True) for s, p in enumerate(prompts)]
            for output, logits in zip(found, self._run(context, rows), strict=True):
                output.append(int(logits.argmax()))
        return found, first_token

    def prefill(self, prompt: list[int]) -> Measured:
        return self.concurrent([prompt], 1)

    def decode(self, prompt: list[int], tokens: int) -> Measured:
        found, first_token = self._greedy([prompt], tokens + 1)
        return Measured(tokens / (time.perf_counter() - first_token), found)

    def concurrent(self, prompts: list[list[int]], tokens: int) -> Measured:
        start = time.perf_counter()
        found, _ = self._greedy(prompts, tokens)
        return Measured(time.perf_counter() - start, found)

    def serial(self, prompts: list[list[int]], tokens: int) -> Measured:
        return _one_by_one(self, prompts, tokens)

    def next_token(self, prompt: list[int]) -> tuple[int, float]:
        (logits,) = self._run(self._context(1), _prompt_rows([prompt]))
        logprob, token = logits.log_softmax(-1).max(-1)
        return int(token), float(logprob)


def _prompt_rows(prompts: list[list[int]]) -> list[tuple[int, int, int, bool]]:
    """Rows (token, position, sequence, wanted) of prompts; logits are wanted of the last token of each."""
    return [
        (token, position, sequence, position == len(prompt) - 1)
        for sequence, prompt in enumerate(prompts)
        for position, token in enumerate(prompt)
    ]


def _one_by_one(side: Side, prompts: list[list[int]], tokens: int) -> Measured:
    """Seconds for all prompts, each alone and after the one before it."""
    start = time.perf_counter()
    found = [side.concurrent([prompt], tokens).token_ids[0] for prompt in prompts]
    return Measured(time.perf_counter() - start, found)


SIDES: dict[str, type] = {
    "headstart": HeadstartSide,
    "transformers": TransformersSide,
    "llama.cpp": LlamaCppSide,
}
_PACKAGES = {"transformers": ["transformers"], "llama.cpp": ["llama_cpp", "gguf"]}


def missing_packages(side: str) -> list[str]:
    """The modules that a side needs and that are not installed."""
    return [name for name in _PACKAGES.get(side, []) if find_spec(name) is None]
