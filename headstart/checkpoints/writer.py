"""Write a model as a Hugging Face directory that Transformers loads."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from headstart.checkpoints.names import Piece, pieces
from headstart.checkpoints.reader import BASE_FIELD, Checkpoint
from headstart.errors import CheckpointError
from headstart.models.decoder import Decoder

_COPIED = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "additional_chat_templates",
    "generation_config.json",
)


def save_checkpoint(
    source: Checkpoint | Decoder,
    directory: str | Path,
    *,
    tokenizer_from: str | Path | None = None,
    max_shard_bytes: int = 2 << 30,
    overwrite: bool = False,
) -> None:
    """Write weights, config and tokenizer under their Hugging Face names.

    The directory is written beside its place and renamed, so that it is there as a whole or not at all.

    Args:
        source: a checkpoint, or a decoder alone; its `config.raw` becomes `config.json`.
        directory: where to; made, with its parents.
        tokenizer_from: the directory whose tokenizer, chat template and generation config are copied; by
            default the one that the checkpoint was read from.
        max_shard_bytes: start another weights file beyond this size; also the memory that writing takes.
        overwrite: replace a directory that is there.

    Raises:
        CheckpointError: the directory is there already, or cannot be written.
    """
    decoder = source.decoder if isinstance(source, Checkpoint) else source
    if tokenizer_from is None and isinstance(source, Checkpoint):
        tokenizer_from = source.path
    directory = Path(directory)
    if directory.exists() and not overwrite:
        raise CheckpointError(f"{directory} is there already; choose another directory or pass overwrite=True")
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    except OSError as error:
        raise CheckpointError(f"{directory} cannot be written: {error.strerror}") from None
    try:
        _write_weights(decoder, beside, max_shard_bytes)
        _write_config(decoder, beside)
        if tokenizer_from is not None:
            _copy_tokenizer(Path(tokenizer_from), beside)
        beside.chmod(0o777 & ~_umask())
        _rename(beside, directory)
    except OSError as error:
        raise CheckpointError(f"{directory} cannot be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _write_weights(decoder: Decoder, directory: Path, max_shard_bytes: int) -> None:
    parameters = dict(decoder.named_parameters())
    shards = list(_shards(pieces(decoder.config), decoder.dtype.itemsize, max_shard_bytes))
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = "model.safetensors"
        if len(shards) > 1:
            name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = {tensor: _cut(parameters[piece.parameter], piece) for tensor, piece in shard.items()}
        save_file(tensors, directory / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, name)
    if len(shards) > 1:
        total = sum(parameter.nbytes for parameter in parameters.values())
        _write_json(
            directory / "model.safetensors.index.json",
            {"metadata": {"total_size": total}, "weight_map": weight_map},
        )


def _shards(places: dict[str, Piece], item_bytes: int, max_bytes: int) -> Iterator[dict[str, Piece]]:
    """Tensors in order, split where the next would pass the bound; one above it has a file of its own."""
    shard: dict[str, Piece] = {}
    size = 0
    for name, piece in places.items():
        count = torch.Size(piece.shape).numel() * item_bytes
        if shard and size + count > max_bytes:
            yield shard
            shard, size = {}, 0
        shard[name] = piece
        size += count
    yield shard


def _cut(parameter: Tensor, piece: Piece) -> Tensor:
    """The tensor of a file, copied out of the parameter that holds it."""
    rows = parameter.detach() if piece.expert is None else parameter.detach()[piece.expert]
    cut = rows[piece.start : piece.start + piece.shape[0]]
    return cut.to("cpu", copy=True, memory_format=torch.contiguous_format)


def _write_config(decoder: Decoder, directory: Path) -> None:
    config = {name: value for name, value in decoder.config.raw.items() if name != BASE_FIELD}
    field = "torch_dtype" if "torch_dtype" in config else "dtype"
    config[field] = str(decoder.dtype).removeprefix("torch.")
    _write_json(directory / "config.json", config)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _copy_tokenizer(source: Path, directory: Path) -> None:
    for name in _COPIED:
        path = source / name
        if path.is_dir():
            shutil.copytree(path, directory / name)
        elif path.is_file():
            (directory / name).write_bytes(path.read_bytes())


def _rename(beside: Path, directory: Path) -> None:
    if not directory.exists():
        beside.rename(directory)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{directory.name}-old-", dir=directory.parent))
    directory.rename(old / directory.name)
    beside.rename(directory)
    shutil.rmtree(old, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
