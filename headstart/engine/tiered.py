"""Gives an engine's cache its lower tiers."""

from collections.abc import Sequence

import torch

from headstart.engine.cache import PagedKVStore
from headstart.engine.seams import KVStore, LayerKV
from headstart.engine.tiers import Tiers, TierSpec, fingerprint
from headstart.errors import HeadstartError
from headstart.models.decoder import Decoder


def add_tiers(store: KVStore, spec: str, decoder: Decoder, layers: Sequence[LayerKV], device: torch.device) -> None:
    """Let what is evicted from `store` go to the tiers that `spec` names.

    Raises:
        HeadstartError: a method brought a store of its own, or a tier cannot be had.
    """
    if not isinstance(store, PagedKVStore):
        raise HeadstartError("--kv-tier works with the engine's own KV store, but a method in force brings another")
    model = fingerprint(decoder, layers, store.page_size, device)
    store.use_tiers(Tiers(TierSpec.parse(spec), model, store.bytes_per_page, store.part_bytes))
