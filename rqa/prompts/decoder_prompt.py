"""The prompt of a decoder: instruction, passages, history and question to token ids, for training and inference.

A prompt is a list of pieces. Template pieces (instruction, prefixes, separators, text of a chat template) may contain
control tokens. Data pieces (passages, messages, question, answer) do not: "<|im_end|>" in a passage is encoded as text.
Added tokens that are not special, such as Gemma's runs of newlines, are normal vocabulary. Text between two control
tokens is tokenized in one call, as in pretraining.
"""

import re
from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from jinja2 import TemplateError

from rqa.data.passage_selection import GeneratorInput
from rqa.data.records import Example, Passage, Role, Turn
from rqa.errors import InputError

if TYPE_CHECKING:
    from transformers import BatchEncoding, PreTrainedTokenizerBase

INSTRUCTION = "Answer the question using only the passages below."

_NO_RANK = -1  # the rank of a token that is never truncated


@dataclass(frozen=True)
class ChatFormat:
    """Prefixes and separators of the turns of a conversation, in place of a chat template."""

    user_prefix: str
    assistant_prefix: str
    sep_user: str = " "
    sep_sys: str = ""


class _Piece(NamedTuple):
    """A part of a prompt: template or data. The content of a passage has the passage's rank."""

    text: str
    is_template: bool = True
    rank: int = _NO_RANK


class Prompt(NamedTuple):
    """The ids of a prompt, the passage tokens that did not fit, and the passages that fitted at least in part."""

    ids: list[int]
    truncated: int
    num_passages: int


