"""`headstart serve`: a model behind an OpenAI-compatible HTTP server."""

import json
import os
import shlex
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from headstart.cli.options import EngineOptions, given, with_options
from headstart.cli.serve_options import ConnectionOptions, LimitOptions

if TYPE_CHECKING:
    from headstart.engine.client import EngineClient

_SERVER, _CLUSTER = "Server", "Cluster"
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
    limits: LimitOptions,
    connection: ConnectionOptions,
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
    scheduling_policy: Annotated[
        str,
        typer.Option(
            help="Who starts first: fcfs in order of arrival; priority by the requests' field `priority`, lowest "
            "first (priority:aging=SECONDS says what a level is worth in waiting); fair whose key was served least; "
            "cache-aware who finds most of its prompt in the cache.",
            rich_help_panel="Engine",
        ),
    ] = "fcfs",
    replicas: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="So many engines behind a router that knows which of them has read what.",
            rich_help_panel=_CLUSTER,
        ),
    ] = None,
    disaggregate: Annotated[
        str | None,
        typer.Option(
            metavar="PARTS",
            help="Engines that read prompts and engines that write answers, as prefill=1,decode=1.",
            rich_help_panel=_CLUSTER,
        ),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Run these engines as actors of a Ray cluster: its address, auto for the one of this machine, or "
            "local to start one. [default: processes of this machine]",
            rich_help_panel=_CLUSTER,
        ),
    ] = None,
    engine_process: Annotated[
        bool,
        typer.Option(
            "--engine-process/--no-engine-process",
            help="Run the engine in a process of its own, which is started again if it dies.",
            rich_help_panel=_SERVER,
        ),
    ] = True,
    engine_step_timeout: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Seconds after which an engine whose step does not end is taken to hang and started again; 0 waits "
            "forever. [default: 600]",
            rich_help_panel=_SERVER,
        ),
    ] = None,
) -> None:
    """Serve a model over HTTP, for OpenAI clients.

    Completions, chat, streaming, JSON-schema output, tokenize, health and Prometheus metrics; the address is printed
    at start. SIGTERM or Ctrl-C lets running requests finish, a second one ends them.

        headstart serve
        headstart serve DIR --port 8080 --api-key SECRET
        headstart serve DIR --tenants tenants.yaml --max-queued-requests 256
        headstart serve Qwen/Qwen2.5-0.5B --use sarathi-serve:chunk=512
        headstart serve DIR --allow-use lazyllm --allow-use flashattention
        headstart serve DIR --replicas 2
        headstart serve DIR --disaggregate prefill=1,decode=1
        headstart serve DIR --replicas 8 --ray auto
    """
    from headstart.engine.waiting import line_of
    from headstart.server.app import create_app
    from headstart.server.own_methods import OwnMethods
    from headstart.server.run import Tls, bind, run_server
    from headstart.server.tracing import tracing_to

    # Typer takes a variable that is set and blank for one that is not set, which would open the server to everybody.
    keys = api_key or ([""] if _KEY_VARIABLE in os.environ else [])
    tenants = limits.read(keys)
    tracing = tracing_to(connection.otlp_traces_endpoint)
    line_of(scheduling_policy)
    OwnMethods(limits.allow_use or ())
    tls = Tls.of(connection.ssl_keyfile, connection.ssl_certfile)
    # The port first: a model can take minutes to load, only to find that nobody could reach it.
    listener = bind(host, port)
    settings = given(engine) | _deadline(engine_step_timeout, engine_process)
    if checkpoint is not None:
        settings["model"] = checkpoint
    if seed is not None:
        settings["seed"] = seed
    settings["scheduling_policy"] = scheduling_policy
    loaded = _load(settings, replicas, disaggregate, engine_process, ray)
    app = create_app(
        loaded,
        served_model_name=served_model_name,
        tenants=tenants,
        max_queued_requests=limits.max_queued_requests,
        client_timeout=connection.client_timeout,
        allowed_origins=connection.allowed_origins or (),
        tracing=tracing,
        allow_use=limits.allow_use or (),
    )
    name = app.state.service.model_name
    scheme = "http" if tls is None else "https"
    _announce(loaded, name, scheme, host, listener.getsockname()[1], tenants.keyed)
    run_server(app, listener, shutdown_timeout=shutdown_timeout, log_level=log_level.value, tls=tls)


def _load(
    settings: dict[str, Any],
    replicas: int | None,
    disaggregate: str | None,
    engine_process: bool,
    ray: str | None,
) -> "EngineClient":
    """The engine or the engines."""
    from headstart.cluster.launch import Disaggregation, PlacementError, start_disaggregated, start_replicas
    from headstart.engine.async_engine import AsyncEngine
    from headstart.engine.process import ProcessEngine

    if replicas is not None and disaggregate is not None:
        raise PlacementError("replicas do everything, and --disaggregate parts it: leave out one of them")
    if (replicas or disaggregate) and not engine_process:
        raise PlacementError("the engines of a cluster are processes of their own: leave out --no-engine-process")
    if ray is not None and not (replicas or disaggregate):
        raise PlacementError("--ray places the engines of a cluster: say how many, with --replicas or --disaggregate")
    if disaggregate is not None:
        return start_disaggregated(Disaggregation.parse(disaggregate), settings, ray)
    if replicas is not None:
        return start_replicas(replicas, settings, ray)
    return (ProcessEngine if engine_process else AsyncEngine).from_model(**settings)


def _announce(engine: "EngineClient", name: str, scheme: str, host: str, port: int, keyed: bool) -> None:
    """Say what is served where, and how to try it."""
    address = f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"
    exactness = "exact" if engine.exact else "not exact: a method or setting changes the model's distribution"
    key = ' -H "Authorization: Bearer $HEADSTART_API_KEY"' if keyed else ""
    body = shlex.quote(json.dumps({"model": name, "prompt": "Once upon a time", "max_tokens": 32}))
    out = Console(highlight=False, soft_wrap=True)
    out.print("[bold]model[/]    ", end="")
    out.print(f"{name}, up to {engine.max_model_len} tokens", markup=False)
    out.print(f"[bold]address[/]  {address}/v1")
    out.print(f"[bold]page[/]     {address}/")
    out.print(f"[bold]stack[/]    {exactness}")
    out.print("[bold]try it[/]   ", end="")
    out.print(f"curl {address}/v1/completions{key} -H 'Content-Type: application/json' -d {body}", markup=False)


def _deadline(step_timeout: float | None, engine_process: bool) -> dict[str, Any]:
    """The engine's setting for it, where one is given; 0 is none."""
    from headstart.errors import HeadstartError

    if step_timeout is not None and not engine_process:
        raise HeadstartError("--engine-step-timeout watches the engine's process: leave out --no-engine-process")
    return {} if step_timeout is None else {"step_timeout": step_timeout or None}
