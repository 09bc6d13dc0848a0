"""The engine: requests in, one step at a time, outputs out. Everything else in this folder is one of its parts."""

import time
from collections import Counter
from collections.abc import Sequence as Seq
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from headstart.checkpoints.reader import Checkpoint, load_checkpoint, refuse_without_method
from headstart.checkpoints.token_texts import TokenTexts
from headstart.engine.answers import Answers
from headstart.engine.args import EngineArgs
from headstart.engine.batch import Allotment, TokenBatch
from headstart.engine.draws import Draws
from headstart.engine.flight import Drawn, StepInFlight
from headstart.engine.group import Group
from headstart.engine.intake import Prompt
from headstart.engine.memory import step_bytes
from headstart.engine.outputs import Logprob, RequestOutput
from headstart.engine.params import SamplingParams
from headstart.engine.planner import StepPlanner
from headstart.engine.preparation import Preparation
from headstart.engine.report import render
from headstart.engine.request import Request, Sequence
from headstart.engine.rows import HiddenRows
from headstart.engine.runner import Runner, by_prefill
from headstart.engine.sampler import Sampled, Sampler
from headstart.engine.seams import KVLayout, KVStore, LinearOp, Piece, Verifier
from headstart.engine.speculation import Speculation
from headstart.engine.stack import Stack
from headstart.engine.stacks import Stacks
from headstart.engine.stats import EngineStats
from headstart.engine.swap import Swap
from headstart.engine.tiered import add_tiers
from headstart.engine.waiting import line_of
from headstart.engine.watch import Watch
from headstart.errors import HeadstartError, InvalidRequestError, MethodError
from headstart.models.decoder import Decoder
from headstart.models.layers import Linear
from headstart.ops.linear import widening_pays_from

# Keeps the draws of a request's several outputs apart; the odd constant of splitmix64.
_SEED_STRIDE = 0x9E3779B97F4A7C15


