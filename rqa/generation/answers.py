"""Generated answers, and their store, an append-only file: an evaluation that was killed does not repeat them."""

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from rqa.atomic_files import append_line, flush
from rqa.data.jsonl import parse_object
from rqa.distributed.accelerator import call_on_main
from rqa.errors import InputError
from rqa.prompts.collators import EncodedExample

log = logging.getLogger(__name__)

ANSWERS_FILE = "answers.jsonl"  # in the folder of an evaluation until it has its scores


@dataclass(frozen=True)
class Answer:
    """A generated answer, with its numbers of tokens and passages."""

    text: str
    num_tokens: int  # generated, including reasoning and the end of the answer
    num_prompt_tokens: int
    finished: bool  # False if max_new_tokens ended it
    truncated: int  # passage tokens that did not fit
    num_passages: int  # passages that fitted, at least in part
    reasoning: str = ""  # generated before the answer
    is_stored: bool = field(default=False, compare=False)  # by an earlier attempt: it has no time


class AnswerStore:
    """Answers by batch, in a JSON Lines file that only grows. Only the main process reads and writes it.

    Stored answers are used only if all `settings` are equal, and all prompts of their batch: in bfloat16 an answer
    depends on the other prompts. Other answers stay in the file. An incomplete last line of a killed evaluation is
    removed, and damaged lines are ignored: their answers are generated again.
    """

    def __init__(self, accelerator: Accelerator, path: Path, settings: Mapping[str, Any]) -> None:
        self.accelerator, self.path, self.settings = accelerator, path, dict(settings)

    def read(self, batches: Sequence[Sequence[EncodedExample]]) -> list[list[Answer] | None]:
        """Return the answers to each batch, None if they are not stored. Every rank must call this."""
        return call_on_main(self.accelerator, lambda: self._read(batches))

    def _read(self, batches: Sequence[Sequence[EncodedExample]]) -> list[list[Answer] | None]:
        stored = self._stored()
        found = [stored.get(_key(batch)) for batch in batches]
        if stored:
            count = sum(len(answers or ()) for answers in found)
            log.info("%s: %d of %d answers are from an earlier attempt", self.path, count, sum(map(len, batches)))
        return found

    def _stored(self) -> dict[str, list[Answer]]:
        """Return the answers with equal settings by the key of their batch; warn of the others."""
        stored: dict[str, list[Answer]] = {}
        others: set[str] = set()
        damaged = num_others = 0
        for line in self._complete_lines():
            try:
                row = parse_object(line)
                if row.pop("checksum", None) != _checksum(row):
                    raise ValueError("the line was changed")
            except ValueError:
                damaged += 1
                continue
            if row["settings"] == self.settings:
                stored[row["key"]] = [Answer(**answer, is_stored=True) for answer in row["answers"]]
            else:
                names = {**row["settings"], **self.settings}
                others |= {name for name in names if row["settings"].get(name) != self.settings.get(name)}
                num_others += len(row["answers"])
        if damaged:
            log.warning("%s: %d damaged lines are ignored; their answers are generated again", self.path, damaged)
        if others:
            message = "%s: %d answers are not used: they were generated with other %s. The command that did uses them"
            log.warning(message, self.path, num_others, ", ".join(sorted(others)))
        return stored

    def _complete_lines(self) -> list[bytes]:
        """Return the lines of the file without an incomplete last line, which is removed from the file too."""
        if not self.path.exists():
            return []
        data = self.path.read_bytes()
        complete = data[: data.rfind(b"\n") + 1]
        if len(complete) < len(data):
            log.warning("%s: the last line is incomplete and is removed: an evaluation was killed", self.path)
            os.truncate(self.path, len(complete))
        return complete.splitlines()

    def append(self, batch: Sequence[EncodedExample], answers: Sequence[Answer]) -> None:
        """Write the answers to a batch, on the main process; they are on the disk when this returns.

        Raises InputError if they cannot be written.
        """
        if not self.accelerator.is_main_process:
            return
        values = [asdict(answer) for answer in answers]
        for value in values:
            del value["is_stored"]
        row = {"settings": self.settings, "key": _key(batch), "answers": values}
        line = json.dumps({**row, "checksum": _checksum(row)}, ensure_ascii=False) + "\n"
        try:
            is_new = not self.path.exists()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                append_line(file.fileno(), line.encode())
            if is_new:
                flush(self.path.parent)  # the name of the file
        except OSError as error:
            raise InputError(f"{self.path}: expected a writable file, got {error}") from error


def _key(batch: Sequence[EncodedExample]) -> str:
    return hashlib.sha256(repr([(row.prompts, row.truncated, row.num_passages) for row in batch]).encode()).hexdigest()


def _checksum(row: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(row, sort_keys=True).encode()).hexdigest()[:16]
