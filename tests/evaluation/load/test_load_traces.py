"""Reading traces: the three formats, compressed or not, and the number of a malformed line."""

import gzip
import lzma
from collections.abc import Callable
from pathlib import Path

import pytest

from headstart.evaluation.load.settings import LoadError
from headstart.evaluation.load.traces import TraceRequest, read_trace
from tests.conftest import data_directory

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
"""
AZURE_2024 = """TIMESTAMP,ContextTokens,GeneratedTokens
2024-05-10 00:00:00.009930+00:00,2162,5
2024-05-10 00:00:01.500000+00:00,2399,6
"""
BURSTGPT = """Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,Conversation log
45.5,GPT-4,1087,0,1087,API log
"""
BURSTGPT_SESSIONS = """Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type
5,a,1.5,ChatGPT,472,18,490,Conversation log
45.5,,,GPT-4,1087,0,1087,API log
"""
MOONCAKE = """{"timestamp": 0, "input_length": 1025, "output_length": 500, "hash_ids": [0, 1, 2]}
{"timestamp": 27482, "input_length": 512, "output_length": 2, "hash_ids": [0]}
"""
WRITERS: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress}


def write(directory: Path, text: str, suffix: str = "") -> Path:
    path = directory / f"trace{suffix}"
    path.write_bytes(WRITERS[suffix](text.encode()))
    return path


@pytest.mark.parametrize("suffix", WRITERS)
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize(
    ("text", "span", "expected"),
    [
        (AZURE, 4.314579, [(374, 44, None), (396, 109, None)]),
        (AZURE_2024, 1.49007, [(2162, 5, None), (2399, 6, None)]),
        (BURSTGPT, 40.5, [(472, 18, None), (1087, 0, None)]),
        (BURSTGPT_SESSIONS, 40.5, [(472, 18, None), (1087, 0, None)]),
        (MOONCAKE, 27.482, [(1025, 500, (0, 1, 2)), (512, 2, (0,))]),
    ],
)
def test_every_format_is_read(
    tmp_path: Path, text: str, span: float, expected: list[tuple[int, int, object]], line_end: str, suffix: str
) -> None:
    for ending in (text, text.rstrip("\n"), "\ufeff" + text):
        first, second = read_trace(write(tmp_path, ending.replace("\n", line_end), suffix))
        assert second.time - first.time == pytest.approx(span, abs=1e-6)
        assert [(r.input_tokens, r.output_tokens, r.hash_ids) for r in (first, second)] == expected


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        (AZURE + "2023-11-16 18:15:51,12\n", 4, "it has 2 fields, not the 3 of the header"),
        (AZURE + "yesterday,12,13\n", 4, "TIMESTAMP is 'yesterday'"),
        (AZURE + "2023-11-16 18:15:51,many,13\n", 4, "ContextTokens is 'many'"),
        (AZURE + "2023-11-16 18:15:51,12,-3\n", 4, "GeneratedTokens is '-3'"),
        (AZURE + "\n\n2023-11-16 18:15:49,12,3\n", 6, "its time is before that of the line above"),
        (BURSTGPT + "nan,x,1,1,2,API log\n", 4, "Timestamp is nan"),
        (BURSTGPT + "soon,x,1,1,2,API log\n", 4, "Timestamp is 'soon'"),
        (BURSTGPT + "50,x,1,1.5,2,API log\n", 4, "Response tokens is '1.5'"),
        (MOONCAKE + "{\n", 3, "it is not JSON"),
        (MOONCAKE + "[1]\n", 3, "it is not a JSON object"),
        (MOONCAKE + '{"timestamp": 30000, "input_length": 3}\n', 3, "it lacks 'hash_ids'"),
        (MOONCAKE.replace("[0]", "[0, 1]"), 2, "it names 2 hash_ids, not 1 for its 512 tokens"),
        (MOONCAKE.replace("[0]", '["a"]'), 2, "hash_ids is not a list of whole numbers"),
        (MOONCAKE.replace("27482", '"later"'), 2, "timestamp is 'later'"),
        (MOONCAKE.replace("27482", "true"), 2, "timestamp is True"),
        (MOONCAKE.replace('"output_length": 2,', '"output_length": -2,'), 2, "output_length is -2"),
    ],
)
def test_a_malformed_line_is_named_by_its_number(tmp_path: Path, text: str, line: int, says: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(LoadError) as error:
        list(read_trace(path))
    assert f"{path}, line {line}: {says}" in str(error.value)


def test_what_is_no_trace_gets_a_sentence(tmp_path: Path) -> None:
    cases = {
        "": "is empty",
        "\n": "is empty",
        "a,b,c\n1,2,3\n": "no trace that is known here",
        "Once upon a time\n": "no trace that is known here",
    }
    for text, says in cases.items():
        with pytest.raises(LoadError, match=says):
            list(read_trace(write(tmp_path, text)))
    with pytest.raises(LoadError, match="No such file"):
        list(read_trace(tmp_path / "none"))
    with pytest.raises(LoadError, match="cannot be read"):
        list(read_trace(tmp_path))
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(LoadError, match="is no text"):
        list(read_trace(tmp_path / "binary"))


@pytest.mark.parametrize("suffix", [".gz", ".xz"])
def test_a_damaged_archive_gets_a_sentence(tmp_path: Path, suffix: str) -> None:
    whole = WRITERS[suffix]((AZURE * 50).encode())
    path = tmp_path / f"t{suffix}"
    for data in (whole[: len(whole) // 2], b"not an archive at all"):
        path.write_bytes(data)
        with pytest.raises(LoadError, match="damaged"):
            list(read_trace(path))


def test_the_beginning_of_a_trace_is_read_without_its_end(tmp_path: Path) -> None:
    trace = read_trace(write(tmp_path, AZURE + "broken\n"))
    assert next(trace).input_tokens == 374


def real(name: str) -> list[TraceRequest]:
    path = data_directory() / "traces" / name
    if not path.is_file():
        pytest.skip(f"needs the trace {path}; set HEADSTART_DATA to where the data lies")
    return list(read_trace(path))


def test_the_published_azure_traces_are_read_in_full() -> None:
    code, conversation = real("AzureLLMInferenceTrace_code.csv.xz"), real("AzureLLMInferenceTrace_conv.csv.xz")
    assert (len(code), len(conversation)) == (8819, 19366)
    assert (code[0].input_tokens, code[0].output_tokens) == (4808, 10)
    # The last lines of the two files, which have no line break after them.
    assert (conversation[-1].input_tokens, conversation[-1].output_tokens) == (197, 183)
    assert all(request.hash_ids is None for request in code)


def test_the_published_mooncake_trace_is_read_in_full() -> None:
    trace = real("mooncake_conversation_trace.jsonl.xz")
    assert len(trace) == 12031
    assert trace[-1].time == 3536.999
    # The share of blocks that an endless cache would find, as those who published it say: 36.6%.
    seen: set[int] = set()
    found = total = 0
    for request in trace:
        assert request.hash_ids is not None
        found += sum(block in seen for block in request.hash_ids)
        total += len(request.hash_ids)
        seen.update(request.hash_ids)
    assert round(found / total, 3) == 0.366
