"""Rotary positions: the angles of every published scaling, per token."""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from headstart.errors import CheckpointError
from headstart.models.fields import Fields

KINDS = ("default", "linear", "dynamic", "yarn", "llama3", "longrope")


@dataclass(frozen=True)
class RopeConfig:
    """The numbers of one RoPE; which of them are used depends on its kind.

    Attributes:
        kind: one of `KINDS`.
        theta: the base of the wavelengths.
        dim: how many dimensions of a head are rotated, even.
        max_position: the model's length in tokens.
        original_max_position: its length before it was extended.
        factor: by how much it was extended.
        attention_factor: factor on cosines and sines.
        low_freq_factor, high_freq_factor: llama3: rotations within the original length between which the
            frequencies pass from divided to kept.
        beta_fast, beta_slow, truncate: yarn: rotations within the original length between which the
            frequencies pass from kept to divided, and whether those bounds are rounded to whole dimensions.
        short_factor, long_factor: longrope: divisors per frequency, up to the original length and beyond it.
    """

    kind: str
    theta: float
    dim: int
    max_position: int
    original_max_position: int
    factor: float = 1.0
    attention_factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()

    @property
    def reach(self) -> int:
        """Tokens up to which the stretched wavelengths were meant to carry."""
        if self.kind in ("dynamic", "linear"):
            return int(self.max_position * self.factor)
        return int(self.original_max_position * self.factor) if self.kind == "yarn" else self.max_position

    @classmethod
    def from_fields(
        cls,
        fields: Fields,
        layer_kind: str,
        head_dim: int,
        *,
        default_theta: float,
        local_theta: float | None,
        aliases: dict[str, str],
    ) -> "RopeConfig":
        """The RoPE of one kind of layer, from `rope_parameters` or from `rope_theta` and `rope_scaling`.

        Args:
            fields: the model's config.
            layer_kind: "full_attention" or "sliding_attention".
            head_dim: size of a head.
            default_theta: the base when none is named.
            local_theta: the base of sliding layers when none is named, in families whose sliding layers
                have a RoPE of their own.
            aliases: names of kinds that mean another kind here.

        Raises:
            CheckpointError: an unknown kind, or a field that the kind needs is missing.
        """
        local = local_theta is not None and layer_kind == "sliding_attention"
        given = _parameters(fields, layer_kind, local)
        theta_field = "rope_local_base_freq" if local else "rope_theta"
        fallback_theta = local_theta if local and local_theta is not None else default_theta
        theta = given.optional_number("rope_theta") or fields.optional_number(theta_field)
        kind = given.text("rope_type", "type")
        kind = "default" if kind is None else kind
        kind = aliases.get(kind, {"su": "longrope"}.get(kind, kind))
        if kind not in KINDS:
            raise CheckpointError(
                f"the RoPE type {kind!r} in {fields.source} is not supported; supported are {', '.join(KINDS)}"
            )
        max_position = fields.integer("max_position_embeddings")
        original = fields.optional_integer("original_max_position_embeddings")
        original = original or given.optional_integer("original_max_position_embeddings") or max_position
        config = cls(
            kind=kind,
            theta=theta or fallback_theta,
            dim=_rotated(fields, given, head_dim),
            max_position=max_position,
            original_max_position=original,
        )
        return replace(config, **_of_kind(config, given))


def _parameters(fields: Fields, layer_kind: str, local: bool) -> Fields:
    """The dict that describes a kind of layer."""
    name = "rope_scaling" if fields.raw.get("rope_scaling") not in (None, {}) else "rope_parameters"
    given = fields.raw.get(name)
    given = {} if given is None else given
    if not isinstance(given, dict):
        raise fields.bad(name, "an object", given)
    if "full_attention" not in given and "sliding_attention" not in given:
        # A flat dict speaks of the global layers only, where local ones have a RoPE of their own.
        return Fields({} if local else given, f"{name} of {fields.source}")
    nested = given.get(layer_kind)
    nested = {} if nested is None else nested
    if not isinstance(nested, dict):
        raise Fields(given, f"{name} of {fields.source}").bad(layer_kind, "an object", nested)
    return Fields(nested, f"{name}.{layer_kind} of {fields.source}")


