"""The web application: chat completions, models, health, the page and its feedback."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rqa.data.records import Example
from rqa.generation.answers import Answer
from rqa.generation.chat import ChatQuestion
from rqa.serving.access import Access
from rqa.serving.batcher import RETRY_SECONDS, Batcher, Job
from rqa.serving.errors import RequestError
from rqa.serving.feedback import Feedback
from rqa.serving.page import render_page
from rqa.serving.protocol import ChatRequest, Completion, event, parse_body

MAX_BODY_BYTES = 256 * 1024  # of a request
BODY_SECONDS = 10.0  # to receive a request
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True)
class Service:
    """The parts of the server, and its endpoints."""

    batcher: Batcher
    feedback: Feedback
    access: Access
    model: str
    answer_timeout: float
    max_body_bytes: int = MAX_BODY_BYTES

    async def complete(self, request: Request) -> Response:
        """Answer a chat completion, whole or as a stream."""
        self.access.check_token(request.headers.get("authorization", ""))
        chat = ChatRequest.parse(await read_body(request, self.max_body_bytes), self.model)
        example = Example("", chat.question, (), chat_history=chat.history)
        job = Job(example, time.monotonic() + self.answer_timeout, chat.max_new_tokens)
        self.batcher.submit(job)
        completion = Completion(self.model)
        remember = partial(self.feedback.remember, completion.id, history=chat.history)
        watcher = asyncio.create_task(_watch(request.receive, job))
        try:
            first = await job.next()  # an error before the first token has a status of its own
            if isinstance(first, RequestError):
                raise first
            if chat.is_streamed:
                return EventStream(job, first, completion, remember, with_usage=chat.with_usage)
            question, answer = await _end(job, first)
        except asyncio.CancelledError:
            job.has_left = True
            raise
        finally:
            watcher.cancel()
        remember(question=question, answer=answer)
        return JSONResponse(completion.whole(question, answer))

    async def add_feedback(self, request: Request) -> Response:
        """Save the verdict of a user."""
        self.access.check_token(request.headers.get("authorization", ""))
        values = parse_body(await read_body(request, self.max_body_bytes))
        await run_in_threadpool(self.feedback.add, values)
        return JSONResponse({"saved": True})

    async def models(self, request: Request) -> Response:
        """Return the one model of this server."""
        self.access.check_token(request.headers.get("authorization", ""))
        model = {"id": self.model, "object": "model", "created": 0, "owned_by": "rqa"}
        return JSONResponse({"object": "list", "data": [model]})

    async def health(self, request: Request) -> Response:  # noqa: ARG002
        """Return the numbers of questions and answers."""
        return JSONResponse({"status": "ok", **self.batcher.counts()})

    @asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:  # noqa: ARG002
        """Run the thread of the batcher."""
        self.batcher.start()
        yield
        await asyncio.to_thread(self.batcher.close)


def make_app(
    batcher: Batcher, feedback: Feedback, access: Access, *, model: str, answer_timeout: float = 120.0
) -> Starlette:
    """Return the application; `model` is its name in requests."""
    service = Service(batcher, feedback, access, model, answer_timeout)
    html, policy = render_page(model, needs_token=bool(access.token))

    async def page(request: Request) -> Response:  # noqa: ARG001
        return HTMLResponse(html, headers={"Content-Security-Policy": policy})

    routes = [
        Route("/", page),
        Route("/health", service.health),
        Route("/v1/models", service.models),
        Route("/v1/chat/completions", service.complete, methods=["POST"]),
        Route("/feedback", service.add_feedback, methods=["POST"]),
    ]
    handlers: dict[Any, Any] = {RequestError: _error, HTTPException: _http_error, Exception: _server_error}
    guard = Middleware(Guard, access=access)
    return Starlette(routes=routes, middleware=[guard], exception_handlers=handlers, lifespan=service.lifespan)


class Guard:
    """Refuses requests of other sites, and adds HEADERS to every response."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self.app, self.access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = {name for name, _ in message["headers"]}
                more = {"Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'", **HEADERS}
                pairs = [(name.lower().encode(), value.encode()) for name, value in more.items()]
                message["headers"] = [*message["headers"], *(pair for pair in pairs if pair[0] not in own)]
            await send(message)

        headers = Request(scope).headers
        try:
            self.access.check_site(headers.get("host", ""), headers.get("origin"))
        except RequestError as error:
            await _response(error)(scope, receive, send_with_headers)
        else:
            await self.app(scope, receive, send_with_headers)


class EventStream(Response):
    """An answer as server-sent events; its generation ends if the client leaves."""

    def __init__(self, job: Job, first: Any, completion: Completion, remember: Any, *, with_usage: bool) -> None:
        super().__init__(media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self.job, self.first, self.completion, self.remember = job, first, completion, remember
        self.with_usage = with_usage

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Send the events."""
        watcher = asyncio.create_task(_watch(receive, self.job))
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async for text in self._events():
                await send({"type": "http.response.body", "body": text.encode(), "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            watcher.cancel()
            self.job.has_left = True

    async def _events(self) -> AsyncIterator[str]:
        yield self.completion.first()
        item = self.first
        while isinstance(item, str):
            yield self.completion.piece(item)
            item = await self.job.next()
        if isinstance(item, RequestError):
            yield event(item.body())
            return
        question, answer = item
        self.remember(question=question, answer=answer)
        for text in self.completion.last(question, answer, with_usage=self.with_usage):
            yield text


async def read_body(request: Request, limit: int) -> bytes:
    """Return the body of a request. Raises RequestError if it is too long or too slow."""
    try:
        async with asyncio.timeout(BODY_SECONDS):
            body = bytearray()
            async for piece in request.stream():
                body += piece
                if len(body) > limit:
                    raise RequestError(413, f"body: expected at most {limit} bytes, got more")
            return bytes(body)
    except TimeoutError as error:
        raise RequestError(408, f"body: expected within {BODY_SECONDS:.0f} seconds") from error
    except ClientDisconnect as error:
        raise RequestError(499, "the client left") from error


async def _watch(receive: Receive, job: Job) -> None:
    """End a job when its client leaves."""
    while (await receive())["type"] != "http.disconnect":
        pass
    job.leave()


async def _end(job: Job, item: Any) -> tuple[ChatQuestion, Answer]:
    """Return the end of an answer that is not streamed."""
    while isinstance(item, str):
        item = await job.next()
    if isinstance(item, RequestError):
        raise item
    question, answer = item
    return question, answer


def _response(error: RequestError) -> Response:
    more = {401: {"WWW-Authenticate": "Bearer"}, 503: {"Retry-After": str(RETRY_SECONDS)}}
    headers = {"Connection": "close"} if error.status in (408, 413) else more.get(error.status)
    return JSONResponse(error.body(), error.status, headers)


async def _error(request: Request, error: RequestError) -> Response:  # noqa: ARG001
    return _response(error)


async def _http_error(request: Request, error: HTTPException) -> Response:
    problem = RequestError(error.status_code, f"{request.method} {request.url.path}: {error.detail}")
    return JSONResponse(problem.body(), error.status_code, error.headers)


async def _server_error(request: Request, error: Exception) -> Response:  # noqa: ARG001
    return _response(RequestError(500, "the server failed to answer; its log has the cause"))
