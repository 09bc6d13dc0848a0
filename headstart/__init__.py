"""Headstart: serve any Hugging Face checkpoint with cheap first tokens.

The names below are loaded on first use, so that `import headstart` stays quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from headstart.engine.async_engine import AsyncEngine
    from headstart.engine.llm import LLM
    from headstart.engine.outputs import CompletionOutput, RequestOutput
    from headstart.engine.params import SamplingParams
    from headstart.errors import HeadstartError

__all__ = ["LLM", "AsyncEngine", "CompletionOutput", "HeadstartError", "RequestOutput", "SamplingParams"]

_HOMES = {
    "LLM": "headstart.engine.llm",
    "AsyncEngine": "headstart.engine.async_engine",
    "CompletionOutput": "headstart.engine.outputs",
    "RequestOutput": "headstart.engine.outputs",
    "SamplingParams": "headstart.engine.params",
    "HeadstartError": "headstart.errors",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'headstart' has no attribute {name!r}")
