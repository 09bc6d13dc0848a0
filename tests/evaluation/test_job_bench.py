"""Jobs through several engines: figures that are counted are right, and methods may bring such a measurement."""

from headstart.evaluation.compare_subject import Subject
from headstart.evaluation.job_bench import Job, JobSide, run_jobs
from headstart.evaluation.method_bench_spec import OwnAsk


class Silent:
    """A reporter that counts steps."""

    def __init__(self):
        self.total = self.steps = 0

    def say(self, text):
        return

    def begin(self, total):
        self.total += total

    def step(self, description):
        self.steps += 1

    def done(self):
        return


def test_what_a_job_reads(stories):
    """Without a cache all of it; with one, and a plan, what is shared once."""
    subject = Subject.of_model(stories, dtype="float32", device="cpu")
    reporter = Silent()
    ask = OwnAsk(subject, "batchllm", 3, 0, True, reporter)

    def make(seed):
        text = subject.prompt(64, f"{seed}")
        return Job([text + subject.prompt(5, f"{seed} {n}") for n in range(4)], [3] * 4)

    sides = (JobSide("alone", settings={"enable_prefix_caching": False}), JobSide("batchllm", ("batchllm",)))
    settings = {"num_pages": 64, "page_size": 16, "max_num_seqs": 4}
    metrics = ("job", "prompt tokens read", "pages held")
    found = run_jobs(ask, sides, make, settings, metrics, suffix=" here", targets={("job", "batchllm"): 0.001})
    rows = {(row.metric or row.name, row.side): row for row in found.rows}
    assert rows["prompt tokens read here", "alone"].values == [4.0 * 69] * 3
    assert rows["prompt tokens read here", "batchllm"].values == [69.0 + 3 * 5] * 3
    assert reporter.steps == reporter.total == 8
    ratios = {ratio.name: ratio for ratio in found.ratios}
    assert ratios["prompt tokens read here"].value == 4 * 69 / (69 + 15)
    assert ratios["job here"].met
    assert found.notes == ["greedy answers of batchllm here are the same as those of alone"]
