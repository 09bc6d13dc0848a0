"""Attention by its definition, with one dense cache per sequence: what the decoder is tested with."""

import torch
from torch import Tensor

from headstart.models.decoder import AttentionSpec, Decoder


class NaiveCache:
    """Keys and values of one sequence, per layer `[N, Hkv, D]`."""

    def __init__(self) -> None:
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}

    def attend(self, spec: AttentionSpec, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Append k and v, then attend from every new row: `[T, H, D]`, in float64 inside."""
        layer = spec.layer
        if layer in self.keys:
            k, v = torch.cat((self.keys[layer], k)), torch.cat((self.values[layer], v))
        self.keys[layer], self.values[layer] = k, v
        group = spec.num_heads // spec.num_kv_heads
        k, v = k.double().repeat_interleave(group, 1), v.double().repeat_interleave(group, 1)
        scores = torch.einsum("qhd,khd->hqk", q.double(), k) * spec.scale
        if spec.softcap is not None:
            scores = spec.softcap * torch.tanh(scores / spec.softcap)
        key_at = torch.arange(len(k))
        query_at = key_at[len(k) - len(q) :, None]
        visible = key_at <= query_at
        if spec.window is not None:
            visible &= key_at > query_at - spec.window
        weights = scores.masked_fill(~visible, -torch.inf).softmax(-1)
        return torch.einsum("hqk,khd->qhd", weights, v).to(q.dtype)


class NaiveBatch:
    """Several sequences whose rows run through a decoder as one flat list."""

    def __init__(self, decoder: Decoder, prompt_lengths: list[int]) -> None:
        self.decoder = decoder
        self.prompt_lengths = prompt_lengths
        self.caches = [NaiveCache() for _ in prompt_lengths]
        self.done = [0] * len(prompt_lengths)

    def step(self, chunks: dict[int, Tensor]) -> dict[int, Tensor]:
        """Sequence number → its next token ids `[t]`; returns logits `[t, vocab]` of each."""
        counts = [len(chunk) for chunk in chunks.values()]
        positions = [torch.arange(len(chunk)) + self.done[number] for number, chunk in chunks.items()]
        lengths = [
            torch.where(at < self.prompt_lengths[number], self.prompt_lengths[number], at + 1)
            for number, at in zip(chunks, positions, strict=True)
        ]

        def attend(spec: AttentionSpec, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            parts = zip(chunks, q.split(counts), k.split(counts), v.split(counts), strict=True)
            return torch.cat([self.caches[number].attend(spec, *qkv) for number, *qkv in parts])

        hidden = self.decoder(torch.cat(list(chunks.values())), torch.cat(positions), attend, torch.cat(lengths))
        for number, chunk in chunks.items():
            self.done[number] += len(chunk)
        return dict(zip(chunks, self.decoder.logits(hidden).split(counts), strict=True))
