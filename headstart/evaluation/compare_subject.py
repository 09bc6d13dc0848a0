"""What is measured: a checkpoint, or a random one of a known shape, with the prompts that it reads."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import psutil
import torch

from headstart.checkpoints.default import default_checkpoint_path
from headstart.checkpoints.files import read_json
from headstart.checkpoints.hub import resolve
from headstart.checkpoints.reader import run_dtype
from headstart.checkpoints.tokenizer import Tokenizer
from headstart.errors import did_you_mean
from headstart.evaluation.machine import usable_cores
from headstart.evaluation.random_checkpoint import write_checkpoint, write_config, write_gguf, write_tokenizer
from headstart.evaluation.shape import SHAPES, LlamaShape
from headstart.evaluation.sides import BenchmarkError
from headstart.models.config import ModelConfig
from headstart.texts import wild_wood

# Below this many weights a second thread costs more than it gives.
_SMALL = 10_000_000
_CONTROL_TOKENS = 3


@dataclass(frozen=True)
class Subject:
    """A checkpoint directory and what is known of it before anything loads.

    Attributes:
        name: what people call it.
        path: the Hugging Face directory.
        config: its config.
        trained: its weights are those of a training, so that the quality of its answers means something.
        dtype: "float32" or "bfloat16", which all sides run in.
        device: "cpu", "cuda" or "cuda:N".
        dummy: the directory has no weights: whoever loads it draws random ones.
    """

    name: str
    path: Path
    config: ModelConfig
    trained: bool
    dtype: str
    device: str
    dummy: bool = False

    @classmethod
    def of_model(cls, model: str | None, *, dtype: str | None = None, device: str | None = None) -> "Subject":
        """A checkpoint directory or hub id; None is the one that comes with the package.

        Raises:
            HeadstartError: it cannot be read, or the dtype or device cannot be had.
        """
        path = default_checkpoint_path() if model is None else resolve(model)
        config = ModelConfig.from_hf(read_json(path / "config.json"), str(path / "config.json"))
        found = str(run_dtype(dtype or "auto", config)).removeprefix("torch.")
        name = "the built-in model" if model is None else str(model).rstrip("/").rsplit("/", 1)[-1]
        return cls(name, path, config, True, _known_dtype(found), _known_device(device))

    @classmethod
    def of_shape(
        cls,
        shape: str,
        directory: Path,
        *,
        seed: int,
        dtype: str | None = None,
        device: str | None = None,
        dummy: bool = False,
    ) -> "Subject":
        """Random weights of a known shape, written to a directory, or with `dummy` its config and words alone.

        Raises:
            BenchmarkError: an unknown shape; the nearest is named.
        """
        if shape not in SHAPES:
            near = did_you_mean(shape, SHAPES) or f"; there are: {', '.join(SHAPES)}"
            raise BenchmarkError(f"unknown shape {shape!r}{near}")
        if dummy:
            write_config(directory, SHAPES[shape])
        else:
            write_checkpoint(directory, SHAPES[shape], seed=seed)
        write_tokenizer(directory, SHAPES[shape].vocab)
        config = ModelConfig.from_hf(read_json(directory / "config.json"))
        name = f"random {shape}"
        return cls(name, directory, config, False, _known_dtype(dtype or "bfloat16"), _known_device(device), dummy)

    @property
    def longest(self) -> int:
        """Positions that the model can tell apart."""
        return self.config.max_extended_position

    @cached_property
    def costs(self) -> LlamaShape | None:
        """What FLOPs and bytes follow from; None for models whose formulas are not known here."""
        return LlamaShape.of(self.config)

    @cached_property
    def tokenizer(self) -> Tokenizer | None:
        """The directory's tokenizer, if it has one and its weights know what words mean."""
        there = self.trained and (self.path / "tokenizer.json").is_file()
        return Tokenizer.from_directory(self.path) if there else None

    @property
    def threads(self) -> int:
        """Threads that suit the model on this machine."""
        return 1 if self.weights < _SMALL else usable_cores()

    @property
    def weights(self) -> int:
        """How many there are, roughly where the formulas are not known."""
        if self.costs is not None:
            return self.costs.params
        c = self.config
        return c.num_layers * 12 * c.hidden_size**2 + c.vocab_size * c.hidden_size

    @property
    def itemsize(self) -> int:
        """Bytes per number of weights and cache."""
        return getattr(torch, self.dtype).itemsize

    @cached_property
    def _stream(self) -> Sequence[int]:
        """The package's story as token ids, to be read around; empty without a tokenizer."""
        return () if self.tokenizer is None else self.tokenizer.encode(wild_wood().text, add_special_tokens=False)

    def prompt(self, length: int, draw: str) -> list[int]:
        """`length` token ids: the story from a place that `draw` decides, or random ones without a tokenizer."""
        found = random.Random(draw)
        if not self._stream:
            return [found.randrange(_CONTROL_TOKENS, self.config.vocab_size) for _ in range(length)]
        start = found.randrange(len(self._stream))
        rounds = -(-(start + length) // len(self._stream))
        return list((list(self._stream) * rounds)[start : start + length])

    def gguf(self, directory: Path, dtype: str) -> Path:
        """The weights as a GGUF file for llama.cpp, written to a directory.

        Raises:
            BenchmarkError: this model is not one that can be written here.
        """
        path = directory / f"{dtype}.gguf"
        if not path.exists():
            self._refuse_other_than_llama()
            assert self.costs is not None
            write_gguf(path, self.path, self.costs, getattr(torch, dtype))
        return path

    def _refuse_other_than_llama(self) -> None:
        c = self.config
        plain = c.architecture == "LlamaForCausalLM" and c.ropes["full_attention"].kind == "default"
        biased = c.qkv_bias or c.output_bias or c.mlp_bias
        if not plain or biased or self.costs is None or not (self.path / "model.safetensors").is_file():
            raise BenchmarkError(
                f"{self.name} cannot be written as GGUF here, which is done for plain Llamas in one file; convert it "
                "with llama.cpp's convert_hf_to_gguf.py and give the file with --gguf"
            )


def _known_dtype(dtype: str) -> str:
    if dtype not in ("bfloat16", "float32"):
        raise BenchmarkError(f"benchmarks run in bfloat16 or float32, not {dtype}; choose one with --dtype")
    return dtype


def _known_device(device: str | None) -> str:
    """The device as asked, or the accelerator if there is one.

    Raises:
        HeadstartError: it is not there.
    """
    from headstart.engine.args import EngineArgs

    return EngineArgs(device=device or "auto").device


def free_memory(device: str) -> int:
    """Bytes that are free where a model goes."""
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available
