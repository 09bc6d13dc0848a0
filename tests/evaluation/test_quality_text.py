"""Bits per byte and minimal pairs, against Transformers and by hand."""

import json
import lzma
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from headstart import LLM
from headstart.errors import HeadstartError
from headstart.evaluation import quality_lm_eval
from headstart.evaluation.quality import Run
from headstart.evaluation.quality_lm_eval import (
    continuation_logprobs,
    generate_until,
    lm_eval_scores,
    rolling_logprob,
)
from headstart.evaluation.quality_results import ResultFile
from headstart.evaluation.quality_settings import BITS, BLIMP, CONTEXT, QualitySettings
from headstart.evaluation.quality_text import (
    MinimalPair,
    bits_and_bytes,
    blimp_pairs,
    bucket_edges,
    held_out_documents,
    prefers_good,
    read_documents,
    token_logprobs,
    windows,
)
from headstart.evaluation.tasks import MissingDataError, Sources, TooShortError
from headstart.texts import wild_wood
from tests.conftest import data_directory
from tests.evaluation.test_quality import Listener

TEXT = "Once upon a time there was a little girl named Lily. She loved to play — in the park, ééé!\n" * 12


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM(max_num_seqs=8, device="cpu")


@pytest.fixture(scope="module")
def small(stories: str) -> LLM:
    return LLM(stories, device="cpu", dtype="float32")


