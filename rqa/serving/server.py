"""The web server: it accepts connections until SIGTERM or Ctrl-C, finishes running answers, and returns."""

import logging
import signal
import socket
from types import FrameType

import uvicorn
from starlette.applications import Starlette

from rqa.errors import InputError

log = logging.getLogger(__name__)

MAX_CONNECTIONS = 1000  # at a time; more are refused with 503
IDLE_SECONDS = 15  # until an idle connection is closed


def serve(app: Starlette, host: str, port: int, *, shutdown_timeout: int = 30) -> None:
    """Serve until SIGTERM or SIGINT; running answers have `shutdown_timeout` seconds to end.

    Raises InputError if the address cannot be used.
    """
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,  # addresses of clients are not logged
        lifespan="on",
        server_header=False,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_keep_alive=IDLE_SECONDS,
        timeout_graceful_shutdown=shutdown_timeout,
    )
    with _listen(host, port) as listener:
        name, number, *_ = listener.getsockname()
        log.info("serving on http://%s:%d/", f"[{name}]" if ":" in name else name, number)
        # uvicorn repeats the signal after its end, for the handlers that were there before.
        before = {each: signal.signal(each, _ignore) for each in (signal.SIGTERM, signal.SIGINT)}
        try:
            uvicorn.Server(config).run([listener])
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=256)
    except (OSError, OverflowError) as error:
        raise InputError(f"--host {host} --port {port}: expected a free address of this machine: {error}") from error


def _ignore(number: int, frame: FrameType | None) -> None:
    """Do nothing: the server has ended."""
