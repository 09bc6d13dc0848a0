"""What a load showed, as an object, as ledger rows, as JSON, and read back from its file."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headstart.evaluation.load.agreement import Agreement
from headstart.evaluation.load.figures import Distribution, Summary, summarize
from headstart.evaluation.load.pacer import Overhead
from headstart.evaluation.load.records import RequestRecord, read_records
from headstart.evaluation.load.settings import LoadSettings
from headstart.evaluation.load.target import Target

if TYPE_CHECKING:
    from headstart.evaluation.ledger import Row

# Above this share of the machine, or of the median time to first token, the generator is part of what it measures.
OVERHEAD_LIMIT = 0.02

_LATENCIES = {"TTFT": "ttft", "TPOT": "tpot", "ITL": "itl", "E2E": "e2e", "queue time": "queue"}


@dataclass
class LoadResult:
    """A load and what became of it.

    Attributes:
        settings: with the rate that was chosen, if none was given.
        url: of the server.
        target: what the server said of itself.
        started: UTC time of the load's start, ISO 8601.
        records: of all requests that began, in the order in which they ended, the probe's included.
        overhead: of the load generator; None if it was killed.
        agreement: with the server's own counters, if it has any.
        partial: why the load ended before its time; None if it did not.
        ended_by: the signal that ended it, if one did.
        alive: whether the server still answered at the end.
        path: of the file that holds the records.
        origin: when its arrivals began, in seconds of `time.perf_counter()`; None if they did not, or elsewhere.
    """

    settings: LoadSettings
    url: str
    target: Target
    started: str
    records: list[RequestRecord]
    overhead: Overhead | None = None
    agreement: list[Agreement] = field(default_factory=list)
    partial: str | None = None
    ended_by: int | None = None
    alive: bool = True
    path: Path | None = None
    origin: float | None = None

    @cached_property
    def summary(self) -> Summary:
        """The figures."""
        return summarize(self.records, self.settings.slos)

    def to_rows(self, side: str) -> "list[Row]":
        """Ledger rows of this one load; see `to_rows`."""
        return to_rows([self], side)

    def notes(self) -> list[str]:
        """What a reader of the figures should know, in sentences."""
        summary, found = self.summary, []
        if self.partial:
            found.append(f"partial result: {self.partial}")
        good = [record for record in self.records if record.status == "ok" and record.kind == "load"]
        odd = sum(r.prompt_tokens is not None and r.prompt_tokens != r.asked_input for r in good)
        if odd:
            found.append(f"{odd} prompts were not as long in the server's count as they were meant to be")
        short = sum(record.output_tokens < record.asked_output for record in good)
        if short:
            found.append(f"{short} answers ended before they had the asked length")
        reasons = list(dict.fromkeys(r.error for r in self.records if r.error and r.status not in ("ok", "cut")))
        found += [f"a request failed: {reason}" for reason in reasons[:3]]
        if self.target.exact is False:
            found.append("the server's stack is not exact: a method in force changes the model's distribution")
        overhead = self.overhead
        if overhead is not None and overhead.cpu_share > OVERHEAD_LIMIT:
            found.append(
                f"the load generator took {overhead.cpu_share:.1%} of this machine, enough to disturb a server on it"
            )
        if overhead is not None and summary.ttft and overhead.send_lag[0] > OVERHEAD_LIMIT * summary.ttft.p50:
            found.append(
                "requests were sent so late that the time to first token shows it: the generator is overloaded"
            )
        found += [
            f"the server counts {item.server:g} for {item.name}, and this {item.ours:g}; was it busy with others?"
            for item in self.agreement
            if not item.agrees
        ]
        return found

    def to_json(self) -> dict[str, Any]:
        """Everything but the single requests."""
        return {
            "settings": self.settings.to_json(),
            "url": self.url,
            "server": self.target.to_json(),
            "started": self.started,
            "partial": self.partial,
            "summary": asdict(self.summary),
            "overhead": None
            if self.overhead is None
            else asdict(self.overhead) | {"cpu_share": self.overhead.cpu_share},
            "agreement": [asdict(item) for item in self.agreement],
            "notes": self.notes(),
            "path": None if self.path is None else str(self.path),
        }


def to_rows(results: Sequence[LoadResult], side: str) -> "list[Row]":
    """Ledger rows of the repeats of one load, a value for each: what all of them measured.

    Args:
        results: at least one.
        side: how the rows name what was loaded.
    """
    from headstart.evaluation.ledger import Row

    summaries = [result.summary for result in results]
    details = {"requests": float(summaries[0].asked), "seconds": summaries[0].seconds}
    rows: list[Row] = []

    def add(name: str, unit: str, values: Sequence[float | None], *, higher_is_better: bool) -> None:
        known = [value for value in values if value is not None]
        if len(known) == len(results):
            rows.append(Row.of(name, side, unit, known, higher_is_better=higher_is_better, details=details))

    def spread(name: str, found: Sequence[Distribution | None], *figures: str) -> None:
        for figure in figures:
            values = [None if item is None else float(getattr(item, figure)) for item in found]
            add(f"{name} {figure}", "s", values, higher_is_better=False)

    for name, attribute in _LATENCIES.items():
        spread(name, [getattr(summary, attribute) for summary in summaries], "mean", "p50", "p90", "p99")
    probes = [summary.probe for summary in summaries]
    spread("probe gap alone", [probe and probe.alone for probe in probes], "p50", "max")
    spread("probe gap", [probe and probe.loaded for probe in probes], "p50", "p99", "max")
    add("requests answered", "requests/s", [summary.request_rate for summary in summaries], higher_is_better=True)
    add("output throughput", "tokens/s", [summary.output_rate for summary in summaries], higher_is_better=True)
    add("answered share", "fraction", [_share(summary) for summary in summaries], higher_is_better=True)
    for index, slo in enumerate(results[0].settings.slos):
        found = [summary.goodput[index].per_second for summary in summaries]
        add(f"goodput at {slo}", "requests/s", found, higher_is_better=True)
    return rows


def _share(summary: Summary) -> float | None:
    return summary.answered / summary.asked if summary.asked else None


def read_load(path: Path) -> LoadResult:
    """The load whose records lie in a file, marked partial if the process that wrote it was killed.

    Raises:
        LoadError: no such file, or none of this schema.
    """
    header, records, end = read_records(path)
    result = LoadResult(
        settings=LoadSettings.from_json(header["settings"]),
        url=header["url"],
        target=Target(**header["server"]),
        started=header["started"],
        records=records,
        path=path,
    )
    if end is None:
        result.partial = "the load generator was killed before the end"
        return result
    result.partial = end["partial"]
    result.agreement = [Agreement(**item) for item in end["agreement"]]
    lags = {name: tuple(end["overhead"][name]) for name in ("loop_lag", "send_lag")}
    result.overhead = Overhead(**{**end["overhead"], **lags})
    return result
