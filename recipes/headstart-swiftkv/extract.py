"""Takes the distilled projections out of a checkpoint: `python extract.py MODEL OUT` writes what `swiftkv` reads."""

import shutil
import sys
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file

from headstart.checkpoints.files import read_json
from headstart.checkpoints.names import pieces
from headstart.checkpoints.reader import shard_paths
from headstart.methods.distil.swiftkv.form import Form, projection_parameters
from headstart.models.config import ModelConfig


def main(model: Path, out: Path) -> None:
    """Write the config and the tensors in which the model differs from the one that it was distilled from."""
    form, config = Form.of_directory(model), ModelConfig.from_hf(read_json(model / "config.json"))
    parameters = {name for each in projection_parameters(form, config).values() for name in each}
    wanted = {name for name, piece in pieces(config).items() if piece.parameter in parameters}
    tensors = {}
    for path in shard_paths(model):
        with safe_open(path, "pt") as shard:
            tensors |= {name: shard.get_tensor(name) for name in wanted.intersection(shard.keys())}
    out.mkdir(parents=True)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    shutil.copy(model / "config.json", out)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
