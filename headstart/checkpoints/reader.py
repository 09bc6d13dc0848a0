"""Read a Hugging Face directory into a running model: config, weights, tokenizer, generation defaults."""

import math
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from headstart.checkpoints.default import default_checkpoint_path
from headstart.checkpoints.files import read_json
from headstart.checkpoints.generation import GenerationConfig
from headstart.checkpoints.hub import resolve
from headstart.checkpoints.names import Piece, canonical, pieces, stacked_pieces
from headstart.checkpoints.shard import Entry, Shard
from headstart.checkpoints.tokenizer import Tokenizer
from headstart.errors import CheckpointError
from headstart.models.config import ModelConfig
from headstart.models.decoder import Decoder
from headstart.models.fields import shown

_RUN_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_LISTED = 3
# Too many of these in a config are found by name and shape, with a better sentence.
_FEW_WEIGHTS = 10**7


@dataclass
class Checkpoint:
    """A checkpoint in memory.

    Attributes:
        path: its directory; None when it was made rather than read.
        name: what users call it: the hub id or the directory's name.
        config: its config, normalised.
        decoder: the network with its weights.
        tokenizer: its tokenizer; None if loading it was skipped.
        generation_config: its defaults for generation.
    """

    path: Path | None
    name: str
    config: ModelConfig
    decoder: Decoder
    tokenizer: Tokenizer | None
    generation_config: GenerationConfig


def load_checkpoint(
    name_or_path: str | Path | None = None,
    dtype: str | torch.dtype = "auto",
    device: torch.device | str = "cpu",
    *,
    skip_tokenizer_init: bool = False,
) -> Checkpoint:
    """Load a checkpoint.

    Weights are copied slice by slice from the mapped files into the parameters, so memory peaks little
    above the weights themselves, also when their dtype changes on the way.

    Args:
        name_or_path: a directory or an id on the Hugging Face hub; None is the checkpoint that comes with the
            package.
        dtype: the dtype to run in; "auto" is the one that the config names, else float32.
        device: where the weights go.
        skip_tokenizer_init: leave the tokenizer out, for directories that have none.

    Raises:
        CheckpointError: anything wrong with the directory, in one sentence.
    """
    path = default_checkpoint_path() if name_or_path is None else resolve(name_or_path)
    raw = read_json(path / "config.json")
    config = ModelConfig.from_hf(raw, str(path / "config.json"))
    generation_config = GenerationConfig.from_directory(path, config)
    _refuse_more_than_the_files_hold(config, path)
    tokenizer = None if skip_tokenizer_init else Tokenizer.from_directory(path)
    if tokenizer is not None:
        _check_vocabulary(tokenizer, config, path)
    decoder = Decoder(config, run_dtype(dtype, config), device)
    load_weights(decoder, path)
    return Checkpoint(
        path=path,
        name=_name(name_or_path, path),
        config=config,
        decoder=decoder,
        tokenizer=tokenizer,
        generation_config=generation_config,
    )


def run_dtype(dtype: str | torch.dtype, config: ModelConfig) -> torch.dtype:
    """The dtype to run in: as asked, or what the config names for "auto".

    Raises:
        CheckpointError: a dtype that models cannot run in.
    """
    own = config.raw.get("dtype") or config.raw.get("torch_dtype") or "float32"
    name = str(own if dtype == "auto" else dtype).removeprefix("torch.")
    name = {"half": "float16", "float": "float32"}.get(name, name)
    if name in _RUN_DTYPES:
        return _RUN_DTYPES[name]
    if dtype == "auto":
        raise CheckpointError(
            f"models cannot run in {shown(name)}, the dtype in config.json; ask for one of {', '.join(_RUN_DTYPES)}"
        )
    raise CheckpointError(f"dtype must be auto, {', '.join(_RUN_DTYPES)}, not {name!r}")


@torch.no_grad()
def load_weights(decoder: Decoder, directory: Path) -> None:
    """Fill a decoder's parameters from the safetensors files of a directory.

    Raises:
        CheckpointError: a file is missing or truncated, or a tensor is missing, unexpected, of another shape,
            or holds NaN or infinity.
    """
    places = pieces(decoder.config)
    known = places | stacked_pieces(decoder.config)
    parameters = dict(decoder.named_parameters())
    filled: set[Piece] = set()
    unexpected: list[str] = []
    for path in shard_paths(directory):
        with Shard(path) as shard:
            for name, entry in shard.entries.items():
                plain = canonical(name)
                if plain is None or (plain == "lm_head.weight" and decoder.config.tie_embeddings):
                    continue
                piece = known.get(plain) or known.get(f"model.{plain}")
                if piece is None:
                    unexpected.append(name)
                    continue
                _check_shape(name, entry, piece, path)
                _copy(shard, name, piece, parameters[piece.parameter])
                filled.add(piece)
    whole = {piece.parameter for piece in filled if piece.shape == parameters[piece.parameter].shape}
    missing = [name for name, piece in places.items() if piece not in filled and piece.parameter not in whole]
    for problem, names in (("lack", missing), ("hold the unexpected", unexpected)):
        if names:
            raise CheckpointError(
                f"the weights in {directory} {problem} {_some_tensors(names)}; they do not fit the "
                f"architecture {decoder.config.architecture} with the sizes in its config.json"
            )


