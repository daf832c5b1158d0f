"""Access to the server: a token, or on a loopback address the names of this machine alone."""

import hmac
import ipaddress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from rqa.errors import InputError
from rqa.serving.errors import RequestError

LOCAL_NAMES = {"localhost", "127.0.0.1", "::1"}
MIN_TOKEN_LENGTH = 16  # characters: a shorter token can be guessed


def is_loopback(host: str) -> bool:
    """Return True if only programs on this machine can connect to an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@dataclass(frozen=True)
class Access:
    """The address of the server and its token; an empty token is allowed on a loopback address alone."""

    host: str
    token: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        if not self.token and not is_loopback(self.host):
            raise InputError(f"--host {self.host}: expected a token for an address of the network, got none")
        if self.token and (len(self.token) < MIN_TOKEN_LENGTH or not self.token.isascii()):
            raise InputError(f"token: expected at least {MIN_TOKEN_LENGTH} ASCII characters. Choose a random one")

    def check_site(self, host: str, origin: str | None) -> None:
        """Raise RequestError for a request of another web site.

        A site can point its own name at 127.0.0.1 (DNS rebinding), so that without a token only the names of this
        machine are accepted. A browser sends the origin of the page that makes a request.
        """
        if not self.token and _name(f"//{host}") not in {*LOCAL_NAMES, self.host}:
            raise RequestError(403, "Host header: expected localhost or the address of this server, got another name")
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            raise RequestError(403, "Origin header: expected a page of this server, got another site")

    def check_token(self, authorization: str) -> None:
        """Raise RequestError unless the request has the token, compared in constant time."""
        scheme, _, token = authorization.partition(" ")
        expected = self.token.encode()
        is_equal = hmac.compare_digest(token.strip().encode(errors="replace"), expected)
        if expected and not (is_equal and scheme.lower() == "bearer"):
            message = "Authorization header: expected `Bearer` and the token of this server"
            raise RequestError(401, message, code="invalid_api_key")


def _name(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None
