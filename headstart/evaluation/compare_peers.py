"""The peers that this engine is measured beside: Transformers and llama.cpp."""

import ctypes
import logging
import time
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import torch

from headstart.evaluation.sides import Answer, BenchmarkError, Measured, SideSettings, device_peak, one_by_one


class TransformersSide:
    """Transformers with SDPA in a bare loop over its model, free of what `generate` does per token."""

    def __init__(self, settings: SideSettings) -> None:
        from transformers import AutoConfig, AutoModelForCausalLM

        self.device = settings.device
        how: dict[str, Any] = {"dtype": getattr(torch, settings.dtype), "attn_implementation": "sdpa"}
        if settings.dummy:
            with torch.device(settings.device):
                model: Any = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(settings.checkpoint), **how)
        else:
            model = AutoModelForCausalLM.from_pretrained(settings.checkpoint, **how)
        self.model = model.to(settings.device).eval()

    def versions(self) -> dict[str, str]:
        return {"transformers": version("transformers"), "torch": torch.__version__}

    def _step(self, ids: torch.Tensor, cache: Any) -> torch.Tensor:
        """Logits `[B, V]` after the tokens `[B, T]`; the cache grows by them."""
        return self.model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]

    @torch.inference_mode()
    def _greedy(self, prompts: list[list[int]], tokens: int) -> tuple[list[list[int]], float, int]:
        """Greedy tokens per prompt, all of one length, the time of the first token, and the bytes of the cache."""
        from transformers import DynamicCache

        cache = DynamicCache(config=self.model.config)
        ids = self._step(torch.tensor(prompts, device=self.device), cache).argmax(-1, keepdim=True)
        if ids.is_cuda:
            torch.cuda.synchronize()
        first_token = time.perf_counter()
        found = [ids]
        for _ in range(tokens - 1):
            ids = self._step(ids, cache).argmax(-1, keepdim=True)
            found.append(ids)
        layers: list[Any] = cache.layers
        held = sum(layer.keys.nbytes + layer.values.nbytes for layer in layers)
        return torch.cat(found, dim=1).tolist(), first_token, held

    def prefill(self, prompt: list[int]) -> Measured:
        return self.concurrent([prompt], 1)

    def decode(self, prompts: list[list[int]], tokens: int) -> Measured:
        if torch.device(self.device).type == "cuda":
            return self._compiled_decode(prompts, tokens)
        ids, first_token, _ = self._greedy(prompts, tokens + 1)
        return Measured(tokens / (time.perf_counter() - first_token), ids)

    @torch.inference_mode()
    def _compiled_decode(self, prompts: list[list[int]], tokens: int) -> Measured:
        """Its fastest way on a GPU: a static cache and a compiled step, both of which `generate` sets up itself."""
        ids = torch.tensor(prompts, device=self.device)

        def generate(count: int) -> tuple[torch.Tensor, float]:
            torch.cuda.synchronize()
            start = time.perf_counter()
            found = self.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=count,
                min_new_tokens=count,
                do_sample=False,
                cache_implementation="static",
                pad_token_id=0,
            )
            torch.cuda.synchronize()
            return found[:, ids.shape[1] :], time.perf_counter() - start

        # The first pair compiles; the difference of the second is free of the prompt and of what a call sets up.
        for _ in range(2):
            short, long = generate(tokens), generate(2 * tokens)
        return Measured(tokens / (long[1] - short[1]), long[0].tolist())

    def answer(self, prompt: list[int], tokens: int) -> Answer:
        with device_peak(self.device) as peak:
            start = time.perf_counter()
            (ids,), first_token, held = self._greedy([prompt], tokens + 1)
            end = time.perf_counter()
        return Answer(first_token - start, tokens / (end - first_token), ids, held, 1.0, *peak)

    def concurrent(self, prompts: list[list[int]], tokens: int) -> Measured:
        start = time.perf_counter()
        ids, _, _ = self._greedy(prompts, tokens)
        return Measured(time.perf_counter() - start, ids)

    def serial(self, prompts: list[list[int]], tokens: int) -> Measured:
        return one_by_one(self, prompts, tokens)

    @torch.inference_mode()
    def next_token(self, prompt: list[int]) -> tuple[int, float]:
        logits = self.model(torch.tensor([prompt], device=self.device), use_cache=False, logits_to_keep=1).logits[0, -1]
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
        if settings.device != "cpu" and not self.api.llama_supports_gpu_offload():
            raise BenchmarkError("this build of llama-cpp-python runs on the CPU only; use --device cpu")
        params.n_gpu_layers = 0 if settings.device == "cpu" else 999
        self.model = self.api.llama_model_load_from_file(settings.checkpoint.encode(), params)
        if not self.model:
            raise BenchmarkError(f"llama.cpp could not load {settings.checkpoint}")
        self.vocab = self.api.llama_vocab_n_tokens(self.api.llama_model_get_vocab(self.model))
        self.chunk = self.api.llama_context_default_params().n_batch
        self.batch = self.api.llama_batch_init(self.chunk, 0, 1)
        self.contexts: dict[tuple[int, bool], Any] = {}

    def versions(self) -> dict[str, str]:
        return {"llama-cpp-python": version("llama-cpp-python")}

    def _context(self, sequences: int, *, precise: bool = False) -> Any:
        """An emptied context for so many sequences, each with its own cache; made on first use and kept.

        As it is tuned for speed, cache and flash attention compute in float16, good to three digits only; a precise one
        computes in float32.
        """
        if (sequences, precise) not in self.contexts:
            params = self.api.llama_context_default_params()
            length = self.settings.max_length if sequences == 1 else self.settings.max_concurrent_length
            params.n_ctx = length * sequences
            params.n_seq_max = sequences
            params.n_threads = params.n_threads_batch = self.settings.threads
            if precise:
                params.type_k = params.type_v = self.api.GGML_TYPE_F32
                params.flash_attn_type = self.api.LLAMA_FLASH_ATTN_TYPE_DISABLED
            context = self.api.llama_init_from_model(self.model, params)
            if not context:
                raise BenchmarkError(f"llama.cpp could not make a context of {params.n_ctx} tokens")
            self.contexts[sequences, precise] = context
        context = self.contexts[sequences, precise]
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

    def decode(self, prompts: list[list[int]], tokens: int) -> Measured:
        found, first_token = self._greedy(prompts, tokens + 1)
        return Measured(tokens / (time.perf_counter() - first_token), found)

    def answer(self, prompt: list[int], tokens: int) -> Answer:
        start = time.perf_counter()
        (found,), first_token = self._greedy([prompt], tokens + 1)
        end = time.perf_counter()
        return Answer(first_token - start, tokens / (end - first_token), found)

    def concurrent(self, prompts: list[list[int]], tokens: int) -> Measured:
        start = time.perf_counter()
        found, _ = self._greedy(prompts, tokens)
        return Measured(time.perf_counter() - start, found)

    def serial(self, prompts: list[list[int]], tokens: int) -> Measured:
        return one_by_one(self, prompts, tokens)

    def next_token(self, prompt: list[int]) -> tuple[int, float]:
        context = self._context(1, precise=self.settings.dtype == "float32")
        (logits,) = self._run(context, _prompt_rows([prompt]))
        logprob, token = logits.log_softmax(-1).max(-1)
        return int(token), float(logprob)


def _prompt_rows(prompts: list[list[int]]) -> list[tuple[int, int, int, bool]]:
    """Rows (token, position, sequence, wanted) of prompts; logits are wanted of the last token of each."""
    return [
        (token, position, sequence, position == len(prompt) - 1)
        for sequence, prompt in enumerate(prompts)
        for position, token in enumerate(prompt)
    ]
