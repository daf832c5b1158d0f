"""The one prompt builder, for training and for inference: records to token ids, by position, never by searching.

A prompt is a list of pieces. Template pieces (instruction, prefixes, separators, what a chat template writes) may hold
control tokens; data pieces (passages, messages, the question, the answer) never do: a passage in which "<|im_end|>"
stands is read as text. (What a tokenizer added without calling it special, as Gemma did with runs of newlines, is
vocabulary like any other.) Between two control tokens the text is tokenised in one go, so that the ids are those that
the model has met in its pretraining.
"""

import re
from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from jinja2 import TemplateError

from rqa.data.passage_selection import GeneratorInput
from rqa.data.records import Role, Turn
from rqa.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

INSTRUCTION = "Answer the question using only the passages below."

UNCUT = -1  # in place of a passage's rank: this token is never cut


@dataclass(frozen=True)
class ChatFormat:
    """The turns of a conversation as plain prefixes and separators, for a model that is not given a chat template."""

    user_prefix: str
    assistant_prefix: str
    sep_user: str = " "
    sep_sys: str = ""


class Piece(NamedTuple):
    """A stretch of a prompt: of the template, or data; `rank` is that of the passage whose content it is."""

    text: str
    is_template: bool = True
    rank: int = UNCUT


class Prompt(NamedTuple):
    """The ids of a prompt, and how many tokens of passages were cut to make it fit."""

    ids: list[int]
    cut: int


def load_tokenizer(name_or_path: str) -> "PreTrainedTokenizerBase":
    """Load the tokenizer of a checkpoint. Raises InputError where there is none."""
    from transformers import AutoTokenizer  # takes a second, which the formats of flags need not wait for

    try:
        return AutoTokenizer.from_pretrained(name_or_path, trust_remote_code=False)
    except (OSError, ValueError) as error:  # of a mistyped path transformers says that it is no valid hub name
        raise InputError(f"{name_or_path}: neither a checkpoint folder nor a model of the hub ({error})") from error


