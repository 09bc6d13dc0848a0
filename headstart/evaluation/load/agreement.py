"""Whether the figures agree with what the server itself counts at `/metrics`."""

from collections.abc import Sequence
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

from headstart.evaluation.load.client import Client, ConnectionFailed
from headstart.evaluation.load.records import RequestRecord

_PREFIXES = ("headstart:", "vllm:")
# What connections, sockets and two event loops may add to a duration, outside of what the server's clock sees.
_SLACK_SECONDS = 0.01
_SLACK_SHARE = 0.1


@dataclass(frozen=True)
class Agreement:
    """One quantity, counted on both sides. Sums of durations are given per request or per token.

    Attributes:
        name: what is counted.
        unit: "" for counts, "s" for durations.
        ours: as the load generator has it.
        server: as the server has it.
        agrees: counts are equal, but for what was under way when a stream was cut off; durations differ by at most
            10 ms and a tenth.
    """

    name: str
    unit: str
    ours: float
    server: float
    agrees: bool


async def scrape(client: Client) -> dict[str, float]:
    """The server's counters now, added up over their labels; empty if it has none that are known here."""
    try:
        status, body = await client.whole("GET", "/metrics")
    except ConnectionFailed:
        return {}
    return counters(body.decode(errors="replace")) if status == 200 else {}


def counters(text: str) -> dict[str, float]:
    """The counters of a text in Prometheus' format, without the prefix of their names."""
    found: dict[str, float] = {}
    try:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                for prefix in _PREFIXES:
                    if sample.name.startswith(prefix) and not sample.name.endswith(("_bucket", "_created")):
                        name = sample.name.removeprefix(prefix)
                        found[name] = found.get(name, 0.0) + sample.value
    except ValueError:
        return {}
    return found


def compare(records: Sequence[RequestRecord], before: dict[str, float], after: dict[str, float]) -> list[Agreement]:
    """Compare the records of a load with what the server counted meanwhile, as far as it has such counters."""
    grown = {name: value - before.get(name, 0.0) for name, value in after.items()}
    whole = [record for record in records if record.status == "ok"]
    cut = [record for record in records if record.status in ("cut", "timeout", "broken")]
    found: list[Agreement] = []

    def count(name: str, ours: int, *counters: str, open_ended: float = 0.0) -> None:
        server = next((grown[counter] for counter in counters if counter in grown), None)
        if server is not None:
            # Of a stream that is cut off the server has counted everything up to the end, and we what had arrived.
            agrees = ours <= server <= ours + open_ended
            found.append(Agreement(name, "", ours, server, agrees))

    def duration(name: str, ours: float, number: int, *histograms: str) -> None:
        histogram = next((h for h in histograms if f"{h}_sum" in grown), None)
        if histogram is None or not number or not grown[f"{histogram}_count"]:
            return
        server = grown[f"{histogram}_sum"] / grown[f"{histogram}_count"]
        slack = _SLACK_SECONDS + _SLACK_SHARE * server
        found.append(Agreement(name, "s", ours / number, server, abs(ours / number - server) <= slack))

    cut_tokens = sum(record.asked_output - record.output_tokens for record in cut)
    count("requests answered", len(whole), "e2e_request_latency_seconds_count", open_ended=len(cut))
    told = [record for record in whole if record.prompt_tokens is not None and record.completion_tokens is not None]
    if told and len(told) == len(whole):
        prompt = sum(record.prompt_tokens or 0 for record in told)
        generated = sum(record.output_tokens for record in (*told, *cut))
        count("prompt tokens", prompt, "prompt_tokens_total", open_ended=sum(record.asked_input for record in cut))
        count("generated tokens", generated, "generation_tokens_total", open_ended=cut_tokens)
        cached = sum(record.cached_tokens or 0 for record in told)
        if any(record.cached_tokens is not None for record in told):
            count("cached prompt tokens", cached, "prefix_cache_hits_total", open_ended=_all_input(cut))
    ttft = sum((record.first or 0.0) - record.sent for record in whole)
    e2e = sum((record.last or 0.0) - record.sent for record in whole)
    duration("sending to first token, mean", ttft, len(whole), "time_to_first_token_seconds")
    duration("sending to last token, mean", e2e, len(whole), "e2e_request_latency_seconds")
    gaps = sum(sum(record.gaps) for record in (*whole, *cut))
    tokens = sum(max(0, record.output_tokens - 1) for record in (*whole, *cut) if record.gaps)
    duration("between tokens, mean", gaps, tokens, "inter_token_latency_seconds", "time_per_output_token_seconds")
    return found


def _all_input(records: Sequence[RequestRecord]) -> int:
    return sum(record.asked_input for record in records)
