"""The defaults for generation that come with a checkpoint."""

from dataclasses import dataclass, field
from pathlib import Path

from headstart.checkpoints.files import read_json
from headstart.models.config import ModelConfig
from headstart.models.fields import Fields


@dataclass(frozen=True)
class GenerationConfig:
    """What `generation_config.json` says, and `config.json` where that is silent.

    Attributes:
        eos_token_ids: ids that end an output.
        temperature, top_p, top_k, repetition_penalty: recommended sampling; None when nothing is recommended.
    """

    eos_token_ids: list[int] = field(default_factory=list)
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None

    @classmethod
    def from_directory(cls, directory: Path, config: ModelConfig) -> "GenerationConfig":
        """Read it from a checkpoint directory, whose config is given.

        Raises:
            CheckpointError: the file holds no JSON object, or a value has the wrong type or is out of range.
        """
        path = directory / "generation_config.json"
        given = Fields(read_json(path) if path.is_file() else {}, str(path))
        return cls.from_fields(given, Fields(config.raw, str(directory / "config.json")), config.vocab_size)

    @classmethod
    def from_fields(cls, given: Fields, config: Fields, vocab_size: int) -> "GenerationConfig":
        """The same from the contents of the two files.

        Raises:
            CheckpointError: a value has the wrong type or is out of range.
        """
        eos_token_ids = _eos_token_ids(given, vocab_size)
        # Sampling values of a checkpoint that asks for greedy decoding are left-overs.
        sampling = given if given.boolean("do_sample", True) else Fields({}, given.source)
        return cls(
            eos_token_ids=(_eos_token_ids(config, vocab_size) or []) if eos_token_ids is None else eos_token_ids,
            temperature=sampling.optional_number("temperature", zero=True),
            top_p=_share(sampling, "top_p"),
            top_k=sampling.optional_integer("top_k", least=-1),
            repetition_penalty=given.optional_number("repetition_penalty"),
        )


def _eos_token_ids(fields: Fields, vocab_size: int) -> list[int] | None:
    """The ids in `eos_token_id`, which holds one or a list; None when absent."""
    value = fields.raw.get("eos_token_id")
    if value is None:
        return None
    ids = value if isinstance(value, list) else [value]
    if not all(isinstance(item, int) and not isinstance(item, bool) and item >= 0 for item in ids):
        raise fields.bad("eos_token_id", "a token id of at least 0 or a list of such ids", value)
    # The model cannot draw an id beyond its vocabulary, so such an id ends nothing.
    return [item for item in ids if item < vocab_size]


def _share(fields: Fields, name: str) -> float | None:
    value = fields.optional_number(name)
    if value is not None and value > 1:
        raise fields.bad(name, "above 0 and at most 1", value)
    return value
