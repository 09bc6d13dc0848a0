"""Stacks of methods and peers side by side: who takes part, and the entry that comes of it."""

import json
import platform
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from headstart.engine.stack import Stack
from headstart.errors import MethodError, did_you_mean
from headstart.evaluation import ledger
from headstart.evaluation.compare_lengths import Contender, LengthsRun, LengthsSettings
from headstart.evaluation.compare_quality import QualityAsk, QualityRun, check_ask
from headstart.evaluation.compare_rounds import Reporter
from headstart.evaluation.compare_subject import Subject
from headstart.evaluation.ledger import LedgerEntry
from headstart.evaluation.ledger_sources import source_digests
from headstart.evaluation.machine import Effort, describe_machine, measure_peaks
from headstart.evaluation.sides import PEERS_INSTALL, SIDES, BenchmarkError, missing_packages
from headstart.methods import registry

EXACT = "exact"
_VLLM = "vllm"


@dataclass(frozen=True)
class Choice:
    """Which model a comparison runs, and how.

    Args:
        model: checkpoint directory or hub id (default: the model of the package).
        shape: random weights of this shape instead.
        dtype, device: of all contenders.
        seed: of random weights.
    """

    model: str | None = None
    shape: str | None = None
    dtype: str | None = None
    device: str | None = None
    seed: int = 0

    def subject(self, directory: Path) -> Subject:
        """The model; a random one is written to the directory.

        Raises:
            HeadstartError: it cannot be had.
        """
        if self.model is not None and self.shape is not None:
            raise BenchmarkError("a model has its own shape: leave out --model or --shape")
        if self.shape is not None:
            return Subject.of_shape(self.shape, directory, seed=self.seed, dtype=self.dtype, device=self.device)
        return Subject.of_model(self.model, dtype=self.dtype, device=self.device)


def contenders(names: Sequence[str], *, least: int = 2) -> list[Contender]:
    """Who takes part: "exact" is this engine without methods; a peer by its name; else methods, parted by blanks.

    Args:
        names: as users write them, such as `"sarathi-serve:chunk=512"`.
        least: how many it takes.

    Raises:
        HeadstartError: too few, an unknown method or peer (the nearest is named), one that is not installed (with the
            command that installs it), or methods that do not go together.
    """
    if len(names) < least:
        raise BenchmarkError(f"a comparison needs at least {least}, such as: exact sarathi-serve:chunk=512")
    found: list[Contender] = []
    for name in names:
        contender = _contender(name)
        double = sum(other.label.split(" #")[0] == contender.label for other in found)
        # The same twice shows what noise alone does.
        found.append(replace(contender, label=f"{contender.label} #{double + 1}") if double else contender)
    return found


def _contender(name: str) -> Contender:
    words = name.split()
    if not words:
        raise BenchmarkError("a contender has no name; write exact for the plain engine")
    if words == [EXACT]:
        return Contender(EXACT)
    if words == [_VLLM]:
        raise BenchmarkError(
            "vllm is not measured in this process; pip install vllm, start it with vllm serve MODEL, and measure it "
            "with: headstart bench serve --url http://127.0.0.1:8000"
        )
    if len(words) == 1 and words[0] in SIDES and words[0] != "headstart":
        missing = missing_packages(words[0])
        if missing:
            raise BenchmarkError(
                f"{words[0]} cannot take part, since {' and '.join(missing)} is not installed; get it with: "
                f"{PEERS_INSTALL}"
            )
        return Contender(words[0], words[0])
    for word in words:
        _check_method(word.partition(":")[0])
    Stack(words)
    return Contender(" ".join(words), use=tuple(words))


def _check_method(key: str) -> None:
    """Refuse what is no method, with the nearest of methods and peers."""
    peers = [EXACT, _VLLM, *(side for side in SIDES if side != "headstart")]
    near = did_you_mean(key.lower(), peers)
    try:
        registry.usable(key)
    except MethodError:
        if near and key not in {card.key for card in registry.catalogue()}:
            raise BenchmarkError(f"there is no method or peer {key!r}{near}") from None
        raise


def run_compare(
    parties: Sequence[Contender],
    choice: Choice,
    settings: LengthsSettings,
    reporter: Reporter,
    *,
    command: str,
    key: str = "compare",
    effort: Effort = "short",
) -> LedgerEntry:
    """Time to first token, decode speed and memory of all, over lengths.

    Args:
        parties: at least two; the others are compared with the first.
        choice: the model.
        settings: what is measured.
        reporter: hears how it goes on.
        command: what a user types to measure again.
        key: of the entry.
        effort: with which the machine's peaks are measured.

    Raises:
        HeadstartError: a model that cannot be had, or a contender that failed before anything was measured.
    """
    ledger.check_key(key)
    commit, dirty = ledger.code_version()
    with tempfile.TemporaryDirectory(prefix="headstart-bench-") as name:
        directory = Path(name)
        subject = choice.subject(directory / "checkpoint")
        settings.chosen(subject)
        reporter.say("measuring the machine's peaks")
        peaks = measure_peaks(settings.threads or subject.threads, effort, subject.device)
        found = LengthsRun(subject, parties, settings, peaks, directory, reporter).run()
    return LedgerEntry(
        kind="compare",
        key=key,
        model=subject.name,
        command=command,
        commit=commit,
        dirty=dirty,
        created=ledger.now(),
        machine=describe_machine(),
        peaks=peaks,
        versions={"python": platform.python_version(), **found.versions},
        seeds=[settings.seed],
        settings=_settings(parties, choice, settings),
        sources=source_digests(_classes(parties)),
        rows=found.rows,
        ratios=found.ratios,
        crossovers=found.crossovers,
        notes=found.notes,
        partial=found.partial,
    )


def run_quality(
    parties: Sequence[Contender],
    choice: Choice,
    ask: QualityAsk,
    reporter: Reporter,
    *,
    command: str,
    key: str = "quality",
    threads: int | None = None,
) -> LedgerEntry:
    """What stacks of methods do to answers, beside the plain engine.

    Args:
        parties: stacks of this engine.
        choice, reporter, command, key: as in `run_compare`.
        ask: tasks and lengths.
        threads: of each stack (default: what suits the model).

    Raises:
        HeadstartError: as in `run_compare`.
    """
    ledger.check_key(key)
    commit, dirty = ledger.code_version()
    with tempfile.TemporaryDirectory(prefix="headstart-bench-") as name:
        subject = choice.subject(Path(name) / "checkpoint")
        ask = check_ask(ask, subject, parties)
        found = QualityRun(subject, parties, ask, threads or subject.threads, reporter).run()
    return LedgerEntry(
        kind="quality",
        key=key,
        model=subject.name,
        command=command,
        commit=commit,
        dirty=dirty,
        created=ledger.now(),
        machine=describe_machine(),
        versions={"python": platform.python_version(), **found.versions},
        seeds=[ask.seed],
        settings=_settings(parties, choice, ask),
        sources=source_digests(_classes(parties)),
        rows=found.rows,
        notes=found.notes,
        partial=found.partial,
    )


def _classes(parties: Sequence[Contender]) -> list[type]:
    return [type(registry.build(use)) for party in parties for use in party.use]


def _settings(parties: Sequence[Contender], choice: Choice, asked: LengthsSettings | QualityAsk) -> dict:
    settings = {"contenders": [party.label for party in parties], **asdict(choice), **asdict(asked)}
    # Where files lie on this machine means nothing on another.
    return json.loads(json.dumps({k: None if isinstance(v, Path) else v for k, v in settings.items()}))
