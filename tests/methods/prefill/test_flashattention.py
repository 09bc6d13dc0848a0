"""The methods that attend by tiles give the plain engine's answers, and say what they cannot do."""

from unittest.mock import Mock

import pytest

from headstart import LLM, SamplingParams
from headstart.errors import HeadstartError, MethodError
from headstart.evaluation.method_bench import MethodBenchSettings, run_method_bench
from headstart.methods import registry

METHODS = [
    "flashattention:rows=5,keys=7",
    "fastattention:rows=8,keys=6,slices=3",
    "fastattention:rows=8,keys=6,slices=3,host_layers=2",
]


@pytest.mark.parametrize("use", METHODS)
def test_answers_stay(stories, use):
    """Several prompts at once, cut into chunks."""
    prompts = ["Once upon a time there was a dog who", "The", "One day, Lily and her mother went to the park. " * 4]
    params = SamplingParams(max_tokens=12, temperature=0)
    plain, tiled = (
        [out.outputs[0].text for out in LLM(stories, use=given).generate(prompts, params)] for given in ([], [use])
    )
    assert tiled == plain


@pytest.mark.parametrize("use", ["flashattention:rows=0", "flashattention:keys=9999", "fastattention:slices=0"])
def test_refuses_tiles_of_no_size(use):
    with pytest.raises(MethodError, match="from 1 to 1024"):
        registry.build(use)


def test_refuses_more_layers_on_the_host_than_there_are(stories):
    with pytest.raises(MethodError, match="at most the model's 5 layers"):
        LLM(stories, use=["fastattention:host_layers=6"])
    with pytest.raises(MethodError, match="at least 0"):
        registry.build("fastattention:host_layers=-1")


@pytest.mark.parametrize("key", ["flashattention", "fastattention"])
def test_a_bench_without_a_gpu_says_so(key):
    with pytest.raises(HeadstartError, match="measured on a GPU"):
        run_method_bench(MethodBenchSettings(key, device="cpu"), Mock(), command="")
