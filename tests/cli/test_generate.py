"""`headstart generate`: prompts from everywhere, the same text as the Python API, text and report kept apart."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headstart import LLM, SamplingParams

Run = Callable[..., Any]
PROMPT = "Once upon a time"
GREEDY = ("--temperature", "0", "--max-tokens", "12")


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM()


def expected(llm: LLM, prompt: str, **params: object) -> str:
    settings = {"temperature": 0, "max_tokens": 12} | params
    return llm.generate(prompt, SamplingParams(**settings))[0].outputs[0].text  # type: ignore[arg-type]


def test_streamed_text_is_the_apis_and_stands_alone_on_stdout(headstart: Run, llm: LLM) -> None:
    ran = headstart("generate", PROMPT, *GREEDY)
    assert ran.code == 0
    assert ran.out == expected(llm, PROMPT) + "\n"
    for word in ("TTFT", "tokens/s", "peak memory", "12 generated"):
        assert word in ran.err


def test_quiet_says_nothing_but_the_text(headstart: Run) -> None:
    assert headstart("generate", PROMPT, *GREEDY, "--quiet").err == ""


def test_json_is_one_object_with_results_and_report(headstart: Run, llm: LLM) -> None:
    ran = headstart("generate", PROMPT, "The dragon", *GREEDY, "--json")
    assert (ran.code, ran.err) == (0, "")
    first, second = ran.json["results"]
    assert [first["prompt"], second["prompt"]] == [PROMPT, "The dragon"]
    assert first["outputs"][0]["text"] == expected(llm, PROMPT)
    assert second["outputs"][0]["text"] == expected(llm, "The dragon")
    assert first["prompt_tokens"] == len(llm.tokenizer.encode(PROMPT))
    assert len(first["outputs"][0]["token_ids"]) == 12
    assert first["outputs"][0]["finish_reason"] == "length"
    report = ran.json["report"]
    assert report["requests"] == 2
    assert report["output_tokens"] == 24
    assert report["prompt_tokens"] == first["prompt_tokens"] + second["prompt_tokens"]
    assert report["peak_memory"] > 2**20
    assert report["time_to_first_token"] > 0


def test_prompts_come_in_the_order_given(headstart: Run, tmp_path: Path) -> None:
    path = tmp_path / "prompt.txt"
    path.write_text("Eine Geschichte: Ärger\n", encoding="utf-8")
    ran = headstart("generate", "first", "-", "--file", str(path), *GREEDY, "--json", stdin="from\nstdin\n")
    assert [r["prompt"] for r in ran.json["results"]] == ["first", "from\nstdin", "Eine Geschichte: Ärger"]


def test_piped_text_is_one_prompt_or_one_per_line(headstart: Run) -> None:
    text = "The king\n\n  \nThe queen\n"
    whole = headstart("generate", *GREEDY, "--json", stdin=text)
    assert [r["prompt"] for r in whole.json["results"]] == [text.removesuffix("\n")]
    lines = headstart("generate", *GREEDY, "--json", "--lines", stdin=text)
    assert [r["prompt"] for r in lines.json["results"]] == ["The king", "The queen"]


def test_several_outputs_are_all_shown(headstart: Run) -> None:
    ran = headstart("generate", PROMPT, "-n", "3", "--seed", "5", "--max-tokens", "6")
    assert ran.code == 0
    assert [f"[{i}/3]" in ran.out for i in (1, 2, 3)] == [True] * 3
    outputs = headstart("generate", PROMPT, "-n", "3", "--seed", "5", "--max-tokens", "6", "--json").json
    texts = [output["text"] for output in outputs["results"][0]["outputs"]]
    assert len(texts) == 3
    assert all(text in ran.out for text in texts)


def test_sampling_options_reach_the_sampler(headstart: Run, llm: LLM) -> None:
    options = ("--temperature", "1.3", "--top-k", "40", "--top-p", "0.9", "--min-p", "0.01", "--seed", "11")
    options += ("--max-tokens", "20", "--ignore-eos", "--repetition-penalty", "1.2")
    ran = headstart("generate", PROMPT, *options, "--quiet")
    params = SamplingParams(
        temperature=1.3,
        top_k=40,
        top_p=0.9,
        min_p=0.01,
        seed=11,
        max_tokens=20,
        ignore_eos=True,
        repetition_penalty=1.2,
    )
    assert ran.out == llm.generate(PROMPT, params)[0].outputs[0].text + "\n"


def test_what_is_not_said_is_left_to_the_checkpoint(headstart: Run, llm: LLM) -> None:
    ran = headstart("generate", PROMPT, "--seed", "3", "--max-tokens", "24", "--quiet")
    params = llm.default_sampling_params(max_tokens=24)
    params.seed = 3
    assert ran.out == llm.generate(PROMPT, params)[0].outputs[0].text + "\n"


def test_stop_ends_the_output_before_the_string(headstart: Run, llm: LLM) -> None:
    text = expected(llm, PROMPT, max_tokens=30)
    stop = text[len(text) // 2 :][:3]
    ran = headstart("generate", PROMPT, "--temperature", "0", "--max-tokens", "30", "--stop", stop, "--json")
    output = ran.json["results"][0]["outputs"][0]
    assert output["text"] == text[: text.index(stop)]
    assert (output["finish_reason"], output["stop_reason"]) == ("stop", stop)


def test_logprobs_list_the_chosen_token_and_alternatives(headstart: Run) -> None:
    ran = headstart("generate", PROMPT, *GREEDY, "--logprobs", "3", "--json")
    output = ran.json["results"][0]["outputs"][0]
    assert len(output["logprobs"]) == 12
    for token_id, alternatives in zip(output["token_ids"], output["logprobs"], strict=True):
        assert [entry["rank"] for entry in alternatives] == [1, 2, 3]
        assert alternatives[0]["token_id"] == token_id
        assert alternatives == sorted(alternatives, key=lambda entry: -entry["logprob"])


def test_engine_options_reach_the_engine(headstart: Run) -> None:
    prompt = " ".join(["The king and the queen went to the sea."] * 8)
    options = ("--use", "sarathi-serve:chunk=7", "--page-size", "4", "--max-num-seqs", "2", "--dtype", "float32")
    same = headstart("generate", prompt, prompt, *GREEDY, *options, "--max-num-batched-tokens", "8", "--json")
    plain = headstart("generate", prompt, *GREEDY, "--dtype", "float32", "--json")
    texts = [result["outputs"][0]["text"] for result in same.json["results"] + plain.json["results"]]
    assert len(set(texts)) == 1
    too_long = headstart("generate", prompt, *GREEDY, "--max-model-len", "16")
    assert too_long.code == 2
    assert "16 tokens" in too_long.err


def test_the_size_of_the_cache_and_the_device_reach_the_engine(headstart: Run) -> None:
    prompt = " ".join(["The king and the queen went to the sea."] * 8)
    options = ("--device", "cpu", "--page-size", "8")
    plain = headstart("generate", prompt, *GREEDY, "--json").json["results"][0]["outputs"][0]["text"]
    for enough in (("--num-pages", "64"), ("--kv-cache-memory", str(2**23))):
        ran = headstart("generate", prompt, *GREEDY, *options, *enough, "--json")
        assert ran.json["results"][0]["outputs"][0]["text"] == plain
    for little in (("--num-pages", "2"), ("--kv-cache-memory", "1")):
        ran = headstart("generate", prompt, *GREEDY, *options, *little)
        assert ran.code == 2
        assert "tokens" in ran.err


def test_the_prefix_cache_can_be_turned_off(headstart: Run) -> None:
    prompt = " ".join(["The king and the queen went to the sea."] * 8)
    # One sequence at a time, so that the second request begins when the first one's pages are there to find.
    options = (*GREEDY, "--json", "--max-num-seqs", "1")
    cached = headstart("generate", prompt, prompt, *options).json["report"]["cached_tokens"]
    uncached = headstart("generate", prompt, prompt, *options, "--no-enable-prefix-caching").json["report"]
    assert cached > 0
    assert uncached["cached_tokens"] == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["x", "--temperature", "-1"], "temperature"),
        (["x", "--max-tokens", "0"], "max_tokens"),
        (["x", "--top-p", "2"], "top_p"),
        (["x", "--model", "/no/such/directory"], "/no/such/directory"),
        (["x", "--use", "sarathi-serv"], "did you mean 'sarathi-serve'"),
        (["x", "--use", "sarathi-serve:chnk=3"], "did you mean 'chunk'"),
        (["x", "--use", "sarathi", "--use", "sarathi-serve"], "both fill"),
        (["x", "--dtype", "float3"], "float3"),
        (["x", "--device", "abacus"], "abacus"),
        (["x", "--page-size", str(10**12)], "page_size"),
        (["x", "--page-size", str(10**30)], "page_size"),
        (["x", "--num-pages", str(10**12)], "num_pages"),
        (["x", "--num-pages", "-3"], "num_pages"),
        (["x", "--kv-cache-memory", str(10**18)], "kv_cache_memory"),
        (["x", "--max-num-seqs", "0"], "max_num_seqs"),
        (["--file", "/no/such/file"], "/no/such/file"),
        ([], "no prompt"),
    ],
)
def test_bad_input_ends_with_one_sentence_and_status_2(headstart: Run, arguments: list[str], says: str) -> None:
    ran = headstart("generate", *arguments)
    assert (ran.code, ran.out) == (2, "")
    assert says in ran.err
    assert ran.err.startswith("headstart: ")
    assert ran.err.count("\n") == 1


def test_a_file_that_is_no_text_is_refused(headstart: Run, tmp_path: Path) -> None:
    path = tmp_path / "prompt.bin"
    path.write_bytes(b"\xff\xfe\x00\x80")
    ran = headstart("generate", "--file", str(path))
    assert ran.code == 2
    assert "not UTF-8" in ran.err


def test_json_survives_any_prompt(headstart: Run) -> None:
    nasty = '"quotes" \\ [bold]markup[/] \x1b[31m é 漢字 🙂 <|user|>'
    ran = headstart("generate", nasty, *GREEDY, "--json")
    assert ran.json["results"][0]["prompt"] == nasty
    plain = headstart("generate", nasty, *GREEDY)
    assert plain.out[:-1] == json.loads(ran.out)["results"][0]["outputs"][0]["text"]
