"""Records: what the user's files hold, checked at the door."""

import hashlib
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

Role = Literal["user", "assistant"]


@dataclass(frozen=True)
class Passage:
    """A piece of text that can be retrieved and read.

    Its identity everywhere (deduplication, recall, caches) is `id`, a hash of its text alone, so that the same text
    from two sources, or with white space or Unicode composed differently, is one passage.
    """

    text: str
    title: str = ""
    sources: tuple[str, ...] = field(default=(), compare=False)

    @cached_property
    def id(self) -> str:
        """32 hexadecimal digits: the first half of the SHA-256 of the text, NFC, runs of white space folded to one."""
        normalised = " ".join(unicodedata.normalize("NFC", self.text).split())
        return hashlib.sha256(normalised.encode()).hexdigest()[:32]

    @property
    def content(self) -> str:
        """What the retriever embeds and the generator reads: title, newline, text."""
        return f"{self.title}\n{self.text}" if self.title else self.text


@dataclass(frozen=True)
class Turn:
    """One message of the conversation before the question."""

    role: Role
    text: str


@dataclass(frozen=True)
class Example:
    """A question with its reference answers; the first answer is trained on, all are references in evaluation."""

    id: str
    question: str
    answers: tuple[str, ...]
    gold_passages: tuple[Passage, ...] = ()
    chat_history: tuple[Turn, ...] = ()
    hard_negatives: tuple[Passage, ...] = ()
    unanswerable: bool = False
