"""The priority policy: who starts first, whatever scheduler is inside, and the same answers."""

import random

import pytest

from headstart.engine.params import SamplingParams
from headstart.errors import HeadstartError, InvalidRequestError
from tests.engine.test_engine import make_engine, run_alone


@pytest.mark.parametrize("use", [[], ["sarathi-serve:chunk=9"], ["prefill-first"]])
def test_lower_numbers_start_first_and_equals_in_order_of_arrival(use: list[str]) -> None:
    rng = random.Random(1)
    engine = make_engine(scheduling_policy="priority", max_num_seqs=1, use=use)
    asked = {}
    for number in range(20):
        params = SamplingParams(temperature=0, max_tokens=3, priority=rng.randint(-2, 2))
        ids = [rng.randrange(3, 19) for _ in range(rng.randint(1, 30))]
        asked[str(number)] = (ids, params)
        engine.submit(engine.prepare(str(number), ids, params))
    ended = []
    while engine.has_work:
        ended += [output for output in engine.step() if output.finished]
    assert [o.request_id for o in ended] == sorted(asked, key=lambda name: (asked[name][1].priority, int(name)))
    for output in ended:
        ids, params = asked[output.request_id]
        assert [output.outputs[0].token_ids] == run_alone(ids, SamplingParams(temperature=0, max_tokens=3))


def test_priorities_are_refused_where_they_would_mean_nothing() -> None:
    with pytest.raises(InvalidRequestError, match="scheduling-policy") as caught:
        make_engine().prepare("a", [5], SamplingParams(priority=1))
    assert caught.value.param == "priority"
    with pytest.raises(HeadstartError, match="must be one of fcfs, priority, fair, cache-aware, not 'random'"):
        make_engine(scheduling_policy="random")
