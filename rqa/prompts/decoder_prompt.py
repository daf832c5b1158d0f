"""The prompt of a decoder: instruction, passages, history and question to token ids, for training and inference.

A prompt is a list of pieces. Template pieces (instruction, prefixes, separators, text of a chat template) may contain
control tokens. Data pieces (passages, messages, question, answer) do not. Text between two control tokens is tokenized
in one call, as in pretraining.

The ids of a prompt and its answer are those of the chat template for the whole conversation. Text that the template
writes between the two, such as a channel or a closed block of reasoning, is part of the answer's ids.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rqa.data.citations import numbered
from rqa.data.passage_selection import GeneratorInput
from rqa.data.records import Example, Passage, Turn
from rqa.distributed.untrusted import read_settings
from rqa.errors import InputError
from rqa.prompts.answer_decoder import REASONING, AnswerDecoder, open_reasoning
from rqa.prompts.chat_template import TEMPLATE_DATE, ChatTemplate, Message

if TYPE_CHECKING:
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

# At the start of a prompt; the second asks for citations
INSTRUCTION = "Answer the question using only the passages below."
CITING_INSTRUCTION = (
    "Answer the question using only the passages below. Cite the passages that support the answer by their numbers, "
    "such as [1]."
)

CHANNEL, CHANNEL_END = "<|channel|>", "<|end|>"  # of gpt-oss, which reasons in a channel before that of the answer
_MAX_LABEL_TOKENS = 16  # of a passage's number and blank line, as many as with a token for each byte
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


class _Encoded(NamedTuple):
    """The ids of pieces, and the runs of text without control tokens: position of the first id, pieces, tokens."""

    ids: list[int]
    runs: list[tuple[int, list[_Piece], "Encoding"]]

    def ranks(self) -> list[int]:
        """Return the rank of each token's passage. A token across the edge of a passage has _NO_RANK."""
        ranks = [_NO_RANK] * len(self.ids)
        for first, run, encoding in self.runs:
            owner = [rank for piece in run for rank in [piece.rank] * len(piece.text)]
            for position, (start, end) in enumerate(encoding.offsets, first):
                if start < end and owner[start] == owner[end - 1]:
                    ranks[position] = owner[start]
        return ranks

    def text_before(self, position: int) -> str:
        """Return the text of a token's piece before the token."""
        for first, run, encoding in self.runs:
            if first <= position < first + len(encoding.ids):
                start = encoding.offsets[position - first][0]
                for piece in run:
                    if start < len(piece.text):
                        return piece.text[:start]
                    start -= len(piece.text)
        raise IndexError(position)


class _AroundAnswer(NamedTuple):
    """Text of a template: at the start of a prompt, at its end, between it and an answer, and after an answer."""

    start: str
    opening: str
    header: str
    after: str


class Prompt(NamedTuple):
    """The ids of a prompt, the passage tokens that did not fit, and the passages that fitted at least in part.

    The first of these passages is [1] in the prompt.
    """

    ids: list[int]
    truncated: int
    passages: tuple[Passage, ...]
    cut: str | None = None  # the text that fitted of the last ranked of these passages, None if it fitted whole

    @property
    def num_passages(self) -> int:
        """The number of passages that fitted at least in part."""
        return len(self.passages)

    @property
    def numbers(self) -> dict[str, int]:
        """The number of each passage in the prompt, by its id."""
        return numbered(self.passages)


def _context(instruction: str, passages: Iterable[tuple[str, int]]) -> list[_Piece]:
    """Return the pieces before the conversation: the instruction, and the numbered texts of passages with ranks."""
    pieces = [_Piece(f"{instruction}\n\n")]
    for number, (text, rank) in enumerate(passages, 1):
        pieces += [_Piece(f"[{number}] "), _Piece(text, False, rank), _Piece("\n\n")]
    return pieces


