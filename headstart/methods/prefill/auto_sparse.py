"""A sparse method from the length on from which it was measured to pay, and dense attention below."""

from typing import Any

from torch import Tensor

from headstart.checkpoints.reader import Checkpoint
from headstart.engine.seams import Selector
from headstart.errors import MethodError
from headstart.methods.registry import build, method
from headstart.models.decoder import AttentionSpec
from headstart.ops.attention import AnySelection, RaggedLayout

_METRIC = "TTFT"
_NEVER = 2**62


@method(
    "auto-sparse",
    stage="prefill",
    paper=None,
    exact=False,
    chunking="per_chunk",
    min_context=8192,
    when_not="For prompts that are all short: then nothing ever changes.",
    composes="What the method that it drives goes well with.",
    conflicts="Any other selector.",
)
class AutoSparse(Selector):
    """Runs a sparse method for long contexts and dense attention for short ones. Where one ends and the other begins is
    the crossover that this machine's ledger holds for the method's time to first token. Without an entry it is what the
    card says. A method that the ledger shows never to pay here is left out altogether.

    Args:
        method: the selector for long contexts: hip, minference or another that fills no other kind of slot.
        options: its options, with slashes between them: `keys=1024/dense_layers=4`.
        crossover: tokens of context from which on it runs, instead of what the ledger says.
    """

    slots = ("selector.prefill", "selector.decode")

    def __init__(self, method: str = "hip", options: str = "", crossover: int | None = None) -> None:
        if crossover is not None and not 0 <= crossover < _NEVER:
            raise MethodError(f"auto-sparse: crossover must be 0 or above, not {crossover}")
        given = ",".join(filter(None, options.split("/")))
        inner: Any = build(f"{method}:{given}" if given else method, "inference")
        if isinstance(inner, AutoSparse) or not set(getattr(inner, "slots", ())) <= set(self.slots):
            raise MethodError(f"auto-sparse: {method} is no selector alone; give hip or minference")
        self.method, self.options, self.crossover = method, options, crossover
        self.inner: Selector = inner
        self._decodes = "selector.decode" in inner.slots
        self.min_context = crossover

    def start(self, checkpoint: Checkpoint) -> None:
        self.inner.start(checkpoint)
        if self.crossover is None:
            self.min_context = measured_crossover(self.method)

    def identity(self) -> str:
        return f"{self.min_context} {self.inner.identity()}"

    def counters(self) -> dict[str, int]:
        return self.inner.counters()

    def select(self, spec: AttentionSpec, q: Tensor, keys: Tensor, layout: RaggedLayout) -> AnySelection | None:
        if not self._decodes and layout.owners and layout.owners[0].decoding:
            return None
        return self.inner.select(spec, q, keys, layout)


def measured_crossover(key: str) -> int | None:
    """The tokens from which a method's prompts are read faster on this machine, by the newest entry of its ledger.

    Returns:
        None without an entry; more than any context where it never paid.
    """
    from headstart.evaluation import ledger
    from headstart.evaluation.machine import describe_machine

    directory = ledger.default_directory()
    entries, _ = ledger.scan(directory) if directory.is_dir() else ([], [])
    machine = describe_machine()
    mine = [entry for entry in entries if entry.method == key and entry.machine.slug == machine.slug]
    for entry in sorted(mine, key=lambda entry: entry.created, reverse=True):
        for crossover in entry.crossovers:
            if crossover.name.startswith(_METRIC) and "unknown" not in crossover.verdicts:
                return _NEVER if crossover.length is None else crossover.length
    return None