class Engine:
    """A model that serves requests. Not for several threads at once: `AsyncEngine` and `LLM` drive it.

    Args:
        args: the settings.
        checkpoint: a model that is already loaded; default: the one that `args` names.
        group: the other ranks' engines; default: this one has the whole model. `start_engine` makes what `args` ask.

    Raises:
        HeadstartError: a checkpoint, method or setting that cannot be used, in one sentence.
    """

    def __init__(self, args: EngineArgs, checkpoint: Checkpoint | None = None, group: Group | None = None) -> None:
        self.args = args
        self.group = group or Group()
        ranks = self.group.ranks
        if ranks.size != args.tensor_parallel_size:
            raise HeadstartError("an engine of several ranks is made by start_engine, which starts the others")
        self.stack = Stack(args.use, ranks.size)
        if args.quantization is not None and (linear := self.stack.optional("linear", LinearOp)) is not None:
            raise MethodError(
                f"{linear.card.key} decides how weights are applied, as quantization does: use one of them"  # type: ignore[attr-defined]
            )
        keys = [item.card.key for item in self.stack.methods]
        self.checkpoint = checkpoint or load_checkpoint(
            args.model,
            args.dtype,
            args.device,
            skip_tokenizer_init=args.skip_tokenizer_init,
            methods=keys,
            load_format=args.load_format,
            ranks=ranks,
        )
        refuse_without_method(self.checkpoint.config.raw, self.checkpoint.name, keys)
        if checkpoint is not None and (args.quantization or self.stack.filled("linear")):
            # The caller's model stays as it is: only a copy of its modules, around the same weights, is taken over.
            self.checkpoint = replace(checkpoint, decoder=checkpoint.decoder.with_same_weights())
        decoder = self.checkpoint.decoder
        self.tokenizer = self.checkpoint.tokenizer
        self.vocab_size = self.checkpoint.config.vocab_size
        self.eos_ids = self.checkpoint.generation_config.eos_token_ids
        device = torch.device(args.device)
        self.stack.start(self.checkpoint, args.lossy_settings(decoder.dtype))
        kept = args.kv_dtype(decoder.dtype)
        windowed = any(spec.window for spec in decoder.attention_specs)
        self.stacks = Stacks(self.stack, windowed, kept != decoder.dtype, ranks.rank)
        if args.quantization is not None:
            decoder.quantize(args.quantization)
        self._speculation = Speculation.of(self.stack, self.group)
        drafter = None if self._speculation is None else self._speculation.drafter
        layers = self.stack.get("kv_layout", KVLayout).layers(decoder.attention_specs, kept)
        sized = layers if drafter is None else [*layers, *drafter.layers()]
        config = self.checkpoint.config
        most = max((item.longest(config) for item in self.stack.methods), default=config.max_extended_position)
        longest = min(args.max_model_len or config.max_position, most)
        taken = step_bytes(decoder, args.step_tokens, args.max_num_seqs, longest)
        num_pages, self.max_model_len = ranks.least(*args.cache_size(sized, config, taken, most), device=device)
        if drafter is not None:
            drafter.allocate(num_pages, args.tokens_per_page, self.max_model_len)
        store = self.stack.get("kv_store", KVStore)
        store.num_twins, store.most_written = args.bounded_pages(layers, num_pages, self.max_model_len)
        self.store = store.allocate(layers, num_pages, args.tokens_per_page, device)
        if args.kv_tier is not None:
            layout: Any = self.stack.get("kv_layout", KVLayout)
            if not layout.movable:
                raise MethodError(
                    f"{layout.card.key} keeps a part of the keys only, which no --kv-tier can hold: leave it out"
                )
            add_tiers(self.store, args.kv_tier, decoder, layers, device)
        self._scheduler = self.stack.scheduler
        budget = args.max_num_batched_tokens or self._scheduler.step_tokens or args.step_tokens
        line = line_of(args.scheduling_policy)
        self._swap = Swap.of(args.swap_bytes, self.store, self.stack, ranks.size)
        self.planner = StepPlanner(self.store, args.max_num_seqs, budget, line, self._swap)
        if self._speculation is not None:
            self.planner.guesses = self._speculation.plan
        self.runner = Runner(decoder, self.store, self.stack, device)
        texts = None if self.tokenizer is None else TokenTexts(self.tokenizer)
        self.sampler = Sampler(
            self.eos_ids,
            (lambda token: "") if texts is None else texts.text,
            self.stack.get("verifier", Verifier),
            ranks,
        )
        self.requests: dict[str, Request] = {}
        # Requests whose tokens could not be taken, where somebody ends them; otherwise the step raises.
        self.failures: list[tuple[str, Exception]] | None = None
        self.watch = Watch(self.planner, self.store, self.requests, self.stack.methods)
        self.answers = Answers(
            self.requests, self.planner, self.sampler, self._speculation, self.store, self.watch, self.eos_ids
        )
        self._bind_weights(decoder)
        if device.type == "cpu" and decoder.dtype in (torch.bfloat16, torch.float16):
            widening_pays_from(decoder.dtype)  # measured now, not within somebody's first request
        self.preparation = Preparation(args, self.stacks, self.checkpoint, self.max_model_len)
        self._rows = HiddenRows(self.runner, self.sampler)
        self.draws = Draws(self.runner, self.sampler, self._speculation)
        self.runs_ahead = device.type == "cuda" if args.async_scheduling is None else args.async_scheduling
        self._in_flight: StepInFlight | None = None
        if not args.enforce_eager:
            self.runner.capture(args.max_num_seqs, self.max_model_len)
            if drafter is not None:
                drafter.capture(args.max_num_seqs, self.max_model_len)
        self._random = np.random.default_rng(args.seed)
        self._totals: Counter[str] = Counter()

    @property
    def exact(self) -> bool:
        """Whether the methods and settings in force leave the model's distribution unchanged, where a request brings no
        methods of its own."""
        return self.stack.exact

    @property
    def has_work(self) -> bool:
        """Whether any request is unfinished."""
        return bool(self.requests)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """A text's token ids, as the engine reads prompts. Safe to call from any thread."""
        return self.preparation.encode(text, add_special_tokens)

    def prepare(
        self,
        request_id: str,
        prompt: Prompt,
        params: SamplingParams,
        cache_salt: str | None = None,
        arrival_time: float | None = None,
        use: Seq[Any] | str | None = None,
    ) -> Request:
        """Turn a prompt into a request: tokenized, checked, its grammar compiled. Safe to call from any thread.

        Args:
            request_id: its name.
            prompt: text or token ids.
            params: how its tokens are chosen.
            cache_salt: requests share cached keys only with requests of the same salt.
            arrival_time: when it came, in seconds of `time.monotonic()` (default: now).
            use: methods of its own, instead of those of the engine that can be a request's own (`Stacks.of`).

        Raises:
            InvalidRequestError: an empty or too long prompt, unknown token ids, or parameters or methods that do not
                fit.
        """
        return self.preparation.request(request_id, prompt, params, cache_salt, arrival_time, use)

    def arrange(self, job: Seq[Piece]) -> list[int]:
        """Announce a job whose requests are all known: the order in which the scheduler wants them submitted."""
        self.group.tell("arrange", job)
        return self.stack.scheduler.arrange(job)

    def submit(self, request: Request) -> None:
        """Put a prepared request in the waiting line.

        Raises:
            InvalidRequestError: a request of this id is already here.
        """
        if request.request_id in self.requests:
            raise InvalidRequestError(f"a request {request.request_id!r} is already running", "request_id")
        self.group.tell("submit", request.bare())
        seed = request.params.seed
        seed = int(self._random.integers(2**63)) if seed is None else seed
        for sequence in request.sequences:
            sequence.seed = (seed + sequence.index * _SEED_STRIDE) % 2**64
        self.requests[request.request_id] = request
        if request.stack is not None:
            request.stack.holders += 1
        # The other outputs wait until the first has read the prompt, and then find its keys.
        self.planner.waiting.append(request.sequences[0])

    def take_over(self, sequence: Sequence, token: int, logprobs: dict[int, Logprob] | None) -> None:
        """Add a token that another engine has drawn for a sequence that does not run yet."""
        self.answers.append(sequence, Sampled(token, logprobs))

    def abort(self, request_id: str) -> RequestOutput | None:
        """End a request wherever it stands and free its pages; None if there is no such request."""
        request = self.requests.get(request_id)
        if request is None:
            return None
        self.group.tell("abort", request_id)
        for sequence in request.sequences:
            if not sequence.finished:
                self.answers.finish(sequence, "abort")
        self.answers.retire(request)
        return render(request)

    def step(self) -> list[RequestOutput]:
        """Run one step and return what it produced for the requests that want to hear of it.

        With `runs_ahead` the step after it is planned and started first, so that the device has work while the host
        reads what this one drew. Tokens that are not known yet take part in that by number only.
        """
        with self.group.together("step"):
            step, self._in_flight = self._in_flight, None
            step = step or self._launch()
            if step is None:
                return []
            if self.runs_ahead and step.drawn is not None:
                self._in_flight = self._launch(step.drawn)
            return self._take(step)

    def close(self) -> None:
        """End the other ranks' engines, if there are any; nothing can be run any more then."""
        self.group.close()

    def set_back(self) -> None:
        """Forget the step in flight and preempt everything that runs, so that nothing half-done is left."""
        self._in_flight = None
        self.planner.begin()
        for sequence in reversed(list(self.planner.running)):
            self.planner.preempt(sequence, sound=False)

    def _launch(self, before: Drawn | None = None) -> StepInFlight | None:
        """Plan a step and start it; None where there is nothing to do.

        Args:
            before: what the step before this one drew, while the host does not know it.
        """
        self.planner.begin()
        if self._speculation is not None:
            self._speculation.begin(len(self.planner.decoding))
        self._scheduler.schedule(self.planner)
        allotments = self.planner.allotments()
        if not allotments:
            return None
        if self._speculation is not None:
            allotments = self._speculation.extend(allotments)
        parts = by_prefill(allotments)
        allotments = [allotment for part in parts for allotment in part]
        self.group.confirm(allotments)
        self._note_start(allotments)
        planned = self.watch.planned(allotments)
        hidden = self._run(parts, None if before is None else before.tokens)
        if self._speculation is not None:
            allotments = self._speculation.add_late(allotments)
        due, hidden = self._rows.collect(allotments, hidden)
        step = StepInFlight(allotments, planned, due, hidden)
        for allotment in allotments:
            allotment.sequence.num_computed += allotment.num_tokens
        # What looks at every token before the next can be drawn makes each step wait for the last.
        if self._speculation is None and all(
            a.sequence.draws_blindly and not a.sequence.stack.looks_on for a in allotments
        ):
            step.drawn = self._draw_ahead(due, hidden)
        self._totals["steps"] += 1
        return step

    def _run(self, parts: list[list[Allotment]], drawn: Tensor | None) -> Tensor:
        """`[N, hidden]`, the wanted rows of a step's parts in their order; only one of them can be a captured one."""
        device, size = self.runner.device, self.store.page_size
        rows = [self.runner.run(TokenBatch.build(part, size, device, drawn)) for part in parts]
        return rows[0] if len(rows) == 1 else torch.cat(rows)

    @torch.inference_mode()
    def _draw_ahead(self, due: list[Allotment], hidden: Tensor) -> Drawn:
        """Draw on the device what is due, without looking at it."""
        sequences = [allotment.sequence for allotment in due]
        none = torch.empty(0, dtype=torch.int64, device=hidden.device)
        drawn = Drawn(self.sampler.draw(self.runner.logits(hidden), sequences) if due else none)
        for row, sequence in enumerate(sequences):
            sequence.num_ahead, sequence.draw_row = sequence.num_ahead + 1, row
        return drawn

    def _take(self, step: StepInFlight) -> list[RequestOutput]:
        """Read what a step has drawn, and end what ends with it."""
        touched: dict[str, Request] = {}
        allotments = step.standing()
        for allotment in allotments:
            sequence = allotment.sequence
            assert sequence.lease is not None
            sequence.lease.commit(sequence.tokens, sequence.stack.num_shareable(sequence))
            sequence.lease.advance(sequence.num_computed)
            if sequence.request.pooler is not None and not sequence.num_uncomputed:
                self.answers.finish(sequence, "stop")
                touched[sequence.request.request_id] = sequence.request
        said = self.answers.num_tokens
        for sequence, drawn in self.draws.read(step):
            try:
                self.answers.append(sequence, drawn)
            except Exception as error:
                if self.failures is None:
                    raise
                self.failures.append((sequence.request.request_id, error))
                continue
            touched[sequence.request.request_id] = sequence.request
        for allotment in allotments:
            self._drop_keys(allotment.sequence)
        if self._speculation is not None:
            self._speculation.end(self.answers.num_tokens - said)
        self.watch.ran(step.planned)
        if self._swap is not None and step.planned.prefill > step.planned.decode:
            self._swap.read(step.planned.prefill, self.watch.last_seconds)
        return [output for request in touched.values() if (output := self.answers.report(request)) is not None]

    def stats(self) -> EngineStats:
        """The counters now."""
        return EngineStats(
            num_running=len(self.planner.running),
            num_waiting=len(self.planner.waiting),
            pages_total=self.store.num_pages,
            pages_free=self.store.num_free,
            pages_cached=self.store.num_cached,
            prompt_tokens=self._totals["prompt"],
            generation_tokens=self.answers.num_tokens,
            queried_tokens=self._totals["queried"],
            cached_tokens=self._totals["cached"],
            preemptions=self.planner.num_preemptions,
            swaps=0 if self._swap is None else self._swap.count,
            steps=self._totals["steps"],
            finished=dict(self.answers.finished),
            drafts={} if self._speculation is None else dict(self._speculation.counts),
            methods=self.stacks.counters(),
            prefill_tokens=self.watch.prefill_tokens,
            decode_tokens=self.watch.decode_tokens,
            step_seconds=self.watch.step_seconds,
            step_sizes=list(self.watch.step_sizes),
            tier_pages_out=self.store.tier_traffic[0],
            tier_pages_in=self.store.tier_traffic[1],
        )

    def _bind_weights(self, decoder: Decoder) -> None:
        """Let a `LinearOp` take over the dense weights."""
        linear = self.stack.optional("linear", LinearOp)
        for name, module in decoder.named_modules() if linear is not None else ():
            if linear is not None and isinstance(module, Linear):
                module.op = linear.bind(name, module)

    def _drop_keys(self, sequence: Sequence) -> None:
        """Let a `Retention` free what it does not want kept."""
        retention = sequence.stack.retention
        if retention is None or sequence.lease is None:
            return
        kept = retention.retain(sequence, self.store)
        if kept is not None and len(kept) < sequence.kv_length and sequence.lease.keep(kept):
            sequence.num_dropped = sequence.num_computed - len(kept)

    def _note_start(self, allotments: list[Allotment]) -> None:
        """First-scheduled times, and what the prefix cache gave."""
        now = time.monotonic()
        for allotment in allotments:
            sequence, request = allotment.sequence, allotment.sequence.request
            if request.metrics.first_scheduled_time is None and sequence.lease is not None:
                request.metrics.first_scheduled_time = now
                request.num_cached = min(sequence.lease.num_cached, sequence.num_prompt)
                self._totals["queried"] += sequence.num_prompt
                self._totals["cached"] += request.num_cached
                self._totals["prompt"] += sequence.num_prompt