def shard_paths(directory: Path) -> list[Path]:
    """The safetensors files of a directory: those that its index names, or the one file.

    Raises:
        CheckpointError: there are none, or one that the index names is missing.
    """
    index_path = directory / "model.safetensors.index.json"
    if index_path.is_file():
        weight_map = read_json(index_path).get("weight_map")
        if not isinstance(weight_map, dict):
            raise CheckpointError(f"{index_path} has no field 'weight_map', which names the weights files")
        others = [name for name in weight_map.values() if not isinstance(name, str)]
        if others:
            raise CheckpointError(f"weight_map in {index_path} must name files, not {shown(others[0])}")
        paths = [directory / Path(name).name for name in sorted(set(weight_map.values()))]
        for path in paths:
            if not os.path.isfile(path):  # not `path.is_file()`, which raises for names that no file can have
                raise CheckpointError(
                    f"the weights file {shown(path.name)} that {index_path} names is missing; copy it into {directory}"
                )
        return paths
    if (directory / "model.safetensors").is_file():
        return [directory / "model.safetensors"]
    other = next((p for pattern in ("*.bin", "*.pth", "*.gguf") for p in directory.glob(pattern)), None)
    found = f" ({other.name} is in a format that is not read; convert it to safetensors)" if other else ""
    raise CheckpointError(f"{directory} has no model.safetensors and no model.safetensors.index.json{found}")


def _refuse_more_than_the_files_hold(config: ModelConfig, directory: Path) -> None:
    """Sizes in a config that no weights stand behind would take any amount of memory before that is found out."""
    if not any(directory.glob("*.safetensors")):
        return
    held = 0
    for path in shard_paths(directory):
        with Shard(path) as shard:
            held += sum(math.prod(entry.shape) for entry in shard.entries.values())
    if config.num_matrix_weights > 2 * held + _FEW_WEIGHTS:
        raise CheckpointError(
            f"config.json in {directory} describes at least {config.num_matrix_weights:,} weights, but its "
            f"safetensors files hold {held:,}; they are of different models"
        )


def _name(name_or_path: str | Path | None, path: Path) -> str:
    """The hub id as it was given, or the directory's own name, also where it was given as `.` or `..`."""
    local = name_or_path is None or os.path.isdir(os.path.expanduser(name_or_path))
    # Not `resolve()`: the name of a link says more than that of its target.
    return Path(os.path.abspath(path)).name if local else str(name_or_path)


def _check_shape(name: str, entry: Entry, piece: Piece, path: Path) -> None:
    if entry.shape != piece.shape:
        raise CheckpointError(
            f"tensor {name!r} in {path} has shape {list(entry.shape)}, but config.json makes it {list(piece.shape)}"
        )
    if not entry.dtype.is_floating_point or entry.dtype.itemsize == 1:
        raise CheckpointError(
            f"tensor {name!r} in {path} has dtype {str(entry.dtype).removeprefix('torch.')}, which is not "
            "supported; weights must be float32, float16 or bfloat16"
        )


def _copy(shard: Shard, name: str, piece: Piece, parameter: Tensor) -> None:
    target = parameter if piece.expert is None else parameter[piece.expert]
    for first, rows in shard.slices(name):
        # A sum is not finite when a term is not, at a fraction of the cost of testing each.
        if not math.isfinite(rows.sum().item()) and not bool(rows.isfinite().all()):
            raise CheckpointError(
                f"tensor {name!r} in {shard.path} holds NaN or infinity; the checkpoint is damaged or its "
                "training diverged"
            )
        into = target[piece.start + first : piece.start + first + rows.shape[0]]
        into.copy_(rows)
        if into.dtype == torch.float16 and not bool(into.isfinite().all()):
            raise CheckpointError(
                f"tensor {name!r} in {shard.path} has numbers too large for float16; run it in bfloat16 or float32"
            )


def _check_vocabulary(tokenizer: Tokenizer, config: ModelConfig, path: Path) -> None:
    """Every ordinary token needs an embedding. Special tokens of other modalities may have none."""
    if tokenizer.text_vocab_size > config.vocab_size:
        raise CheckpointError(
            f"the tokenizer in {path} has {tokenizer.text_vocab_size} tokens, but config.json says "
            f"vocab_size {config.vocab_size}; they are of different models"
        )


def _some_tensors(names: list[str]) -> str:
    listed = ", ".join(repr(name) for name in names[:_LISTED])
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"tensor{'s' if len(names) > 1 else ''} {listed}{more}"