def _rotated(fields: Fields, given: Fields, head_dim: int) -> int:
    """How many dimensions of a head are rotated."""
    part = given.optional_number("partial_rotary_factor") or fields.optional_number("partial_rotary_factor") or 1.0
    dim = int(head_dim * part)
    if dim % 2 or not 2 <= dim <= head_dim:
        raise CheckpointError(
            f"RoPE needs an even number of rotated dimensions, from 2 to the head's {head_dim}, but {fields.source} "
            f"makes it {dim}"
        )
    return dim


def _of_kind(config: RopeConfig, given: Fields) -> dict[str, Any]:
    """The arguments of `RopeConfig` that only its kind has."""
    match config.kind:
        case "linear":
            return {"factor": given.number("factor")}
        case "dynamic":
            if config.dim == 2:
                raise CheckpointError(f"RoPE of type 'dynamic' in {given.source} needs more than 2 rotated dimensions")
            return {"factor": given.number("factor")}
        case "llama3":
            return _of_llama3(given)
        case "yarn":
            return _of_yarn(config, given)
        case "longrope":
            return _of_longrope(config, given)
        case _:
            return {}


def _of_llama3(given: Fields) -> dict[str, Any]:
    found = {name: given.number(name) for name in ("factor", "low_freq_factor", "high_freq_factor")}
    if found["low_freq_factor"] >= found["high_freq_factor"]:
        raise given.bad("low_freq_factor", "below high_freq_factor", found["low_freq_factor"])
    return found


def _of_yarn(config: RopeConfig, given: Fields) -> dict[str, Any]:
    if config.theta <= 1:
        raise CheckpointError(f"RoPE of type 'yarn' in {given.source} needs a rope_theta above 1, not {config.theta}")
    factor = given.optional_number("factor") or config.max_position / config.original_max_position
    attention_factor = given.optional_number("attention_factor")
    if attention_factor is None:
        mscale, all_dim = (given.optional_number(name, zero=True) for name in ("mscale", "mscale_all_dim"))
        attention_factor = _yarn_scale(factor, 1.0)
        if mscale and all_dim:
            attention_factor = _yarn_scale(factor, mscale) / _yarn_scale(factor, all_dim)
    return {
        "factor": factor,
        "attention_factor": attention_factor,
        "beta_fast": given.optional_number("beta_fast") or 32.0,
        "beta_slow": given.optional_number("beta_slow") or 1.0,
        "truncate": given.boolean("truncate", True),
    }


