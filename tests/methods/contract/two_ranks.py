"""Trains examples on the ranks that torchrun started: `-m tests.methods.contract.two_ranks DATA OUT KEY...`."""

import sys
from pathlib import Path

from rich.console import Console

from headstart.training.distributed import world
from headstart.training.recipe import write_recipe
from headstart.training.run import Run, RunOptions
from tests.methods.contract import toys
from tests.methods.contract.examples import example_of
from tests.methods.contract.lab import recipe_for


def main(data: Path, out: Path, keys: list[str]) -> None:
    """One run a key, in `OUT/KEY`, for the last process to be told by its directory."""
    with toys.registered(), world("cpu") as where:
        for key in keys:
            made = recipe_for(toys.EXAMPLES.get(key) or example_of(key))
            options = RunOptions(out / key, data, "cpu", console=Console(quiet=True))
            if where.leads:
                options.out.mkdir(parents=True)
            where.barrier()
            Run(made, options, where).execute()
            if where.leads:
                write_recipe(made, options.out / "recipe.yaml")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
