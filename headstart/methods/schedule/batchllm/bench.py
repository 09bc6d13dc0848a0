"""What a plan is worth: a job whose prompts share documents, in a cache that holds a few of them."""

import random
from typing import Any

from headstart.evaluation.compare_lengths import LengthsResult
from headstart.evaluation.job_bench import Job, JobSide, run_jobs
from headstart.evaluation.method_bench_spec import OwnAsk

CACHED, SORTED = "exact", "exact, prompts in order"


def measure(ask: OwnAsk) -> LengthsResult:
    """The plan, whole and without its order, and the engine's own prefix cache with prompts as they come and sorted."""
    large = ask.subject.device != "cpu"
    documents, users, head, shared, own = (3, 3, 16, 32, 8) if ask.quick else (6, 8, 32, 224, 24)
    if large and not ask.quick:
        documents, users, head, shared, own = 64, 16, 256, 2048, 128
    answers = (2, 4) if ask.quick else (16, 256) if large else (4, 32)
    page = 64 if large else 16

    def make(seed: int) -> Job:
        rng = random.Random(seed)
        common = ask.subject.prompt(head, f"head {seed}")
        job = []
        for document in range(documents):
            text = common + ask.subject.prompt(shared, f"{seed} {document}")
            # Some documents are asked for long answers, some for short ones.
            most = answers[document * len(answers) // documents]
            for user in range(users):
                question = ask.subject.prompt(rng.randrange(own // 2, own), f"{seed} {document} {user}")
                job.append((text + question, rng.randrange(max(1, most // 2), most + 1)))
        rng.shuffle(job)
        return Job([prompt for prompt, _ in job], [tokens for _, tokens in job])

    pages = 4 * -(-(head + shared + users * (own + answers[1])) // page)
    settings: dict[str, Any] = {"num_pages": pages, "page_size": page, "max_num_seqs": 256}
    sides = (
        JobSide(CACHED),
        JobSide(SORTED, in_order=True),
        JobSide(ask.use, (ask.use,)),
        JobSide("batchllm in the order of tokens", ("batchllm:reorder=false",)),
    )
    metrics = ("job", "prompt tokens read", "pages held")
    found = run_jobs(ask, sides, make, settings, metrics, targets={("job", ask.use): 1.3})
    tokens = sum(map(len, make(ask.seed + 1).prompts))
    found.notes.append(
        f"{documents * users} prompts in {documents} groups: {head + shared} shared tokens, of which all groups share "
        f"{head}, up to {own} of their own, answers of up to {answers[1]}; the cache holds about 4 groups. Without a "
        f"cache {tokens:,} tokens are read in the first round."
    )
    return found
