"""BatchLLM: groups are true prefixes that save what they say, and a job's answers are those of its prompts alone."""

import random
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headstart import LLM, SamplingParams
from headstart.errors import MethodError
from headstart.methods.schedule.batchllm.batchllm import BatchLLM
from headstart.methods.schedule.batchllm.groups import first_level_groups, saved_tokens

TINY = {"num_pages": 60, "page_size": 16, "max_num_batched_tokens": 128}


def made_job(rng, documents=4, each=6, length=96, own=12, heads=16):
    """Prompts over a common head and some documents, shuffled."""
    head = [rng.randrange(3, 500) for _ in range(heads)]
    texts = [head + [rng.randrange(3, 500) for _ in range(length)] for _ in range(documents)]
    prompts = [text + [rng.randrange(3, 500) for _ in range(own)] for text in texts for _ in range(each)]
    rng.shuffle(prompts)
    return prompts


def common(a, b):
    length = 0
    while length < min(len(a), len(b)) and a[length] == b[length]:
        length += 1
    return length


def best_one_level(prompts):
    """Most tokens that one shared prefix per prompt can save: by trying, for every set of prompts, its whole prefix."""
    distinct = {}
    for a in range(len(prompts)):
        for b in range(a + 1, len(prompts)):
            length = common(prompts[a], prompts[b])
            if length:
                distinct[tuple(prompts[a][:length])] = None
    prefixes = list(distinct)

    @cache
    def best(number, free):
        if number == len(prefixes):
            return 0
        prefix = prefixes[number]
        users = [p for p in free if tuple(prompts[p][: len(prefix)]) == prefix]
        found = best(number + 1, free)
        if len(users) > 1:
            found = max(found, len(prefix) * (len(users) - 1) + best(number + 1, free - frozenset(users)))
        return found

    order = sorted(prefixes, key=len, reverse=True)
    prefixes[:] = order
    return best(0, frozenset(range(len(prompts))))


def whole_tree(prompts):
    """Tokens that sharing at every level would save."""
    nodes = {tuple(prompt[:length]) for prompt in prompts for length in range(1, len(prompt) + 1)}
    return sum(map(len, prompts)) - len(nodes)


@settings(max_examples=100, deadline=None)
@given(
    prompts=st.lists(st.lists(st.integers(1, 2), min_size=1, max_size=6), min_size=1, max_size=7),
    least=st.sampled_from([1, 3]),
    seed=st.integers(0, 99),
)
def test_groups_of_any_job(prompts, least, seed):
    """Every prompt is in one group, whose prefix is a true one; the saving lies below the best of one level, and that
    below sharing at all levels; the order of the job changes nothing."""
    groups = first_level_groups(prompts, least)
    assert sorted(place for group in groups for place in group.prompts) == list(range(len(prompts)))
    for group in groups:
        first = prompts[group.prompts[0]]
        assert len(group.prompts) > 1 or group.prefix == 0
        assert all(prompts[place][: group.prefix] == first[: group.prefix] for place in group.prompts)
        assert group.prefix == 0 or (group.prefix >= least and group.prefix <= len(first))
    if least == 1:
        assert saved_tokens(groups) <= best_one_level(prompts) <= whole_tree(prompts)
    shuffled = prompts.copy()
    random.Random(seed).shuffle(shuffled)

    def contents(job):
        return [(group.prefix, [tuple(job[p]) for p in group.prompts]) for group in first_level_groups(job, least)]

    assert contents(shuffled) == contents(prompts)


def test_a_tree_of_two_levels_by_hand():
    """A group below 100 common tokens is cut out where (3 - 1) 60 > 100, and stays where (3 - 1) 50 is not."""
    common_part = list(range(100))
    direct = [[*common_part, 1000 + n] for n in range(10)]
    for own, cut in ((60, True), (50, False)):
        deeper = [[*common_part, *range(200, 200 + own), 2000 + n] for n in range(3)]
        groups = [group for group in first_level_groups(direct + deeper) if group.prefix]
        found = sorted((group.prefix, len(group.prompts)) for group in groups)
        assert found == ([(100, 10), (100 + own, 3)] if cut else [(100, 13)])


