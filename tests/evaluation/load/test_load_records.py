"""The file of records: whole lines whatever happens, read back as they were."""

import json
from pathlib import Path

import pytest

from headstart.evaluation.load.records import RecordFile, read_records
from headstart.evaluation.load.result import read_load
from headstart.evaluation.load.settings import LoadError, LoadSettings
from headstart.evaluation.load.target import Target
from tests.evaluation.load.made_up import record

HEADER = {
    "settings": LoadSettings(rate=2.0).to_json(),
    "url": "http://x",
    "server": Target("m").to_json(),
    "started": "now",
}


def write(path: Path, number: int, *, end: bool = True) -> None:
    with RecordFile(path) as file:
        file.header(**HEADER)
        for index in range(number):
            file.request(record(index, first=None if index % 3 else 0.25, gaps=[] if index % 3 else [0.125, 0.5]))
        if end:
            overhead = {
                "cpu_seconds": 0.1,
                "seconds": 2.0,
                "cores": 2,
                "loop_lag": [0.001, 0.002],
                "send_lag": [0.003, 0.004],
            }
            file.end(partial=None, overhead=overhead, agreement=[])


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "load.jsonl"
    write(path, 7)
    result = read_load(path)
    assert result.settings == LoadSettings(rate=2.0)
    assert result.records == [
        record(index, first=None if index % 3 else 0.25, gaps=[] if index % 3 else [0.125, 0.5]) for index in range(7)
    ]
    assert result.partial is None
    assert result.overhead is not None and result.overhead.send_lag == (0.003, 0.004)
    assert result.overhead.cpu_share == 0.025


def test_a_file_without_its_end_is_a_partial_result(tmp_path: Path) -> None:
    write(tmp_path / "load.jsonl", 5, end=False)
    result = read_load(tmp_path / "load.jsonl")
    assert len(result.records) == 5
    assert result.partial is not None and "killed" in result.partial
    assert result.summary.asked == 5


def test_a_last_line_without_its_end_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "load.jsonl"
    write(path, 5, end=False)
    whole = path.read_bytes()
    last = len(whole.splitlines(keepends=True)[-1])
    for cut in (1, last // 2, last - 1):
        path.write_bytes(whole[:-cut])
        assert len(read_load(path).records) == 4


def test_an_earlier_result_is_never_written_over(tmp_path: Path) -> None:
    path = tmp_path / "load.jsonl"
    write(path, 1)
    before = path.read_bytes()
    with pytest.raises(LoadError, match="holds an earlier result"):
        RecordFile(path)
    assert path.read_bytes() == before


def test_a_place_that_cannot_be_written_gets_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LoadError, match="cannot be written"):
        RecordFile(tmp_path / "file" / "load.jsonl")


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (1, '{"line": "header", "schema_version": 99}'),
        (1, '{"line": "request"}'),
        (2, "nonsense"),
        (2, '{"line": "request", "colour": "red"}'),
        (2, '{"line": "header", "schema_version": 1}'),
        (2, "[]"),
    ],
)
def test_a_line_that_is_none_of_ours_is_named(tmp_path: Path, line: int, text: str) -> None:
    path = tmp_path / "load.jsonl"
    write(path, 3)
    lines = path.read_text().splitlines()
    lines[line - 1] = text
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(LoadError, match=f"line {line}: no line of a load result of schema 1"):
        read_records(path)


def test_a_missing_or_empty_file_gets_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="cannot be read"):
        read_load(tmp_path / "none")
    (tmp_path / "empty").write_text("")
    with pytest.raises(LoadError, match="is empty"):
        read_load(tmp_path / "empty")


def test_gaps_are_kept_to_the_microsecond(tmp_path: Path) -> None:
    with RecordFile(tmp_path / "a") as file:
        file.header(**HEADER)
        file.request(record(gaps=[0.123456789]))
    assert json.loads((tmp_path / "a").read_text().splitlines()[1])["gaps"] == [0.123457]