def chat_messages(item: GeneratorInput, instruction: str = INSTRUCTION, prompt: Prompt | None = None) -> list[Message]:
    """Return the messages of a prompt with a chat template: the history, then instruction, passages and question.

    Passages are those that fitted in `prompt`, with their text as far as it fitted; without one, all of them.
    """
    ranks = sorted(item.ranks)[: len(item.ranks) if prompt is None else prompt.num_passages]
    texts = {rank: passage.content for passage, rank in zip(item.passages, item.ranks, strict=True) if rank in ranks}
    if prompt is not None and prompt.cut is not None:
        texts[ranks[-1]] = prompt.cut
    context = _context(instruction, [(text, rank) for rank, text in texts.items()])
    content = "".join(piece.text for piece in context) + item.example.question
    history = [{"role": turn.role, "content": turn.text} for turn in item.example.chat_history]
    return [*history, {"role": "user", "content": content}]


def load_tokenizer(name_or_path: str) -> "PreTrainedTokenizerBase":
    """Load the tokenizer of a checkpoint; that of its base model for an adapter without one.

    Raises InputError if there is none, or if its files are damaged.
    """
    from transformers import AutoTokenizer  # takes a second to import, and flags need only ChatFormat

    from rqa.distributed.hub import base_model, check_checkpoint_name

    if not Path(name_or_path, "tokenizer_config.json").is_file():
        name_or_path = base_model(name_or_path)
    check_checkpoint_name(name_or_path)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(name_or_path, trust_remote_code=False)
        tokenizer("\u0378")  # an unassigned character: an error if the vocabulary lacks the unknown token
        return tokenizer
    except Exception as error:  # the package tokenizers raises Exception itself for a damaged file
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{name_or_path}: no tokenizer can be loaded: {reason}") from error


def load_stop_ids(name_or_path: str) -> list[int]:
    """Return the end-of-sequence ids of a checkpoint: those of GLM, for example, contain <|user|>.

    Raises InputError if its generation_config.json or config.json is not valid.
    """
    from transformers.utils.hub import cached_file

    optional = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    ids: list[int] = []
    for name in ("generation_config.json", "config.json"):
        path = cached_file(name_or_path, name, **optional)
        settings = read_settings(Path(path)) if path else {}
        value = settings.get("eos_token_id") if isinstance(settings, dict) else None
        values = value if isinstance(value, list) else [] if value is None else [value]
        if not all(type(id) is int for id in values):
            raise InputError(f'{path}: field "eos_token_id": expected token ids, got {value!r}')
        ids += values
    return ids


