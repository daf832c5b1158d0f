"""BM25: passages that share rare words with the query (Robertson and Zaragoza, 2009), by the library bm25s.

bm25s computes the scores when the index is built (Lù, 2024, arXiv:2407.03618). Words are runs of two or more letters,
digits and underscores, in lower case. bm25s is imported inside functions: it is an extra.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rqa.atomic_files import atomic_folder, checksums, folder_lock, read_manifest, write_manifest
from rqa.data.corpus import PassageStore
from rqa.errors import InputError
from rqa.retrieval.index import OTHER_PATH
from rqa.retrieval.retrieve import CorpusRetriever
from rqa.terminal import Progress, plural, track
from rqa.timing import Stopwatch

log = logging.getLogger(__name__)

FORMAT = 1  # of the folder
K1, B = 1.5, 0.75  # saturation of repeated words, weight of the length: the defaults of bm25s


class BM25Retriever(CorpusRetriever):
    """Retrieves by BM25 over title and text. A passage without a word of the query is not retrieved."""

    def __init__(self, passages: PassageStore, index: Any, stemmer: str, fingerprint: str) -> None:
        super().__init__(passages)
        self._index, self._fingerprint, self._words = index, fingerprint, word_splitter(stemmer)

    def search(self, queries: Sequence[str], k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return rows (n, k) and scores (n, k), as `CorpusRetriever`."""
        rows, scores = np.full((len(queries), k), -1, np.int64), np.full((len(queries), k), -np.inf, np.float32)
        watch = Stopwatch()
        for i, query in enumerate(track(queries, "searching words", unit="queries")):
            own_rows, own_scores = best(self.scores(query), k)
            rows[i, : len(own_rows)], scores[i, : len(own_rows)] = own_rows, own_scores
            watch.lap("bm25", 1)
        return rows, scores

    def scores(self, query: str) -> NDArray[np.float32]:
        """Return the score of every passage (n,). A word that occurs twice in the query counts twice."""
        known = [word for word in self._words([query])[0] if word in self._index.vocab_dict]
        if not known:
            return np.zeros(len(self.passages), np.float32)
        scores: NDArray[np.float32] = self._index.get_scores(known)
        return scores

    def fingerprint(self) -> str:
        """Return the fingerprint of the corpus and of the settings of the index."""
        return f"bm25 {self._fingerprint}"


def best(scores: NDArray[np.float32], k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the rows and scores of the `k` largest positive scores, best first; ties are in order of row."""
    rows = np.flatnonzero(scores > 0)
    if len(rows) > k:
        rows = rows[scores[rows] >= np.partition(scores[rows], len(rows) - k)[len(rows) - k]]
    rows = rows[np.argsort(-scores[rows], kind="stable")][:k]
    return rows, scores[rows]


def word_splitter(stemmer: str) -> Callable[[Sequence[str]], list[list[str]]]:
    """Return a function from texts to words, reduced to their stems if `stemmer` is a language of Snowball."""
    from bm25s import tokenize

    stem = None
    if stemmer:
        from Stemmer import Stemmer, algorithms

        if stemmer not in algorithms():
            raise InputError(f"--bm25_stemmer: expected one of {', '.join(algorithms())}, got {stemmer!r}")
        stem = Stemmer(stemmer)

    def split(texts: Sequence[str]) -> list[list[str]]:
        words: list[list[str]] = tokenize(
            [*texts], stopwords=None, stemmer=stem, return_ids=False, show_progress=False, allow_empty=True
        )
        return words

    return split


def open_bm25_retriever(passages: PassageStore, index_path: str | Path, *, stemmer: str = "") -> BM25Retriever:
    """Return a retriever over `passages` with the BM25 index in a folder of `index_path`; it is built if missing.

    The name of that folder contains a hash of corpus and settings, so that an index of other inputs is never opened.
    A damaged one is built again. One process builds, others wait.
    """
    import bm25s

    settings = [FORMAT, bm25s.__version__, passages.fingerprint, stemmer, K1, B]
    fingerprint = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]
    folder = Path(index_path, f"bm25-{fingerprint}")
    with folder_lock(Path(index_path), "the index", OTHER_PATH):
        if not _is_sound(folder):
            log.info("%s: building the BM25 index of %s", folder, plural(len(passages), "passage"))
            with atomic_folder(folder) as partial:
                _build(passages, word_splitter(stemmer)).save(partial, show_progress=False)
                files = sorted(partial.iterdir())
                names = [file.name for file in files]
                write_manifest(partial / "manifest.json", {"files": dict(zip(names, checksums(files), strict=True))})
    index = bm25s.BM25.load(folder, mmap=True, show_progress=False)
    log.info("%s: %s", folder, plural(len(index.vocab_dict), "word"))
    return BM25Retriever(passages, index, stemmer, fingerprint)


def _is_sound(folder: Path) -> bool:
    """Return True if a complete index is in `folder`."""
    if not folder.exists():
        return False
    try:
        files: dict[str, str] = read_manifest(folder / "manifest.json")["files"]
        with Progress("verifying the BM25 index"):
            if checksums([folder / name for name in files]) == [*files.values()]:
                return True
        problem = "its bytes were changed"
    except (OSError, ValueError, KeyError) as error:
        problem = str(error)
    log.warning("%s: damaged (%s); the BM25 index is built again", folder, problem)
    return False


def _build(passages: PassageStore, split: Callable[[Sequence[str]], list[list[str]]]) -> Any:
    """Return a BM25 index; memory holds 8 bytes a word of the corpus, then 8 bytes a distinct word of a passage."""
    from bm25s import BM25

    logging.getLogger("bm25s").setLevel(logging.INFO)  # its import sets DEBUG
    vocabulary: dict[str, int] = {}
    rows = [
        [vocabulary.setdefault(word, len(vocabulary)) for word in split([passage.content])[0]]
        for passage in track(passages, "reading words", unit="passages")
    ]
    if not vocabulary:
        raise InputError("--retriever: expected passages with words of two or more letters, got none")
    index = BM25(k1=K1, b=B)
    with Progress("building the BM25 index"):
        index.index((rows, vocabulary), create_empty_token=False, show_progress=False)
    return index
