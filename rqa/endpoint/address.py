"""Address of an endpoint, and its key, which comes from the environment."""

import ipaddress
import os
import re

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


def is_url(text: str) -> bool:
    """Return True if a text is a URL, not a path."""
    return "://" in text


def check_key_name(flag: str, key_name: str) -> None:
    """Raise InputError if `key_name` cannot be the name of an environment variable."""
    if not re.fullmatch("[A-Z_][A-Z0-9_]*", key_name):  # it may be the key itself: never print it
        raise InputError(f"{flag}: expected the name of an environment variable in capitals, which holds the key")


def read_key(key_name: str, base_url: str, *, is_required: bool = True) -> str:
    """Return the key. No flag holds it: flags are visible in the list of processes and in config.json."""
    key = os.environ.get(key_name, "")
    if is_required and not (key or base_url.startswith("http://")):
        raise InputError(
            f"{key_name}: expected the key of {base_url} in this environment variable, got nothing. "
            f"If the endpoint needs no key, set {key_name}=EMPTY"
        )
    return key
