"""What a method would change of a plan, as far as a formula or a measurement says so, and otherwise nothing."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from headstart.engine.seams import KVLayout, Scheduler
from headstart.errors import HeadstartError
from headstart.evaluation.ledger import LedgerEntry
from headstart.evaluation.plan.costs import ModelCosts, specs_of
from headstart.evaluation.plan.devices import Device
from headstart.methods import registry
from headstart.methods.registry import MethodCard
from headstart.models.config import ModelConfig

_METRICS = {"prefill": "TTFT", "kv": "KV cache", "decode": "decode"}


@dataclass(frozen=True)
class Effect:
    """What one method makes of the plan's quantities; below 1 is less. None is not known.

    Attributes:
        key: the method's, with its options as they were taken.
        prefill, kv, decode: factors on prefill time, bytes of keys and values, and decode time.
        source: the formula or the measurement that says so, or why there is none.
    """

    key: str
    prefill: float | None
    kv: float | None
    decode: float | None
    source: str


def effects(
    config: ModelConfig, costs: ModelCosts, device: Device, length: int, measured: Sequence[LedgerEntry]
) -> list[Effect]:
    """What each implemented method of inference would change at a context of so many tokens.

    Args:
        config: of the model.
        costs: of the model.
        device: what it runs on.
        length: tokens of context.
        measured: entries of the ledger.
    """
    cards = [card for card in registry.catalogue(status="implemented") if card.kind == "inference"]
    return [effect(card, config, costs, device, length, measured) for card in cards]


def effect(
    card: MethodCard,
    config: ModelConfig,
    costs: ModelCosts,
    device: Device,
    length: int,
    measured: Sequence[LedgerEntry],
) -> Effect:
    """What one method would change: by the formula that its own answers give, else by what the ledger holds."""
    if length < card.min_context:
        return Effect(card.key, 1.0, 1.0, 1.0, f"does nothing below {card.min_context:,} tokens")
    made = None if any(option.required for option in card.options) else registry.build(card.key)
    if isinstance(made, KVLayout):
        found = _by_layout(made, card, config, costs)
        if found is not None:
            return found
    if isinstance(made, Scheduler) and made.step_tokens is not None:
        factor = chunked_prefill(costs, device, length, made.step_tokens) / chunked_prefill(costs, device, length)
        source = f"formula: every chunk of {made.step_tokens} reads the weights and the keys before it again"
        return Effect(card.key, factor, 1.0, 1.0, source)
    return _by_ledger(card, length, measured)


def chunked_prefill(costs: ModelCosts, device: Device, length: int, chunk: int | None = None) -> float:
    """Seconds of prefill at peak, in chunks: each computes its FLOPs or reads weights and keys, whichever is longer.

    Args:
        costs: of the model.
        device: what it runs on.
        length: of the prompt.
        chunk: tokens at once (default: all).
    """
    seconds, begun = 0.0, 0
    head = 2.0 * costs.head_macs
    while begun < length:
        end = min(length, begun + (chunk or length))
        flops = costs.prefill_flops(end) - costs.prefill_flops(begun) + (head if end == length else 0.0)
        # With hundreds of rows every expert is visited by some token.
        read = costs.weight_bytes + costs.kv_read_bytes(end)
        seconds += max(flops / device.peak(costs.dtype), read / device.bandwidth)
        begun = end
    return seconds


def _by_layout(made: KVLayout, card: MethodCard, config: ModelConfig, costs: ModelCosts) -> Effect | None:
    """From what the method itself says that each layer keeps; None if it cannot say so without the model."""
    from headstart.checkpoints.reader import run_dtype

    try:
        layers = made.layers(specs_of(config), run_dtype(costs.dtype, config))
    except (HeadstartError, AttributeError, TypeError):
        return None
    other = ModelCosts.of(config, costs.name, costs.dtype, layers)
    return Effect(card.key, None, other.kv_token_bytes / costs.kv_token_bytes, None, "formula: its own layout")


def _by_ledger(card: MethodCard, length: int, measured: Sequence[LedgerEntry]) -> Effect:
    """The measurement at the nearest length, if there is one."""
    empty = Effect(card.key, None, None, None, f"not measured: `headstart bench method {card.key}`")
    for entry in sorted((e for e in measured if e.method == card.key), key=lambda e: e.created, reverse=True):
        found: dict[str, Any] = {}
        at: set[str] = set()
        for field, metric in _METRICS.items():
            near = [
                (abs(int(where.replace(",", "")) - length), ratio.value, where)
                for ratio in entry.ratios
                for name, _, where in [ratio.name.rpartition(" at ")]
                if name == metric and where.replace(",", "").isdecimal()
            ]
            if near:
                _, value, where = min(near)
                found[field] = 1 / value
                at.add(where)
        if found:
            where = " and ".join(sorted(at))
            said = f"measured at {where} on {entry.machine.slug}, {entry.model or 'another model'}"
            return replace(empty, **found, source=said)
    return empty
