"""`headstart batch`: every line gets its result, wrong ones their own error, and a killed job goes on."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

from headstart import LLM, SamplingParams
from headstart.cli.main import app
from headstart.errors import HeadstartError

RUNNER = CliRunner()


def line(custom_id, body, url="/v1/completions", method="POST"):
    return json.dumps({"custom_id": custom_id, "method": method, "url": url, "body": body})


def ask(prompt, tokens=4, **more):
    return {"prompt": prompt, "max_tokens": tokens, "temperature": 0, **more}


def run(*arguments):
    result = RUNNER.invoke(app, ["batch", *map(str, arguments), "--dtype", "float32", "-q"])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def results_of(path):
    return [json.loads(text) for text in path.read_text().splitlines()]


def test_every_line_has_its_result(stories, tmp_path):
    """Good lines are answered as alone; broken ones and refused ones get their errors, with the line's number."""
    requests, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    stem = "Once upon a time there was a little girl named Lily who loved to play outside. "
    lines = [
        line("a", ask(stem + "One day")),
        "{broken",
        line("b", ask(stem + "The dog", 6)),
        "",
        line("a", ask("again")),
        json.dumps({"method": "POST", "url": "/v1/completions", "body": {}}),
        line("c", ask("x"), url="/v1/files"),
        line("d", ask("x"), method="GET"),
        line("e", {"prompt": "x", "max_tokens": -4}),
        line("f", ask("x", stream=True)),
        "[1, 2]",
        line("g", ask("x", model="another")),
        line("h", ask([stem + "One day", "The"])),
        line("i", {"input": "text"}, url="/v1/embeddings"),
    ]
    requests.write_bytes("\n".join(lines).encode() + b"\n\xff\xfe\n")
    assert run(requests, out, "--model", stories).exit_code == 0
    rows = results_of(out)
    assert len(rows) == len(lines)
    by_id = {row["custom_id"]: row for row in rows if row["custom_id"]}
    assert set(by_id) == set("abcdefghi")
    llm = LLM(stories, dtype="float32", enable_prefix_caching=False)
    for name, prompt, tokens in (("a", stem + "One day", 4), ("b", stem + "The dog", 6)):
        want = llm.generate(prompt, SamplingParams(max_tokens=tokens, temperature=0))[0].outputs[0].text
        assert by_id[name]["response"]["body"]["choices"][0]["text"] == want
        assert by_id[name]["response"]["status_code"] == 200 and by_id[name]["error"] is None
    assert len(by_id["h"]["response"]["body"]["choices"]) == 2
    assert by_id["i"]["response"]["body"]["data"][0]["embedding"]
    assert by_id["e"]["response"]["status_code"] == 400
    assert by_id["g"]["response"]["status_code"] == 404
    for name in "cdf":
        assert by_id[name]["response"] is None
    errors = {row["error"]["line"]: row["error"]["message"] for row in rows if row["error"]}
    assert sorted(errors) == [2, 5, 6, 7, 8, 10, 11, 15]
    assert all(message.startswith(f"line {number} ") for number, message in errors.items())
    again = out.read_bytes()
    assert run(requests, out, "--model", stories).exit_code == 0
    assert out.read_bytes() == again


def test_a_killed_job_goes_on(stories, tmp_path):
    """What was done is not done again, half a line and failed rows are, and each request has one result in the end."""
    requests, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    lines = [line(f"{n}", ask("Once upon a time", 90 if n > 3 else 3, ignore_eos=True)) for n in range(24)]
    requests.write_text("\n".join(["nothing", *lines]))
    command = [sys.executable, "-m", "headstart.cli.main", "batch", str(requests), str(out), "--model", stories]
    job = subprocess.Popen([*command, "--max-num-seqs", "2", "-q"], env=os.environ | {"OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 60
    while not out.exists() or len(out.read_bytes().splitlines()) < 4:
        assert time.monotonic() < deadline and job.poll() is None
        time.sleep(0.01)
    job.send_signal(signal.SIGKILL)
    job.wait()
    first = out.read_bytes()
    whole = first[: first.rfind(b"\n") + 1]
    assert 4 <= len(whole.splitlines()) < 25
    failed = {"id": "x", "custom_id": "23", "response": {"status_code": 503, "body": {"error": {}}}, "error": None}
    out.write_bytes(whole + json.dumps(failed).encode() + b"\n" + b'{"id": "half of a li')
    assert run(requests, out, "--model", stories).exit_code == 0
    assert out.read_bytes().startswith(whole)
    rows = results_of(out)
    assert sorted(row["custom_id"] or "" for row in rows) == sorted(["", *(f"{n}" for n in range(24))])
    assert all(row["response"]["status_code"] == 200 for row in rows if row["custom_id"])


@pytest.mark.parametrize(
    ("content", "before", "sentence"),
    [
        (None, None, "cannot be read: No such file"),
        ("\n\n", None, "has no requests"),
        (line("a", {}), "no results\n", "holds something else than results"),
        (line("a", {}), '{"custom_id": "z", "response": null, "error": {}}\n', "has results of another job"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, content, before, sentence):
    """One sentence, before a model is loaded, and nothing is written over."""
    requests, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    if content is not None:
        requests.write_text(content)
    if before is not None:
        out.write_text(before)
    with pytest.raises(HeadstartError, match=sentence) as refusal:
        run(requests, out)
    assert "\n" not in str(refusal.value)
    assert (out.read_text() if out.exists() else None) == before


def test_results_of_another_model(stories, tmp_path):
    """A job does not go on under another model's name."""
    requests, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    requests.write_text("\n".join(line(name, ask("x", 1)) for name in "ab"))
    row = {"custom_id": "a", "response": {"status_code": 200, "body": {"model": "other"}}, "error": None}
    out.write_text(json.dumps(row) + "\n")
    with pytest.raises(HeadstartError, match="has results of the model 'other'"):
        run(requests, out, "--model", stories)
    with pytest.raises(HeadstartError, match="written over the requests"):
        run(requests, requests, "--model", stories)
