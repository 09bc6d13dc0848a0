"""What all request bodies have in common, and the fields of OpenAI's API that are refused."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

# Fields of OpenAI's API that are not served, with the values that ask for nothing.
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "access_programs": (None, []),
    "audio": (None,),
    "background": (None, False),
    "background_options": (None,),
    "context_management": (None, []),
    "conversation": (None,),
    "function_call": (None, "none", "auto"),
    "functions": (None, []),
    "image": (None,),
    "max_tool_calls": (None,),
    "modalities": (None, ["text"]),
    "moderation": (None,),
    "prediction": (None,),
    "previous_response_id": (None,),
    "prompt": (None,),
    "prompt_cache_options": (None,),
    "prompt_cache_retention": (None, "in_memory"),
    "reasoning": (None, {}, {"effort": None}, {"effort": None, "summary": None}),
    "reasoning_effort": (None,),
    "service_tier": (None, "auto", "default"),
    "store": (None, False),
    "suffix": (None, ""),
    "truncation": (None, "disabled"),
    "verbosity": (None,),
    "web_search_options": (None,),
}


def expected(what: str) -> PydanticCustomError:
    """The error for a value that is not `what`; the sentence adds the field and the value."""
    return PydanticCustomError("expected", "expected {expected}", {"expected": what})


def within(**bounds: float) -> Any:
    """An optional field whose bounds are told in the JSON schema, and checked by the engine."""
    return Field(default=None, json_schema_extra=dict(bounds))


class Body(BaseModel):
    """A request body: types are strict, and a field that is not known is an error."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class Tolerant(Body):
    """A body that may bring fields that are not known here, as long as they ask for nothing.

    Clients send back what they once were answered, with fields that are empty.
    """

    @model_validator(mode="before")
    @classmethod
    def _drop_unused(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        return {key: value for key, value in data.items() if key in cls.model_fields or not cls._unused(key, value)}

    @classmethod
    def _unused(cls, key: str, value: Any) -> bool:
        """Whether a field that is not known asks for nothing with this value."""
        return value in (None, [])


def _with_neutral(schema: dict[str, Any], model: type[BaseModel]) -> None:
    """Tell of the unsupported fields in a request's JSON schema."""
    neutral = {name: {"enum": list(values), "description": "Not supported."} for name, values in UNSUPPORTED.items()}
    schema["properties"] = neutral | schema["properties"]


class LabelledRequest(Tolerant):
    """A request with labels for whoever runs the server; they do not change the answer."""

    model_config = ConfigDict(json_schema_extra=_with_neutral)

    model: str | None = None
    user: str | None = None
    metadata: dict[str, str] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    @classmethod
    def _unused(cls, key: str, value: Any) -> bool:
        # By type too: JSON's 0 is not false, though Python thinks so.
        return any(type(value) is type(neutral) and value == neutral for neutral in UNSUPPORTED.get(key, ()))
