"""`POST /tokenize` and `POST /detokenize`: what the model's tokenizer makes of a prompt, and back."""

from typing import Any

from fastapi import APIRouter, Request

from headstart.server.body import read_body
from headstart.server.protocol import DetokenizeRequest, TokenizeRequest
from headstart.server.service import Service
from headstart.server.tools.use import tool_use


def token_routes(service: Service) -> APIRouter:
    """The routes, bound to a service."""
    router = APIRouter()

    @router.post("/tokenize")
    async def tokenize(request: Request) -> dict[str, Any]:
        asked = await read_body(request, TokenizeRequest)
        service.check_model(asked.model)
        tools = tool_use(service, asked.tools, asked.tool_choice, None)
        if asked.messages is not None:
            described = () if tools is None else tools.tools
            found, _ = await service.encode_chat(
                asked.messages, asked.add_generation_prompt, asked.chat_template_kwargs, described
            )
        else:
            service.check_text(asked.prompt or "", "prompt")
            found = await service.encode(asked.prompt or "", add_special_tokens=asked.add_special_tokens)
        service.check_prompt(len(found), "prompt" if asked.messages is None else "messages")
        return {"count": len(found), "max_model_len": service.engine.max_model_len, "tokens": found}

    @router.post("/detokenize")
    async def detokenize(request: Request) -> dict[str, str]:
        asked = await read_body(request, DetokenizeRequest)
        service.check_model(asked.model)
        return {"prompt": await service.decode(asked.tokens, asked.skip_special_tokens)}

    return router
