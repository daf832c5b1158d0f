"""The page of the server: a conversation, the passages beside each answer, feedback. It loads nothing else.

Its script inserts answers and passages, which unknown authors wrote, as text. The policy allows this style, this script
and requests to this server alone.
"""

import base64
import hashlib

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup


def render_page(model: str, *, needs_token: bool) -> tuple[str, str]:
    """Return the HTML and its content security policy."""
    loader = PackageLoader("rqa.serving")
    jinja = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    style, script = (loader.get_source(jinja, name)[0] for name in ("chat.css", "chat.js"))
    html = jinja.get_template("chat.html").render(
        model=model, needs_token=needs_token, style=Markup(style), script=Markup(script)
    )
    policy = {
        "default-src": "'none'",
        "style-src": _hash(style),
        "script-src": _hash(script),
        "connect-src": "'self'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return html, "; ".join(f"{name} {value}" for name, value in policy.items())


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
