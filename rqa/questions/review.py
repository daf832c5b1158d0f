"""Checks of written questions by a judge, a second language model."""

import asyncio
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from rqa.endpoint.client import Reply, to_body
from rqa.endpoint.responses import completed_text, json_object
from rqa.evaluation.metrics import exact_match
from rqa.judge.client import Judge
from rqa.judge.prompt import JudgeRequest
from rqa.judge.verdicts import Verdict, read_verdict, without_draft
from rqa.questions.prompt import UNKNOWN, Check, check_prompt
from rqa.questions.writer import Question, count_tokens

# The reason of a negative verdict
_REASONS: dict[Check, str] = {"supported": "not_supported", "not_answered": "answerable"}


@dataclass(frozen=True)
class _Prompt:
    """A request to the judge that is a text."""

    prompt: str

    def read(self, response: str, body: str) -> Verdict:
        """Return the verdict in a response."""
        return read_verdict(response, body)


class Reviewer:
    """Checks questions with a judge: two or three calls for a question with an answer, one for an unanswerable one.

    The first verdict is on the question with its passage. Then the judge's model answers it without the passage; if
    that answer is correct, the question is rejected. It is correct by exact match, or else by a verdict of the judge.
    """

    def __init__(self, judge: Judge) -> None:
        self.judge, self.tokens_used = judge, Counter[str]()

    def __call__(self, questions: Sequence[Question]) -> list[Question]:
        """Return the questions, with the reason to reject them. One without a verdict is rejected."""
        reviewed = self._by_passage(questions)
        answered = [i for i, each in enumerate(reviewed) if not each.reason and each.task.kind != "unanswerable"]
        for i, each in zip(answered, self._without_passage([reviewed[i] for i in answered]), strict=True):
            reviewed[i] = each
        return reviewed

    def _by_passage(self, questions: Sequence[Question]) -> list[Question]:
        verdicts = self._judge([passage_request(each) for each in questions])
        return [
            _judged(each, verdict, verdict.correct, _REASONS[_check_of(each)])
            for each, verdict in zip(questions, verdicts, strict=True)
        ]

    def _without_passage(self, questions: Sequence[Question]) -> list[Question]:
        bodies = [closed_book_body(self.judge, each) for each in questions]
        replies = asyncio.run(self.judge.fetch(bodies))
        count_tokens(self.tokens_used, bodies, replies)
        answers = list(map(_answer_in, replies))
        reviewed, to_grade = list(questions), list[int]()
        for i, (question, answer, reply) in enumerate(zip(questions, answers, replies, strict=True)):
            if answer is None:
                reviewed[i] = question.rejected("no_verdict", reply.problem or "no answer without the passage")
            elif exact_match(answer, [question.answer]):
                reviewed[i] = question.rejected("known_without_passage", answer)
            elif not re.fullmatch(rf"\W*{UNKNOWN}\W*", answer, re.IGNORECASE):
                to_grade.append(i)
        verdicts = self._judge([grading_request(questions[i], answers[i] or "") for i in to_grade])
        for i, verdict in zip(to_grade, verdicts, strict=True):
            is_kept = None if verdict.correct is None else not verdict.correct
            reviewed[i] = _judged(questions[i], verdict, is_kept, "known_without_passage", answers[i] or "")
        return reviewed

    def _judge(self, requests: Sequence[JudgeRequest | _Prompt]) -> list[Verdict]:
        verdicts = self.judge(requests)
        for each in verdicts:
            self.tokens_used.update(prompt_tokens=each.prompt_tokens, completion_tokens=each.completion_tokens)
        return verdicts


def passage_request(question: Question) -> _Prompt:
    """Return the request for the verdict on a question with its passage."""
    check, texts = _check_of(question), {"passage": question.task.passage.content}
    texts |= {"answer": question.answer} if question.answer else {}
    return _Prompt(check_prompt(check, question.text, question.history, **texts))


def closed_book_body(judge: Judge, question: Question) -> str:
    """Return the body of the request to answer a question without its passage."""
    prompt = check_prompt("closed_book", question.text, question.history)
    return to_body({"model": judge.model, "messages": [{"role": "user", "content": prompt}], **judge.parameters})


def grading_request(question: Question, answer: str) -> JudgeRequest:
    """Return the request to grade an answer that was given without the passage."""
    return JudgeRequest(question.text, answer, (question.answer,), (question.task.passage.content,), question.history)


def _check_of(question: Question) -> Check:
    return "not_answered" if question.task.kind == "unanswerable" else "supported"


def _judged(question: Question, verdict: Verdict, is_kept: bool | None, reason: str, detail: str = "") -> Question:
    if is_kept:
        return question
    if is_kept is None:
        return question.rejected("no_verdict", f"{verdict.status}: {verdict.explanation}")
    return question.rejected(reason, detail or verdict.explanation)


def _answer_in(reply: Reply) -> str | None:
    """Return the answer in a reply, None if there is none."""
    content, defect, _ = completed_text(json_object(reply.response)) if reply.response else ("", "refused", "")
    return None if defect else without_draft(content).strip() or None
