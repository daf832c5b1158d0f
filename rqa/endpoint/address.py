"""Address of an endpoint, without a key."""

import ipaddress

import httpx

from rqa.errors import InputError


def endpoint_of(base_url: str, flag: str) -> httpx.URL:
    """Return the URL of an endpoint. Raises InputError if `base_url` is no address, or may contain a key."""
    try:
        url = httpx.URL(base_url.rstrip("/"))
    except httpx.InvalidURL:
        url = httpx.URL()
    # A key in the address would be logged. Therefore it is refused, and the message does not show the address.
    if url.scheme not in ("http", "https") or not url.host or url.userinfo or url.query or url.fragment:
        raise InputError(f"{flag}: expected http(s)://HOST/PATH alone, such as https://api.openai.com/v1")
    return url


def is_local(host: str) -> bool:
    """Return True if a host is this machine."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    return address.is_loopback or address.is_unspecified
