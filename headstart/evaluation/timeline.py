"""What an engine's steps were made of over time: asked of a server after a load, and kept in the ledger."""

import json
import time
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, model_validator

from headstart.engine.watch import Step

# So many steps show how a scheduler goes about its work; a ledger is no place for more.
STEPS = 240
_PATIENCE = 30.0


class Timeline(BaseModel):
    """Some steps of one side, one after the other.

    Attributes:
        side: whose.
        began: seconds from the beginning of the load to that of each.
        seconds: how long each took.
        prefill: tokens of prompts in each.
        decode: tokens that were run to write the next one.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    side: str
    began: list[float]
    seconds: list[float]
    prefill: list[int]
    decode: list[int]

    @model_validator(mode="after")
    def _even(self) -> Self:
        if len({len(self.began), len(self.seconds), len(self.prefill), len(self.decode)}) != 1 or not self.began:
            raise ValueError(f"the timeline of {self.side!r} needs the same of each of its steps, and at least one")
        return self

    @property
    def end(self) -> float:
        """Seconds from the beginning of the load to the end of the last of these steps."""
        return self.began[-1] + self.seconds[-1]


def read_steps(url: str, origin: float) -> list[Step]:
    """The last steps of a server of this project, from the beginning of a load on, and timed from there.

    Args:
        url: of the server.
        origin: seconds of `time.perf_counter()`.
    """
    with urllib.request.urlopen(f"{url}/stats?after=0", timeout=_PATIENCE) as answer:
        seen: dict[str, Any] = json.load(answer)["engine"]
    origin += seen["now"] - time.perf_counter()
    steps = (Step(*values) for values in seen["steps"])
    return [replace(step, began=step.began - origin) for step in steps if step.began >= origin]


def timelines(sides: Mapping[str, Sequence[Step]]) -> list[Timeline]:
    """What sides did with the same load, from the moment on when the first of them is about to read most."""
    found = {side: steps for side, steps in sides.items() if steps}
    if not found:
        return []
    first = next(iter(found.values()))
    known = max(steps[0].began for steps in found.values())
    starts = [at for at, step in enumerate(first) if step.began >= known] or [0]
    read = np.cumsum([0, *(step.prefill for step in first)])
    start = first[max(starts, key=lambda at: read[min(at + STEPS, len(first))] - read[at])].began
    shown = {side: [step for step in steps if step.began >= start][:STEPS] for side, steps in found.items()}
    return [
        Timeline(
            side=side,
            began=[round(step.began, 5) for step in steps],
            seconds=[round(step.seconds, 5) for step in steps],
            prefill=[step.prefill for step in steps],
            decode=[step.decode for step in steps],
        )
        for side, steps in shown.items()
        if steps
    ]
