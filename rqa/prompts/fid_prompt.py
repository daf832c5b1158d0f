"""What fusion-in-decoder reads: for each passage a text of its own, with the conversation and the question in it.

The form is that of Izacard and Grave, 2021, "Leveraging Passage Retrieval with Generative Models for Open Domain
Question Answering": `question: … title: … context: …`; a chat history stands before it. Control tokens are those alone
that the tokenizer itself puts around every text: a passage in which "</s>" stands is read as text.
"""

from typing import TYPE_CHECKING, NamedTuple

from rqa.data.passage_selection import GeneratorInput
from rqa.data.records import Passage
from rqa.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class PassagePrompts(NamedTuple):
    """The ids of the texts of one example, and how many tokens of passages were cut to make them fit."""

    ids: list[list[int]]
    cut: int


class PassagePromptBuilder:
    """Builds the texts of a reading, of at most `max_passage_length` tokens each, and answers.

    An example without passages has one text, of its question alone. `speakers` name the user and the assistant in a
    chat history.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        max_passage_length: int = 512,
        speakers: tuple[str, str] = ("user", "assistant"),
    ) -> None:
        if not tokenizer.is_fast:
            raise InputError(f"{tokenizer.name_or_path}: expected a tokenizer with a tokenizer.json, found a slow one")
        # An encoder-decoder made of two BERTs ends its answers with their separator.
        eos = tokenizer.sep_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id
        if eos is None:
            raise InputError(f"{tokenizer.name_or_path}: the tokenizer has no end-of-sequence token, answers need one")
        self.tokenizer = tokenizer
        self.max_passage_length = max_passage_length
        self.speakers = {"user": speakers[0], "assistant": speakers[1]}
        self.eos_id: int = eos
        self.stop_ids = [eos]
        whole = tokenizer("a", return_special_tokens_mask=True)
        start, end = (mask.index(0) for mask in (whole["special_tokens_mask"], whole["special_tokens_mask"][::-1]))
        self._opening, self._closing = whole["input_ids"][:start], whole["input_ids"][len(whole["input_ids"]) - end :]
        added = tokenizer.added_tokens_decoder.items()  # those that are not special are vocabulary like any other
        self._control = {id: token.content for id, token in added if token.special and id != tokenizer.unk_token_id}

    def prompt(self, reading: GeneratorInput) -> PassagePrompts:
        """Return the texts of a reading, in the order of its passages. Only passages are cut, each at its end.

        Raises InputError where history and question do not fit.
        """
        turns = [f"{self.speakers[turn.role]}: {turn.text} " for turn in reading.example.chat_history]
        question = f"{''.join(turns)}question: {reading.example.question.strip()}"
        texts = [question + _written(passage) for passage in reading.passages] or [question]
        room = self.max_passage_length - len(self._opening) - len(self._closing)
        rows, cut = [], 0
        for tokens in self._encoded(texts):
            num_asked = sum(start < len(question) for _, start in tokens)
            if num_asked > room:
                raise InputError(
                    f"history and question alone take {num_asked + self.max_passage_length - room} tokens, "
                    f"--max_passage_length is {self.max_passage_length}"
                )
            rows.append([*self._opening, *(id for id, _ in tokens[:room]), *self._closing])
            cut += max(0, len(tokens) - room)
        return PassagePrompts(rows, cut)

    def answer(self, text: str) -> list[int]:
        """Return the ids of an answer as the tokenizer writes a text, ended by one end-of-sequence token."""
        [tokens] = self._encoded([text])
        return [*self._opening, *(id for id, _ in tokens), self.eos_id]

    def answer_text(self, ids: list[int]) -> str:
        """Return the text of generated ids: what comes before the end of the answer."""
        end = next((i for i, id in enumerate(ids) if id == self.eos_id), len(ids))
        text = self.tokenizer.decode(ids[:end], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(text).strip()

    def _encoded(self, texts: list[str]) -> list[list[tuple[int, int]]]:
        """Return the tokens of each text, as pairs of an id and the character at which it starts."""
        encoded = self.tokenizer(
            texts,
            add_special_tokens=False,
            split_special_tokens=True,
            return_offsets_mapping=True,
            return_attention_mask=False,
            verbose=False,
        )
        return [
            [(part, start) for id, (start, _) in zip(ids, offsets, strict=True) for part in self._as_text(id)]
            for ids, offsets in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
        ]

    def _as_text(self, id: int) -> list[int]:
        """Return a token, or where it is a control token those of its characters.

        To a Unigram model, as T5's, control tokens are pieces of text like any other.
        """
        if id not in self._control:
            return [id]
        model, text = self.tokenizer.backend_tokenizer.model, self._control[id]
        return [token.id for part in (text[:1], text[1:]) for token in model.tokenize(part)]


def _written(passage: Passage) -> str:
    title = f" title: {passage.title}" if passage.title else ""
    return f"{title} context: {passage.text}"
