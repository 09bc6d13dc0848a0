"""A server that answers on a known schedule, in a process of its own; run as `python stub.py '{"gap": 0.02}'`.

It prints its port. Every token's time of sending is kept, and read at `/sent` with the requests that came.
"""

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
import zlib
from typing import Any

DEFAULTS: dict[str, Any] = {
    "first": 0.05,  # seconds to the first token
    "gap": 0.02,  # seconds between tokens
    "stalls": {},  # token number -> further seconds before it
    "serial": False,  # one request at a time
    "owner": "stub",
    "max_model_len": 4096,
    "strict": False,  # refuse fields beyond OpenAI's
    "status": {},  # request number -> HTTP status instead of an answer
    "broken": [],  # numbers of requests whose connection is closed after two tokens
    "failing": [],  # numbers of requests that get an error event after two tokens
    "freeze_at": None,  # number of the request at which the whole process stops
    "exit_at": None,  # number of the request at which it is gone
    "tokenize": True,
    "until_closed": False,  # answers without length, ended by closing the connection
    "usage": True,
}
OPENAI_FIELDS = {"model", "prompt", "max_tokens", "temperature", "stream", "stream_options"}


class Stub:
    def __init__(self, config: dict[str, Any]) -> None:
        self.config = {**DEFAULTS, **config}
        self.requests: list[dict[str, Any]] = []
        self.connections = 0
        self.turn = asyncio.Lock()

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                method, path, _ = head.split(" ", 2)
                headers = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if line)
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                await self.answer(writer, method, path, json.loads(body) if body else {})
                if writer.is_closing():
                    return

    async def answer(self, writer: asyncio.StreamWriter, method: str, path: str, body: dict[str, Any]) -> None:
        if path == "/v1/completions":
            await self.complete(writer, body)
        elif path == "/v1/models":
            model = {"id": "m", "owned_by": self.config["owner"], "max_model_len": self.config["max_model_len"]}
            whole(writer, 200, {"data": [model]})
        elif path == "/tokenize" and self.config["tokenize"] and "prompt" in body:
            whole(
                writer, 200, {"tokens": [1, *(2 + zlib.crc32(word.encode()) % 1000 for word in body["prompt"].split())]}
            )
        elif path == "/sent":
            whole(writer, 200, {"requests": self.requests, "connections": self.connections})
        else:
            whole(writer, 404, {"error": {"message": f"there is nothing at {path}"}})

    async def complete(self, writer: asyncio.StreamWriter, body: dict[str, Any]) -> None:
        config, arrived = self.config, time.perf_counter()
        if config["strict"] and (extra := set(body) - OPENAI_FIELDS):
            whole(writer, 400, {"error": {"message": f"unknown field {min(extra)}"}})
            return
        number = len(self.requests)
        entry: dict[str, Any] = {"arrived": arrived, "sent": [], **body}
        self.requests.append(entry)
        if number == config["exit_at"]:
            os._exit(1)
        if number == config["freeze_at"]:
            os.kill(os.getpid(), signal.SIGSTOP)
        if status := config["status"].get(str(number)):
            whole(writer, status, {"error": {"message": f"refused with {status}"}})
            return
        async with self.turn if config["serial"] else contextlib.nullcontext():
            await self.stream(writer, number, entry)

    async def stream(self, writer: asyncio.StreamWriter, number: int, entry: dict[str, Any]) -> None:
        config = self.config
        framing = b"" if config["until_closed"] else b"Transfer-Encoding: chunked\r\n"
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n" + framing + b"\r\n")
        due = time.perf_counter() + config["first"]
        for token in range(entry["max_tokens"]):
            due += config["stalls"].get(str(token), 0.0) + (config["gap"] if token else 0.0)
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            last = token == entry["max_tokens"] - 1
            choice = {"index": 0, "text": f" t{token}", "finish_reason": "length" if last else None}
            entry["sent"].append(time.perf_counter())
            self.event(writer, {"choices": [choice]})
            if token == 1 and number in config["broken"]:
                writer.close()
                return
            if token == 1 and number in config["failing"]:
                self.event(writer, {"error": {"message": "the engine has failed"}})
                break
        if config["usage"]:
            counts = {"prompt_tokens": length(entry["prompt"]), "completion_tokens": len(entry["sent"])}
            self.event(writer, {"choices": [], "usage": counts})
        self.event(writer, "[DONE]")
        if config["until_closed"]:
            writer.close()
        else:
            writer.write(b"0\r\n\r\n")

    def event(self, writer: asyncio.StreamWriter, data: Any) -> None:
        text = b"data: " + (data if isinstance(data, str) else json.dumps(data)).encode() + b"\n\n"
        writer.write(text if self.config["until_closed"] else b"%x\r\n%s\r\n" % (len(text), text))


def length(prompt: list[int] | str) -> int:
    return len(prompt) if isinstance(prompt, list) else 1 + len(prompt.split())


def whole(writer: asyncio.StreamWriter, status: int, body: Any) -> None:
    data = json.dumps(body).encode()
    writer.write(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%s" % (status, len(data), data))


async def main(config: dict[str, Any]) -> None:
    server = await asyncio.start_server(Stub(config).connection, "127.0.0.1", 0, limit=2**24)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