class PromptBuilder:
    """Builds the ids of prompts of at most `max_prompt_length` tokens, and of answers.

    Without a `chat` format the tokenizer's own chat template is used: instruction, passages and question are then one
    user message, the history the messages before it.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        chat: ChatFormat | None = None,
        instruction: str = INSTRUCTION,
        max_prompt_length: int = 2048,
    ) -> None:
        if not tokenizer.is_fast:
            raise InputError(f"{tokenizer.name_or_path}: expected a tokenizer with a tokenizer.json, found a slow one")
        if tokenizer.eos_token_id is None:
            raise InputError(f"{tokenizer.name_or_path}: the tokenizer has no end-of-sequence token, answers need one")
        if chat is None and not tokenizer.chat_template:
            raise InputError(
                f"{tokenizer.name_or_path}: the tokenizer has no chat template: "
                "give --user_prefix and --assistant_prefix (and --sep_user, --sep_sys)"
            )
        self.tokenizer = tokenizer
        self.chat = chat
        self.instruction = instruction
        self.max_prompt_length = max_prompt_length
        self._added_tokens = tokenizer.get_added_vocab()
        self._control = _control_pattern(tokenizer)
        self._inner_tokenizer = _inner(tokenizer)
        self._bos = self._automatic_bos()
        # A literal BOS beside the automatic one would double it; where BOS is eos too, it ends turns and stays.
        self._own_bos = {tokenizer.bos_token} if self._bos and self._bos != (tokenizer.eos_token_id,) else set()
        self._rendered = lru_cache(maxsize=None)(self._render_template)
        self._lead = self._answer_lead()
        self._separator = self._answer_separator()
        # A separator of ordinary text, a newline say, can stand within an answer: there eos alone tells the end.
        stops = set(self._added_tokens.values()).intersection(self._separator[:1])
        self.stop_ids = sorted({tokenizer.eos_token_id, *stops})

    def prompt(self, reading: GeneratorInput) -> Prompt:
        """Return the prompt of a reading. Passages alone are cut to fit: the highest rank first, from its end.

        Raises InputError where the prompt does not fit even without passages.
        """
        kept = list(zip(reading.passages, reading.ranks, strict=True))
        cut = 0
        while True:
            bodies = [Piece(passage.content, False, rank) for passage, rank in kept]
            ids, ranks = self._encode(self._pieces(reading, bodies))
            excess = len(ids) - self.max_prompt_length
            if excess <= 0:
                return Prompt(ids, cut)
            if not kept:
                raise InputError(
                    f"instruction, history and question alone take {len(ids)} tokens, "
                    f"--max_prompt_length is {self.max_prompt_length}"
                )
            last = max(rank for _, rank in kept)
            body = [position for position, rank in enumerate(ranks) if rank == last]
            cut += min(excess, len(body))
            if len(body) > excess:
                dropped = set(body[-excess:])
                return Prompt([id for position, id in enumerate(ids) if position not in dropped], cut)
            kept = [(passage, rank) for passage, rank in kept if rank != last]  # with its number and its blank line

    def answer(self, text: str) -> list[int]:
        """Return the ids of an answer and of what ends it: the separator after an assistant's turn, one eos."""
        ids, _ = self._encode([Piece(self._lead + text, False)], start=False)
        return [*ids, *self._separator, self.tokenizer.eos_token_id]

    def answer_text(self, ids: list[int]) -> str:
        """Return the text of generated ids: what comes before that which ends an answer."""
        end = next((i for i, id in enumerate(ids) if id in self.stop_ids), len(ids))
        if self._separator and ids[end - len(self._separator) : end] == self._separator:
            end -= len(self._separator)
        text = self.tokenizer.decode(ids[:end], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(text).strip()

    def _pieces(self, reading: GeneratorInput, bodies: Sequence[Piece]) -> list[Piece]:
        """Return the pieces of a prompt whose passages are `bodies`."""
        context = [Piece(f"{self.instruction}\n\n")]
        for number, body in enumerate(bodies, 1):
            context += [Piece(f"[{number}] "), body, Piece("\n\n")]
        history, question = reading.example.chat_history, Piece(reading.example.question, False)
        if self.chat is not None:
            return self._prefixed(self.chat, context, reading)
        contents = [[Piece(turn.text, False)] for turn in history] + [[*context, question]]
        template = self._rendered(tuple(turn.role for turn in history))
        pieces = [Piece(template[0])]
        for content, after in zip(contents, template[1:], strict=True):
            pieces += [*content, Piece(after)]
        return pieces

    def _prefixed(self, chat: ChatFormat, context: list[Piece], reading: GeneratorInput) -> list[Piece]:
        prefix = {"user": chat.user_prefix, "assistant": chat.assistant_prefix}
        separator = {"user": chat.sep_user, "assistant": chat.sep_sys}
        pieces = context
        for turn in (*reading.example.chat_history, Turn("user", reading.example.question)):
            pieces += [Piece(f"{prefix[turn.role]}: "), Piece(turn.text, False), Piece(separator[turn.role])]
        return [*pieces, Piece(f"{chat.assistant_prefix}:")]

    def _encode(self, pieces: Iterable[Piece], *, start: bool = True) -> tuple[list[int], list[int]]:
        """Return the ids of `pieces`, and for each token the rank of the passage that it lies in, or UNCUT.

        Without `start` something stands before them.
        """
        ids = list(self._bos) if start else []
        ranks = [UNCUT] * len(ids)
        run: list[Piece] = []
        tokenizer = self.tokenizer if start else self._inner_tokenizer
        for piece in pieces:
            parts = self._control.split(piece.text) if piece.is_template else [piece.text]
            for part in parts:
                if piece.is_template and part in self._added_tokens:
                    self._encode_run(tokenizer, run, ids, ranks)
                    run, tokenizer = [], self._inner_tokenizer
                    if part not in self._own_bos:
                        ids.append(self._added_tokens[part])
                        ranks.append(UNCUT)
                elif part:
                    run.append(piece._replace(text=part))
        self._encode_run(tokenizer, run, ids, ranks)
        return ids, ranks

    def _encode_run(
        self, tokenizer: "PreTrainedTokenizerBase", run: Sequence[Piece], ids: list[int], ranks: list[int]
    ) -> None:
        """Append the ids of text without control tokens. A token over the edge of a passage belongs to the template."""
        if not run:
            return
        encoded = tokenizer(
            "".join(piece.text for piece in run),
            add_special_tokens=False,
            split_special_tokens=True,
            return_offsets_mapping=True,
            return_attention_mask=False,
            verbose=False,
        )
        owner = [rank for piece in run for rank in [piece.rank] * len(piece.text)]
        ids += encoded["input_ids"]
        for start, end in encoded["offset_mapping"]:
            inside = start < end and owner[start] == owner[end - 1]
            ranks.append(owner[start] if inside else UNCUT)

    def _automatic_bos(self) -> tuple[int, ...]:
        """Return what the tokenizer puts before every text by itself: its BOS, or nothing."""
        bos = self.tokenizer.bos_token_id
        return (bos,) if bos is not None and self.tokenizer("a")["input_ids"][0] == bos else ()

    def _answer_lead(self) -> str:
        """Return the white space before an answer that is not yet in the prompt."""
        if self._inner_tokenizer.tokenize("a")[0].startswith("▁"):
            return ""  # the tokenizer opens every text with a space of its own
        if self.chat is not None:
            return " "
        opening, written = self._rendered(())[1], self._rendered(("user", "assistant"), False)[1]
        lead = written.removeprefix(opening)
        return lead if lead.isspace() else ""

    def _answer_separator(self) -> list[int]:
        """Return what stands between an answer and its eos."""
        if self.chat is not None:
            separator = self._encode([Piece(self.chat.sep_sys)], start=False)[0]
        else:
            # What the template writes after an assistant's message, up to its first control token.
            control = self._control.search(self._rendered(("user", "assistant"), False)[2])
            separator = [self._added_tokens[control[control.lastindex or 0]]] if control else []
        eos = self.tokenizer.eos_token_id
        return separator[: separator.index(eos)] if eos in separator else separator

    def _render_template(self, history: tuple[Role, ...], ask: bool = True) -> list[str]:
        """Render the chat template over placeholders: what it writes before, between and after the messages.

        `history` are the roles of the messages; with `ask` one of the user follows, and the opening of an answer.
        """
        roles = (*history, "user") if ask else history
        marks = [f"<message {i} of {len(roles)}>" for i in range(1, len(roles) + 1)]
        messages = [{"role": role, "content": mark} for role, mark in zip(roles, marks, strict=True)]
        try:
            text = str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=ask))
        except TemplateError as error:
            raise InputError(
                f"{self.tokenizer.name_or_path}: the chat template refuses messages of {', '.join(roles)}: {error}"
            ) from error
        parts = re.split("|".join(map(re.escape, marks)), text)
        if re.findall("|".join(map(re.escape, marks)), text) != marks:
            raise InputError(
                f"{self.tokenizer.name_or_path}: the chat template does not write each message once and in order: "
                "give --user_prefix and --assistant_prefix instead"
            )
        return parts


def _control_pattern(tokenizer: "PreTrainedTokenizerBase") -> re.Pattern[str]:
    """Return what matches a control token as the one group that takes part, and the white space that it swallows."""
    tokens = sorted(tokenizer.added_tokens_decoder.values(), key=lambda token: -len(token.content))
    space = r"\s*"
    patterns = (f"{space * token.lstrip}({re.escape(token.content)}){space * token.rstrip}" for token in tokens)
    return re.compile("|".join(patterns) if tokens else "(?!)")


def _inner(tokenizer: "PreTrainedTokenizerBase") -> "PreTrainedTokenizerBase":
    """Return the tokenizer for text after a control token: some put a space before the first text alone."""
    if getattr(tokenizer.backend_tokenizer.pre_tokenizer, "prepend_scheme", None) == "first":
        tokenizer = deepcopy(tokenizer)
        tokenizer.backend_tokenizer.pre_tokenizer.prepend_scheme = "never"
    return tokenizer