class PromptBuilder(AnswerDecoder):
    """Builds prompts of at most `max_prompt_length` tokens, and answers.

    Without a `chat` format the tokenizer's chat template is used: instruction, passages and question are one user
    message, after the messages of the history. `chat_template_kwargs` and `chat_template_date` are the arguments of
    `ChatTemplate`. `stop_ids` are control tokens that also end an answer, see `load_stop_ids`.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        chat: ChatFormat | None = None,
        instruction: str = INSTRUCTION,
        max_prompt_length: int = 2048,
        *,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        chat_template_date: str = TEMPLATE_DATE,
        stop_ids: Iterable[int] = (),
    ) -> None:
        self.instruction = instruction
        self.max_prompt_length = max_prompt_length
        self.chat = chat
        affixes: list[str] = []
        if chat is None:
            template = ChatTemplate(tokenizer, chat_template_kwargs, chat_template_date)
            self._template = cache(partial(template.split, add_generation_prompt=True))  # by the roles of the messages
            around = _around_answer(template, tokenizer.name_or_path)
        else:
            around = _AroundAnswer("", f"{chat.assistant_prefix}:", " ", chat.sep_sys)
            affixes = [chat.user_prefix, chat.sep_user, chat.assistant_prefix, chat.sep_sys]
        self._start_ids = cache(lambda text: self._encode([_Piece(text)], start=False).ids)
        texts = [str(tokenizer.chat_template), *affixes, *around]
        super().__init__(tokenizer, tokenizer.eos_token_id, affixes=affixes, template=texts)
        # The tokenizer's automatic BOS begins every prompt of flags, so that a literal one would repeat it. A chat
        # template writes its own. A BOS that is also eos ends turns and is kept.
        bos = tokenizer.bos_token_id
        adds_bos = chat is not None and bos is not None and tokenizer("a")["input_ids"][0] == bos
        self._bos = [bos] if adds_bos else []
        self._dropped = {*self._bos} - {self.eos_id}
        self._set_header(around)
        ends = self._set_ending(around.after)
        self.stop_ids = sorted({self.eos_id, *self._ends_of_answers({*ends, *stop_ids})})

    def prompt(self, item: GeneratorInput) -> Prompt:
        """Return the prompt of an input. Only passages are truncated: the last ranked first, at its end.

        Raises InputError if the prompt does not fit without passages.
        """
        kept = list(zip(item.passages, item.ranks, strict=True))
        truncated = 0
        while True:
            encoded = self._encode(self._pieces(item.example, kept))
            ids, excess = encoded.ids, len(encoded.ids) - self.max_prompt_length
            if excess <= 0:
                return Prompt(ids, truncated, tuple(passage for passage, _ in kept))
            if not kept:
                raise InputError(
                    f"instruction, history and question take {len(ids)} tokens, "
                    f"--max_prompt_length is {self.max_prompt_length}"
                )
            sizes = Counter(ranks := encoded.ranks())
            dropped, rest = set(), excess
            for rank in sorted((rank for _, rank in kept), reverse=True):
                if sizes[rank] > rest:
                    break
                dropped.add(rank)
                rest -= sizes[rank] + _MAX_LABEL_TOKENS  # the next passage is dropped at once only if it is certain
            if not dropped:
                body = [position for position, each in enumerate(ranks) if each == rank]
                cut = set(body[-excess:])
                ids = [id for i, id in enumerate(ids) if i not in cut]
                fitted = tuple(passage for passage, _ in kept)
                return Prompt(ids, truncated + excess, fitted, encoded.text_before(min(cut)))
            truncated += sum(sizes[rank] for rank in dropped)
            kept = [(passage, rank) for passage, rank in kept if rank not in dropped]

    def check_prompt(self, example: Example) -> None:
        """Raise InputError if the prompt of an example does not fit without passages."""
        text = "".join(piece.text for piece in self._pieces(example, ()))
        if len(self._bos) + self.text_tokenizer.max_tokens(text) > self.max_prompt_length:
            self.prompt(GeneratorInput.from_ranked(example, ()))

    def max_answer_tokens(self, text: str) -> int:
        """Return an upper bound of the length of `answer(text)`."""
        around = f"{self._header_text}{text}{self._closing}"
        return self.text_tokenizer.max_tokens(around) + len(self.separator) + 1

    def answer(self, text: str) -> list[int]:
        """Return the ids of an answer, the separator after an assistant's turn, and one eos."""
        pieces = [_Piece(self._header_text), _Piece(text, False), _Piece(self._closing)]
        return [*self._ids_behind(self._behind, pieces), *self.separator, self.eos_id]

    def _pieces(self, example: Example, passages: Iterable[tuple[Passage, int]]) -> list[_Piece]:
        """Return the pieces of a prompt with these passages and their ranks."""
        context = _context(self.instruction, [(passage.content, rank) for passage, rank in passages])
        if self.chat is not None:
            return self._prefixed(self.chat, context, example)
        contents = [[_Piece(turn.text, False)] for turn in example.chat_history]
        contents.append([*context, _Piece(example.question, False)])
        template = self._template((*(turn.role for turn in example.chat_history), "user"))
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

    def _encode(self, pieces: Iterable[_Piece], *, start: bool = True) -> _Encoded:
        """Return the ids of `pieces`; without `start` other text precedes them."""
        encoded = _Encoded([*self._bos] if start else [], [])
        run: list[_Piece] = []
        is_inner = not start
        for piece in pieces:
            for part in self.text_tokenizer.parts(piece.text) if piece.is_template else [piece.text]:
                if isinstance(part, str):
                    run.append(piece._replace(text=part))
                    continue
                self._encode_run(run, encoded, is_inner=is_inner)
                run, is_inner = [], True
                if part not in self._dropped:
                    encoded.ids.append(part)
        self._encode_run(run, encoded, is_inner=is_inner)
        return encoded

    def _encode_run(self, run: list[_Piece], encoded: _Encoded, *, is_inner: bool) -> None:
        """Append the ids of text without control tokens."""
        if run:
            [encoding] = self.text_tokenizer.encode(["".join(piece.text for piece in run)], is_inner=is_inner)
            encoded.runs.append((len(encoded.ids), run, encoding))
            encoded.ids.extend(encoding.ids)

    def _ids_behind(self, text: str, pieces: Sequence[_Piece]) -> list[int]:
        """Return the ids of `pieces` behind ordinary text of the template, as in one text with it."""
        for before in (text, "\n", ""):  # where a token would cross the edge, other text precedes, at last none
            start = self._start_ids(before)
            ids = self._encode([_Piece(before), *pieces], start=False).ids
            if ids[: len(start)] == start:
                break
        return ids[len(start) :]

    def _set_header(self, around: _AroundAnswer) -> None:
        """Set the text and the ids between the prompt and an answer, and the prompt's text before them."""
        *_, last = "", *self.text_tokenizer.parts(around.opening)
        self._behind = last if isinstance(last, str) else ""  # after the last control token of the prompt
        self._header_text = around.header
        self._header = self._ids_behind(self._behind, [_Piece(around.header)]) if around.header.strip() else []
        self.open_mark = open_reasoning(around.opening) if self.chat is None else None

    def _set_ending(self, after: str) -> list[int]:
        """Set the text and the ids between an answer and its eos; return the first id that can end an answer.

        With a chat template it is the first control token of the text `after` an answer, and the last of these ids.
        """
        self._closing = ""
        if self.chat is not None:
            ids = self._ids_behind(".", [_Piece(after)])
            ends = ids[:1]
        else:
            parts = self.text_tokenizer.parts(after)[:2]
            ends = [part for part in parts if isinstance(part, int)][:1]
            text = "".join(part for part in parts[:1] if isinstance(part, str) and ends)
            if text.isspace():
                self._closing, text = text, ""  # tokenized together with the answer
            ids = [*self._ids_behind(".", [_Piece(text)]), *ends]
        self.separator = ids[: ids.index(self.eos_id)] if self.eos_id in ids else ids
        return ends

    def _ends_of_answers(self, ids: Iterable[int]) -> set[int]:
        """Return the control tokens in `ids`: ordinary text may occur inside an answer.

        The end of a channel is left out: the channel of the answer follows it.
        """
        control = self.text_tokenizer.control
        inner = {control.get(CHANNEL_END)} if CHANNEL in control else set()
        return {*ids}.intersection(control.values()) - inner


def _around_answer(template: ChatTemplate, name: str) -> _AroundAnswer:
    """Return a chat template's text around the answer to one question.

    The header is the text that the template writes between a prompt and an answer. It closes reasoning that the prompt
    opens, because an answer inside it would be reasoning.
    """
    start, opening = template.split(("user",), add_generation_prompt=True)
    written_start, written, after = template.split(("user", "assistant"), add_generation_prompt=False)
    header = written.removeprefix(opening) if written.startswith(opening) else ""
    if reasoning := open_reasoning(opening + header):
        header += f"\n{REASONING[reasoning]}\n\n"
    elif start != written_start or not (written.startswith(opening) or opening.startswith(written)):
        log.warning(
            "%s: the chat template ends a prompt with %r, and writes %r before the answer of a conversation. "
            "Answers follow the prompt",
            name,
            start + opening,
            written_start + written,
        )
    return _AroundAnswer(start, opening, header, after)
