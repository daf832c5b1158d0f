"""The prompts of fusion-in-decoder: one for each passage, each with the chat history and the question.

The form is that of Izacard and Grave, 2021, "Leveraging Passage Retrieval with Generative Models for Open Domain
Question Answering": `question: … title: … context: …`, after the chat history. Control tokens are only those that the
tokenizer adds around every text: "</s>" in a passage is encoded as text.

If answers cite passages, each passage has its number: `question: … passage: 2 title: … context: …`.
"""

from typing import TYPE_CHECKING, NamedTuple

from rqa.data.citations import numbered
from rqa.data.passage_selection import GeneratorInput
from rqa.data.records import Example, Passage
from rqa.errors import InputError
from rqa.prompts.answer_decoder import AnswerDecoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class PassagePrompts(NamedTuple):
    """The ids of each prompt, the passage tokens that did not fit, and the passages that fitted at least in part.

    `numbers` are the numbers of the passages that fitted, by id: their places in the input, from 1.
    """

    ids: list[list[int]]
    truncated: int
    num_passages: int
    numbers: dict[str, int]


class PassagePromptBuilder(AnswerDecoder):
    """Builds prompts of at most `max_passage_length` tokens, one for each passage, and answers.

    An example without passages has one prompt, with its question. `speakers` are the names of user and assistant in the
    chat history. With `citations` the texts contain the numbers of the passages.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        max_passage_length: int = 512,
        speakers: tuple[str, str] = ("user", "assistant"),
        *,
        citations: bool = False,
    ) -> None:
        # An encoder-decoder made of two BERTs ends its answers with their separator.
        eos_id = tokenizer.sep_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id
        super().__init__(tokenizer, eos_id, affixes=speakers)
        self.stop_ids = [self.eos_id]
        self.max_passage_length = max_passage_length
        self.citations = citations
        self.speakers = {"user": speakers[0], "assistant": speakers[1]}
        whole = tokenizer("a", return_special_tokens_mask=True)
        start, end = (mask.index(0) for mask in (whole["special_tokens_mask"], whole["special_tokens_mask"][::-1]))
        self._opening, self._closing = whole["input_ids"][:start], whole["input_ids"][len(whole["input_ids"]) - end :]

    def prompt(self, item: GeneratorInput) -> PassagePrompts:
        """Return the prompts of an input, in the order of its passages. Only passages are truncated, at their ends.

        Raises InputError if history and question do not fit.
        """
        question = self._question(item.example)
        heads = [self._head(question, number) for number, _ in enumerate(item.passages, 1)]
        texts = [head + _passage_text(passage) for head, passage in zip(heads, item.passages, strict=True)]
        room = self.max_passage_length - len(self._opening) - len(self._closing)
        prompts, truncated, fits = [], 0, []
        for head, tokens in zip(heads or [question], self._encoded(texts or [question]), strict=True):
            num_question_tokens = sum(start < len(question) for _, start in tokens)
            if num_question_tokens > room:
                raise InputError(
                    f"history and question take {num_question_tokens + self.max_passage_length - room} tokens, "
                    f"--max_passage_length is {self.max_passage_length}"
                )
            prompts.append([*self._opening, *(id for id, _ in tokens[:room]), *self._closing])
            truncated += max(0, len(tokens) - room)
            fits.append(min(len(tokens), room) > sum(start < len(head) for _, start in tokens))
        numbers = numbered(item.passages)
        unread = {passage.id for passage, is_read in zip(item.passages, fits, strict=False) if not is_read}
        return PassagePrompts(prompts, truncated, sum(fits), {id: n for id, n in numbers.items() if id not in unread})

    def check_prompt(self, example: Example) -> None:
        """Raise InputError if history and question of an example do not fit."""
        around = len(self._opening) + len(self._closing)
        if around + self.text_tokenizer.max_tokens(self._question(example)) > self.max_passage_length:
            self.prompt(GeneratorInput.from_ranked(example, ()))

    def max_answer_tokens(self, text: str) -> int:
        """Return an upper bound of the length of `answer(text)`."""
        return len(self._opening) + self.text_tokenizer.max_tokens(text) + 1

    def answer(self, text: str) -> list[int]:
        """Return the ids of an answer, in the tokenizer's own form of a text, with one end-of-sequence token."""
        [tokens] = self._encoded([text])
        return [*self._opening, *(id for id, _ in tokens), self.eos_id]

    def _question(self, example: Example) -> str:
        turns = [f"{self.speakers[turn.role]}: {turn.text} " for turn in example.chat_history]
        return f"{''.join(turns)}question: {example.question.strip()}"

    def _head(self, question: str, number: int) -> str:
        """Return the text before a passage."""
        return f"{question} passage: {number}" if self.citations else question

    def _encoded(self, texts: list[str]) -> list[list[tuple[int, int]]]:
        """Return the tokens of each text as pairs: the id, and the position of its first character."""
        return [
            [(id, start) for id, (start, _) in zip(encoding.ids, encoding.offsets, strict=True)]
            for encoding in self.text_tokenizer.encode(texts)
        ]


def _passage_text(passage: Passage) -> str:
    title = f" title: {passage.title}" if passage.title else ""
    return f"{title} context: {passage.text}"
