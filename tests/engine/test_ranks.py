"""Engines of several ranks: the same answers as one, and an error rather than a hang when one of them fails."""

import asyncio
import subprocess
import sys
import time

import psutil
import pytest
import torch.distributed as dist

from headstart import LLM, SamplingParams
from headstart.checkpoints.default import default_checkpoint_path
from headstart.checkpoints.random_init import random_checkpoint
from headstart.checkpoints.writer import save_checkpoint
from headstart.engine.args import EngineArgs
from headstart.engine.client import EngineDeadError
from headstart.engine.engine import Engine
from headstart.engine.group import RanksError
from headstart.engine.params import StructuredOutputs
from headstart.engine.process import ProcessEngine
from headstart.engine.ranks import start_engine
from headstart.engine.stack import Stack
from headstart.errors import HeadstartError, MethodError
from headstart.methods.prefill.lazyllm import LazyLLM
from tests.models.test_parallel import CONFIGS

SETTINGS = {"device": "cpu", "dtype": "float32", "page_size": 4, "num_pages": 160, "max_model_len": 128}
GREEDY = SamplingParams(max_tokens=24, temperature=0, ignore_eos=True)
LONG = SamplingParams(max_tokens=120, temperature=0, ignore_eos=True, output_kind="delta")


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A tiny mixture of experts and a draft model for it, with the tokenizer of the built-in one."""
    directory = tmp_path_factory.mktemp("ranks")
    for name, family in (("model", "qwen3_moe"), ("draft", "llama")):
        tiny = random_checkpoint(CONFIGS[family] | {"vocab_size": 8192, "initializer_range": 0.5}, "float32")
        save_checkpoint(tiny.decoder, directory / name, tokenizer_from=default_checkpoint_path())
    return directory


def others(parent: int | None = None) -> list[psutil.Process]:
    """The other ranks' processes."""
    living = [child for child in psutil.Process(parent).children() if child.status() != psutil.STATUS_ZOMBIE]
    return [child for child in living if "headstart.engine.ranks" in child.cmdline()]


def answers(llm: LLM, prompts, params) -> list:
    return [[part.token_ids for part in output.outputs] for output in llm.generate(prompts, params)]


def test_two_ranks_answer_as_one(directory):
    """Chunks, preemption, a second round from the cache, drafts with their clock, and steps that are started ahead."""
    prompts = [[(7 * i + j) % 97 for j in range(5 + 11 * i)] for i in range(6)]
    # Of few tokens: among thousands of like weight, a sum in another order draws the neighbour now and then.
    params = [GREEDY, SamplingParams(max_tokens=20, n=2, seed=5, top_k=4, ignore_eos=True), *[GREEDY] * 2]
    params += [SamplingParams(max_tokens=9, temperature=0, logprobs=2, prompt_logprobs=1), GREEDY]
    draft = f"speculative:draft={directory / 'draft'},length=2"
    for use, ahead in (([], True), ([draft], False)):
        settings = SETTINGS | {"num_pages": 70, "max_num_batched_tokens": 16, "async_scheduling": ahead, "use": use}
        one = LLM(str(directory / "model"), **settings)
        expected = [answers(one, prompts, params) for _ in range(2)]
        two = LLM(str(directory / "model"), tensor_parallel_size=2, **settings)
        assert [answers(two, prompts, params) for _ in range(2)] == expected
        assert one.engine.planner.num_preemptions == two.engine.planner.num_preemptions > 0 or use
        stats = two.engine.stats()
        assert stats.cached_tokens > 0 and stats.pages_free + stats.pages_cached == stats.pages_total
        (other,) = others()
        two.close()
        assert not other.is_running() and not dist.is_initialized()


