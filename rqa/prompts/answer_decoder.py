"""Generated token ids to an answer, without the reasoning and the text of the template before it."""

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rqa.errors import InputError
from rqa.prompts.text_tokenizer import CONTROL_FORM, TextTokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

THINK = "<think>"  # some models write it as ordinary text
REASONING = {  # the text that opens reasoning, and the text that closes it
    THINK: "</think>",
    "<seed:think>": "</seed:think>",
    "[THINK]": "[/THINK]",
    "<|START_THINKING|>": "<|END_THINKING|>",
    "<|channel>": "<channel|>",
    "<|channel|>": "<|channel|>final<|message|>",  # every channel before the final one
}
MARKS = {*REASONING, *REASONING.values()}
CHANNEL_HEADERS = re.compile(r"(<\|end\|>|<\|start\|>assistant|<\|channel\|>[^<]*(<\|message\|>)?)+")
LOOKS_LIKE_CONTROL = re.compile(CONTROL_FORM + r"|</?[A-Za-z_][\w:.-]*>|\[/?[A-Z][A-Z_]+\]|<</?[A-Z]+>>")


class AnswerDecoder:
    """Decodes answers, with a fast tokenizer that has an end-of-sequence token.

    `affixes` are the prefixes and separators of flags. Added tokens that stand in texts of the `template` are control
    tokens.
    """

    stop_ids: list[int]
    separator: Sequence[int] = ()  # ids between an answer and its eos
    _header: Sequence[int] = ()  # ids between the prompt and an answer
    open_mark: str | None = None  # the text that opens reasoning in the prompt

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        eos_id: int | None,
        *,
        affixes: Sequence[str] = (),
        template: Iterable[str] = (),
    ) -> None:
        if not tokenizer.is_fast:
            raise InputError(f"{tokenizer.name_or_path}: expected a tokenizer with a tokenizer.json, got a slow one")
        if eos_id is None:
            raise InputError(f"{tokenizer.name_or_path}: the tokenizer has no end-of-sequence token, answers need one")
        self.tokenizer = tokenizer
        self.eos_id = eos_id
        self.affixes = affixes
        self.text_tokenizer = TextTokenizer(tokenizer, "\n".join(template), MARKS)
        # Marks of reasoning that are control tokens are compared as ids, each one character.
        pairs = {pair: [*map(self.text_tokenizer.template_ids, pair)] for pair in REASONING.items()}
        control = {*self.text_tokenizer.control.values()}
        self._marks = {
            opening: ("".join(map(chr, opens)), "".join(map(chr, closes)))
            for (opening, _), (opens, closes) in pairs.items()
            if control.intersection(opens) and control.intersection(closes)
        }

    def answer_text(self, ids: list[int]) -> str:
        """Return the text of generated ids, up to the end of the answer and without reasoning."""
        return self.read(ids)[0]

    def read(self, ids: list[int]) -> tuple[str, str]:
        """Return the answer in generated ids, up to its end, and the reasoning before it.

        Ids are reasoning if the prompt or their beginning opens it. An answer that is cut in its reasoning is empty.
        A mark of ordinary text must be closed, unless the answer is cut: an answer may be "<think>".
        """
        is_cut = not any(id in self.stop_ids for id in ids)
        ids = self._without_end(ids)
        if self._header and ids[: len(self._header)] == self._header:
            return self._decode(ids[len(self._header) :]), ""
        symbols = "".join(map(chr, ids))
        for opening, (opens, closes) in self._marks.items():
            before = symbols.partition(opens)[0]  # all ids if they do not contain the mark
            if opening == self.open_mark or (before != symbols and not self._decode(ids[: len(before)])):
                reasoning, _, answer = symbols.partition(closes)
                return self._decode([*map(ord, answer)]), self._reasoning_text([*map(ord, reasoning)])
        text = self._decode(ids)
        if THINK in self._marks or not (self.open_mark == THINK or text.startswith(THINK)):
            return text, ""
        reasoning, close, answer = text.partition(REASONING[THINK])
        if not (self.open_mark or close or is_cut):
            return text, ""
        return answer.strip(), reasoning.removeprefix(THINK).strip()

    def settled_text(self, ids: list[int]) -> str:
        """Return the text of an answer that more ids can only extend."""
        text = self.answer_text(ids)
        may_open = THINK not in self._marks and THINK.startswith(text)
        return "" if may_open or self._header[: len(ids)] == ids else text

    def _without_end(self, ids: list[int]) -> list[int]:
        end = next((i for i, id in enumerate(ids) if id in self.stop_ids), len(ids))
        if self.separator and ids[end - len(self.separator) : end] == self.separator:
            end -= len(self.separator)
        return ids[:end]

    def _reasoning_text(self, ids: list[int]) -> str:
        text = CHANNEL_HEADERS.sub("\n", str(self.tokenizer.decode(ids, clean_up_tokenization_spaces=False))).strip()
        for opening in REASONING:
            text = text.removeprefix(opening)
        return text.strip()

    def _decode(self, ids: list[int]) -> str:
        text = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(text).strip()


def open_reasoning(text: str) -> str | None:
    """Return the text that opens reasoning and that `text` does not close."""
    return next((opening for opening, close in REASONING.items() if text.rfind(opening) > text.rfind(close)), None)


def split_reasoning(text: str, *, is_cut: bool = False, opened: str | None = None) -> tuple[str, str]:
    """Return the answer in a generated text, and the reasoning before it, if the text begins with it.

    `opened` is a mark with which the prompt ended. A mark that is not closed is part of the answer, unless it is cut.
    """
    text = text.strip()
    opening = opened or next((mark for mark in REASONING if text.startswith(mark)), None)
    if opening is None:
        return text, ""
    reasoning, close, answer = text.partition(REASONING[opening])
    if not (close or opened or is_cut):
        return text, ""
    return answer.strip(), reasoning.removeprefix(opening).strip()


def unknown_control_tokens(builder: AnswerDecoder) -> list[str]:
    """Return strings in the prefixes and separators that look like control tokens and are ordinary text.

    Strings in the tokenizer's own chat template are left out: Mistral's first [INST] is ordinary text.
    """
    known, own_template = builder.tokenizer.get_added_vocab(), str(builder.tokenizer.chat_template)
    strings = dict.fromkeys(match[0] for text in builder.affixes for match in LOOKS_LIKE_CONTROL.finditer(text))
    return [string for string in strings if string not in known and string not in own_template]
