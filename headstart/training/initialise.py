"""How weights begin: fan-in scaled, with residual branches that start small."""

import math

import torch

from headstart.models.decoder import Decoder

_BRANCH_ENDS = ("attention.output.weight", "mlp.down.weight", "mlp.down")


@torch.no_grad()
def initialise_(decoder: Decoder, generator: torch.Generator, *, embedding_std: float = 0.02) -> None:
    """Draw every weight of a decoder.

    Matrices are normal with a variance of one over their inputs, so that signals keep their size; those that end a
    residual branch are divided by the root of twice the number of layers (GPT-2), so that depth does not inflate the
    stream. Norms start neutral, biases at zero.

    Args:
        decoder: the network.
        generator: on the CPU: the weights do not depend on where they are used.
        embedding_std: spread of the embedding and of an untied head.
    """
    neutral = 0.0 if decoder.config.norm_offset else 1.0
    for name, parameter in decoder.named_parameters():
        if parameter.ndim < 2:
            parameter.fill_(0.0 if name.endswith("bias") else neutral)
            continue
        std = 1.0 / math.sqrt(parameter.shape[-1])
        if name.startswith(("embedding.", "lm_head.")):
            std = embedding_std
        elif name.endswith(_BRANCH_ENDS):
            std /= math.sqrt(2 * decoder.config.num_layers)
        drawn = torch.empty(parameter.shape).normal_(0.0, std, generator=generator)
        parameter.copy_(drawn)
