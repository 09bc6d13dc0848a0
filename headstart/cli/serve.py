"""`headstart serve`: a model behind an OpenAI-compatible HTTP server."""

import os
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from headstart.cli.options import EngineOptions, given, with_options

if TYPE_CHECKING:
    from headstart import AsyncEngine

_SERVER = "Server"
_KEY_VARIABLE = "HEADSTART_API_KEY"


class LogLevel(StrEnum):
    """uvicorn's levels."""

    CRITICAL = "critical"
    ERROR = "error"
    WARNING = "warning"
    INFO = "info"
    DEBUG = "debug"
    TRACE = "trace"


@with_options
def serve(
    engine: EngineOptions,
    checkpoint: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="The same as --model.", show_default=False)
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.", rich_help_panel=_SERVER)] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.", rich_help_panel=_SERVER)] = 8000,
    served_model_name: Annotated[
        str | None,
        typer.Option(help="Name that clients use for the model. [default: its own]", rich_help_panel=_SERVER),
    ] = None,
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            envvar=_KEY_VARIABLE,
            help="Key that requests must bring; may be repeated. [default: none is needed]",
            show_default=False,
            rich_help_panel=_SERVER,
        ),
    ] = None,
    shutdown_timeout: Annotated[
        float,
        typer.Option(min=0, help="Seconds for running requests to finish after SIGTERM.", rich_help_panel=_SERVER),
    ] = 30.0,
    log_level: Annotated[
        LogLevel,
        typer.Option(help="info logs every request; warning only trouble.", rich_help_panel=_SERVER),
    ] = LogLevel.INFO,
    seed: Annotated[
        int | None,
        typer.Option(help="Of the draws of requests that bring no seed of their own.", rich_help_panel="Engine"),
    ] = None,
) -> None:
    """Serve a model over HTTP, for OpenAI clients.

    Completions, chat, streaming, JSON-schema output, tokenize, health and Prometheus metrics; the address is printed
    at start. SIGTERM or Ctrl-C lets running requests finish, a second one ends them.

        headstart serve
        headstart serve DIR --port 8080 --api-key SECRET
        headstart serve Qwen/Qwen2.5-0.5B --use sarathi-serve:chunk=512
    """
    from headstart import AsyncEngine
    from headstart.server.app import create_app
    from headstart.server.auth import check_keys
    from headstart.server.run import bind, run_server

    # Typer takes a variable that is set and blank for one that is not set, which would open the server to everybody.
    keys = api_key or ([""] if _KEY_VARIABLE in os.environ else [])
    check_keys(keys)
    # The port first: a model can take minutes to load, only to find that nobody could reach it.
    listener = bind(host, port)
    settings = given(engine)
    if checkpoint is not None:
        settings["model"] = checkpoint
    if seed is not None:
        settings["seed"] = seed
    loaded = AsyncEngine.from_model(**settings)
    app = create_app(loaded, served_model_name=served_model_name, api_keys=keys)
    name = app.state.service.model_name
    _announce(loaded, name, host, listener.getsockname()[1], bool(keys))
    run_server(app, listener, shutdown_timeout=shutdown_timeout, log_level=log_level.value)


def _announce(engine: "AsyncEngine", name: str, host: str, port: int, keyed: bool) -> None:
    """Say what is served where, and how to try it."""
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    exactness = "exact" if engine.exact else "not exact: a method in force changes the model's distribution"
    key = ' -H "Authorization: Bearer $HEADSTART_API_KEY"' if keyed else ""
    body = f'{{"model": "{name}", "prompt": "Once upon a time", "max_tokens": 32}}'
    out = Console(highlight=False, soft_wrap=True)
    out.print("[bold]model[/]    ", end="")
    out.print(f"{name}, up to {engine.max_model_len} tokens", markup=False)
    out.print(f"[bold]address[/]  {address}/v1")
    out.print(f"[bold]stack[/]    {exactness}")
    out.print("[bold]try it[/]   ", end="")
    out.print(f"curl {address}/v1/completions{key} -H 'Content-Type: application/json' -d '{body}'", markup=False)