def _of_longrope(config: RopeConfig, given: Fields) -> dict[str, Any]:
    original = config.original_max_position
    if original == 1:
        raise CheckpointError(
            f"RoPE of type 'longrope' in {given.source} needs original_max_position_embeddings above 1"
        )
    factor = given.optional_number("factor") or config.max_position / original
    attention_factor = given.optional_number("attention_factor")
    if attention_factor is None:
        attention_factor = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    return {
        "factor": factor,
        "attention_factor": attention_factor,
        "short_factor": given.numbers("short_factor", config.dim // 2),
        "long_factor": given.numbers("long_factor", config.dim // 2),
    }


def _yarn_scale(factor: float, multiplier: float) -> float:
    return 0.1 * multiplier * math.log(factor) + 1.0 if factor > 1 else 1.0


class Rope:
    """Cosines and sines of the angles by which queries and keys are rotated.

    Attributes:
        length_dependent: the angles of a row depend also on the length its sequence had when the row entered:
            the prompt's length for rows of the prompt, position + 1 for generated ones. That makes the result
            independent of how a prompt is split into chunks.
    """

    def __init__(self, config: RopeConfig) -> None:
        self.config = config
        self.length_dependent = config.kind in ("dynamic", "longrope")
        self._frequencies = _frequencies(config)
        self._on_device: dict[torch.device, list[Tensor]] = {}

    def __call__(self, positions: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The rows of some tokens.

        Args:
            positions: `[T]`.
            lengths: `[T]`, needed if `length_dependent`.

        Returns:
            cosines and sines, each `[T, dim / 2]` in float32.
        """
        angles = positions[:, None].float() * self._row_frequencies(positions, lengths)
        cos, sin = angles.cos(), angles.sin()
        if self.config.attention_factor != 1.0:
            cos, sin = cos * self.config.attention_factor, sin * self.config.attention_factor
        return cos, sin

    def reuse_salt(self, prompt_length: int) -> str:
        """What sets keys of this prompt apart from equal tokens in prompts of other lengths; may be empty."""
        config = self.config
        if config.kind == "longrope":
            return "long" if prompt_length > config.original_max_position else "short"
        if config.kind == "dynamic" and prompt_length > config.max_position:
            return str(prompt_length)
        return ""

    def _row_frequencies(self, positions: Tensor, lengths: Tensor | None) -> Tensor:
        """`[dim / 2]`, or `[T, dim / 2]` where each row has its own."""
        frequencies = self._on_device.get(positions.device)
        if frequencies is None:
            frequencies = [table.to(positions.device) for table in self._frequencies]
            self._on_device[positions.device] = frequencies
        if not self.length_dependent:
            return frequencies[0]
        if lengths is None:
            raise ValueError(f"RoPE of kind {self.config.kind!r} needs the length of each row's sequence")
        if self.config.kind == "longrope":
            short, long = frequencies
            return torch.where((lengths > self.config.original_max_position)[:, None], long, short)
        return self._dynamic_frequencies(lengths)

    def _dynamic_frequencies(self, lengths: Tensor) -> Tensor:
        """The base grows with the length beyond the model's: `[T, dim / 2]`."""
        config = self.config
        stretch = 1.0 + config.factor * (lengths - config.max_position).clamp(min=0) / config.max_position
        base = config.theta * stretch ** (config.dim / (config.dim - 2))
        return 1.0 / base[:, None] ** _exponents(config.dim).to(lengths.device)


def _exponents(dim: int) -> Tensor:
    return torch.arange(0, dim, 2, dtype=torch.float32) / dim


def _frequencies(config: RopeConfig) -> list[Tensor]:
    """Angles per position, `[dim / 2]` float32: one table, or two (short, long) for longrope."""
    plain = 1.0 / config.theta ** _exponents(config.dim)
    match config.kind:
        case "linear":
            return [plain / config.factor]
        case "llama3":
            return [_llama3_frequencies(config, plain)]
        case "yarn":
            return [_yarn_frequencies(config, plain)]
        case "longrope":
            wavelengths = config.theta ** _exponents(config.dim)
            return [1.0 / (torch.tensor(f) * wavelengths) for f in (config.short_factor, config.long_factor)]
        case _:
            return [plain]


def _llama3_frequencies(config: RopeConfig, plain: Tensor) -> Tensor:
    """Long wavelengths are divided by the factor, short ones kept, those between pass smoothly."""
    rotations = config.original_max_position * plain / (2 * math.pi)
    span = config.high_freq_factor - config.low_freq_factor
    keep = ((rotations - config.low_freq_factor) / span).clamp(0, 1)
    return (1 - keep) * plain / config.factor + keep * plain


def _yarn_frequencies(config: RopeConfig, plain: Tensor) -> Tensor:
    """Dimensions with many rotations in the original length are kept, with few divided, others blended."""

    def dimension_with(rotations: float) -> float:
        wavelength_ratio = config.original_max_position / (rotations * 2 * math.pi)
        return config.dim * math.log(wavelength_ratio) / (2 * math.log(config.theta))

    low, high = dimension_with(config.beta_fast), dimension_with(config.beta_slow)
    if config.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, config.dim - 1)
    divide = ((torch.arange(config.dim // 2) - low) / max(high - low, 0.001)).clamp(0, 1)
    return divide * plain / config.factor + (1 - divide) * plain
