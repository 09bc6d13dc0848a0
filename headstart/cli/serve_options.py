"""What `headstart serve` takes beside the engine's options: who may ask, for how much, and over which connection."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from headstart.server.tenants import Tenants

_LIMITS, _CONNECTION = "Limits", "Connection"


def _limit(**kwargs: Any) -> Any:
    return typer.Option(rich_help_panel=_LIMITS, **kwargs)


def _connection(*names: str, **kwargs: Any) -> Any:
    return typer.Option(*names, rich_help_panel=_CONNECTION, **kwargs)


@dataclass
class LimitOptions:
    """What each key may use; without keys, what everybody may use together."""

    tenants: Annotated[
        Path | None,
        _limit(help="YAML file of tenants with their keys and limits, over those below.", show_default=False),
    ] = None
    requests_per_minute: Annotated[int | None, _limit(min=1, help="Requests per key and minute.")] = None
    tokens_per_minute: Annotated[int | None, _limit(min=1, help="Prompt and output tokens per key and minute.")] = None
    max_concurrent_requests: Annotated[int | None, _limit(min=1, help="Requests of a key at once.")] = None
    max_prompt_tokens: Annotated[int | None, _limit(min=1, help="Longest prompt. [default: what the model takes]")] = (
        None
    )
    max_body_bytes: Annotated[int | None, _limit(min=1, help="Largest request body. [default: 8 MiB]")] = None
    request_timeout: Annotated[float | None, _limit(help="Seconds that a request may take in all.")] = None
    allow_use: Annotated[
        list[str] | None,
        _limit(
            metavar="METHOD",
            help="Method that requests may bring for themselves, in their field `use`, with the options that it may "
            "have, as --use takes it; may be repeated. [default: none]",
            show_default=False,
        ),
    ] = None
    max_queued_requests: Annotated[
        int, _limit(min=1, help="Prompts that may wait for the engine; beyond that the answer is 503.")
    ] = 1024

    def read(self, keys: list[str]) -> "Tenants":
        """The tenants of the file and of `keys`.

        Raises:
            HeadstartError: a key or a limit that cannot be, or a file that is not understood.
        """
        from headstart.server.tenants import Limits, read_tenants, tenants_of_keys

        names = (
            "requests_per_minute",
            "tokens_per_minute",
            "max_concurrent_requests",
            "max_prompt_tokens",
            "max_body_bytes",
            "request_timeout",
        )
        limits = Limits(**{name: value for name in names if (value := getattr(self, name)) is not None})
        if self.tenants is None:
            return tenants_of_keys(keys, limits)
        return read_tenants(self.tenants, keys, limits)


@dataclass
class ConnectionOptions:
    """How clients reach the server."""

    ssl_keyfile: Annotated[
        Path | None, _connection(help="Private key in PEM format, for HTTPS.", show_default=False)
    ] = None
    ssl_certfile: Annotated[
        Path | None, _connection(help="Certificate chain in PEM format, for HTTPS.", show_default=False)
    ] = None
    allowed_origins: Annotated[
        list[str] | None,
        _connection(
            metavar="ORIGIN",
            help="Origin whose web pages may call the server from a browser, or * for all; may be repeated. "
            "[default: none]",
            show_default=False,
        ),
    ] = None
    client_timeout: Annotated[
        float, _connection(min=0.1, help="Seconds for a client to send a body, or to read what was sent to it.")
    ] = 60.0
    otlp_traces_endpoint: Annotated[
        str | None,
        _connection(
            metavar="URL",
            help="Collector that spans of every request are sent to, such as http://HOST:4318/v1/traces. "
            "[default: what OTEL_EXPORTER_OTLP_ENDPOINT names, if it is set]",
            show_default=False,
        ),
    ] = None
