"""Takes the trained weights out of a converted checkpoint: `python extract.py MODEL OUT` writes a checkpoint that has
no others, and names the built-in one for the rest."""

import json
import shutil
import sys
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file

from headstart.checkpoints.default import default_checkpoint_path
from headstart.checkpoints.files import read_json
from headstart.checkpoints.reader import BASE_FIELD, shard_paths

OWN = ("q_proj", "k_proj", "v_proj")
BESIDE = ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja")


def main(model: Path, out: Path) -> None:
    """Write the config, the tokenizer and the queries', keys' and values' projections."""
    tensors = {}
    for path in shard_paths(model):
        with safe_open(path, "pt") as shard:
            tensors |= {name: shard.get_tensor(name) for name in sorted(shard.keys()) if name.split(".")[-2] in OWN}
    out.mkdir(parents=True)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    config = read_json(model / "config.json") | {BASE_FIELD: default_checkpoint_path().name}
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    for name in BESIDE:
        shutil.copy(default_checkpoint_path() / name, out)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
