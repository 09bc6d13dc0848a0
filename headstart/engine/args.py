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

# A CPU is slow enough that a chunk of 2,048 tokens would hold up running answers for seconds.
_STEP_TOKENS = {"cpu": 512, "cuda": 2048}
_CPU_CACHE_SHARE = 0.25
_LARGEST_PAGE = 4096


@dataclass
class EngineArgs:
    """How to run a model.

    Args:
        model: a Hugging Face directory or hub id; None is the checkpoint that comes with the package.
        dtype: "auto" (the checkpoint's), "float32", "bfloat16" or "float16".
        device: "auto" takes a CUDA device if there is one.
        max_model_len: longest prompt plus output, in tokens (default: the model's own, or what the cache holds).
        max_num_seqs: at most this many sequences run at once.
        max_num_batched_tokens: tokens per step (default: 512 on a CPU, 2,048 on a GPU).
        enable_prefix_caching: keep keys of finished and running prompts for later prompts that begin alike.
        page_size: tokens per KV cache page.
        num_pages: pages in the cache (default: from `kv_cache_memory`).
        kv_cache_memory: bytes for the cache (default: what `max_num_seqs` full sequences need, but at most a
            quarter of free memory on a CPU, and `gpu_memory_utilization` of the device on a GPU).
        kv_tier: where cached keys go when their pages are wanted, as `cpu=2GB,disk=PATH:10GB` (default: nowhere).
        gpu_memory_utilization: share of a GPU's memory that weights and cache may take together.
        seed: of the draws of requests that bring no seed of their own.
        scheduling_policy: who is started first: "fcfs" in order of arrival, "priority" by `SamplingParams.priority`,
            "fair" whose tenant was served least, "cache-aware" who finds most of its prompt in the cache.
        use: methods, as keys with options (`"sarathi-serve:chunk=512"`) or as instances.
        skip_tokenizer_init: run without a tokenizer; prompts are then token ids and outputs have no text.
    """

    model: str | None = None
    dtype: str | torch.dtype = "auto"
    device: str = "auto"
    max_model_len: int | None = None
    max_num_seqs: int = 128
    max_num_batched_tokens: int | None = None
    enable_prefix_caching: bool = True
    page_size: int = 16
    num_pages: int | None = None
    kv_cache_memory: int | None = None
    kv_tier: str | None = None
    gpu_memory_utilization: float = 0.9
    seed: int = 0
    scheduling_policy: str = "fcfs"
    use: Sequence[Any] = ()
    skip_tokenizer_init: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.use, str) or not isinstance(self.use, Sequence):
            self.use = [self.use]
        least = ("max_model_len", "max_num_seqs", "max_num_batched_tokens", "page_size", "num_pages")
        for name in (*least, "kv_cache_memory"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise HeadstartError(f"{name} must be a whole number of at least 1, not {value!r}")
        if self.kv_tier is not None:
            TierSpec.parse(self.kv_tier)
            if not self.enable_prefix_caching:
                raise HeadstartError("--kv-tier keeps what prefix caching has cached, and that is switched off")
        if self.page_size > _LARGEST_PAGE:
            raise HeadstartError(f"page_size must be at most {_LARGEST_PAGE} tokens, not {self.page_size}")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0:
            raise HeadstartError(f"seed must be a whole number of at least 0, not {self.seed!r}")
        line_of(self.scheduling_policy)
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

    @property
    def step_tokens(self) -> int:
        """The token budget of a step."""
        return self.max_num_batched_tokens or _STEP_TOKENS.get(torch.device(self.device).type, 2048)

    def cache_size(self, layers: list[LayerKV], config: ModelConfig) -> tuple[int, int]:
        """Pages in the cache and the longest sequence, so that one such sequence always fits.

        Raises:
            HeadstartError: the asked-for length exceeds the model's or the cache's; the sentence has the numbers.
        """
        asked, most = self.max_model_len, config.max_extended_position
        if asked is not None and asked > most:
            raise HeadstartError(
                f"max_model_len ({asked}) is beyond the {most} positions that the model can tell apart; ask for less"
            )
        length = asked or config.max_position
        token_bytes = sum(
            2 * layer.num_kv_heads * layer.head_dim * layer.dtype.itemsize for layer in layers if layer.alias_of is None
        )
        page_bytes = token_bytes * self.page_size
        pages = self.num_pages or max(1, self._memory(page_bytes, length) // page_bytes)
        self._refuse_beyond_memory(pages, page_bytes)
        holds = pages * self.page_size
        if asked is not None and holds < asked:
            raise HeadstartError(
                f"the KV cache holds {holds} tokens ({pages} pages of {self.page_size}, {pages * page_bytes:,} bytes), "
                f"fewer than max_model_len ({asked}); lower max_model_len or give the cache more memory"
            )
        return pages, min(length, holds)

    def _refuse_beyond_memory(self, pages: int, page_bytes: int) -> None:
        """A cache that a user asked for and the machine cannot hold."""
        wanted = pages * page_bytes
        if torch.device(self.device).type == "cpu" and wanted > psutil.virtual_memory().total:
            raise HeadstartError(
                f"a KV cache of {pages} pages of {self.page_size} tokens takes {wanted:,} bytes, more than this "
                "machine has; lower num_pages, page_size or kv_cache_memory"
            )

    def _memory(self, page_bytes: int, length: int) -> int:
        """Bytes for the cache."""
        if self.kv_cache_memory is not None:
            return self.kv_cache_memory
        wanted = self.max_num_seqs * -(-length // self.page_size) * page_bytes
        if torch.device(self.device).type == "cuda":
            free, total = torch.cuda.mem_get_info(self.device)
            return min(wanted, max(page_bytes, int(free - total * (1 - self.gpu_memory_utilization))))
        return min(wanted, int(psutil.virtual_memory().available * _CPU_CACHE_SHARE))
