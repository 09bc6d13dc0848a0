"""The sides of a benchmark: this engine and its peers, each behind the same measurements."""

import pkgutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Any, Protocol

import torch

from headstart.errors import HeadstartError, did_you_mean


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
        device: "cpu", "cuda" or "cuda:N".
        tokenizer: load the checkpoint's tokenizer too, which quality tasks need.
        dummy: the checkpoint is only a config; the side draws random weights on the device.
    """

    side: str
    dtype: str
    checkpoint: str
    threads: int
    max_length: int
    max_concurrent_length: int
    max_sequences: int
    engine_options: dict[str, Any]
    device: str = "cpu"
    tokenizer: bool = False
    dummy: bool = False

    def to_json(self) -> dict[str, Any]:
        """A dict that JSON can hold and `SideSettings(**it)` reads."""
        return asdict(self)


@dataclass(frozen=True)
class Measured:
    """One measurement: seconds (tokens per second for decode), and the greedy token ids per request."""

    value: float
    token_ids: list[list[int]]


@dataclass(frozen=True)
class Answer:
    """One request that runs alone, with an empty cache.

    Attributes:
        ttft: seconds from the request to its first token.
        decode_rate: tokens per second after the first.
        token_ids: the greedy output.
        kv_bytes: bytes of keys and values held at most; None where a side does not tell.
        kept: share of the prompt's keys that were still held when it had been read; None as above.
        device_peak: highest number of bytes of the accelerator's allocator; None on a CPU.
    """

    ttft: float
    decode_rate: float
    token_ids: list[int]
    kv_bytes: int | None = None
    kept: float | None = None
    device_peak: int | None = None


class Side(Protocol):
    """One implementation with the model loaded; all generation is greedy and ignores end of sequence."""

    def versions(self) -> dict[str, str]:
        """Package names to versions."""
        ...

    def prefill(self, prompt: list[int]) -> Measured:
        """Seconds from the request to its first token, with an empty cache."""
        ...

    def decode(self, prompts: list[list[int]], tokens: int) -> Measured:
        """Tokens per second of each sequence, over `tokens` tokens that all write once all prompts are read."""
        ...

    def answer(self, prompt: list[int], tokens: int) -> Answer:
        """Both at once, and the memory: a prompt and `tokens` tokens that follow the first output token."""
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


@contextmanager
def device_peak(device: str) -> Iterator[list[int]]:
    """Fills the list with the highest number of bytes that the allocator held within the block; empty on a CPU."""
    found: list[int] = []
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    yield found
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        found.append(torch.cuda.max_memory_allocated(device))


class HeadstartSide:
    """This engine through its offline API."""

    def __init__(self, settings: SideSettings) -> None:
        from headstart import LLM

        self.device = settings.device
        self.llm = LLM(
            settings.checkpoint,
            dtype=settings.dtype,
            device=settings.device,
            skip_tokenizer_init=not settings.tokenizer,
            max_model_len=settings.max_length,
            max_num_seqs=settings.max_sequences,
            seed=0,
            load_format="dummy" if settings.dummy else "auto",
            **{"enable_prefix_caching": False, **settings.engine_options},
        )

    def versions(self) -> dict[str, str]:
        import headstart

        return {"headstart": headstart.__version__, "torch": torch.__version__}

    def _generate(self, prompts: list[list[int]], tokens: int, logprobs: int | None = None) -> list[Any]:
        params = _greedy_params(tokens, logprobs)
        return self.llm.generate([{"prompt_token_ids": p} for p in prompts], params, use_tqdm=False)

    def prefill(self, prompt: list[int]) -> Measured:
        return self.concurrent([prompt], 1)

    def decode(self, prompts: list[list[int]], tokens: int) -> Measured:
        """Steps the engine itself, so as to know when all write."""
        engine = self.llm.engine
        # Those that are read first write meanwhile, at most a token per step.
        params = _greedy_params(2 * tokens + len(prompts))
        requests = [engine.prepare(f"decode-{i}", prompt, params) for i, prompt in enumerate(prompts)]
        for request in requests:
            engine.submit(request)
        sequences = [request.sequences[0] for request in requests]
        while not all(sequence.num_output for sequence in sequences):
            engine.step()
        written, start = sequences[-1].num_output, time.perf_counter()
        while sequences[-1].num_output < written + tokens:
            engine.step()
        seconds = time.perf_counter() - start
        found = [sequence.output_ids for sequence in sequences]
        for request in requests:
            engine.abort(request.request_id)
        return Measured(tokens / seconds, found)

    def answer(self, prompt: list[int], tokens: int) -> Answer:
        """Steps the engine itself, so as to look at the cache between the steps."""
        engine, store = self.llm.engine, self.llm.engine.store
        with device_peak(self.device) as peak:
            start = time.perf_counter()
            request = engine.prepare("answer", prompt, _greedy_params(tokens + 1))
            engine.submit(request)
            (sequence,) = request.sequences
            first, begun, kept, held = 0.0, 0, 1.0, 0
            while engine.has_work:
                engine.step()
                held = max(held, getattr(store, "bytes_held", 0))
                if not first and sequence.num_output:
                    first, begun = time.perf_counter(), sequence.num_output
                    kept = sequence.kv_length / max(1, sequence.num_computed)
            end = time.perf_counter()
        rate = (sequence.num_output - begun) / (end - first)
        return Answer(first - start, rate, sequence.output_ids, held, kept, *peak)

    def concurrent(self, prompts: list[list[int]], tokens: int) -> Measured:
        start = time.perf_counter()
        outputs = self._generate(prompts, tokens)
        seconds = time.perf_counter() - start
        return Measured(seconds, [o.outputs[0].token_ids for o in outputs])

    def serial(self, prompts: list[list[int]], tokens: int) -> Measured:
        return one_by_one(self, prompts, tokens)

    def next_token(self, prompt: list[int]) -> tuple[int, float]:
        (output,) = self._generate([prompt], 1, logprobs=1)
        completion = output.outputs[0]
        token = completion.token_ids[0]
        return token, completion.logprobs[0][token].logprob

    def attended(self, prompt: list[int]) -> float | None:
        """Share of the causal query-key pairs of a prompt that its selector looks at; None without a selector."""
        from headstart.evaluation.method_bench_observe import attended_share

        return attended_share(self.llm.engine, prompt)

    def divergence(self, prompt: list[int], continuation: list[int]) -> dict[str, float]:
        """How far the methods in force move the next-token distributions, in nats and percent of the tokens."""
        from headstart.evaluation.quality_divergence import divergence, exact_twin, forced_logits

        exact = forced_logits(exact_twin(self.llm.engine), prompt, continuation)
        found = divergence(exact, forced_logits(self.llm.engine, prompt, continuation))
        return {"kl": found.mean_kl, "top1": found.top1, "first_kl": found.kl[0], "max_kl": max(found.kl)}

    def shelve(self, settings: dict[str, Any]) -> None:
        """Read documents that questions will be about, as `headstart.evaluation.reuse_bench` says."""
        from headstart.evaluation.reuse_bench import Recall

        self._recall = Recall(self.llm, settings)

    def recall(self, indices: list[int]) -> dict[str, Any]:
        """Answer questions about them."""
        return self._recall.ask(indices)

    def scores(self, settings: dict[str, Any]) -> list[dict[str, Any]]:
        """Quality tasks, as `QualitySettings` takes them, answered by this engine."""
        from headstart.evaluation.compare_quality import score_tasks

        return score_tasks(self.llm, settings)


def _greedy_params(tokens: int, logprobs: int | None = None) -> Any:
    from headstart import SamplingParams

    return SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True, detokenize=False, logprobs=logprobs)


def one_by_one(side: Side, prompts: list[list[int]], tokens: int) -> Measured:
    """Seconds for all prompts, each alone and after the one before it."""
    start = time.perf_counter()
    found = [side.concurrent([prompt], tokens).token_ids[0] for prompt in prompts]
    return Measured(time.perf_counter() - start, found)


SIDES = {
    "headstart": "headstart.evaluation.sides:HeadstartSide",
    "transformers": "headstart.evaluation.compare_peers:TransformersSide",
    "llama.cpp": "headstart.evaluation.compare_peers:LlamaCppSide",
}
"""Every side with where its class stands, which is imported in the process that runs it."""

PEERS_INSTALL = "pip install -e '.[peers]'"
_PACKAGES = {"transformers": ["transformers"], "llama.cpp": ["llama_cpp", "gguf"]}


def load_side(settings: SideSettings) -> Side:
    """Load the model into the side that the settings name.

    Raises:
        BenchmarkError: there is no such side.
    """
    if settings.side not in SIDES:
        raise BenchmarkError(f"unknown side {settings.side!r}{did_you_mean(settings.side, SIDES)}")
    return pkgutil.resolve_name(SIDES[settings.side])(settings)


def missing_packages(side: str) -> list[str]:
    """The modules that a side needs and that are not installed."""
    return [name for name in _PACKAGES.get(side, []) if find_spec(name) is None]