def transformers_logprobs(directory: str, ids: list[int]) -> torch.Tensor:
    """Log-probabilities `[T - 1, V]` in float64."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    with torch.inference_mode():
        return model(torch.tensor([ids])).logits[0, :-1].double().log_softmax(-1)


@pytest.mark.filterwarnings("ignore")
def test_bits_per_byte_is_that_of_transformers(small: LLM, stories: str, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    length, count = 128, 3
    asked = QualitySettings((BITS,), lengths=(length,), count=count, text=path)
    (score,) = Run(small, asked, ResultFile(None, "x"), Listener()).scores()

    tokenizer = small.tokenizer
    ids = tokenizer.encode(TEXT, add_special_tokens=False)
    bos = [tokenizer.bos_token_id] if tokenizer.encode("a")[0] == tokenizer.bos_token_id else []
    step = length - 1 - len(bos)
    nats, covered = 0.0, 0
    for at in range(0, count * step, step):
        window = bos + ids[at : at + step]
        rows = transformers_logprobs(stories, window)
        nats -= rows[torch.arange(len(window) - 1), torch.tensor(window[1:])].sum().item()
        covered = at + step
    size = len(tokenizer.decode(ids[:covered]).encode())
    assert score.count == count
    # What decoding does to spaces at the edges may shift a byte.
    assert score.score == pytest.approx(nats / math.log(2) / size, rel=0.005)


@pytest.mark.filterwarnings("ignore")
def test_context_bits_are_of_the_same_tokens_at_every_length(small: LLM, stories: str, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    asked = QualitySettings((CONTEXT,), lengths=(32, 64, 128), count=2, text=path)
    results = ResultFile(None, "x")
    scores = list(Run(small, asked, results, Listener()).scores())
    found = windows(small.tokenizer, [TEXT], 127, 2)
    for score in scores:
        rates = []
        for window in found:
            ids = window.token_ids[-(score.length - 1) :]
            rows = transformers_logprobs(stories, ids)
            nats = -rows[torch.arange(len(ids) - 1), torch.tensor(ids[1:])][-16:].sum().item()
            rates.append(nats / math.log(2) / sum(window.sizes[-16:]))
        assert score.score == pytest.approx(sum(rates) / 2, rel=1e-4)
        assert (score.unit, score.count) == ("bits per byte", 2)
    # Other lengths ask for other tokens, and take nothing over.
    (other,) = Run(small, replace(asked, lengths=(64,)), results, Listener()).scores()
    assert other.score != scores[1].score


def test_sizes_of_tokens_add_up_to_the_text(llm: LLM) -> None:
    found = windows(llm.tokenizer, [TEXT], 10_000, 1)
    assert sum(found[0].sizes) == len(TEXT.encode())
    opening = llm.tokenizer.encode("a")[0] == llm.tokenizer.bos_token_id
    assert found[0].sizes[0] == 0 if opening else True


def test_windows_come_from_every_document_before_a_second_one_from_any(llm: LLM) -> None:
    documents = [wild_wood().text, "Too short a text for this.", wild_wood().text[40_000:]]
    found = windows(llm.tokenizer, documents, 64, 4)
    assert all(len(window.token_ids) == 64 for window in found)
    starts = [llm.tokenizer.decode(window.token_ids).strip()[:20] for window in found]
    assert starts[0] == documents[0][:20]
    assert documents[2].strip().startswith(starts[1][:10])
    assert len(set(starts)) == 4
    # Asking for more changes nothing about the first ones.
    assert windows(llm.tokenizer, documents, 64, 9)[:4] == found


def test_texts_shorter_than_a_window_are_used_whole_and_nothing_is_refused(llm: LLM) -> None:
    (window,) = windows(llm.tokenizer, ["Too short a text for this."], 64, 3)
    assert 4 <= len(window.token_ids) < 64
    with pytest.raises(TooShortError, match="nothing to predict"):
        windows(llm.tokenizer, ["a"], 64, 3)


def test_buckets_cover_every_predicted_token_once(llm: LLM) -> None:
    assert bucket_edges(2000) == [0, 256, 512, 1024, 2000]
    assert bucket_edges(256) == [0, 256]
    (window,) = windows(llm.tokenizer, [wild_wood().text], 700, 1)
    (logprobs,) = token_logprobs(llm, [window.token_ids])
    assert len(logprobs) == 699
    measured = bits_and_bytes(window, logprobs, 700)
    assert sum(bits for bits, _ in measured) == pytest.approx(-sum(logprobs) / math.log(2))
    assert sum(size for _, size in measured) == sum(window.sizes[1:])


def test_documents_are_text_or_json_lines_packed_or_not(tmp_path: Path) -> None:
    lines = tmp_path / "a.jsonl"
    lines.write_text('{"text": "one"}\n\n{"text": "two", "title": "x"}\n')
    packed = tmp_path / "a.jsonl.xz"
    packed.write_bytes(lzma.compress(lines.read_bytes()))
    plain = tmp_path / "a.txt"
    plain.write_text("one\ntwo")
    assert read_documents(lines) == read_documents(packed) == ["one", "two"]
    assert read_documents(plain) == ["one\ntwo"]


@pytest.mark.parametrize(
    ("name", "content", "wants"),
    [
        ("a.txt", b"", "holds no text"),
        ("a.txt", b"\xff\xfe\xff", "cannot be read"),
        ("a.jsonl", b'{"text": "x"}\n{"txt": 1}', "line 2 of .* is no JSON object with a field 'text'"),
        ("a.jsonl", b"{", "line 1 of"),
        ("a.jsonl", b"[1]", "line 1 of"),
        ("a.jsonl.xz", b"not packed", "cannot be read"),
    ],
)
def test_files_that_are_something_else_are_refused(tmp_path: Path, name: str, content: bytes, wants: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(HeadstartError, match=wants):
        read_documents(path)
    with pytest.raises(HeadstartError, match="cannot be read"):
        read_documents(tmp_path / "absent")


def test_without_data_the_text_is_the_story_of_the_package(tmp_path: Path) -> None:
    name, documents = held_out_documents(None, tmp_path)
    assert documents == [wild_wood().text]
    assert "Kenneth Grahame" in name


def test_the_story_is_plain_and_about_twenty_thousand_tokens(llm: LLM) -> None:
    story = wild_wood()
    assert story.text.isascii()
    assert 70_000 < len(story.text) < 100_000
    assert story.text.startswith("III. THE WILD WOOD")


def blimp_file(folder: Path) -> Path:
    """A data directory with a BLiMP of two paradigms."""
    good, bad = "There was a king.", "Was king a there."
    lines = [
        {"sentence_good": f"{good} {n}", "sentence_bad": f"{bad} {n}", "UID": uid, "field": uid[0]}
        for uid in ("ab", "cd")
        for n in range(6)
    ]
    (folder / "eval").mkdir(parents=True)
    text = "\n".join(json.dumps(line) for line in lines)
    (folder / "eval" / "blimp.jsonl.xz").write_bytes(lzma.compress(text.encode()))
    return folder


def test_minimal_pairs_are_drawn_from_each_paradigm_and_the_first_ones_stay(tmp_path: Path) -> None:
    data = blimp_file(tmp_path)
    few, more = blimp_pairs(data, 2, 0), blimp_pairs(data, 5, 0)
    assert [pair.paradigm for pair in few] == ["ab", "cd", "ab", "cd"]
    assert more[:4] == few
    assert len(blimp_pairs(data, 99, 0)) == 12
    assert blimp_pairs(data, 5, 1) != more


def test_blimp_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match=r"eval/blimp\.jsonl\.xz"):
        blimp_pairs(tmp_path, 1, 0)
    with pytest.raises(MissingDataError, match="HEADSTART_DATA"):
        blimp_pairs(None, 1, 0)


def test_a_run_over_minimal_pairs_scores_by_field(llm: LLM, tmp_path: Path) -> None:
    asked = QualitySettings((BLIMP,), lengths=(64,), count=3, sources=Sources(data=blimp_file(tmp_path)))
    (score,) = Run(llm, asked, ResultFile(None, "x"), Listener()).scores()
    assert (score.length, score.count) == (0, 6)
    assert set(score.groups["field"]) == {"a", "c"}
    assert score.score == 100


@pytest.mark.filterwarnings("ignore")
def test_a_pair_is_judged_by_summed_log_probability(small: LLM, stories: str) -> None:
    pairs = [
        MinimalPair("She was happy.", "She were happy.", "a", "b"),
        MinimalPair("The the the.", "Lily saw a big dog.", "a", "b"),
    ]
    opening = small.tokenizer.bos_token_id
    assert opening is not None
    expected = []
    for pair in pairs:
        sums = []
        for sentence in (pair.good, pair.bad):
            ids = [opening, *small.tokenizer.encode(sentence, add_special_tokens=False)]
            rows = transformers_logprobs(stories, ids)
            sums.append(rows[torch.arange(len(ids) - 1), torch.tensor(ids[1:])].sum().item())
        expected.append(sums[0] > sums[1])
    assert prefers_good(small, pairs) == expected


@pytest.mark.filterwarnings("ignore")
def test_continuations_and_rolling_texts_are_scored_as_transformers_does(small: LLM, stories: str) -> None:
    (whole,) = continuation_logprobs(small, [("Once upon a", " time, there was")])
    context = small.encode("Once upon a")
    ids = small.encode("Once upon a time, there was")
    rows = transformers_logprobs(stories, ids)
    picked = rows[torch.arange(len(ids) - 1), torch.tensor(ids[1:])][len(context) - 1 :]
    assert whole[0] == pytest.approx(picked.sum().item(), abs=1e-3)
    assert whole[1] == bool((rows.argmax(-1) == torch.tensor(ids[1:]))[len(context) - 1 :].all())
    # A space before the continuation is the same as one behind the context.
    assert continuation_logprobs(small, [("Once upon a ", "time, there was")])[0] == whole

    text = "Lily went to the park with her mom."
    ids = [small.tokenizer.bos_token_id, *small.tokenizer.encode(text, add_special_tokens=False)]
    rows = transformers_logprobs(stories, ids)
    expected = rows[torch.arange(len(ids) - 1), torch.tensor(ids[1:])].sum().item()
    assert rolling_logprob(small, text) == pytest.approx(expected, abs=1e-3)


@pytest.mark.filterwarnings("ignore")
def test_rolling_texts_longer_than_the_model_are_scored_once_each_in_full_windows(small: LLM, stories: str) -> None:
    text = TEXT * 3
    ids = [small.tokenizer.bos_token_id, *small.encode(text, add_special_tokens=False)]
    size = small.max_model_len - 1
    assert len(ids) > 2 * size
    picked = torch.full((len(ids),), torch.nan, dtype=torch.float64)
    # Window starts: each begins with the last token that was scored, the last one early enough to be full.
    for start in [*range(0, len(ids) - size, size - 1), len(ids) - size]:
        window = ids[start : start + size]
        rows = transformers_logprobs(stories, window)[torch.arange(size - 1), torch.tensor(window[1:])]
        fresh = picked[start + 1 : start + size].isnan()
        picked[start + 1 : start + size][fresh] = rows[fresh]
    assert rolling_logprob(small, text) == pytest.approx(picked[1:].sum().item(), rel=1e-5)


def test_generation_stops_where_lm_eval_says(llm: LLM) -> None:
    short, stopped = generate_until(
        llm, [("Once upon a time", {"max_gen_toks": 5}), ("Once upon a time", {"until": "a", "max_gen_toks": 40})]
    )
    assert 0 < len(llm.tokenizer.encode(short)) <= 6
    assert "a" not in stopped


def test_a_context_longer_than_the_model_loses_its_beginning(small: LLM) -> None:
    ((logprob, _),) = continuation_logprobs(small, [(TEXT * 2, " She")])
    assert -50 < logprob < 0


def test_lm_eval_that_is_not_installed_is_named_with_its_command(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality_lm_eval, "find_spec", lambda name: None)
    with pytest.raises(MissingDataError, match=r"pip install 'headstart\[lm-eval\]'"):
        lm_eval_scores(llm, "hellaswag", 3)


def test_lm_eval_runs_on_the_adapter(llm: LLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own evaluator, over a task of a file: all three kinds of request."""
    lm_eval = pytest.importorskip("lm_eval", reason="needs the lm-eval extra")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    lines = [{"text": f"There were {n} old", "choices": [" kings", " zzzqqx"]} for n in ("two", "three", "four")]
    (tmp_path / "data.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    files = {"data_files": {"test": str(tmp_path / "data.jsonl")}}
    common = {"dataset_path": "json", "dataset_kwargs": files, "test_split": "test", "doc_to_text": "{{text}}"}
    kinds = {
        "multiple_choice": {"doc_to_choice": "choices", "doc_to_target": 0, "metric_list": [{"metric": "acc"}]},
        "loglikelihood_rolling": {"doc_to_target": "{{text}}", "metric_list": [{"metric": "bits_per_byte"}]},
        "generate_until": {
            "doc_to_target": "x",
            "generation_kwargs": {"until": ["."], "max_gen_toks": 4},
            "metric_list": [{"metric": "exact_match"}],
        },
    }
    tasks = [common | {"task": kind, "output_type": kind} | more for kind, more in kinds.items()]
    found = lm_eval.simple_evaluate(model=quality_lm_eval.adapter(llm), tasks=tasks, bootstrap_iters=0)["results"]
    assert found["multiple_choice"]["acc,none"] == 1
    assert 0 < found["loglikelihood_rolling"]["bits_per_byte,none"] < 20
    assert found["generate_until"]["exact_match,none"] == 0


def test_the_data_holds_67_paradigms() -> None:
    if not (data_directory() / "eval" / "blimp.jsonl.xz").is_file():
        pytest.skip(f"needs BLiMP in {data_directory()}; set HEADSTART_DATA to where the data lies")
    assert len({pair.paradigm for pair in blimp_pairs(data_directory(), 1, 0)}) == 67
