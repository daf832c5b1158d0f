"""An OpenAI-compatible judge on this machine with scripted faults: asyncio without a library, in a thread."""

import asyncio
import base64
import gzip
import html
import json
import re
import socket
import struct
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from email.utils import formatdate
from time import monotonic, time
from typing import Any, Self

BOMB = gzip.compress(bytes(2 * 10**7))  # 20 KB
RESET = struct.pack("ii", 1, 0)  # SO_LINGER of 0 s: close() sends RST


def completion(content: str, prompt: str = "", usage: Any = None, **choice: Any) -> bytes:
    """Return a chat completion; a prompt of n characters counts n // 3 tokens, an answer 7."""
    message = {"role": "assistant", "content": content}
    body = {
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"} | choice],
        "usage": usage or {"prompt_tokens": len(prompt) // 3, "completion_tokens": 7},
    }
    return json.dumps(body).encode()


def error(message: str, **fields: str) -> bytes:
    return json.dumps({"error": {"message": message} | fields}).encode()


def case_of(prompt: str) -> dict[str, Any]:
    """Return the JSON in a prompt."""
    case, _ = json.JSONDecoder().raw_decode(prompt, prompt.index("{\n"))
    return case


def verdict(prompt: str) -> bytes:
    """Return a verdict: correct if the answer equals a reference. Citations are judged by `support`."""
    case = case_of(prompt)
    decision = (
        {"sentences": support(case)} if "references" not in case else {"correct": case["answer"] in case["references"]}
    )
    return completion(json.dumps({"explanation": f"On {case['question']}.", **decision}), prompt)


def support(case: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the support of each sentence that cites: a passage supports the words that it has, of five letters."""
    items = []
    for sentence in case["answer"]:
        words = set(re.findall(r"\w{5,}", sentence["text"]))
        own = {number: words & set(re.findall(r"\w+", case["passages"][str(number)])) for number in sentence["cites"]}
        supporting = [number for number, shared in own.items() if shared]
        if own:
            supported = words == set().union(*own.values())
            items.append({"sentence": sentence["sentence"], "supporting": supporting, "supported": supported})
    return items


def escaped(key: str) -> dict[str, str]:
    """Return forms of a key that a reader, or a program, can turn back into it."""
    json_escapes = "".join(f"\\u{ord(character):04x}" for character in key)
    return {
        "JSON": json_escapes,
        "JSON in JSON": json.dumps(json_escapes),
        "JSON, one character": key.replace("-", "\\u002d"),
        "HTML": "".join(f"&#{ord(character)};" for character in key),
        "HTML, hexadecimal": "".join(f"&#x{ord(character):X};" for character in key),
        "HTML in HTML": html.escape("".join(f"&#{ord(character)};" for character in key)),
        "URL": "".join(f"%{ord(character):02X}" for character in key),
        "Python": "".join(f"\\x{ord(character):02x}" for character in key),
        "base64": base64.b64encode(f"Bearer {key}".encode()).decode(),
        "base64, another offset": base64.urlsafe_b64encode(f"user:{key}:".encode()).decode(),
        "zero-width characters": "\u200b".join(key),
        "colours": "\x1b[31m".join(key),
        "beginning": f"{key[:-6]}…",
    }


class JudgeServer:
    """A server at `url`, running inside a `with` block.

    `faults[question]` are the replies to its first, second, ... call; later calls are judged. `faults["*"]` has the
    reply to every call. `received` has the question and the time of each call. A request on citations has the question
    "citations: " and its own.
    """

    def __init__(self, faults: Mapping[str, Sequence[str]] | None = None, *, seconds: float = 0.0) -> None:
        self.faults, self.seconds = faults or {}, seconds
        self.received: list[tuple[str, float]] = []
        self.headers: list[str] = []
        self.bodies: list[dict[str, Any]] = []
        self.max_concurrency = self._running = 0
        self.sent = 0  # bytes of endless replies

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        start = asyncio.start_server(self._serve, "127.0.0.1", 0)
        self._server = asyncio.run_coroutine_threadsafe(start, self._loop).result()
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"
        return self

    def __exit__(self, *exception: object) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _stop(self) -> None:
        self._server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    @property
    def calls(self) -> Counter[str]:
        """The number of calls of each question."""
        return Counter(question for question, _ in self.received)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                length = int(re.search(r"(?i)content-length: (\d+)", head)[1])
                await self._receive(head, json.loads(await reader.readexactly(length)), writer)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # the client disconnected, or the server stops
        finally:
            writer.close()

    async def _receive(self, head: str, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        question = self.question_of(body)
        scripted = self.faults.get("*") or self.faults.get(question, ())
        turn = 0 if "*" in self.faults else self.calls[question]
        self.received.append((question, monotonic()))
        self.headers.append(head)
        self.bodies.append(body)
        self._running += 1
        self.max_concurrency = max(self.max_concurrency, self._running)
        try:
            await asyncio.sleep(self.seconds)
            await self._reply(scripted[turn] if turn < len(scripted) else "", head, body, writer)
        finally:
            self._running -= 1

    def question_of(self, body: dict[str, Any]) -> str:
        """Return the question in a request."""
        prompt = body["messages"][0]["content"]
        question = json.loads(re.search(r'^ "question": (".*"),$', prompt, re.MULTILINE)[1])
        return question if re.search(r'^ "references": ', prompt, re.MULTILINE) else f"citations: {question}"

    def answer(self, body: dict[str, Any]) -> tuple[int, bytes]:
        """Return the status and the content of a reply without a fault."""
        return 200, verdict(body["messages"][0]["content"])

    async def _reply(self, fault: str, head: str, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        """Send the reply `fault`, or a verdict if it is ""."""
        prompt = body["messages"][0]["content"] if "messages" in body else ""
        name, _, value = fault.partition(":")
        dated = {"Date": formatdate(time() - 3600, usegmt=True)}  # of a clock that is one hour slow
        until = {"Retry-After": formatdate(time() - 3600 + float(value or 0), usegmt=True)} if name == "date" else {}
        key = re.search(r"(?i)authorization: (.*)\r", head)
        secret = key[1].removeprefix("Bearer ") if key else ""
        replies: dict[str, tuple[int, bytes, dict[str, str]]] = {
            "": (*self.answer(body), {}),
            "429": (429, error("slow down", code="rate_limit_exceeded"), {"Retry-After": value} if value else {}),
            "date": (429, error("slow down", code="rate_limit_exceeded"), dated | until),
            "500": (500, b"", {}),
            "503": (503, b"overloaded", {"Retry-After": value}),
            "html": (200, b"<html>Please log in</html>", {"Content-Type": "text/html"}),
            "empty": (200, b'{"choices": []}', {}),
            "midway": (200, completion("", prompt, error={"code": 502}), {}),
            "401": (401, error(f"Incorrect API key provided: {key and key[1]}", code="invalid_api_key"), {}),
            "403": (403, b"Forbidden", {}),
            "404": (404, error("no such model", code="model_not_found"), {}),
            "301": (301, b"", {"Location": "http://127.0.0.1:1/"}),
            "quota": (429, error("out of credit", type="insufficient_quota", code="spend_limit"), {"Retry-After": "1"}),
            "unsuitable": (400, error("no max_tokens", param="max_tokens", code="unsupported_parameter"), {}),
            "too long": (400, error("too long", code="context_length_exceeded", param="messages"), {}),
            "filter": (400, error("filtered", code="content_filter", param="prompt"), {}),
            "filtered": (200, completion("", prompt, finish_reason="content_filter"), {}),
            "refusal": (200, completion("", prompt, message={"content": None, "refusal": "I can't."}), {}),
            "cut": (200, completion('{"explanation": "x", "correct": true}', prompt, finish_reason="length"), {}),
            "prose": (200, completion("It is correct.", prompt), {}),
            "echo": (500, head.encode(), {}),
            "escaped": (500, json.dumps(escaped(secret)).encode(), {}),
            "escaped text": (500, "\n".join(escaped(secret).values()).encode(), {}),
            "escaped verdict": (200, completion(json.dumps(escaped(secret) | {"correct": True})), {}),
            "negative": (
                200,
                completion('{"correct": true}', usage={"prompt_tokens": -(10**6), "completion_tokens": 7}),
                {},
            ),
            "bomb": (200, BOMB, {"Content-Encoding": "gzip"}),
            "terminal": (400, b"\x1b[2J\x9b31m\x07 too long", {}),
        }
        if name == "reset":
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            writer.transport.abort()
            raise ConnectionError
        if name == "noise":
            writer.write(f"{key and key[1]}\r\n\r\n".encode())  # no valid status line; the client's error repeats it
            raise ConnectionError
        if name in ("endless body", "endless headers"):
            writer.write(b"HTTP/1.1 200 OK\r\n" + b"\r\n" * (name == "endless body"))
            while True:
                writer.write(line := b"X: y" + b" " * 65530 + b"\r\n")
                self.sent += len(line)
                await writer.drain()
        if name == "slow":
            await asyncio.sleep(60)
        status, content, headers = replies[name if name in replies else ""]
        fields = {"Content-Length": str(len(content)), "Content-Type": "application/json"} | headers
        lines = [f"HTTP/1.1 {status} Text", *(f"{field}: {text}" for field, text in fields.items()), "", ""]
        data = "\r\n".join(lines).encode() + content
        if name == "truncated":
            writer.write(data[:-9])
            raise ConnectionError
        if name == "dribble":
            for byte in data:
                writer.write(bytes([byte]))
                await asyncio.sleep(0.05)
        writer.write(data)
        await writer.drain()
