"""From logits to the next token of each sequence: penalties, filters, draws, log-probabilities.

A draw depends on the sequence's seed and its output position alone, so the same request gives the same tokens
whoever shares the batch.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from headstart.engine.grammar import allowed_bitmask, apply_bitmask_
from headstart.engine.outputs import Logprob
from headstart.engine.params import SamplingParams
from headstart.engine.request import Sequence
from headstart.engine.seams import Draft, RejectionSampling, Verifier
from headstart.models.parallel import ALONE, Ranks
from headstart.ops.sampling import HOTTEST, draw, filtered, tempered, uniforms
from headstart.ops.staging import to_device

# No vocabulary has more tokens.
_LARGEST_TOP_K = 2**31 - 1


@dataclass(frozen=True)
class Sampled:
    """One drawn token, with its log-probability entries if the request wants them."""

    token_id: int
    logprobs: dict[int, Logprob] | None


@dataclass(frozen=True)
class Guess:
    """What a draft says of one position.

    Attributes:
        token: the guess.
        probabilities: `[V]`, from what it was drawn; None if it was certain.
        number: of the draft, among those made for the sequence.
    """

    token: int
    probabilities: Tensor | None
    number: int

    @classmethod
    def of(cls, draft: Draft, place: int, number: int) -> "Guess | None":
        """The guess at a place of a draft; None behind its end."""
        if place >= len(draft.tokens):
            return None
        return cls(draft.tokens[place], None if draft.probabilities is None else draft.probabilities[place], number)


class Sampler:
    """Draws one token per row.

    Args:
        eos_ids: the model's end-of-sequence tokens, which `min_tokens` forbids.
        decode: turns one id into text, for log-probability entries.
        verifier: decides where a token was guessed.
        ranks: all take what rank 0 draws, so that no rounding can set them apart.
    """

    def __init__(
        self,
        eos_ids: list[int],
        decode: Callable[[int], str],
        verifier: Verifier | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        self.eos_ids = eos_ids
        self.decode = decode
        self.verifier = verifier or RejectionSampling()
        self._ranks = ranks
        self._seen: dict[Sequence, _SeenTokens] = {}

    def sample(
        self, logits: Tensor, sequences: list[Sequence], guesses: list["Guess | None"] | None = None
    ) -> list[Sampled]:
        """`logits [N, V]` float32, one row per sequence → N drawn tokens. May write into `logits`.

        Where a token was guessed, the verifier decides whether it stands, and what is drawn otherwise; a greedy
        sequence takes the likeliest token whatever was guessed.
        """
        wants = [s.logprob_count for s in sequences]
        noted = [row for row, want in enumerate(wants) if want is not None]
        raw = dict(zip(noted, torch.log_softmax(logits[noted], -1).split(1), strict=True)) if noted else {}
        logits = self._restrict(logits, sequences)
        nothing: list[Guess | None] = [None] * len(sequences)
        tokens: list[int] = self.verify(logits, sequences, [0] * len(sequences), guesses or nothing).tolist()
        return [
            Sampled(token, None if want is None else self.entries(raw[row], [token], want)[0])
            for row, (token, want) in enumerate(zip(tokens, wants, strict=True))
        ]

    def draw(self, logits: Tensor, sequences: list[Sequence], offsets: list[int] | None = None) -> Tensor:
        """`logits [N, V]` float32 → int64 `[N]`, drawn from them as they are; the host does not wait for it.

        A row may be that of a later position: `offsets` says by how much.
        """
        return self._ranks.first_(_drawn(logits, sequences, offsets or [0] * len(sequences)))

    def verify(
        self, logits: Tensor, sequences: list[Sequence], offsets: list[int], guesses: list["Guess | None"]
    ) -> Tensor:
        """`logits [N, V]` float32 → int64 `[N]`, taken as they are: what each row says if all guesses before it stand.

        Args:
            logits: rows of any positions of any sequences.
            sequences: whose they are; one may have several rows.
            offsets: how far each row's position lies behind the one that its sequence draws next.
            guesses: what was guessed there, if anything.
        """
        guessed = [i for i, s in enumerate(sequences) if guesses[i] is not None and not s.params.greedy]
        if not guessed:
            return self.draw(logits, sequences, offsets)
        taken = set(guessed)
        drawn = torch.empty(len(sequences), dtype=torch.int64, device=logits.device)
        for chosen in (guessed, [i for i in range(len(sequences)) if i not in taken]):
            if not chosen:
                continue
            rows = to_device(np.array(chosen), logits.device)
            own, places = [sequences[i] for i in chosen], [offsets[i] for i in chosen]
            if chosen is guessed:
                found = [guess for i in chosen if (guess := guesses[i]) is not None]
                drawn[rows] = self._ranks.first_(self._decide(logits[rows], own, places, found))
            else:
                drawn[rows] = self.draw(logits[rows], own, places)
        return drawn

    def _decide(self, logits: Tensor, sequences: list[Sequence], offsets: list[int], guesses: list["Guess"]) -> Tensor:
        """`logits [N, V]`, of which every row was guessed and none is greedy → `[N]`."""
        device = logits.device
        target = distribution(logits, [sequence.params for sequence in sequences]).double()
        seeds = [s.seed % 2**64 for s in sequences]
        positions = [s.num_output + offset for s, offset in zip(sequences, offsets, strict=True)]
        numbers = [guess.number for guess in guesses]
        points = [uniforms(seeds, positions, purpose, numbers) for purpose in (_ACCEPTED, _REPLACED)]
        tokens = to_device(np.array([guess.token for guess in guesses]), device)
        draft = _drawn_from(guesses, tokens, target)
        return self.verifier.verify(target, draft, tokens, to_device(np.stack(points, 1), device))

    def forget(self, sequence: Sequence) -> None:
        """Let go of what was remembered about a sequence that has ended."""
        self._seen.pop(sequence, None)

    def entries(self, logprobs: Tensor, tokens: list[int], count: int) -> list[dict[int, Logprob]]:
        """Per row of `logprobs [N, V]`: the token's own entry and the `count` likeliest, by id."""
        own = torch.tensor(tokens, device=logprobs.device)[:, None]
        own_logprob = logprobs.gather(1, own)
        ranks = (logprobs > own_logprob).sum(1).add_(1).tolist()
        top = logprobs.topk(min(count, logprobs.shape[1]), dim=1) if count else None
        found = []
        for row, (token, rank) in enumerate(zip(tokens, ranks, strict=True)):
            entry = {token: Logprob(own_logprob[row, 0].item(), rank, self.decode(token))}
            if top is not None:
                pairs = zip(top.indices[row].tolist(), top.values[row].tolist(), strict=True)
                for place, (other, logprob) in enumerate(pairs, start=1):
                    entry.setdefault(other, Logprob(logprob, place, self.decode(other)))
            found.append(entry)
        return found

    def _restrict(self, logits: Tensor, sequences: list[Sequence]) -> Tensor:
        """Penalties, biases and forbidden tokens, each only for the rows that ask for it."""
        for row, sequence in enumerate(sequences):
            params = sequence.params
            if params.has_penalties:
                self._penalize(logits[row], sequence)
            if params.logit_bias:
                ids = torch.tensor(list(params.logit_bias), device=logits.device)
                logits[row, ids] += torch.tensor(list(params.logit_bias.values()), device=logits.device)
        bound = [(row, s.matcher) for row, s in enumerate(sequences) if s.matcher is not None]
        if bound:
            apply_bitmask_(logits, [row for row, _ in bound], allowed_bitmask([matcher for _, matcher in bound]))
        for row, sequence in enumerate(sequences):
            if sequence.num_output < sequence.params.min_tokens:
                self._forbid_the_end(logits[row], sequence)
        return logits

    def _forbid_the_end(self, row: Tensor, sequence: Sequence) -> None:
        """Forbid in `row [V]` what would end the output, unless nothing else is allowed."""
        ends = torch.tensor(self.eos_ids + (sequence.params.stop_token_ids or []), dtype=torch.int64, device=row.device)
        before = row[ends]
        row[ends] = -torch.inf
        if not bool((row > -torch.inf).any()):
            row[ends] = before

    def _penalize(self, row: Tensor, sequence: Sequence) -> None:
        """Repetition (prompt and output), presence and frequency (output) penalties on `row [V]`, in place."""
        seen = self._seen.get(sequence)
        if seen is None:
            seen = self._seen[sequence] = _SeenTokens(sequence, row)
        seen.update(sequence)
        params = sequence.params
        if params.repetition_penalty != 1.0:
            known = seen.in_prompt | (seen.counts > 0)
            penalty = torch.where(row > 0, 1 / params.repetition_penalty, params.repetition_penalty)
            row.copy_(torch.where(known, row * penalty, row))
        if params.frequency_penalty:
            row.sub_(seen.counts * params.frequency_penalty)
        if params.presence_penalty:
            row.sub_((seen.counts > 0) * params.presence_penalty)


