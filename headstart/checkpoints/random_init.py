"""Checkpoints with random weights: what benchmarks measure and training starts from."""

from typing import Any

import torch

from headstart.checkpoints.generation import GenerationConfig
from headstart.checkpoints.reader import Checkpoint, run_dtype
from headstart.models.config import ModelConfig
from headstart.models.decoder import Decoder
from headstart.models.fields import Fields

_SLICE_ELEMENTS = 1 << 22


def random_checkpoint(
    config: dict[str, Any],
    dtype: str | torch.dtype = "auto",
    seed: int = 0,
    device: torch.device | str = "cpu",
    *,
    name: str = "random",
) -> Checkpoint:
    """A checkpoint without files: weights drawn at random, no tokenizer.

    Args:
        config: a Hugging Face config dict; `initializer_range` is the standard deviation of matrices (0.02).
        dtype: as for `load_checkpoint`.
        seed: the same seed gives the same weights on the same kind of device.
        device: where the weights are drawn and stay.
        name: what to call it.

    Raises:
        CheckpointError: the config is not supported.
    """
    source = f"the config of {name!r}"
    normalised = ModelConfig.from_hf(config, source)
    fields = Fields(normalised.raw, source, {"initializer_range": 0.02})
    decoder = Decoder(normalised, run_dtype(dtype, normalised), device)
    randomise(decoder, seed, std=fields.number("initializer_range"))
    return Checkpoint(
        path=None,
        name=name,
        config=normalised,
        decoder=decoder,
        tokenizer=None,
        generation_config=GenerationConfig.from_fields(Fields({}, source), fields, normalised.vocab_size),
    )


@torch.no_grad()
def randomise(decoder: Decoder, seed: int, std: float = 0.02) -> None:
    """Draw matrices from normal(0, std); biases become zero and norms neutral."""
    generator = torch.Generator(decoder.embedding.weight.device).manual_seed(seed)
    neutral = 0.0 if decoder.config.norm_offset else 1.0
    for name, parameter in decoder.named_parameters():
        if parameter.dim() > 1:
            # Drawn in slices of the logical order, so that the memory order does not change the numbers.
            rows = max(1, _SLICE_ELEMENTS // parameter[0].numel())
            for part in parameter.split(rows):
                drawn = torch.empty(part.shape, dtype=part.dtype, device=part.device)
                part.copy_(drawn.normal_(0.0, std, generator=generator))
        else:
            parameter.fill_(0.0 if name.endswith("bias") else neutral)
