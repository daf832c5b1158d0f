"""feedback.jsonl: the verdicts of users on answers, one row each, on the disk before it is confirmed."""

import threading
from collections import OrderedDict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rqa.atomic_files import append_line, flush, json_text
from rqa.errors import InputError
from rqa.generation.answers import Answer
from rqa.generation.chat import ChatQuestion
from rqa.serving.errors import RequestError
from rqa.serving.protocol import sources

MAX_ANSWERS = 2000  # that can get feedback: the latest
MAX_COMMENT = 4000  # characters


class Feedback:
    """An append-only file of JSON Lines, and the latest answers, which its rows describe.

    `--judge_labels` and the format rqa_feedback of recipes/convert.py read its rows. With `citations`, answers cite
    passages; without, numbers in brackets are text. An answer gets feedback once, so that ids are unique.
    """

    def __init__(self, path: Path, *, citations: bool = False) -> None:
        self.path, self.citations = path, citations
        self._answers: OrderedDict[str, dict[str, Any]] = OrderedDict()
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a+b") as file:
                _remove_incomplete_line(file)
            flush(path.parent)  # the name of the file
        except OSError as error:
            raise InputError(f"{path}: expected a writable file, got {error.strerror}") from error

    def remember(self, id: str, question: ChatQuestion, history: tuple[Any, ...], answer: Answer) -> None:
        """Keep an answer for its feedback; the oldest is forgotten."""
        row = {
            "id": id,
            "question": question.example.question,
            "chat_history": [{"speaker": turn.role, "message": turn.text} for turn in history],
            "answer": answer.text,
            "citations": self.citations,
            "passages": sources(question, answer)["passages"],
        }
        with self._lock:
            self._answers[id] = row
            if len(self._answers) > MAX_ANSWERS:
                self._answers.popitem(last=False)

    def add(self, values: dict[str, Any]) -> None:
        """Append the verdict on an answer: id, correct, comment. Raises RequestError."""
        id, correct, comment = values.get("id"), values.get("correct"), values.get("comment", "")
        if not isinstance(correct, bool):
            raise RequestError(400, "correct: expected true or false", "correct")
        if not isinstance(comment, str) or len(comment) > MAX_COMMENT:
            raise RequestError(400, f"comment: expected a text of at most {MAX_COMMENT} characters", "comment")
        with self._lock:
            row = self._answers.get(str(id))
            if row is None:
                raise RequestError(404, "id: expected a recent answer without feedback, got another id", "id")
            now = datetime.now(UTC).isoformat(timespec="seconds")
            self._append(json_text({**row, "correct": correct, "comment": comment, "time": now}) + "\n")
            del self._answers[str(id)]

    def _append(self, line: str) -> None:
        try:
            with self.path.open("ab") as file:
                append_line(file.fileno(), line.encode())
        except OSError as error:
            raise RequestError(507, f"the feedback could not be saved: {error.strerror}") from error


def _remove_incomplete_line(file: Any) -> None:
    """Remove the last line if a killed server did not write its end."""
    file.seek(0)
    content = file.read()
    file.truncate(content.rfind(b"\n") + 1)