class _SeenTokens:
    """Which tokens a sequence has in its prompt, and how often in its output; kept up to date one token at a time."""

    def __init__(self, sequence: Sequence, row: Tensor) -> None:
        self.in_prompt = torch.zeros_like(row, dtype=torch.bool)
        self.in_prompt[torch.tensor(sequence.tokens[: sequence.num_prompt], device=row.device)] = True
        self.counts = torch.zeros_like(row)
        self._upto = sequence.num_prompt

    def update(self, sequence: Sequence) -> None:
        """Count the output tokens that came since the last call."""
        new = torch.tensor(sequence.tokens[self._upto :], dtype=torch.int64, device=self.counts.device)
        self.counts.index_add_(0, new, torch.ones_like(new, dtype=self.counts.dtype))
        self._upto = len(sequence.tokens)


# What a random number is for: `uniform` gives different ones for one position.
_DRAWN, _ACCEPTED, _REPLACED, DRAFTED = range(4)


def uniform(seed: int, position: int, purpose: int = _DRAWN, number: int = 0) -> float:
    """The number in [0, 1) that decides something at an output position: Philox with the seed as its key.

    `number` tells apart what is decided several times at one position, in drafts that are thrown away.
    """
    generator = np.random.Generator(np.random.Philox(key=seed % 2**64, counter=[position, purpose, number, 0]))
    return float(generator.random())


