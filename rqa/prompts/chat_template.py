"""A tokenizer's chat template: the text around the messages of a conversation, the same on every day."""

import re
import sys
from collections.abc import Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from datetime import datetime
from itertools import count
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError, meta, nodes
from jinja2.sandbox import SandboxedEnvironment

from rqa.data.records import Role
from rqa.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEMPLATE_DATE = "2024-07-26"  # the date that Llama 3.2's own template falls back to
THINKING_SWITCHES = ("enable_thinking", "thinking")
MAX_CHARACTERS = 1_000_000  # of a rendered template: tokenizers take 100 bytes of memory for each
MAX_LINES = 3_000_000  # of Python, to render a template once: 2 seconds; public templates take up to 3,000 a message
DATE_VARIABLES = {"strftime_now", "date_string"}
OWN_VARIABLES = {"messages", "tools", "documents", "add_generation_prompt", "strftime_now"}
# A template is a program of its author: these are the exceptions that it can raise.
TEMPLATE_ERRORS = (
    *(TemplateError, ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, NameError),
    *(RuntimeError, SyntaxError, TypeError, ValueError),
)

Message = dict[str, Any]


class ChatTemplate:
    """The chat template of a tokenizer, and the values of its variables.

    `kwargs` are values of names that the template refers to; its switch for thinking is off by default. `date` is
    the date that the template writes, as YYYY-MM-DD. Raises InputError if the template does not refer to them.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        kwargs: Mapping[str, Any] | None = None,
        date: str = TEMPLATE_DATE,
    ) -> None:
        self._name = tokenizer.name_or_path
        if not tokenizer.chat_template:
            raise InputError(
                f"{self._name}: the tokenizer has no chat template. "
                "Set --user_prefix and --assistant_prefix (and --sep_user, --sep_sys)"
            )
        try:
            source, environment = tokenizer.get_chat_template(), _environment()
            self._template = environment.from_string(source)
            parsed = environment.parse(source)
            names = _inputs(parsed)
            functions = {node.name for node in parsed.find_all(nodes.Name)}.intersection(self._template.globals)
        except TEMPLATE_ERRORS as error:
            raise self._error(f"cannot be parsed: {error}") from error
        special, day = tokenizer.special_tokens_map, datetime.strptime(date, "%Y-%m-%d")
        self._variables = {
            **special,
            **{name: False for name in THINKING_SWITCHES if name in names},
            **_checked_kwargs(kwargs or {}, names - OWN_VARIABLES.union(special), self._name),
            "strftime_now": day.strftime,
        }
        if date != TEMPLATE_DATE:
            if not (names | functions) & DATE_VARIABLES:
                raise InputError(
                    f"--chat_template_date {date}: the chat template of {self._name} has no date. Remove it"
                )
            self._variables.setdefault("date_string", day.strftime("%d %b %Y"))

    def split(self, roles: Sequence[Role], *, add_generation_prompt: bool) -> list[str]:
        """Return the text before, between and after messages with these roles.

        With `add_generation_prompt` the beginning of an answer follows. Raises InputError unless the template writes
        each message once and in order.
        """
        marks = [f"<message {i} of {len(roles)}>" for i in range(1, len(roles) + 1)]
        messages: list[Message] = [{"role": role, "content": mark} for role, mark in zip(roles, marks, strict=True)]
        pattern = "|".join(map(re.escape, marks))
        try:
            text = self._render(messages, add_generation_prompt=add_generation_prompt)
        except TEMPLATE_ERRORS as error:
            need = self._need(messages, pattern)
            problem = f"rejects messages of {', '.join(roles)}: {str(error) or type(error).__name__}"
            raise self._error(f"{problem}. It requires {need}" if need else problem) from error
        if re.findall(pattern, text) == marks:
            return re.split(pattern, text)
        if need := self._need(messages, pattern):
            raise self._error(f"requires {need}")
        raise InputError(
            f"{self._name}: expected a chat template that writes each message once and in order. "
            "Set --user_prefix and --assistant_prefix instead"
        )

    def _render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True, **inputs: Any) -> str:
        inputs = {"tools": None, "documents": None, **self._variables, **inputs}
        with _limited_lines():
            text = self._template.render(messages=messages, add_generation_prompt=add_generation_prompt, **inputs)
        text.encode()  # raises UnicodeEncodeError, a ValueError, for half of a surrogate pair
        if len(text) > MAX_CHARACTERS:
            raise ValueError(f"it writes {len(text):,} characters, expected at most {MAX_CHARACTERS:,}")
        return text

    def _need(self, messages: Sequence[Message], pattern: str) -> str:
        """Return the input that prompts do not have and with which the template writes all messages; "" if none."""
        for need, other_messages, inputs in _other_inputs(messages):
            try:
                text = self._render(other_messages, **inputs)
            except TEMPLATE_ERRORS:
                continue
            if re.findall(pattern, text) == [message["content"] for message in messages]:
                return need
        return ""

    def _error(self, problem: str) -> InputError:
        return InputError(
            f"{self._name}: the chat template {problem}. Set --user_prefix and --assistant_prefix instead"
        )


def _environment() -> SandboxedEnvironment:
    """Return the environment of `apply_chat_template`, in which a product is limited and a power is an error."""
    from transformers.utils.chat_template_utils import _compile_jinja_template

    environment: SandboxedEnvironment = _compile_jinja_template("").environment.overlay()
    environment.intercepted_binops = frozenset({"*", "**"})
    environment.binop_table = {**environment.binop_table, "*": _product, "**": _power}
    return environment


def _product(left: Any, right: Any) -> Any:
    """Return left * right. Raises ValueError if it is large: it would be computed in one step, without an end."""
    sizes = [len(value) if isinstance(value, Sized) else abs(value) for value in (left, right)]
    if sizes[0] * sizes[1] > MAX_CHARACTERS:
        raise ValueError(f"it contains a product above {MAX_CHARACTERS:,}")
    return left * right


def _power(_left: Any, _right: Any) -> Any:
    raise ValueError("it contains a power")


@contextmanager
def _limited_lines() -> Iterator[None]:
    """Raise RuntimeError in the block after MAX_LINES lines of Python: nested loops may have no end."""
    lines = count()
    outer = sys.gettrace()

    def trace(*_event: Any) -> Any:
        if next(lines) > MAX_LINES:
            raise RuntimeError(f"it takes more than {MAX_LINES:,} steps")
        return trace

    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(outer)


def _inputs(parsed: nodes.Template) -> set[str]:
    """Return the variables that a template reads, without those that it always assigns itself."""
    assigned = {name.name for name in parsed.find_all(nodes.Name) if name.ctx == "store"}
    nodes_of_names = (each.node for each in parsed.find_all((nodes.Test, nodes.Filter)))
    tested = {node.name for node in nodes_of_names if isinstance(node, nodes.Name)}
    updated = {
        name.name
        for assign in parsed.find_all(nodes.Assign)
        for name in assign.find_all(nodes.Name)
        if name.ctx == "load" and name.name == getattr(assign.target, "name", "")
    }
    return meta.find_undeclared_variables(parsed) - (assigned - tested - updated)


def _checked_kwargs(kwargs: Mapping[str, Any], names: set[str], tokenizer_name: str) -> Mapping[str, Any]:
    """Return `kwargs`. Raises InputError for one that is not among the `names` of the template."""
    if unknown := sorted(kwargs.keys() - names):
        known = ", ".join(sorted(names)) or "no variables"
        raise InputError(
            f"--chat_template_kwargs: expected names that the chat template of {tokenizer_name} refers to, "
            f"got {', '.join(unknown)}. It refers to {known}"
        )
    return kwargs


def _other_inputs(messages: Sequence[Message]) -> Iterator[tuple[str, list[Message], dict[str, Any]]]:
    """Yield inputs that some templates require: a description, the messages, and the arguments of the template."""
    parameters = {"parameters": {"type": "object", "properties": {}}, "parameter_definitions": {}}
    function = {"name": "t", "description": "t", **parameters}
    tools = {"tools": [{"type": "function", "function": function, **function}]}
    documents = {"documents": [{"title": "d", "text": "d"}]}
    parts = [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in messages]
    yield "tools", [*messages], tools
    yield "documents", [*messages], documents
    yield "tools and documents", [*messages], tools | documents
    yield "messages that are lists of parts, for images beside text", parts, {}
