"""Where cached keys go when their pages are wanted: to the CPU's memory, from there to disk, and back on a hit.

A page travels as its bytes over all layers under a key that names everything they depend on: the model's weights and
layout, the methods in force, the tenant's salt, and every token up to the page's end.
"""

import hashlib
import json
import math
import re
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from headstart.engine.disk_tier import DiskTier, page_file
from headstart.engine.seams import LayerKV
from headstart.errors import HeadstartError

if TYPE_CHECKING:
    from headstart.models.decoder import Decoder

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_KEY_BYTES = 24
# Counts the ways in which pages were written down so far.
_PAGE_FORM = 2
_SAMPLES = 1024
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class TierSpec:
    """What `--kv-tier` asks for, in bytes; None is no such tier."""

    cpu: int | None = None
    disk: tuple[Path, int] | None = None

    @classmethod
    def parse(cls, text: str) -> "TierSpec":
        """Read `cpu=2GB,disk=PATH:10GB`, or one of the two.

        Raises:
            HeadstartError: anything else.
        """
        found: dict[str, str] = {}
        for part in text.split(","):
            name, _, value = part.strip().partition("=")
            if name not in ("cpu", "disk") or not value or name in found:
                raise HeadstartError(f"--kv-tier takes cpu=SIZE, disk=PATH:SIZE or both with a comma, not {text!r}")
            found[name] = value
        disk = None
        if "disk" in found:
            path, _, size = found["disk"].rpartition(":")
            if not path:
                raise HeadstartError(f"the disk tier takes PATH:SIZE, such as disk=/var/cache/kv:10GB, not {text!r}")
            disk = (Path(path), read_size(size))
        return cls(read_size(found["cpu"]) if "cpu" in found else None, disk)


def read_size(text: str) -> int:
    """`2GB` in bytes.

    Raises:
        HeadstartError: it is no size.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text.strip())
    size = 0.0 if match is None else float(match[1]) * _UNITS.get(match[2].upper(), 0)
    if not 0 < size < math.inf:
        raise HeadstartError(f"a size is a number with KB, MB, GB, TB, KiB, MiB or GiB, such as 2GB, not {text!r}")
    return int(size)


def fingerprint(decoder: "Decoder", layers: Sequence[LayerKV], page_size: int, device: torch.device) -> bytes:
    """What tells a model's cached keys from any other's: config, weights, and the form in which keys are kept.

    Every weight counts through an exact integer sum of its tensor, and its order through a sample.
    """
    digest = hashlib.blake2b(json.dumps(decoder.config.raw, sort_keys=True, default=str).encode(), digest_size=32)
    digest.update(repr((_PAGE_FORM, list(layers), page_size, device.type)).encode())
    with torch.inference_mode():
        for name, weight in sorted(decoder.state_dict().items()):
            bits = weight.detach().contiguous().view(_INTEGERS[weight.element_size()]).flatten()
            sample = bits[:: max(1, len(bits) // _SAMPLES)].cpu().numpy().tobytes()
            total = int(bits.sum(dtype=torch.int64))
            digest.update(repr((name, tuple(weight.shape), str(weight.dtype), total)).encode() + sample)
    return digest.digest()


def root_key(model: bytes, namespace: str) -> bytes:
    """The key above a namespace's first page."""
    return hashlib.blake2b(model + namespace.encode(), digest_size=_KEY_BYTES).digest()


def page_keys(above: bytes, tokens: np.ndarray, page_size: int) -> list[bytes]:
    """Keys of consecutive whole pages of `tokens` (int32) that follow the page with the key `above`."""
    keys: list[bytes] = []
    for at in range(0, len(tokens), page_size):
        above = hashlib.blake2b(above + tokens[at : at + page_size].tobytes(), digest_size=_KEY_BYTES).digest()
        keys.append(above)
    return keys


class MemoryTier:
    """Pages in the CPU's memory, the least recently used of which make room.

    Args:
        limit: bytes.
        page_bytes: of one page over all layers.

    Raises:
        HeadstartError: the limit is below one page, or more than this machine can give.
    """

    def __init__(self, limit: int, page_bytes: int) -> None:
        slots = limit // page_bytes
        if not slots:
            raise HeadstartError(
                f"the cpu tier's limit of {limit} bytes holds not one page of this model: give at least {page_bytes}"
            )
        try:
            # From calloc, so that memory is taken as it is used.
            self._pool = torch.from_numpy(np.zeros((slots, page_bytes), dtype=np.uint8))
        except (MemoryError, ValueError, OverflowError):  # the latter two where no array can be that large
            raise HeadstartError(f"this machine cannot give the cpu tier {limit} bytes; give it less") from None
        self._free = list(range(slots))
        self._slots: OrderedDict[bytes, int] = OrderedDict()

    def __contains__(self, key: bytes) -> bool:
        return key in self._slots

    def __len__(self) -> int:
        return len(self._slots)

    def put(self, keys: list[bytes], pages: Tensor) -> list[tuple[bytes, Tensor]]:
        """Take pages `[N, page_bytes]`; returns those that had to go for them."""
        gone: list[tuple[bytes, Tensor]] = []
        for key, page in zip(keys, pages, strict=True):
            if key in self._slots:
                self._slots.move_to_end(key)
            else:
                if not self._free:
                    oldest, slot = self._slots.popitem(last=False)
                    gone.append((oldest, self._pool[slot].clone()))
                    self._free.append(slot)
                slot = self._slots[key] = self._free.pop()
                self._pool[slot] = page
        return gone

    def take(self, key: bytes) -> Tensor:
        """A page `[page_bytes]`, which is here no longer."""
        slot = self._slots.pop(key)
        self._free.append(slot)
        return self._pool[slot].clone()

    def parts(self, keys: list[bytes], part: slice) -> Tensor:
        """The same bytes of pages that are all here: `[N, part]`, a copy."""
        return self._pool[[self._slots[key] for key in keys], part]

    def drain(self) -> list[tuple[bytes, Tensor]]:
        """All pages, the most recently used first."""
        return [(key, self._pool[slot]) for key, slot in reversed(self._slots.items())]