def distribution(logits: Tensor, params: list[SamplingParams]) -> Tensor:
    """`logits [N, V]` float32 → `[N, V]`, what is drawn from: after temperature, min-p, top-k and top-p."""
    settings = _settings(params)
    if all(p.top_k < 1 and p.top_p >= 1 and p.min_p <= 0 for p in params):
        # The host knows it, and need not ask the device.
        return tempered(logits, to_device(settings[0], logits.device))
    return filtered(logits, *to_device(settings, logits.device))


def _drawn_from(guesses: list[Guess], tokens: Tensor, like: Tensor) -> Tensor:
    """`[N, V]`, from what the guesses `tokens [N]` were drawn: like `like`, 1 where one was certain."""
    rows = [guess.probabilities for guess in guesses if guess.probabilities is not None]
    if len(rows) == len(guesses):
        return torch.stack(rows).to(like.dtype)
    draft = torch.zeros_like(like).scatter_(1, tokens[:, None], 1.0)
    if rows:
        drawn = np.array([row for row, guess in enumerate(guesses) if guess.probabilities is not None])
        draft[to_device(drawn, like.device)] = torch.stack(rows).to(like.dtype)
    return draft


def _drawn(logits: Tensor, sequences: list[Sequence], offsets: list[int]) -> Tensor:
    """One draw per row, for all of which a single small copy goes to the device."""
    if all(s.params.greedy for s in sequences):
        return logits.argmax(-1)
    positions = [s.next_position + offset for s, offset in zip(sequences, offsets, strict=True)]
    points = uniforms([s.seed % 2**64 for s in sequences], positions, _DRAWN)
    # A transposed array keeps its memory order, and rows with gaps would have to be copied on the device.
    settings = np.ascontiguousarray(np.vstack((_settings([s.params for s in sequences]), points)))
    return draw(logits, *to_device(settings, logits.device))


def _settings(params: list[SamplingParams]) -> np.ndarray:
    """Float64 `[4, N]`: temperature, top-k, top-p and min-p of each row."""
    rows = [(min(p.temperature, HOTTEST), min(p.top_k, _LARGEST_TOP_K), p.top_p, p.min_p) for p in params]
    return np.array(rows, dtype=np.float64).reshape(-1, 4).T