def test_the_rule_is_near_the_best():
    """Over random trees the rule saves nearly what the exact one-level choice saves."""
    rng = random.Random(0)
    ruled = exact = 0
    for _ in range(150):
        prompts = [[rng.randrange(2) for _ in range(rng.randrange(1, 7))] for _ in range(7)]
        ruled += saved_tokens(first_level_groups(prompts))
        exact += best_one_level(prompts)
    assert 0.9 * exact <= ruled <= exact


@pytest.fixture(scope="module")
def plain(stories):
    return LLM(stories, dtype="float32", enable_prefix_caching=False)


def run(stories, prompts, params, use, **more):
    llm = LLM(stories, dtype="float32", use=use, **(TINY | more))
    outputs = llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], params)
    llm.engine.store.check()
    stats = llm.engine.stats()
    assert stats.pages_free + stats.pages_cached == stats.pages_total
    return [output.outputs[0].token_ids for output in outputs], stats


@pytest.mark.parametrize("options", [{}, {"reorder": False}, {"memory": 0.3}, {"output": 1}])
def test_a_jobs_answers_are_those_of_its_prompts(stories, plain, options):
    """Greedy answers in the order of the prompts, whatever the plan, in a cache that holds little of the job."""
    prompts = made_job(random.Random(1))
    params = [SamplingParams(max_tokens=2 + n % 7, temperature=0, ignore_eos=True) for n in range(len(prompts))]
    want = [output.outputs[0].token_ids for output in plain.generate(list(prompts), params)]
    got, stats = run(stories, prompts, params, [BatchLLM(**options)])
    assert got == want
    assert stats.methods["batchllm"]["shared_prompts"] == 24


def test_each_prefix_is_read_once(stories):
    """What is read is what the plan says, up to the pages that prefixes end in; a cache without a plan reads more."""
    prompts = made_job(random.Random(2), documents=10)
    params = SamplingParams(max_tokens=4, temperature=0, ignore_eos=True)
    _, planned = run(stories, prompts, params, [BatchLLM()], num_pages=40)
    _, cached = run(stories, prompts, params, [], num_pages=40)
    total = sum(map(len, prompts))
    least = total - whole_tree(prompts)
    most = total - planned.methods["batchllm"]["planned_savings"] + len(prompts) * 16
    assert planned.preemptions == 0
    assert least <= planned.prefill_tokens <= most
    assert 1.5 * planned.prefill_tokens < cached.prefill_tokens < total


def test_prompts_that_share_nothing(stories):
    """The plan is plain chunked batching, in the order of what is to be written for what is read."""
    rng = random.Random(3)
    prompts = [[rng.randrange(3, 500) for _ in range(40)] for _ in range(8)]
    params = [SamplingParams(max_tokens=n + 1, temperature=0, ignore_eos=True) for n in range(8)]
    method = BatchLLM()
    got, stats = run(stories, prompts, params, [method])
    assert stats.methods["batchllm"] == {"groups": 0, "shared_prompts": 0, "planned_savings": 0}
    assert [len(tokens) for tokens in got] == list(range(1, 9))
    assert stats.prefill_tokens == sum(map(len, prompts))


def test_two_ranks_plan_alike(stories, plain):
    """Every rank is told of the job, and plans the same steps; decodes share prefixes there as well."""
    prompts = made_job(random.Random(4), documents=2, each=3)
    params = SamplingParams(max_tokens=6, temperature=0, ignore_eos=True)
    want = [output.outputs[0].token_ids for output in plain.generate(list(prompts), params)]
    use = [BatchLLM(), "hydragen:threshold=1,part=0"]
    llm = LLM(stories, dtype="float32", device="cpu", use=use, tensor_parallel_size=2, **TINY)
    try:
        outputs = llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], params)
    finally:
        llm.close()
    assert [output.outputs[0].token_ids for output in outputs] == want
    assert llm.engine.stats().methods["hydragen"]["shared_steps"] > 0


@pytest.mark.parametrize("options", [{"memory": 0.0}, {"memory": 1.5}, {"memory": float("nan")}, {"output": 0}])
def test_options_out_of_range(options):
    """They are refused in a sentence."""
    with pytest.raises(MethodError, match=r"^batchllm: "):
        BatchLLM(**options)