def load_tokenizer(name_or_path: str) -> "PreTrainedTokenizerBase":
    """Load the tokenizer of a checkpoint. Raises InputError if there is none."""
    from transformers import AutoTokenizer  # takes a second to import, and flags need only ChatFormat

    try:
        return AutoTokenizer.from_pretrained(name_or_path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        message = f"{name_or_path}: expected a checkpoint folder or a hub name, got neither ({error})"
        raise InputError(message) from error


def tokenize_data(tokenizer: "PreTrainedTokenizerBase", texts: str | list[str]) -> "BatchEncoding":
    """Return ids and offsets of texts without control tokens: a control token in a text is encoded as text."""
    encoded: BatchEncoding = tokenizer(
        texts,
        add_special_tokens=False,
        split_special_tokens=True,
        return_offsets_mapping=True,
        return_attention_mask=False,
        verbose=False,
    )
    return encoded


class AnswerDecoder:
    """Decodes answers, with a fast tokenizer that has an end-of-sequence token."""

    stop_ids: list[int]
    _separator: Sequence[int] = ()  # between an answer and its eos

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", eos_id: int | None) -> None:
        if not tokenizer.is_fast:
            raise InputError(f"{tokenizer.name_or_path}: expected a tokenizer with a tokenizer.json, got a slow one")
        if eos_id is None:
            raise InputError(f"{tokenizer.name_or_path}: the tokenizer has no end-of-sequence token, answers need one")
        self.tokenizer = tokenizer
        self.eos_id = eos_id

    def answer_text(self, ids: list[int]) -> str:
        """Return the text of generated ids, up to the end of the answer."""
        end = next((i for i, id in enumerate(ids) if id in self.stop_ids), len(ids))
        if self._separator and ids[end - len(self._separator) : end] == self._separator:
            end -= len(self._separator)
        text = self.tokenizer.decode(ids[:end], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(text).strip()


class PromptBuilder(AnswerDecoder):
    """Builds prompts of at most `max_prompt_length` tokens, and answers.

    Without a `chat` format the tokenizer's chat template is used: instruction, passages and question are one user
    message, after the messages of the history.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        chat: ChatFormat | None = None,
        instruction: str = INSTRUCTION,
        max_prompt_length: int = 2048,
    ) -> None:
        super().__init__(tokenizer, tokenizer.eos_token_id)
        if chat is None and not tokenizer.chat_template:
            raise InputError(
                f"{tokenizer.name_or_path}: the tokenizer has no chat template. "
                "Set --user_prefix and --assistant_prefix (and --sep_user, --sep_sys)"
            )
        self.chat = chat
        self.instruction = instruction
        self.max_prompt_length = max_prompt_length
        self._added_tokens = tokenizer.get_added_vocab()
        self._control = _control_pattern(tokenizer)
        self._inner_tokenizer = _inner(tokenizer)
        bos = tokenizer.bos_token_id
        self._bos = [bos] if bos is not None and tokenizer("a")["input_ids"][0] == bos else []  # begins every text
        # A literal BOS would repeat the automatic one and is dropped. A BOS that is also eos ends turns and is kept.
        self._own_bos = {tokenizer.bos_token} if self._bos and bos != self.eos_id else set()
        self._rendered = cache(self._render_template)
        self._lead = self._answer_lead()
        self._separator = self._answer_separator()
        # A separator of ordinary text, such as a newline, may occur inside an answer: only eos ends it.
        stops = set(self._added_tokens.values()).intersection(self._separator[:1])
        self.stop_ids = sorted({self.eos_id, *stops})

    def prompt(self, item: GeneratorInput) -> Prompt:
        """Return the prompt of an input. Only passages are truncated: the last ranked first, at its end.

        Raises InputError if the prompt does not fit without passages.
        """
        kept = list(zip(item.passages, item.ranks, strict=True))
        truncated = 0
        while True:
            ids, ranks = self._encode(self._pieces(item.example, kept))
            excess = len(ids) - self.max_prompt_length
            if excess <= 0:
                return Prompt(ids, truncated, len(kept))
            if not kept:
                raise InputError(
                    f"instruction, history and question take {len(ids)} tokens, "
                    f"--max_prompt_length is {self.max_prompt_length}"
                )
            last = max(rank for _, rank in kept)
            body = [position for position, rank in enumerate(ranks) if rank == last]
            truncated += min(excess, len(body))
            if len(body) > excess:
                dropped = set(body[-excess:])
                ids = [id for position, id in enumerate(ids) if position not in dropped]
                return Prompt(ids, truncated, len(kept))
            kept = [(passage, rank) for passage, rank in kept if rank != last]  # number and blank line go too

    def answer(self, text: str) -> list[int]:
        """Return the ids of an answer, the separator after an assistant's turn, and one eos."""
        ids, _ = self._encode([_Piece(self._lead + text, False)], start=False)
        return [*ids, *self._separator, self.eos_id]

    def _pieces(self, example: Example, passages: Iterable[tuple[Passage, int]]) -> list[_Piece]:
        """Return the pieces of a prompt with these passages and their ranks."""
        context = [_Piece(f"{self.instruction}\n\n")]
        for number, (passage, rank) in enumerate(passages, 1):
            context += [_Piece(f"[{number}] "), _Piece(passage.content, False, rank), _Piece("\n\n")]
        if self.chat is not None:
            return self._prefixed(self.chat, context, example)
        contents = [[_Piece(turn.text, False)] for turn in example.chat_history]
        contents.append([*context, _Piece(example.question, False)])
        template = self._rendered(tuple(turn.role for turn in example.chat_history))
        pieces = [_Piece(template[0])]
        for content, after in zip(contents, template[1:], strict=True):
            pieces += [*content, _Piece(after)]
        return pieces

    def _prefixed(self, chat: ChatFormat, context: list[_Piece], example: Example) -> list[_Piece]:
        prefix = {"user": chat.user_prefix, "assistant": chat.assistant_prefix}
        separator = {"user": chat.sep_user, "assistant": chat.sep_sys}
        pieces = context
        for turn in (*example.chat_history, Turn("user", example.question)):
            pieces += [_Piece(f"{prefix[turn.role]}: "), _Piece(turn.text, False), _Piece(separator[turn.role])]
        return [*pieces, _Piece(f"{chat.assistant_prefix}:")]

    def _encode(self, pieces: Iterable[_Piece], *, start: bool = True) -> tuple[list[int], list[int]]:
        """Return the ids of `pieces` and the rank of each token's passage; without `start` other text precedes them."""
        ids = [*self._bos] if start else []
        ranks = [_NO_RANK] * len(ids)
        run: list[_Piece] = []
        tokenizer = self.tokenizer if start else self._inner_tokenizer
        for piece in pieces:
            parts = self._control.split(piece.text) if piece.is_template else [piece.text]
            for part in parts:
                if piece.is_template and part in self._added_tokens:
                    self._encode_run(tokenizer, run, ids, ranks)
                    run, tokenizer = [], self._inner_tokenizer
                    if part not in self._own_bos:
                        ids.append(self._added_tokens[part])
                        ranks.append(_NO_RANK)
                elif part:
                    run.append(piece._replace(text=part))
        self._encode_run(tokenizer, run, ids, ranks)
        return ids, ranks

    def _encode_run(
        self, tokenizer: "PreTrainedTokenizerBase", run: Sequence[_Piece], ids: list[int], ranks: list[int]
    ) -> None:
        """Append the ids of text without control tokens. A token across the edge of a passage has _NO_RANK."""
        if not run:
            return
        encoded = tokenize_data(tokenizer, "".join(piece.text for piece in run))
        owner = [rank for piece in run for rank in [piece.rank] * len(piece.text)]
        ids += encoded["input_ids"]
        for start, end in encoded["offset_mapping"]:
            inside = start < end and owner[start] == owner[end - 1]
            ranks.append(owner[start] if inside else _NO_RANK)

    def _answer_lead(self) -> str:
        """Return the white space between prompt and answer that is not part of the prompt."""
        if self._inner_tokenizer.tokenize("a")[0].startswith("▁"):
            return ""  # the tokenizer itself adds a space before every text
        if self.chat is not None:
            return " "
        opening, written = self._rendered(())[1], self._rendered(("user", "assistant"), False)[1]
        lead = written.removeprefix(opening)
        return lead if lead.isspace() else ""

    def _answer_separator(self) -> list[int]:
        """Return the ids between an answer and its eos."""
        if self.chat is not None:
            separator = self._encode([_Piece(self.chat.sep_sys)], start=False)[0]
        else:
            # The first control token of the template after an assistant's message.
            control = self._control.search(self._rendered(("user", "assistant"), False)[2])
            separator = [self._added_tokens[control[control.lastindex or 0]]] if control else []
        return separator[: separator.index(self.eos_id)] if self.eos_id in separator else separator

    def _render_template(self, history: tuple[Role, ...], add_question: bool = True) -> list[str]:
        """Return the chat template's text before, between and after messages, whose roles are `history`.

        With `add_question` a user message and the beginning of an answer follow.
        """
        roles = (*history, "user") if add_question else history
        marks = [f"<message {i} of {len(roles)}>" for i in range(1, len(roles) + 1)]
        messages = [{"role": role, "content": mark} for role, mark in zip(roles, marks, strict=True)]
        try:
            text = str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_question))
        except TemplateError as error:
            raise InputError(
                f"{self.tokenizer.name_or_path}: the chat template rejects messages of {', '.join(roles)}: {error}"
            ) from error
        pattern = "|".join(map(re.escape, marks))
        if re.findall(pattern, text) != marks:
            raise InputError(
                f"{self.tokenizer.name_or_path}: expected a chat template that writes each message once and in order. "
                "Set --user_prefix and --assistant_prefix instead"
            )
        return re.split(pattern, text)


def _control_pattern(tokenizer: "PreTrainedTokenizerBase") -> re.Pattern[str]:
    """Return a pattern of control tokens, each one group, with the white space that the tokenizer strips."""
    tokens = sorted(tokenizer.added_tokens_decoder.values(), key=lambda token: -len(token.content))
    space = r"\s*"
    patterns = (f"{space * token.lstrip}({re.escape(token.content)}){space * token.rstrip}" for token in tokens)
    return re.compile("|".join(patterns) if tokens else "(?!)")


def _inner(tokenizer: "PreTrainedTokenizerBase") -> "PreTrainedTokenizerBase":
    """Return the tokenizer for text after a control token: without a space that only the first text gets."""
    if getattr(tokenizer.backend_tokenizer.pre_tokenizer, "prepend_scheme", None) == "first":
        tokenizer = deepcopy(tokenizer)
        tokenizer.backend_tokenizer.pre_tokenizer.prepend_scheme = "never"
    return tokenizer
