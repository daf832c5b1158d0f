"""Text to token ids without control tokens: "<|im_end|>" in a passage is encoded as text.

Control tokens are the special tokens of a tokenizer, and added tokens that stand in the text of a template or have the
form of one: "<|fim_prefix|>". Other added tokens, such as Gemma's runs of line feeds, are normal vocabulary.
"""

import json
import re
from collections.abc import Collection, Sequence
from copy import deepcopy
from functools import cache
from typing import TYPE_CHECKING

from tokenizers import Encoding, Tokenizer
from tokenizers.models import Unigram

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CONTROL_FORM = r"<[|｜][^<>|｜\s]+[|｜]>"
Part = str | int  # a part of a template's text: ordinary text, or the id of a control token


class TextTokenizer:
    """Tokenizes text, and splits the text of templates at control tokens.

    `template` is all text of templates. `names` are further control tokens, if the tokenizer has them. `control`
    contains the ids of all control tokens by their text.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", template: str = "", names: Collection[str] = ()) -> None:
        added = {token.content: (id, token) for id, token in tokenizer.added_tokens_decoder.items()}
        form = re.compile(CONTROL_FORM)
        contents = {
            text for text, (_, token) in added.items() if token.special or text in names or form.fullmatch(text)
        }
        # Single characters, such as the braces that users add to T5's vocabulary, stand in every template.
        contents |= {text for text in added if len(text) > 1 and text in template and not text.isspace()}
        self._tokens = {text: added[text] for text in contents}
        self.control: dict[str, int] = {text: id for text, (id, _) in self._tokens.items()}
        longest_first = sorted(contents, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self._first = _text_backend(tokenizer, contents)
        self._inner = _inner_backend(self._first)
        rules = b"" if self._first.pre_tokenizer is None else self._first.pre_tokenizer.__getstate__()
        adds_spaces = b'"add_prefix_space":true' in rules or b'"prepend_scheme":"always"' in rules
        self._tokens_per_byte = 2 if adds_spaces else 1
        self.parts = cache(self._parts)  # the same few texts stand in every prompt

    def encode(self, texts: Sequence[str], *, is_inner: bool = False) -> list[Encoding]:
        """Return ids and offsets of texts, without control tokens; `is_inner` texts follow a control token."""
        backend = self._inner if is_inner else self._first
        # The tokenizer may share its backend, and sets these properties at each call. They are not set while another
        # thread may use the backend: that is an error of tokenizers.
        if not backend.encode_special_tokens or backend.truncation or backend.padding:
            backend.encode_special_tokens = True
            backend.no_truncation()
            backend.no_padding()
        return backend.encode_batch(texts, add_special_tokens=False)

    def max_tokens(self, text: str) -> int:
        """Return an upper bound of the tokens of a text, a hundred times as fast as its tokens.

        A token has at least one byte of the normalized text, or of a space that the pre-tokenizer adds.
        """
        if self._first.normalizer is not None and not text.isascii():
            text = self._first.normalizer.normalize_str(text)  # "ﷺ" becomes 18 letters in T5's
        return self._tokens_per_byte * len(text.encode()) + 2

    def template_ids(self, text: str) -> list[int]:
        """Return the ids of a template's text that follows a control token."""
        ids: list[int] = []
        for part in self.parts(text):
            ids += [part] if isinstance(part, int) else self.encode([part], is_inner=True)[0].ids
        return ids

    def _parts(self, text: str) -> tuple[Part, ...]:
        """Return a template's text, split at control tokens, without the white space that these swallow."""
        parts: list[Part] = []
        rest = text
        while match := self._pattern.search(rest):
            id, token = self._tokens[match[0]]
            before, after = rest[: match.start()], rest[match.end() :]
            parts += [before.rstrip() if token.lstrip else before, id]
            rest = after.lstrip() if token.rstrip else after
        return tuple(part for part in (*parts, rest) if part != "")


def _text_backend(tokenizer: "PreTrainedTokenizerBase", control: Collection[str]) -> Tokenizer:
    """Return a backend that encodes `control` tokens as text if special tokens are split: a copy only if it differs."""
    backend: Tokenizer = tokenizer.backend_tokenizer
    if isinstance(backend.model, Unigram):
        backend = _without_pieces(backend, control)
    added = tokenizer.added_tokens_decoder.values()
    if not_special := [token.content for token in added if token.content in control and not token.special]:
        backend = deepcopy(backend)
        backend.add_special_tokens(not_special)  # they keep their ids
    return backend


def _inner_backend(backend: Tokenizer) -> Tokenizer:
    """Return a backend for text after a control token: without a space that only the first text gets."""
    if getattr(backend.pre_tokenizer, "prepend_scheme", None) == "first":
        backend = deepcopy(backend)
        backend.pre_tokenizer.prepend_scheme = "never"
    return backend


def _without_pieces(backend: Tokenizer, control: Collection[str]) -> Tokenizer:
    """Return a copy of a Unigram tokenizer whose vocabulary lacks `control` tokens: it would find them in text.

    The other pieces keep their ids: the empty piece, which no text contains, takes the place of a control token.
    """
    state = json.loads(backend.to_str())
    vocabulary = state["model"]["vocab"]
    pieces = {piece for piece, _ in vocabulary}.intersection(control)
    state["model"]["vocab"] = [["" if piece in pieces else piece, score] for piece, score in vocabulary]
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] not in pieces]
    return Tokenizer.from_str(json.dumps(state))
