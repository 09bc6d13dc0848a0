"""What each of two processes that torchrun started does: `python two_ranks.py BASE`, with recipes as files in BASE."""

import sys
from pathlib import Path

import torch
from rich.console import Console

from headstart.training import run
from headstart.training.loop import Interrupted, Trainer
from headstart.training.run import RunOptions, train


def carry_out(base: Path, name: str, out: str, stop: int | None = None) -> None:
    """One run, stopped by the second rank after so many steps."""
    real = Trainer._train_step

    def stepping(self: Trainer) -> None:
        real(self)
        self.stop_requested = self.step == stop and self.world.rank == 1

    Trainer._train_step = stepping
    try:
        options = RunOptions(base / out, base, "cpu", export_dtype=torch.float32, console=Console(quiet=True))
        train(base / name, options)
    except Interrupted:
        assert stop is not None
    finally:
        Trainer._train_step = real


if __name__ == "__main__":
    torch.set_num_threads(1)
    run.plot_run = lambda directory: None
    torch.distributed.init_process_group("gloo")
    directory = Path(sys.argv[1])
    carry_out(directory, "adamw.yaml", "straight")
    carry_out(directory, "adamw.yaml", "stopped", stop=7)
    carry_out(directory, "adamw.yaml", "stopped")
    carry_out(directory, "adamw.yaml", "for-one", stop=7)
    carry_out(directory, "adamw.yaml", "from-one")
    carry_out(directory, "muon.yaml", "muon")
    torch.distributed.destroy_process_group()