class Tiers:
    """The tiers below the device's memory. Belongs to the engine's thread.

    Args:
        spec: which, and how large.
        model: its `fingerprint`.
        page_bytes: of one page over all layers.
        parts: bytes of the parts of a page that can be read alone, in order (default: the page is one part).

    Attributes:
        spilled, restored: pages that went down and came back so far.

    Raises:
        HeadstartError: the disk tier's directory cannot be used, or a limit cannot be had or is below one page.
    """

    def __init__(self, spec: TierSpec, model: bytes, page_bytes: int, parts: Sequence[int] | None = None) -> None:
        self.model = model
        sizes = [page_bytes] if parts is None else list(parts)
        self._parts = [slice(end - size, end) for size, end in zip(sizes, accumulate(sizes), strict=True)]
        self.spilled = self.restored = 0
        self._memory = None if spec.cpu is None else MemoryTier(spec.cpu, page_bytes)
        self._disk = None if spec.disk is None else DiskTier(*spec.disk, model.hex()[:16], page_bytes, sizes)

    def file_of(self, key: bytes) -> str:
        """Where a page lies in the disk tier's directory."""
        return f"{self.model.hex()[:16]}/{page_file(key)}"

    def __contains__(self, key: bytes) -> bool:
        return (self._memory is not None and key in self._memory) or (self._disk is not None and key in self._disk)

    def put(self, keys: list[bytes], pages: Tensor) -> None:
        """Take pages `[N, page_bytes]`, uint8 on the CPU, that leave the device."""
        self.spilled += len(keys)
        gone = list(zip(keys, pages, strict=True)) if self._memory is None else self._memory.put(keys, pages)
        if self._disk is not None:
            for key, page in gone:
                self._disk.put(key, page.numpy().tobytes())

    def get(self, keys: list[bytes]) -> list[Tensor]:
        """Pages `[page_bytes]` under these keys, up to the first that is not there or not whole."""
        found: list[Tensor] = []
        for key in keys:
            page: Tensor | None = None
            if self._memory is not None and key in self._memory:
                page = self._memory.take(key)
            elif self._disk is not None and (data := self._disk.get(key)) is not None:
                page = torch.frombuffer(bytearray(data), dtype=torch.uint8)
            if page is None:
                break
            found.append(page)
        self.restored += len(found)
        return found

    def get_part(self, keys: list[bytes], number: int) -> Tensor | None:
        """One part of each of these pages, `[N, part_bytes]`; None if a page is not there or not whole. They stay
        where they are. Safe in another thread as long as nothing is put or got meanwhile."""
        here = [self._memory is not None and key in self._memory for key in keys]
        if self._memory is not None and all(here):
            return self._memory.parts(keys, self._parts[number])
        found: list[Tensor] = []
        for key, mine in zip(keys, here, strict=True):
            if self._memory is not None and mine:
                found.append(self._memory.parts([key], self._parts[number])[0])
                continue
            data = None if self._disk is None else self._disk.get_part(key, number)
            if data is None:
                return None
            found.append(torch.frombuffer(bytearray(data), dtype=torch.uint8))
        return torch.stack(found)

    def forget(self, keys: list[bytes]) -> None:
        """Let go of pages in memory that have come up by parts."""
        for key in keys:
            if self._memory is not None and key in self._memory:
                self._memory.take(key)
        self.restored += len(keys)

    def flush(self, cached: Iterator[tuple[list[bytes], Tensor]], seconds: float) -> None:
        """Write what is `cached` on the device, and what is in memory here, to disk, for so long at most."""
        if self._disk is None:
            return
        above = ((key, page) for keys, pages in cached for key, page in zip(keys, pages, strict=True))
        here = [] if self._memory is None else self._memory.drain()
        self._disk.flush(((key, page.numpy()) for key, page in chain(above, here)), seconds)
