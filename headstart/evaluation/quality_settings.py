"""What a run of the quality tasks is asked for."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from headstart.errors import HeadstartError
from headstart.evaluation.tasks import TASKS, Sources, resolve, task

LOGITS, BITS, CONTEXT, BLIMP, LM_EVAL = "logits", "bits_per_byte", "context_bits", "blimp", "lm_eval:"
PROBES = (LOGITS, BITS, CONTEXT, BLIMP)
DEFAULT_TASKS = ("niah_depth", "niah_multikey_1", "niah_multivalue", "vt", "kv_retrieval", "multi_turn", BITS)
QUICK_TASKS = ("niah_depth", "vt", BITS)
_SHORTEST = 16


@dataclass(frozen=True)
class QualitySettings:
    """What is asked.

    Args:
        tasks: keys of tasks and groups, `logits`, `bits_per_byte`, `context_bits`, `blimp` and `lm_eval:NAME`.
        lengths: tokens of prompt and answer together.
        count: contexts for each task and length.
        seed: of all examples.
        chat: put questions through the checkpoint's chat template; False: as a base model reads them.
        sources: real text for tasks.
        text: a text or JSONL file for bits per byte (default: the held-out books, else the package's story).
    """

    tasks: tuple[str, ...] = DEFAULT_TASKS
    lengths: tuple[int, ...] = (1024, 2048)
    count: int = 3
    seed: int = 0
    chat: bool = False
    sources: Sources = field(default_factory=Sources)
    text: Path | None = None

    def __post_init__(self) -> None:
        if self.count < 1:
            raise HeadstartError(f"count must be at least 1, not {self.count}")
        if not self.lengths or min(self.lengths) < _SHORTEST:
            shown = f", not {min(self.lengths)}" if self.lengths else ""
            raise HeadstartError(f"a length must be at least {_SHORTEST} tokens{shown}")

    def check(self) -> None:
        """Refuse unknown tasks, and questions of one's own that are not there.

        Raises:
            HeadstartError: in one sentence.
        """
        for key in self.keys:
            if key in TASKS:
                task(key, self.sources)

    @property
    def keys(self) -> list[str]:
        """The tasks, groups resolved."""
        own = [name for name in self.tasks if name.startswith(LM_EVAL)]
        return resolve(self.tasks, (*PROBES, *own))

    def dump(self) -> dict[str, Any]:
        """For a report."""
        return asdict(self) | {
            "tasks": list(self.tasks),
            "lengths": list(self.lengths),
            "sources": {name: str(value)[:200] for name, value in asdict(self.sources).items() if value is not None},
            "text": None if self.text is None else str(self.text),
        }

    def identity(self) -> dict[str, Any]:
        """What a single result depends on; not the lengths and counts, which may grow between runs."""
        return {
            "seed": self.seed,
            "chat": self.chat,
            "haystack": self.sources.haystack,
            "data": str(self.sources.data),
            "files": [_stamp(path) for path in (self.text, self.sources.questions)],
        }


def _stamp(path: Path | None) -> str | None:
    """A file's name and size; None for none."""
    return None if path is None else f"{path} {path.stat().st_size if path.is_file() else 'absent'}"