def test_text_grammars_and_a_killed_rank(directory):
    """Structured outputs and stop strings agree; a rank that dies ends the run at once."""
    model = str(directory / "model")
    asked = [
        ("Once upon a time", SamplingParams(max_tokens=12, temperature=0)),
        ("Tom", SamplingParams(max_tokens=9, seed=1, structured_outputs=StructuredOutputs(regex="[a-c]{5}"))),
        ("The bird", SamplingParams(max_tokens=12, temperature=0, stop=["e"])),
    ]
    expected = [LLM(model, **SETTINGS).generate(*each)[0].outputs for each in asked]
    two = LLM(model, tensor_parallel_size=2, **SETTINGS)
    assert [two.generate(*each)[0].outputs for each in asked] == expected
    with pytest.raises(HeadstartError, match="close the other model first"):
        LLM(model, tensor_parallel_size=2, **SETTINGS)
    stream = two.stream("Once", LONG)
    next(stream)
    (other,) = others()
    other.kill()
    began = time.monotonic()
    with pytest.raises(RanksError, match="rank 1 of 2 has stopped: its process was ended by signal 9"):
        list(stream)
    with pytest.raises(RanksError, match="rank 1"):
        two.generate("Once", GREEDY)
    assert time.monotonic() - began < 60, "within seconds, and far from the time after which a collective gives up"
    two.close()


def test_ranks_that_disagree_stop(directory):
    two = LLM(str(directory / "model"), tensor_parallel_size=2, **SETTINGS)
    two.engine.planner.max_num_batched_tokens = 3
    with pytest.raises(RanksError, match="rank 1 of 2 has stopped: rank 1 has planned another step than rank 0"):
        two.generate([[5] * 20], GREEDY)
    assert not others() and not dist.is_initialized()


def test_the_servers_engine_comes_back_with_all_ranks(directory):
    """Whichever rank is killed: requests fail at once, the group is started again, nobody is left behind."""
    engine = ProcessEngine(model=str(directory / "model"), tensor_parallel_size=2, **SETTINGS)

    async def collect(params):
        return [output async for output in engine.generate([1, 2, 3], params)][-1].outputs[0].token_ids

    async def kill(victim, group):
        tasks = [asyncio.create_task(collect(LONG)) for _ in range(4)]
        while engine.stats().num_running < 4:
            await asyncio.sleep(0.01)
        victim.kill()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(result, EngineDeadError) for result in results)
        await asyncio.to_thread(psutil.wait_procs, group, 20)
        assert not any(process.is_running() for process in group)

    async def main():
        expected = await collect(GREEDY)
        leader, (other,) = psutil.Process(engine.pid), others(engine.pid)
        async with asyncio.timeout(120):
            await kill(other, [leader, other])
            while not engine.restarts:
                await asyncio.sleep(0.05)
            assert await collect(GREEDY) == expected
            leader, (other,) = psutil.Process(engine.pid), others(engine.pid)
            await kill(leader, [leader, other])
        await engine.shutdown()

    asyncio.run(main())


def test_what_cannot_be_cut_is_refused_in_a_sentence(directory):
    model = str(directory / "model")
    cut = {"tensor_parallel_size": 3} | SETTINGS
    with pytest.raises(HeadstartError, match="4 attention heads do not divide among 3 ranks"):
        LLM(model, **cut)
    assert not others() and not dist.is_initialized()
    with pytest.raises(MethodError, match="lazyllm needs all heads of the model in one place, and 2 ranks"):
        Stack([LazyLLM()], 2)
    with pytest.raises(HeadstartError, match="tensor_parallel_size must be a whole number of at least 1, not 0"):
        EngineArgs(tensor_parallel_size=0)
    with pytest.raises(HeadstartError, match="takes no disk with several ranks"):
        EngineArgs(tensor_parallel_size=2, kv_tier="disk=/tmp/kv:1GB")
    with pytest.raises(HeadstartError, match="start_engine"):
        Engine(EngineArgs(tensor_parallel_size=2, device="cpu"))
    with pytest.raises(HeadstartError, match="loaded already"):
        start_engine(EngineArgs(tensor_parallel_size=2, device="cpu"), random_checkpoint(CONFIGS["llama"]))


def test_more_ranks_than_gpus(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(HeadstartError, match="tensor_parallel_size 4 needs as many GPUs"):
        EngineArgs(tensor_parallel_size=4)
    assert EngineArgs(tensor_parallel_size=2).device == "cuda"


def test_a_script_without_a_guard_ends_with_its_ranks(directory, tmp_path):
    """The ranks do not run the script again, and go when it ends, also without `close`."""
    script = tmp_path / "script.py"
    script.write_text(
        "from headstart import LLM, SamplingParams\n"
        f"llm = LLM({str(directory / 'model')!r}, tensor_parallel_size=2, **{SETTINGS})\n"
        "print(llm.generate([[1, 2]], SamplingParams(max_tokens=3, temperature=0))[0].finished)\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")
