"""The defaults for generation that come with a checkpoint."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from headstart.checkpoints.files import read_json
from headstart.errors import CheckpointError


@dataclass(frozen=True)
class GenerationConfig:
    """What `generation_config.json` says, and `config.json` where that is silent.

    Attributes:
        eos_token_ids: ids that end an output.
        bos_token_id, pad_token_id: None when there is none.
        temperature, top_p, top_k, repetition_penalty: recommended sampling; None when nothing is recommended.
        max_new_tokens: recommended bound on an output.
    """

    eos_token_ids: list[int] = field(default_factory=list)
    bos_token_id: int | None = None
    pad_token_id: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None
    max_new_tokens: int | None = None

    @classmethod
    def from_directory(cls, directory: Path, config: dict[str, Any]) -> "GenerationConfig":
        """Read it from a checkpoint directory, whose config dict is given.

        Raises:
            CheckpointError: the file holds no JSON object, or a value has the wrong type.
        """
        path = directory / "generation_config.json"
        return cls.from_dicts(read_json(path) if path.is_file() else {}, config, str(path))

    @classmethod
    def from_dicts(cls, given: dict[str, Any], config: dict[str, Any], source: str) -> "GenerationConfig":
        """The same from the contents of the two files, the first called `source` in errors.

        Raises:
            CheckpointError: a value has the wrong type.
        """
        merged = {key: config.get(key) for key in ("eos_token_id", "bos_token_id", "pad_token_id")}
        merged |= {key: value for key, value in given.items() if value is not None}
        eos = merged.get("eos_token_id")
        eos = eos if isinstance(eos, list) else [] if eos is None else [eos]
        # Sampling values of a checkpoint that asks for greedy decoding are left-overs.
        sampling = merged if merged.get("do_sample", True) else {}
        result = cls(
            eos_token_ids=eos,
            bos_token_id=merged.get("bos_token_id"),
            pad_token_id=merged.get("pad_token_id"),
            temperature=sampling.get("temperature"),
            top_p=sampling.get("top_p"),
            top_k=sampling.get("top_k"),
            repetition_penalty=merged.get("repetition_penalty"),
            max_new_tokens=merged.get("max_new_tokens"),
        )
        result._check(source)
        return result

    def _check(self, source: str) -> None:
        ids = [*self.eos_token_ids, self.bos_token_id, self.pad_token_id, self.top_k, self.max_new_tokens]
        for value in ids:
            if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
                raise CheckpointError(f"{source} has {value!r} where a whole number belongs")
        for number in (self.temperature, self.top_p, self.repetition_penalty):
            if number is not None and not isinstance(number, int | float):
                raise CheckpointError(f"{source} has {number!r} where a number belongs")
