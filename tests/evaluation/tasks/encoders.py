"""Tokenizers as unlike as they come, for tasks that must fit any of them."""

import json
import lzma
from functools import cache
from pathlib import Path

import pytest
from tokenizers import Tokenizer as InnerTokenizer
from tokenizers import pre_tokenizers
from tokenizers.models import BPE

from headstart.checkpoints.tokenizer import Tokenizer
from headstart.evaluation.tasks import Sources
from tests.conftest import data_directory


class Bytes:
    """One token per byte after a beginning-of-text token; counts how much text it was given."""

    def __init__(self) -> None:
        self.encoded = 0

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        self.encoded += len(text)
        return [256] * add_special_tokens + list(text.encode())


class Words:
    """One token per word or mark, whatever its length: the coarsest of tokenizers."""

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [0] * len(text.split())


@cache
def gpt2() -> Tokenizer:
    """GPT-2's tokenizer, from the data."""
    folder = data_directory() / "tokenizers"
    if not (folder / "gpt2_encoder.json.xz").is_file():
        pytest.skip(f"needs GPT-2's tokenizer in {folder}; set HEADSTART_DATA to where the data lies")
    vocabulary = json.loads(lzma.decompress((folder / "gpt2_encoder.json.xz").read_bytes()))
    lines = lzma.decompress((folder / "gpt2_vocab.bpe.xz").read_bytes()).decode().splitlines()[1:]
    merges = [(a, b) for a, b in (line.split() for line in lines if line)]
    inner = InnerTokenizer(BPE(vocabulary, merges))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return Tokenizer(inner, {}, {}, str(Path(folder)))


def sources() -> Sources:
    """The data, or a skip."""
    if not (data_directory() / "eval" / "fairytaleqa_stories.jsonl.xz").is_file():
        pytest.skip(f"needs FairytaleQA in {data_directory()}; set HEADSTART_DATA to where the data lies")
    return Sources(data=data_directory())
