"""The `headstart` command."""

import io
import os
import sys
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from headstart import __version__
from headstart.cli.batch import batch
from headstart.cli.bench import app as bench
from headstart.cli.calibrate import calibrate
from headstart.cli.chat import chat
from headstart.cli.data import app as data
from headstart.cli.demo import app as demo
from headstart.cli.eval import evaluate
from headstart.cli.export import export
from headstart.cli.generate import generate
from headstart.cli.ledger import app as ledger
from headstart.cli.library import app as library
from headstart.cli.methods import methods
from headstart.cli.plan import plan
from headstart.cli.serve import serve
from headstart.cli.train import train
from headstart.errors import HeadstartError

app = typer.Typer(
    name="headstart",
    help="Serve language models with cheap first tokens, and measure the methods that promise more.",
    epilog="New here? Run `headstart demo`. Every command has its own --help.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(demo, name="demo")
app.command()(generate)
app.command()(chat)
app.command()(serve)
app.command()(batch)
app.command()(methods)
app.command()(plan)
app.command()(calibrate)
app.command("eval")(evaluate)
app.add_typer(bench, name="bench")
app.add_typer(ledger, name="ledger")
app.add_typer(data, name="data")
app.add_typer(library, name="library")
app.command()(train)
app.command()(export)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"headstart {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options of `headstart` itself."""


def main() -> None:
    """Run the command line. Bad input ends with one sentence and exit status 2, Ctrl-C (through Typer) with 130."""
    _mend_streams()
    try:
        app()
    except HeadstartError as error:
        _fail(str(error))
    except OSError as error:
        # What could not be written must not be tried again when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        _fail(f"{error.filename or 'the output'} cannot be used: {error.strerror}")


def _mend_streams() -> None:
    """Stand-ins for streams that whoever started us has closed, and question marks for what a terminal lacks."""
    for name in ("stdin", "stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: SIM115
        elif name != "stdin" and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _fail(message: str) -> NoReturn:
    sentence = " ".join(message.split())
    Console(stderr=True).print(f"headstart: {sentence}", style="red", markup=False, highlight=False, soft_wrap=True)
    sys.exit(2)


if __name__ == "__main__":
    main()
