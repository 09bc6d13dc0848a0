"""Read a Hugging Face directory into a running model: config, weights, tokenizer, generation defaults."""

import math
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from headstart.checkpoints.default import default_checkpoint_path, embedded_checkpoints
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
from headstart.models.parallel import ALONE, Ranks, Share

_RUN_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_LISTED = 3
# Too many of these in a config are found by name and shape, with a better sentence.
_FEW_WEIGHTS = 10**7

METHOD_FIELD = "headstart_method"
"""The field of `config.json` that names the method that a checkpoint was trained for, with options as `--use` has."""
BASE_FIELD = "headstart_base"
"""The field of `config.json` that names a checkpoint of the package whose weights are taken where none are here."""


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
    methods: Collection[str] = (),
    load_format: str = "auto",
    ranks: Ranks = ALONE,
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
        methods: keys of the methods that are to serve it. Weights that were trained for a method are those of no
            plain model, whatever their shapes.
        load_format: "auto" reads the weights; "dummy" draws random ones, for measurements: the directory then needs
            no more than its config.json.
        ranks: the processes that hold a part of the weights each; only this one's part is read.

    Raises:
        CheckpointError: anything wrong with the directory, in one sentence.
        HeadstartError: the weights cannot be cut in so many parts.
    """
    path = default_checkpoint_path() if name_or_path is None else resolve(name_or_path)
    raw = read_json(path / "config.json")
    refuse_without_method(raw, str(path), methods)
    config = ModelConfig.from_hf(raw, str(path / "config.json"))
    generation_config = GenerationConfig.from_directory(path, config)
    _refuse_more_than_the_files_hold(config, path)
    tokenizer = None if skip_tokenizer_init else Tokenizer.from_directory(path)
    if tokenizer is not None:
        _check_vocabulary(tokenizer, config, path)
    decoder = _empty_decoder(config, run_dtype(dtype, config), device, ranks)
    if load_format == "dummy":
        randomise_weights(decoder)
    else:
        load_weights(decoder, path)
    return Checkpoint(
        path=path,
        name=_name(name_or_path, path),
        config=config,
        decoder=decoder,
        tokenizer=tokenizer,
        generation_config=generation_config,
    )


def refuse_without_method(raw: dict[str, Any], where: str, methods: Collection[str]) -> None:
    """Refuse weights that were trained for a method which is not among these.

    Raises:
        CheckpointError: the config names such a method.
    """
    key = str(raw.get(METHOD_FIELD, "")).partition(":")[0]
    if key and key not in methods:
        raise CheckpointError(
            f"{where} was trained for the method {key} and answers wrongly without it: add --use {key}"
        )


def _empty_decoder(config: ModelConfig, dtype: torch.dtype, device: torch.device | str, ranks: Ranks) -> Decoder:
    """A decoder whose weights are to be filled."""
    try:
        return Decoder(config, dtype, device, ranks)
    except torch.OutOfMemoryError:
        wanted = sum(parameter.nbytes for parameter in Decoder(config, dtype, "meta", ranks).parameters())
        free, _ = torch.cuda.mem_get_info(device)
        raise CheckpointError(
            f"the weights take {wanted:,} bytes as {dtype}, and {device} has {free:,} free; "
            "load them in a smaller dtype, or give the model more GPUs"
        ) from None


@torch.no_grad()
def randomise_weights(decoder: Decoder, seed: int = 0, std: float = 0.02) -> None:
    """Fill a decoder with weights that cost what real ones cost: matrices normal(0, std), norms one, biases zero."""
    generator = torch.Generator(decoder.embedding.weight.device).manual_seed(seed)
    for name, parameter in decoder.named_parameters():
        if parameter.dim() > 1:
            parameter.normal_(0.0, std, generator=generator)
        else:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)


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
def load_weights(decoder: Decoder, directory: Path, parameters: dict[str, Tensor] | None = None) -> None:
    """Fill a decoder's parameters from the safetensors files of a directory.

    Args:
        decoder: the network that the files are of.
        directory: where they lie.
        parameters: what to fill instead, by the names of the decoder's parameters; the files need hold no others.
            Of a decoder that is one of several ranks' they are this rank's parts.

    Raises:
        CheckpointError: a file is missing or truncated, or a tensor is missing, unexpected, of another shape,
            or holds NaN or infinity.
    """
    places = pieces(decoder.config)
    base = _base_paths(decoder.config.raw, directory) if parameters is None else []
    known = places | stacked_pieces(decoder.config)
    parameters = dict(decoder.named_parameters()) if parameters is None else parameters
    wanted = {name: piece for name, piece in places.items() if piece.parameter in parameters}
    filled: set[Piece] = set()
    unexpected: list[str] = []
    for path in [*base, *shard_paths(directory)]:
        with Shard(path) as shard:
            for name, entry in shard.entries.items():
                plain = canonical(name)
                if plain is None or (plain == "lm_head.weight" and decoder.config.tie_embeddings):
                    continue
                piece = known.get(plain) or known.get(f"model.{plain}")
                if piece is None:
                    unexpected.append(name)
                    continue
                if piece.parameter not in parameters:
                    continue
                _check_shape(name, entry, piece, path)
                share = decoder.ranks.share(decoder.config, piece.parameter)
                _copy(shard, name, piece, parameters[piece.parameter], share)
                filled.add(piece)
    whole = {piece.parameter for piece in filled if piece.stacked}
    missing = [name for name, piece in wanted.items() if piece not in filled and piece.parameter not in whole]
    for problem, names in (("lack", missing), ("hold the unexpected", unexpected)):
        if names:
            raise CheckpointError(
                f"the weights in {directory} {problem} {_some_tensors(names)}; they do not fit the "
                f"architecture {decoder.config.architecture} with the sizes in its config.json"
            )


def _base_paths(raw: dict[str, Any], directory: Path) -> list[Path]:
    """The safetensors files that are read before those of a directory, which may have others of the same tensors."""
    base, known = raw.get(BASE_FIELD), embedded_checkpoints()
    if base is None:
        return []
    if base not in known:
        raise CheckpointError(
            f"{directory / 'config.json'} builds on {base!r}, but the package comes with {', '.join(known)} only"
        )
    return shard_paths(known[base])


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
    for path in [*_base_paths(config.raw, directory), *shard_paths(directory)]:
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


def _copy(shard: Shard, name: str, piece: Piece, parameter: Tensor, share: Share) -> None:
    """Copy what this rank holds of a tensor to its place in the parameter."""
    for index in range(piece.shape[0]) if piece.stacked else (None,):
        number = piece.expert if index is None else index
        target = parameter if number is None else parameter[number]
        for first, stop, at in share.spans(piece.start, piece.shape[0 if index is None else 1]):
            for offset, rows in shard.slices(name, (first, stop), share.columns, index):
                _copy_rows(shard, name, rows, target[at + offset : at + offset + rows.shape[0]])


def _copy_rows(shard: Shard, name: str, rows: Tensor, into: Tensor) -> None:
    # A sum is not finite when a term is not, at a fraction of the cost of testing each.
    if not math.isfinite(rows.sum().item()) and not bool(rows.isfinite().all()):
        raise CheckpointError(
            f"tensor {name!r} in {shard.path} holds NaN or infinity; the checkpoint is damaged or its training diverged"
        )
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
