"""The options that several commands share, each said once."""

import functools
import inspect
import typing
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from headstart.engine.llm import LLM
    from headstart.engine.params import SamplingParams

_ENGINE, _SAMPLING = "Engine", "Sampling"


def _engine(*names: str, **kwargs: Any) -> Any:
    return typer.Option(*names, rich_help_panel=_ENGINE, **kwargs)


def _sampling(*names: str, **kwargs: Any) -> Any:
    return typer.Option(*names, rich_help_panel=_SAMPLING, **kwargs)


@dataclass
class EngineOptions:
    """Which model runs and how; what is None is left to the engine's own default."""

    model: Annotated[
        str | None,
        _engine(
            "--model",
            "-m",
            metavar="MODEL",
            help="Checkpoint directory or Hugging Face hub id. [default: the built-in model]",
        ),
    ] = None
    use: Annotated[
        list[str] | None,
        _engine(
            metavar="METHOD",
            help="Method to use, as KEY or KEY:OPTION=VALUE; may be repeated. See `headstart methods`.",
        ),
    ] = None
    dtype: Annotated[str | None, _engine(help="auto, float32, bfloat16 or float16. [default: the checkpoint's]")] = None
    device: Annotated[
        str | None, _engine(help="cpu, cuda or cuda:N. [default: a CUDA device if there is one, or else the CPU]")
    ] = None
    load_format: Annotated[
        str | None, _engine(help="auto, or dummy: random weights, to measure speed by a config alone. [default: auto]")
    ] = None
    quantization: Annotated[
        str | None,
        _engine(help="Keep the layers' weights in eight bits, fp8 or int8: half the memory, other answers."),
    ] = None
    kv_cache_dtype: Annotated[
        str | None,
        _engine(help="Of cached keys and values: auto, float32, bfloat16, float16 or fp8_e4m3. [default: the run's]"),
    ] = None
    max_model_len: Annotated[int | None, _engine(help="Longest prompt and output together, in tokens.")] = None
    max_num_seqs: Annotated[int | None, _engine(help="Most requests that run at once.")] = None
    max_num_batched_tokens: Annotated[int | None, _engine(help="Most tokens in one step.")] = None
    enable_prefix_caching: Annotated[
        bool | None,
        _engine(
            "--no-enable-prefix-caching",
            callback=lambda off: False if off else None,
            help="Read every prompt anew, even if it begins like an earlier one.",
            show_default=False,
        ),
    ] = None
    page_size: Annotated[
        int | None, _engine(help="Tokens in one page of the KV cache. [default: 16 on a CPU, 64 on a GPU]")
    ] = None
    num_pages: Annotated[int | None, _engine(help="Pages in the KV cache. [default: from --kv-cache-memory]")] = None
    kv_cache_memory: Annotated[
        int | None,
        _engine(
            help="Bytes for the KV cache. [default: what --max-num-seqs full sequences need, but at most a quarter of "
            "free memory on a CPU, and nine tenths of a GPU's memory together with the weights]"
        ),
    ] = None

    kv_tier: Annotated[
        str | None,
        _engine(
            metavar="TIERS",
            help="Keep cached keys beyond the KV cache, as cpu=2GB,disk=PATH:10GB or one of them; those on disk "
            "survive a restart.",
        ),
    ] = None

    swap_space: Annotated[
        int | None,
        _engine(help="Bytes of host memory for keys of preempted requests. [default: 4 GiB, a tenth of what is free]"),
    ] = None

    async_scheduling: Annotated[
        bool | None,
        _engine(
            "--async-scheduling/--no-async-scheduling",
            help="Start a step before the tokens of the last one are known on the host. [default: on a GPU]",
        ),
    ] = None
    enforce_eager: Annotated[
        bool | None,
        _engine("--enforce-eager", help="Capture no CUDA graphs: start faster, decode slower.", show_default=False),
    ] = None

    tensor_parallel_size: Annotated[
        int | None, _engine(help="Cut the model over so many devices, with a process for each. [default: 1]")
    ] = None

    all_reduce_chunks: Annotated[
        int | None,
        _engine(help="Sum products over those devices in so many parts, each while the next is computed. [default: 1]"),
    ] = None

    def load(self) -> "LLM":
        """The engine with these options.

        Raises:
            HeadstartError: the checkpoint cannot be read, or an option cannot be honoured.
        """
        from headstart import LLM

        return LLM(**given(self))


@dataclass
class SamplingOptions:
    """How tokens are chosen; what is None is left to the checkpoint."""

    max_tokens: Annotated[int, _sampling(help="Most tokens to generate.")] = 128
    temperature: Annotated[float | None, _sampling(help="Randomness: 0 always takes the likeliest token.")] = None
    top_p: Annotated[float | None, _sampling(help="Draw from the likeliest tokens that reach this probability.")] = None
    top_k: Annotated[int | None, _sampling(help="Draw from this many likeliest tokens.")] = None
    min_p: Annotated[
        float | None, _sampling(help="Drop tokens below this fraction of the likeliest token's probability.")
    ] = None
    repetition_penalty: Annotated[float | None, _sampling(help="Above 1: discourage what was already said.")] = None
    presence_penalty: Annotated[float | None, _sampling(help="Above 0: discourage used tokens, once.")] = None
    frequency_penalty: Annotated[float | None, _sampling(help="Above 0: discourage used tokens, per use.")] = None
    seed: Annotated[int | None, _sampling(help="Makes the draw repeatable.")] = None
    stop: Annotated[list[str] | None, _sampling(help="Text that ends the output; may be repeated.")] = None
    min_tokens: Annotated[int | None, _sampling(help="Do not end before this many tokens.")] = None
    ignore_eos: Annotated[bool, _sampling("--ignore-eos", help="Go on past the model's end-of-text token.")] = False

    def check(self) -> None:
        """Refuse values out of range before a model loads, which can take long.

        Raises:
            InvalidRequestError: a value out of range.
        """
        from headstart import SamplingParams

        SamplingParams(**given(self))

    def params(self, llm: "LLM", **more: Any) -> "SamplingParams":
        """The checkpoint's recommendation, these options over it, and `more` fields of `SamplingParams`."""
        return replace(llm.default_sampling_params(), **given(self), **more)


def given(options: Any) -> dict[str, Any]:
    """The fields of a dataclass that have a value."""
    values = {field.name: getattr(options, field.name) for field in fields(options)}
    return {name: value for name, value in values.items() if value is not None}


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """Let a command take dataclasses of options: Typer sees their fields as the command's own options."""
    hints = typing.get_type_hints(command, include_extras=True)
    parameters: list[inspect.Parameter] = []
    groups: dict[str, type] = {}
    for parameter in inspect.signature(command).parameters.values():
        kind = hints[parameter.name]
        if not is_dataclass(kind):
            parameters.append(parameter.replace(annotation=kind, kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        groups[parameter.name] = typing.cast(type, kind)
        annotations = typing.get_type_hints(kind, include_extras=True)
        parameters += [
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=field.default,
                annotation=annotations[field.name],
            )
            for field in fields(kind)
        ]

    @functools.wraps(command)
    def call(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{field.name: values.pop(field.name) for field in fields(group)})
        command(**values)

    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    del call.__wrapped__  # type: ignore[attr-defined]
    return call
