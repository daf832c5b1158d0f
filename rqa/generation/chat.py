"""A chat about a corpus: each question is answered from the passages that are retrieved for it."""

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from rqa.data.passage_selection import GeneratorInput
from rqa.data.records import Example, Turn
from rqa.errors import InputError
from rqa.generation.answers import Answer
from rqa.generation.generator import Generator
from rqa.prompts.collators import EncodedExample
from rqa.retrieval.retrieve import KS, Retrieved, Retriever, build_query
from rqa.terminal import plural, printable, write_result

log = logging.getLogger(__name__)

COMMANDS = "/new forgets the conversation, /sources shows the passages, /quit ends"
MESSAGES_PER_EXCHANGE = 2  # a question and its answer
HEADING_LENGTH = 60  # characters of a passage without a title


@dataclass(frozen=True)
class ChatQuestion:
    """A question with its history, encoded with the passages in its prompt, best first: the first is [1] there."""

    example: Example
    retrieved: tuple[Retrieved, ...]
    row: EncodedExample
    num_dropped_messages: int  # the oldest messages of the history, which did not fit

    def history(self, answer: str) -> tuple[Turn, ...]:
        """Return the conversation after an answer."""
        return (*self.example.chat_history, Turn("user", self.example.question), Turn("assistant", answer))

    def log_omissions(self, answer: Answer) -> None:
        """Log missing parts of the prompt and of the answer."""
        if self.num_dropped_messages:
            log.info("(the oldest %d messages of the conversation did not fit)", self.num_dropped_messages)
        if answer.truncated:
            log.info("(%s of the passages did not fit)", plural(answer.truncated, "token"))
        if answer.reasoning:
            log.info("(%d characters of reasoning before the answer are not shown)", len(answer.reasoning))
        if not answer.finished:
            log.info("(stopped after %s: --max_new_tokens)", plural(answer.num_tokens, "token"))

    def headings(self) -> list[str]:
        """Return one line for each passage: its number in the prompt, title, sources and score."""
        lines = []
        for number, hit in enumerate(self.retrieved, 1):
            title = hit.passage.title or hit.passage.text[:HEADING_LENGTH]
            parts = (title, ", ".join(hit.passage.sources), f"{hit.score:.3f}")
            lines.append(printable(" ".join(f"[{number}] {' - '.join(filter(None, parts))}".split())))
        return lines

    def reply(self, answer: Answer) -> dict[str, Any]:
        """Return an answer and the passages in its prompt, as a JSON object."""
        passages = [
            {"number": number, "id": hit.passage.id, "title": hit.passage.title, "text": hit.passage.text}
            | {"sources": hit.passage.sources, "score": hit.score}
            for number, hit in enumerate(self.retrieved, 1)
        ]
        reasoning = {"reasoning": answer.reasoning} if answer.reasoning else {}
        answered = {"question": self.example.question, "answer": answer.text, **reasoning}
        return {**answered, "finished": answer.finished, "passages": passages}


@dataclass
class Chat:
    """Retrieves the first `k` passages for a question and answers it, as an evaluation does."""

    retriever: Retriever
    generator: Generator
    k: int
    history_turns: int = 1

    def warm_up(self) -> None:
        """Load everything that is loaded at the first answer, so that the first question does not wait for it."""
        replace(self.generator, max_new_tokens=1).stream(self.encode("warm-up").row)

    def encode(self, question: str, history: tuple[Turn, ...] = ()) -> ChatQuestion:
        """Retrieve passages, and encode history, question and the first k passages.

        The last exchange has priority over passages, and passages have priority over older exchanges. Messages that do
        not fit are dropped, the oldest first. Raises InputError if the question alone does not fit.
        """
        example = Example("", question, (), chat_history=history)
        [hits] = self.retrieve([example])
        return self.fit(example, hits)

    def retrieve(self, examples: Sequence[Example]) -> list[list[Retrieved]]:
        """Return the ranked passages for each question after its history."""
        queries = [build_query(example, history_turns=self.history_turns) for example in examples]
        # As many as an evaluation retrieves: the first results of an approximate index depend on their number.
        return self.retriever.retrieve(queries, self.k + max(KS))

    def fit(self, example: Example, hits: Sequence[Retrieved]) -> ChatQuestion:
        """Encode history, question and the first k passages; see `encode`."""
        history = example.chat_history
        while True:
            item = GeneratorInput.from_ranked(example, [hit.passage for hit in hits[: self.k]])
            try:
                [row] = self.generator.collator.encode([item])
                if row.truncated == 0 or len(example.chat_history) <= MESSAGES_PER_EXCHANGE:
                    break
            except InputError:
                if not example.chat_history:
                    raise
            example = replace(example, chat_history=example.chat_history[MESSAGES_PER_EXCHANGE:])
        return ChatQuestion(example, tuple(hits[: row.num_passages]), row, len(history) - len(example.chat_history))

    def run(self) -> None:
        """Answer the lines of the standard input, to its end or /quit; on a terminal Ctrl-C stops an answer."""
        is_terminal = sys.stdin.isatty()
        history: tuple[Turn, ...] = ()
        question: ChatQuestion | None = None
        for line in _lines(is_terminal):
            if line == "/quit":
                break
            if line == "/new":
                history = ()
            elif line == "/sources":
                hits, headings = (question.retrieved, question.headings()) if question else ((), [])
                texts = (hit.passage.text for hit in hits)
                write_result("\n\n".join(map("\n".join, zip(headings, texts, strict=True))))
            elif line.startswith("/") and line[1:].isalpha():
                log.info("(%s is not a command: %s)", line, COMMANDS)
            else:
                try:
                    question = self.encode(line, history)
                    answer = self.generator.stream(question.row, partial(write_result, end=""))
                except (KeyboardInterrupt, InputError) as end:
                    if not is_terminal:
                        raise
                    # KeyboardInterrupt has no text.
                    write_result(f"\n({str(end) or 'stopped: not part of the conversation'})")
                else:
                    history = question.history(answer.text)
                    write_result()
                    if is_terminal:
                        write_result("\n".join(["", *question.headings()]))
                    question.log_omissions(answer)


def _lines(is_terminal: bool) -> Iterator[str]:
    """Yield the lines of the standard input that are not empty."""
    sys.stdin.reconfigure(errors="replace")  # type: ignore[union-attr]
    if is_terminal:
        with suppress(ImportError):
            import readline  # noqa: F401  # line editing in input()
        log.info("Ask a question. %s; Ctrl-C stops an answer.", COMMANDS)
    while True:
        try:
            line = input("\n> " if is_terminal else "").strip()
        except (EOFError, KeyboardInterrupt):
            if is_terminal:
                write_result()
            return
        if line:
            yield line
