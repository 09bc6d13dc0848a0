"""What sharing brings: many answers to one text, over the text's length, beside the engine that reads it for each."""

import random
from typing import Any

from headstart.evaluation.compare_lengths import LengthsResult
from headstart.evaluation.crossover import crossovers, sentence
from headstart.evaluation.job_bench import Job, JobSide, run_jobs
from headstart.evaluation.method_bench_spec import OwnAsk

BASELINE = "exact"


def measure(ask: OwnAsk) -> LengthsResult:
    """Decode speed of steps in which nothing is read; prompts are planned by `batchllm` on both sides."""
    large = ask.subject.device != "cpu"
    lengths = (64, 128) if ask.quick else (1024, 4096, 16384) if large else (128, 512, 2048)
    count, answer = (8, 6) if ask.quick else (256, 64) if large else (32, 16)
    lengths = tuple(length for length in lengths if length + 64 + answer < ask.subject.longest)
    page = 64 if large else 16
    found = LengthsResult()
    for length in lengths:

        def make(seed: int, length: int = length) -> Job:
            text, rng = ask.subject.prompt(length, f"{seed}"), random.Random(seed)
            questions = [ask.subject.prompt(rng.randrange(8, 25), f"{seed} {number}") for number in range(count)]
            return Job([text + question for question in questions], [answer] * count)

        settings: dict[str, Any] = {
            "max_num_seqs": count,
            "page_size": page,
            "num_pages": 2 * (length // page + 1) + count * (-(-(25 + answer) // page) + 2),
        }
        sides = (JobSide(BASELINE, ("batchllm",)), JobSide(ask.use, ("batchllm", ask.use)))
        part = run_jobs(ask, sides, make, settings, ("decode",), suffix=f" at {length:,}", length=length)
        found.rows += part.rows
        found.ratios += part.ratios
        found.notes += part.notes
        found.partial = part.partial
        if part.partial is not None:
            return found
    found.crossovers = crossovers(found.rows, ask.use, BASELINE, ("decode",))
    found.notes += [sentence(each) for each in found.crossovers]
    found.notes.append(f"{count} prompts share all but 8 to 24 tokens, and have answers of {answer}")
    return found
