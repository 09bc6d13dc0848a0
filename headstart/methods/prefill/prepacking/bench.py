"""What padding costs: prompts whose lengths are log-normal, read in one step by rectangles and by the flat batch."""

import random
from typing import Any

from headstart.evaluation.compare_lengths import LengthsResult
from headstart.evaluation.job_bench import Job, JobSide, run_jobs
from headstart.evaluation.method_bench_spec import OwnAsk
from headstart.methods.prefill.prepacking.rectangles import first_fit_decreasing

PADDED, SORTED, FLAT = "prepacking:rows=padded", "prepacking:rows=sorted", "exact"


def measure(ask: OwnAsk) -> LengthsResult:
    """Prompts of real text; `job` is the time until all have their first token. Then prompts of equal length."""
    large = ask.subject.device != "cpu"
    count, mean, longest = (6, 16, 48) if ask.quick else (64, 100, 900) if large else (24, 60, 384)
    found = LengthsResult()
    for suffix, spread, target in ((" of log-normal lengths", 0.9, 2.0), (" of equal lengths", 0.0, None)):

        def lengths(seed: int, spread: float = spread) -> list[int]:
            rng = random.Random(seed)
            drawn = [round(mean * rng.lognormvariate(-(spread**2) / 2, spread)) for _ in range(count)]
            return [min(max(each, 1), longest) for each in drawn]

        def make(seed: int, suffix: str = suffix) -> Job:
            prompts = [ask.subject.prompt(n, f"{seed} {i}") for i, n in enumerate(lengths(seed))]
            return Job(prompts, [1] * count)

        settings: dict[str, Any] = {
            "max_num_batched_tokens": count * longest,
            "max_num_seqs": count,
            "num_pages": count * (longest // 16 + 2),
            "page_size": 16,
            "enable_prefix_caching": False,
        }
        sides = (JobSide(PADDED, (PADDED,)), JobSide(SORTED, (SORTED,)), JobSide(ask.use, (ask.use,)), JobSide(FLAT))
        targets = {} if target is None else {("job", ask.use): target}
        part = run_jobs(ask, sides, make, settings, ("job",), suffix=suffix, targets=targets)
        drawn = [lengths(ask.seed + round_) for round_ in range(1, ask.repeats + 1)]
        ratios = [count * max(each) / sum(each) for each in drawn]
        rows = [len(first_fit_decreasing(each, max(each))) for each in drawn]
        part.notes.append(
            f"{count} prompts{suffix}: padding takes {min(ratios):.2f} to {max(ratios):.2f} times the tokens, packing "
            f"{min(rows)} to {max(rows)} rows instead of {count}"
        )
        found.rows += part.rows
        found.ratios += part.ratios
        found.notes += part.notes
        found.partial = part.partial
        if part.partial is not None:
            break
    return found
