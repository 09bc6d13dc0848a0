"""The engine's settings, with the names vLLM's users know, and the sizes derived from them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psutil
import torch

from headstart.engine.seams import LayerKV
from headstart.engine.tiers import TierSpec
from headstart.engine.waiting import line_of
from headstart.errors import HeadstartError
from headstart.models.config import ModelConfig
from headstart.ops.quantized import QUANTIZATIONS

# A CPU is slow enough that a chunk of 2,048 tokens would hold up running answers for seconds; a data-centre GPU reads
# 8,192 tokens of an 8-billion model in 0.2 s, and more at once brings it nothing.
_STEP_TOKENS = {"cpu": 512, "cuda": 8192}
# A page that holds a whole tile of an attention kernel is read in one piece.
_PAGE_SIZE = {"cpu": 16, "cuda": 64}
_KV_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "fp8_e4m3": torch.float8_e4m3fn,
}
_CPU_CACHE_SHARE = 0.25
_LARGEST_PAGE = 4096
_SWAP_BYTES, _SWAP_SHARE = 4 * 2**30, 0.1


@dataclass
class EngineArgs:
    """How to run a model.

    Args:
        model: a Hugging Face directory or hub id; None is the checkpoint that comes with the package.
        dtype: "auto" (the checkpoint's), "float32", "bfloat16" or "float16".
        device: "auto" takes a CUDA device if there is one.
        load_format: "auto" reads the checkpoint's weights, "dummy" draws random ones, to measure speed by a config.
        quantization: keep the layers' weights in eight bits: "fp8" or "int8", with a scale for each output (default:
            as loaded). Lossy: the model's distribution changes.
        kv_cache_dtype: of cached keys and values: "auto" (the run's dtype), "float32", "bfloat16", "float16" or
            "fp8_e4m3", which holds twice the tokens of 16 bits, and is lossy as whatever is narrower than the run's.
        max_model_len: longest prompt plus output, in tokens (default: the model's own, or what the cache holds).
        max_num_seqs: at most this many sequences run at once.
        max_num_batched_tokens: tokens per step (default: 512 on a CPU, 8,192 on a GPU).
        enable_prefix_caching: keep keys of finished and running prompts for later prompts that begin alike.
        page_size: tokens per KV cache page (default: 16 on a CPU, 64 on a GPU).
        num_pages: pages in the cache (default: from `kv_cache_memory`).
        kv_cache_memory: bytes for the cache (default: what `max_num_seqs` full sequences need, but at most a
            quarter of free memory on a CPU, and `gpu_memory_utilization` of the device on a GPU).
        kv_tier: where cached keys go when their pages are wanted, as `cpu=2GB,disk=PATH:10GB` (default: nowhere).
        swap_space: bytes of the host's memory for keys of preempted sequences, used where copying them there and back
            costs less than reading the tokens again; 0 always reads again (default: 4 GiB, at most a tenth of what is
            free).
        gpu_memory_utilization: share of a GPU's memory that weights and cache may take together.
        seed: of the draws of requests that bring no seed of their own.
        scheduling_policy: who is started first: "fcfs" in order of arrival, "priority" by `SamplingParams.priority`,
            "fair" whose tenant was served least, "cache-aware" who finds most of its prompt in the cache.
        async_scheduling: plan and start a step before the tokens of the one before it are known on the host (default:
            on a GPU, where it would wait for Python otherwise).
        enforce_eager: capture no CUDA graphs: a faster start and less memory, and slower decoding.
        tensor_parallel_size: cut the model over so many devices, with a process for each; it must divide the heads.
        all_reduce_chunks: sum products over those devices in so many parts, each while the next is computed
            (fastattention's tiled all-reduce), where a step has at least 256 tokens for each.
        use: methods, as keys with options (`"sarathi-serve:chunk=512"`) or as instances.
        skip_tokenizer_init: run without a tokenizer; prompts are then token ids and outputs have no text.
    """

    model: str | None = None
    dtype: str | torch.dtype = "auto"
    device: str = "auto"
    load_format: str = "auto"
    quantization: str | None = None
    kv_cache_dtype: str = "auto"
    max_model_len: int | None = None
    max_num_seqs: int = 128
    max_num_batched_tokens: int | None = None
    enable_prefix_caching: bool = True
    page_size: int | None = None
    num_pages: int | None = None
    kv_cache_memory: int | None = None
    kv_tier: str | None = None
    swap_space: int | None = None
    gpu_memory_utilization: float = 0.9
    seed: int = 0
    scheduling_policy: str = "fcfs"
    async_scheduling: bool | None = None
    enforce_eager: bool = False
    tensor_parallel_size: int = 1
    all_reduce_chunks: int = 1
    use: Sequence[Any] = ()
    skip_tokenizer_init: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.use, str) or not isinstance(self.use, Sequence):
            self.use = [self.use]
        least = ("max_model_len", "max_num_seqs", "max_num_batched_tokens", "page_size", "num_pages")
        for name in (*least, "kv_cache_memory", "tensor_parallel_size", "all_reduce_chunks"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise HeadstartError(f"{name} must be a whole number of at least 1, not {value!r}")
        if self.kv_tier is not None:
            TierSpec.parse(self.kv_tier)
            if not self.enable_prefix_caching:
                raise HeadstartError("--kv-tier keeps what prefix caching has cached, and that is switched off")
            if self.tensor_parallel_size > 1 and TierSpec.parse(self.kv_tier).disk is not None:
                # When a page is on disk depends on its writer's pace, and every rank must find the same.
                raise HeadstartError(
                    "--kv-tier takes no disk with several ranks: use cpu=SIZE, which each of them takes"
                )
        if self.swap_space is not None and (isinstance(self.swap_space, bool) or self.swap_space < 0):
            raise HeadstartError(f"swap_space must be a number of bytes of at least 0, not {self.swap_space!r}")
        if self.page_size is not None and self.page_size > _LARGEST_PAGE:
            raise HeadstartError(f"page_size must be at most {_LARGEST_PAGE} tokens, not {self.page_size}")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0:
            raise HeadstartError(f"seed must be a whole number of at least 0, not {self.seed!r}")
        line_of(self.scheduling_policy)
        if self.quantization is not None and self.quantization not in QUANTIZATIONS:
            raise HeadstartError(f"quantization must be {' or '.join(QUANTIZATIONS)}, not {self.quantization!r}")
        if self.kv_cache_dtype not in ("auto", *_KV_DTYPES):
            names = ", ".join(("auto", *_KV_DTYPES))
            raise HeadstartError(f"kv_cache_dtype must be one of {names}, not {self.kv_cache_dtype!r}")
        if self.load_format not in ("auto", "dummy"):
            raise HeadstartError(f"load_format must be auto or dummy, not {self.load_format!r}")
        if self.device == "auto":
            self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self._check_device()

    def _check_device(self) -> None:
        """Refuse what is no device, or none of this machine."""
        try:
            device = torch.device(self.device)
        except RuntimeError:
            device = torch.device("meta")
        present = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if device.type != "cpu" and not (device.type == "cuda" and (device.index or 0) < present):
            here = "'cpu'" if present == 0 else f"'cpu' and 'cuda:0' to 'cuda:{present - 1}'"
            raise HeadstartError(f"there is no device {self.device!r} to run on; here are {here}")
        if device.type == "cuda" and (device.index or 0) + self.tensor_parallel_size > present:
            raise HeadstartError(
                f"tensor_parallel_size {self.tensor_parallel_size} needs as many GPUs, {self.device!r} the first of "
                f"them, but this machine has {present}: use fewer"
            )

    def kv_dtype(self, run_dtype: torch.dtype) -> torch.dtype:
        """The dtype of cached keys and values in a run of this dtype."""
        return _KV_DTYPES.get(self.kv_cache_dtype, run_dtype)

    def lossy_settings(self, run_dtype: torch.dtype) -> list[str]:
        """Those that change the distribution of a model that runs in this dtype, in words."""
        found = [] if self.quantization is None else [f"quantization={self.quantization}"]
        kept = self.kv_dtype(run_dtype)
        if kept not in (run_dtype, torch.float32):
            found.append(f"kv_cache_dtype={self.kv_cache_dtype}")
        return found

    @property
    def swap_bytes(self) -> int:
        """Bytes of the host's memory that keys of preempted sequences may take."""
        if self.swap_space is not None:
            return self.swap_space
        return min(_SWAP_BYTES, int(psutil.virtual_memory().available * _SWAP_SHARE))

    @property
    def step_tokens(self) -> int:
        """The token budget of a step."""
        return self.max_num_batched_tokens or _STEP_TOKENS[torch.device(self.device).type]

    @property
    def tokens_per_page(self) -> int:
        """Tokens per KV cache page."""
        return self.page_size or _PAGE_SIZE[torch.device(self.device).type]

    def cache_size(
        self, layers: list[LayerKV], config: ModelConfig, step_bytes: int = 0, most: int | None = None
    ) -> tuple[int, int]:
        """Pages in the cache and the longest sequence, so that one such sequence always fits.

        Args:
            layers: what each layer keeps per token.
            config: the model's.
            step_bytes: bytes of a GPU that stay free for the largest step.
            most: tokens that can be asked for, if not what the model says itself.

        Raises:
            HeadstartError: the asked-for length exceeds the model's or the cache's; the sentence has the numbers.
        """
        asked, most = self.max_model_len, most or config.max_extended_position
        if asked is not None and asked > most:
            raise HeadstartError(
                f"max_model_len ({asked}) is beyond the {most} positions that the model can tell apart; ask for less"
            )
        length = asked or config.max_position
        here = [layer for layer in layers if not layer.on_host or self.device == "cpu"]
        each, spare = self._kept_pages(layers, length)
        twin_bytes = sum(layer.bounded_bytes for layer in here) * self.tokens_per_page
        page_bytes = sum(layer.token_bytes for layer in here) * self.tokens_per_page
        page_bytes += -(-twin_bytes * each // -(-length // self.tokens_per_page))
        memory = 0 if self.num_pages else self._memory(page_bytes, length, step_bytes) - (spare + 1) * twin_bytes
        pages = self.num_pages or max(1, memory // page_bytes)
        self._refuse_beyond_memory(pages, page_bytes, step_bytes)
        self._refuse_beyond_host(
            pages * self.tokens_per_page, sum(layer.token_bytes for layer in layers if layer.on_host)
        )
        holds = pages * self.tokens_per_page
        if asked is not None and holds < asked:
            raise HeadstartError(
                f"the KV cache holds {holds} tokens ({pages} pages of {self.tokens_per_page}, {pages * page_bytes:,} "
                f"bytes), fewer than max_model_len ({asked}); lower max_model_len or give the cache more memory"
            )
        return pages, min(length, holds)

    def bounded_pages(self, layers: list[LayerKV], num_pages: int, length: int) -> tuple[int, int | None]:
        """Pages for the heads that keep only what is seen, beside `num_pages` for the others, and the tokens that one
        sequence may then write in a step; 0 and None where there are no such heads.

        They suffice for as many of the longest sequences as the others do, and for the chunk of a step.
        """
        each, spare = self._kept_pages(layers, length)
        wanted = -(-num_pages * each // -(-length // self.tokens_per_page)) + spare
        if not each or wanted >= num_pages:
            return num_pages if each else 0, None
        return wanted, (spare - 2) * self.tokens_per_page

    def _kept_pages(self, layers: list[LayerKV], length: int) -> tuple[int, int]:
        """Pages that a bounded head keeps of one sequence, and those of a step's chunk."""
        reach = next((layer.reach for layer in layers if layer.reach is not None), None)
        if reach is None:
            return 0, 0
        most = reach.most_pages(length, self.tokens_per_page)
        return most, -(-self.step_tokens // self.tokens_per_page) + 2

    def _refuse_beyond_host(self, tokens: int, token_bytes: int) -> None:
        """Layers on the host that its memory cannot hold."""
        wanted, has = tokens * token_bytes, psutil.virtual_memory().available
        if wanted > has:
            raise HeadstartError(
                f"the layers whose cache lies on the host take {wanted:,} bytes for {tokens} tokens, and {has:,} are "
                f"available, enough for {has // token_bytes} tokens; set num_pages or kv_cache_memory lower, or leave "
                "more layers on the device"
            )

    def _refuse_beyond_memory(self, pages: int, page_bytes: int, step_bytes: int) -> None:
        """A cache that the machine cannot hold."""
        wanted = pages * page_bytes
        here = torch.device(self.device)
        has = psutil.virtual_memory().total if here.type == "cpu" else torch.cuda.mem_get_info(here)[0] - step_bytes
        if wanted <= has:
            return
        cache = f"a KV cache of {pages} pages of {self.tokens_per_page} tokens takes {wanted:,} bytes"
        if here.type == "cpu":
            raise HeadstartError(f"{cache}, more than this machine has; lower num_pages, page_size or kv_cache_memory")
        fits = max(0, has // page_bytes * self.tokens_per_page)
        raise HeadstartError(
            f"{cache}, but beside the weights and the largest step {self.device} has {max(0, has):,} free, enough for "
            f"{fits} tokens; lower max_model_len, max_num_batched_tokens or dtype, or give it more GPUs"
        )

    def _memory(self, page_bytes: int, length: int, step_bytes: int) -> int:
        """Bytes for the cache."""
        if self.kv_cache_memory is not None:
            return self.kv_cache_memory
        wanted = self.max_num_seqs * -(-length // self.tokens_per_page) * page_bytes
        if torch.device(self.device).type == "cuda":
            free, total = torch.cuda.mem_get_info(self.device)
            return min(wanted, int(free - total * (1 - self.gpu_memory_utilization)) - step_bytes)
        return min(wanted, int(psutil.virtual_memory().available * _CPU_CACHE_SHARE / self.tensor_parallel_size))
