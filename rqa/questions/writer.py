"""The writer: requests to an endpoint, and questions parsed from its responses."""

import asyncio
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rqa.data.records import Passage, Turn
from rqa.endpoint.client import Endpoint, Reply, to_body
from rqa.endpoint.responses import completed_text, excerpt, json_object, used_tokens
from rqa.judge.verdicts import without_draft
from rqa.questions.prompt import Kind, writer_prompt
from rqa.questions.sampling import Split


@dataclass(frozen=True)
class Task:
    """A passage, and the questions to write about it: their kind, their number, and the split that they are for."""

    passage: Passage
    kind: Kind
    count: int = 1
    split: Split = "train"


@dataclass(frozen=True)
class Question:
    """A question as the writer wrote it; `number` is its place in the task, from 0.

    `reason` is empty, or that of its rejection, with a `detail`.
    """

    task: Task
    number: int = 0
    text: str = ""
    answer: str = ""
    evidence: str = ""
    history: tuple[Turn, ...] = ()
    reason: str = ""
    detail: str = ""

    def rejected(self, reason: str, detail: str = "") -> "Question":
        """Return the question with the reason of its rejection."""
        return replace(self, reason=reason, detail=detail)


@dataclass(kw_only=True, eq=False)
class Writer(Endpoint):
    """The model that writes questions. `tokens_used` are those of all responses, cached ones too."""

    role = "writer"
    activity = "writing questions"
    url_flag = "--writer_base_url"
    model_flag = "--writer_model"
    parameters_flag = "--writer_parameters"

    parameters: Mapping[str, Any] = field(default_factory={"temperature": 0, "max_tokens": 1024}.copy)
    instruction: str = ""
    tokens_used: Counter[str] = field(default_factory=Counter)

    def request_body(self, task: Task) -> str:
        """Return the body of the HTTP request: equal texts for equal tasks, in any split."""
        prompt = writer_prompt(task.kind, task.passage, task.count, self.instruction)
        return to_body({"model": self.model, "messages": [{"role": "user", "content": prompt}], **self.parameters})

    def __call__(self, tasks: Sequence[Task]) -> list[list[Question]]:
        """Return the questions of each task, at least one. One without text has the reason why. Raises as `fetch`."""
        bodies = [self.request_body(task) for task in tasks]
        replies = asyncio.run(self.fetch(bodies))
        count_tokens(self.tokens_used, bodies, replies)
        return [read_questions(task, reply) for task, reply in zip(tasks, replies, strict=True)]


def count_tokens(tokens_used: Counter[str], bodies: Sequence[str], replies: Sequence[Reply]) -> None:
    """Add the tokens of distinct requests with a response."""
    for body, reply in dict(zip(bodies, replies, strict=True)).items():
        prompt, completion = used_tokens(json_object(reply.response), body)
        tokens_used.update(prompt_tokens=prompt, completion_tokens=completion)


def read_questions(task: Task, reply: Reply) -> list[Question]:
    """Return the questions in a reply, each with those before it as history if the task is a conversation.

    A reply without a question is one rejected question: failed, refused or malformed.
    """
    if not reply.response:
        return [Question(task).rejected("failed", reply.problem)]
    content, defect, problem = completed_text(json_object(reply.response))
    if defect:
        return [Question(task).rejected(defect, problem)]
    items = _objects_in(without_draft(content, _OPENING))
    if not items:
        return [Question(task).rejected("malformed", excerpt(content) or "empty")]
    questions = list[Question]()
    history: tuple[Turn, ...] = ()
    for number, item in enumerate(items):
        is_answered = task.kind != "unanswerable"
        text, *others = (_text(item.get(name)) for name in ("question", "answer", "evidence"))
        answer, evidence = others if is_answered else ("", "")
        question = Question(task, number, text, answer, evidence, history)
        if not text or (is_answered and not all(others)):
            question = question.rejected("malformed", excerpt(json.dumps(item, ensure_ascii=False)))
        elif number >= task.count:
            question = question.rejected("surplus", f"{task.count} requested")
        questions.append(question)
        if task.kind == "conversation":
            history = (*history, Turn("user", question.text), Turn("assistant", question.answer))
    return questions


def _text(value: Any) -> str:
    """Return a text without white space around it; an escape can decode to a lone surrogate, which is replaced."""
    return " ".join(value.encode(errors="replace").decode().split()) if isinstance(value, str) else ""


def _objects_in(content: str) -> list[dict[str, Any]]:
    """Return the objects of the last list of questions in a text; [] if there is none."""
    found, end = list[dict[str, Any]](), 0
    while match := _OPENING.search(content, end):
        try:
            value, end = _DECODER.raw_decode(content, match.start())
        except (ValueError, RecursionError):
            end = match.start() + 1
            continue
        items = value.get("questions", [value]) if isinstance(value, dict) else value
        if isinstance(items, list) and items and all(isinstance(item, dict) for item in items):
            found = items
    return found


# {"questions": [...]}, or only the list or the object in it
_OPENING = re.compile(r'[\[{]\s*(?:\{\s*)?"(?:questions?|answer|evidence)"')
_DECODER = json.JSONDecoder(strict=False)  # not strict: line feeds in texts
