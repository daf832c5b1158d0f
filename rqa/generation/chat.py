"""A conversation over an index: what is read for a question, and its answer while it is generated."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from rqa.data.passage_selection import GeneratorInput
from rqa.data.records import Example, Turn
from rqa.errors import InputError
from rqa.generation.generator import Answer
from rqa.models.decoder import AnswerLM
from rqa.models.fid import FusionInDecoder
from rqa.prompts.collators import Collator, EncodedExample
from rqa.retrieval.retrieve import KS, Retrieved, Retriever, build_query
from rqa.terminal import printable

Show = Callable[[str], object]

EXCHANGE = 2  # messages: a question and its answer
SHOWN = 60  # characters of a passage without a title


@dataclass(frozen=True)
class Asked:
    """A question as it is read, with the passages that are in its prompt, best first: the first is [1] there.

    `forgotten` is the number of messages that were dropped from the beginning of its history, to make room.
    """

    example: Example
    found: tuple[Retrieved, ...]
    row: EncodedExample
    forgotten: int

    def history(self, answer: str) -> tuple[Turn, ...]:
        """Return the conversation as it stands after an answer."""
        return (*self.example.chat_history, Turn("user", self.example.question), Turn("assistant", answer))


def read(
    question: str,
    history: tuple[Turn, ...],
    retriever: Retriever,
    collator: Collator,
    *,
    k: int,
    history_turns: int = 1,
) -> Asked:
    """Retrieve for a question after a conversation, and encode it with the first `k` passages, as an evaluation does.

    A prompt has room for the last exchange before it has for passages, and for passages before it has for the exchanges
    before that: what does not fit is forgotten, the oldest first. Raises InputError where the question alone does not.
    """
    example = Example("", question, (), chat_history=history)
    query = build_query(example, history_turns=history_turns)
    [found] = retriever.retrieve([query], k + max(KS))  # as deep as an evaluation: an approximate index looks further
    while True:
        reading = GeneratorInput.from_ranked(example, [hit.passage for hit in found[:k]])
        try:
            [row] = collator.encode([reading])
            if row.cut == 0 or len(example.chat_history) <= EXCHANGE:
                break
        except InputError:
            if not example.chat_history:
                raise
        example = replace(example, chat_history=example.chat_history[EXCHANGE:])
    num_read = collator.num_read(reading, row)
    return Asked(example, tuple(found[:num_read]), row, len(history) - len(example.chat_history))


def stream(
    accelerator: Accelerator,
    model: AnswerLM | FusionInDecoder,
    collator: Collator,
    asked: Asked,
    show: Show,
    *,
    max_new_tokens: int,
) -> Answer:
    """Return the answer that `Generator` gives, and meanwhile hand its text to `show`, piece by piece."""
    builder, row, plain = collator.builder, asked.row, accelerator.unwrap_model(model)
    plain.eval()
    batch = {name: ids.to(accelerator.device) for name, ids in collator.collate_prompts([row]).items()}
    with torch.no_grad(), accelerator.autocast():
        [ids] = plain.generate(
            **batch,
            max_new_tokens=max_new_tokens,
            eos_token_id=builder.stop_ids,
            pad_token_id=collator.pad_id,
            streamer=AnswerStreamer(collator, show),
        ).tolist()
    num_read = len(asked.found) if row.cut else None
    finished = ids[-1] in builder.stop_ids
    return Answer(builder.answer_text(ids), len(ids), row.num_prompt_tokens, finished, row.cut, num_read)


class AnswerStreamer(BaseStreamer):
    """Hands the text of one answer to `show` as far as no later token can change it.

    The pieces together are `answer_text` of all ids. transformers' TextStreamer shows the separator and white space
    that end an answer, loses a space after a line feed, and keeps a language without spaces back to the end.
    """

    def __init__(self, collator: Collator, show: Show) -> None:
        self.builder = collator.builder
        self.show = show
        self.num_shown = 0
        self.ids: list[int] | None = None  # until what the model is given, which transformers puts first
        # A separator of ordinary text is shown only if more follows: no answer ends with it.
        ending = self.builder.answer("")
        self._delay = next(i for i, id in enumerate(ending) if id in self.builder.stop_ids)
        # SentencePiece decodes single bytes by the run, of which one that is no character spoils all.
        tokenizer = self.builder.tokenizer
        single_bytes = {tokenizer.convert_tokens_to_ids(f"<0x{byte:02X}>") for byte in range(256)}
        special = {id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._open = single_bytes | special

    def put(self, value: Tensor) -> None:
        """Take the next token, (1,); the first call brings what the model is given."""
        if self.ids is None:
            self.ids = []
            return
        self.ids += value.tolist()
        settled = self.ids[: max(0, len(self.ids) - self._delay)]
        while settled and settled[-1] in self._open:
            settled.pop()
        self._show(self.builder.answer_text(settled).rstrip("\ufffd").rstrip())  # it may be half a character

    def end(self) -> None:
        """Show what was kept back."""
        self._show(self.builder.answer_text(self.ids or []))

    def _show(self, text: str) -> None:
        if new := text[self.num_shown :]:
            self.show(new)
            self.num_shown += len(new)


def headings(found: tuple[Retrieved, ...]) -> list[str]:
    """Return a line for each passage: its number in the prompt, title, sources and score."""
    lines = []
    for number, hit in enumerate(found, 1):
        title = hit.passage.title or hit.passage.text[:SHOWN]
        parts = (title, ", ".join(hit.passage.sources), f"{hit.score:.3f}")
        lines.append(printable(" ".join(f"[{number}] {' - '.join(filter(None, parts))}".split())))
    return lines


def reply(asked: Asked, answer: Answer) -> dict[str, Any]:
    """Return an answer and the passages that it was made from, as JSON has them."""
    passages = [
        {"number": number, "id": hit.passage.id, "title": hit.passage.title, "text": hit.passage.text}
        | {"sources": hit.passage.sources, "score": hit.score}
        for number, hit in enumerate(asked.found, 1)
    ]
    return {
        "question": asked.example.question,
        "answer": answer.text,
        "finished": answer.finished,
        "passages": passages,
    }
