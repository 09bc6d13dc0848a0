"""Tokenizers against Transformers, and what is said when there is none."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as InnerTokenizer
from transformers import PreTrainedTokenizerFast

from headstart.checkpoints.tokenizer import Tokenizer
from headstart.errors import CheckpointError
from tests.checkpoints.tiny_tokenizer import write_tokenizer


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(path)
    return path


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(max_size=60), special=st.booleans())
def test_encodes_and_decodes_as_transformers(directory: Path, text: str, special: bool) -> None:
    ours = Tokenizer.from_directory(directory)
    theirs = PreTrainedTokenizerFast.from_pretrained(directory)
    ids = ours.encode(text, add_special_tokens=special)
    assert ids == theirs.encode(text, add_special_tokens=special)
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True) == text
    assert ours.decode(ids, skip_special_tokens=False) == theirs.decode(ids)


def test_special_tokens_in_text_and_by_name(directory: Path) -> None:
    tokenizer = Tokenizer.from_directory(directory)
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<s>", "</s>")
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1)
    assert tokenizer.encode("<|im_start|>", add_special_tokens=False) == [2]
    assert tokenizer.decode([2, 3]) == "" and tokenizer.decode([2, 3], skip_special_tokens=False) != ""


def test_sizes_count_ids(directory: Path) -> None:
    tokenizer = Tokenizer.from_directory(directory)
    assert tokenizer.vocab_size == max(tokenizer.inner.get_vocab().values()) + 1 == 300
    assert tokenizer.text_vocab_size == 300
    tokenizer.inner.add_special_tokens(["<image>"])
    assert (tokenizer.vocab_size, tokenizer.text_vocab_size) == (301, 300)


def test_special_tokens_map_is_read_too(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"eos_token": {"content": "<|im_end|>"}}))
    tokenizer = Tokenizer.from_directory(tmp_path)
    assert (tokenizer.eos_token_id, tokenizer.bos_token) == (3, None)


def test_padding_and_truncation_of_training_are_off(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    inner = InnerTokenizer.from_file(str(tmp_path / "tokenizer.json"))
    inner.enable_truncation(4)
    inner.enable_padding(length=9)
    inner.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.from_directory(tmp_path)
    assert tokenizer.decode(tokenizer.encode("the old king sat")) == "the old king sat"
    assert len(tokenizer.encode("a")) == 2


def test_absent_tokenizer_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no tokenizer.json; make one with .*skip_tokenizer_init=True"):
        Tokenizer.from_directory(tmp_path)


@pytest.mark.parametrize("content", ["", "{}", '{"model": 3}'])
def test_damaged_tokenizer_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"tokenizer.json cannot be read as a tokenizer"):
        Tokenizer.from_directory(tmp_path)


def test_damaged_tokenizer_config_is_named(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"tokenizer_config.json cannot be read as JSON"):
        Tokenizer.from_directory(tmp_path)
