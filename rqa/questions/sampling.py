"""The documents of a corpus, each in one split, and the order in which their passages are asked about."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, zip_longest
from typing import Literal

from rqa.data.records import Passage
from rqa.data.words import words
from rqa.errors import InputError
from rqa.terminal import plural, track

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
MIN_PASSAGE_WORDS = 20  # shorter ones are headings, captions, navigation


class PassageSampler:
    """Passages of each split, in the order in which they are asked about: a function of `seed` and their texts.

    No document is in two splits. `shares` are those of the passages; a split with a share has at least one document.
    With `by_document` False each passage is a document. Every document of a split gives its first passage before one
    gives its second, so that long documents do not prevail. Passages of fewer than MIN_PASSAGE_WORDS words are left
    out, `num_short` is their number. Raises InputError if there are fewer documents than splits.
    """

    def __init__(
        self, passages: Sequence[Passage], shares: Mapping[Split, float], *, seed: int, by_document: bool = True
    ) -> None:
        self._passages, self.num_passages = passages, len(passages)
        documents = _Documents()
        rows: list[tuple[str, str, int]] = []  # (name of a document, rank in it, row)
        for row, passage in enumerate(track(passages, "reading the corpus", unit="passages")):
            if _has_words(passage.text, MIN_PASSAGE_WORDS):
                names = document_names(passage) if by_document else [passage.id]
                rows.append((documents.join(names), _digest(seed, passage.id), row))
        self.num_short = len(passages) - len(rows)
        by_name: dict[str, list[tuple[str, int]]] = {}
        for name, rank, row in rows:
            by_name.setdefault(documents.find(name), []).append((rank, row))
        splits = _deal({name: len(items) for name, items in by_name.items()}, shares, seed)
        self.num_documents = {split: len(names) for split, names in splits.items()}
        self._rows = {
            split: _one_of_each([[row for _, row in sorted(by_name[name])] for name in names])
            for split, names in splits.items()
        }

    def take(self, split: Split) -> Passage | None:
        """Return the next passage of a split, None after the last."""
        row = next(self._rows[split], None)
        return None if row is None else self._passages[row]


def document_names(passage: Passage) -> list[str]:
    """Return the names of the documents that contain a passage.

    They are its sources without the part after "#", or else the first part of its title, or else its id.
    """
    if passage.sources:
        return [source.partition("#")[0] or source for source in passage.sources]
    return [passage.title.partition(" > ")[0] or passage.id]


class _Documents:
    """Sets of names that are one document, because they share a passage."""

    def __init__(self) -> None:
        self._parents: dict[str, str] = {}

    def find(self, name: str) -> str:
        """Return the name that stands for the document."""
        root = name
        while (parent := self._parents.setdefault(root, root)) != root:
            root = parent
        while name != root:
            self._parents[name], name = root, self._parents[name]
        return root

    def join(self, names: Sequence[str]) -> str:
        """Make one document of the names, and return a name of it. The smallest name stands for it, in any order."""
        roots = {self.find(name) for name in names}
        root = min(roots)
        for each in roots:
            self._parents[each] = root
        return root


def _deal(sizes: Mapping[str, int], shares: Mapping[Split, float], seed: int) -> dict[Split, list[str]]:
    """Return the documents of each split, in random order.

    They fill test, then validation, up to the share of the passages, as far as they fit. The rest is train.
    """
    wanted = [split for split in SPLITS if shares[split] > 0]
    if len(sizes) < len(wanted):
        raise InputError(
            f"corpus: expected at least {plural(len(wanted), 'document')} with passages of {MIN_PASSAGE_WORDS} words, "
            f"one for each of {', '.join(wanted)}, got {len(sizes)}. Documents that share a passage count as one. "
            "Set --validation_share and --test_share to 0, or --split_by passage"
        )
    rest = sorted(sizes, key=lambda name: _digest(seed, name))
    total, splits = sum(sizes.values()), dict[Split, list[str]]()
    for num_left in range(len(wanted) - 1, 0, -1):  # splits after this one
        split, room = wanted[num_left], shares[wanted[num_left]] * total
        chosen = dict[str, None]()
        for name in rest:
            if sizes[name] <= room and len(chosen) < len(rest) - num_left:
                chosen[name] = None
                room -= sizes[name]
        chosen = chosen or {min(rest, key=lambda name: sizes[name]): None}
        splits[split] = list(chosen)
        rest = [name for name in rest if name not in chosen]
    return {wanted[0]: rest, **splits}


def _one_of_each(documents: Sequence[Sequence[int]]) -> Iterator[int]:
    """Yield the first rows of all documents, then the second ones, and so on."""
    return (row for row in chain.from_iterable(zip_longest(*documents)) if row is not None)


def _digest(seed: int, text: str) -> str:
    return hashlib.sha256(f"{seed} {text}".encode()).hexdigest()


def _has_words(text: str, least: int) -> bool:
    return len(text.split(maxsplit=least)) >= least or len(words(text)) >= least
