"""Questions to passages: a sentence encoder over a FAISS index.

n texts, D embedding size.
"""

import hashlib
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from transformers.integrations import deepspeed

from rqa.data import Example, Passage, PassageStore
from rqa.errors import InputError
from rqa.hardware import bf16_is_fast
from rqa.index import FaissIndex

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Retrieved:
    """A passage and its score; higher is better."""

    passage: Passage
    score: float


class Retriever(Protocol):
    """Whatever finds passages: two methods."""

    def retrieve(self, queries: Sequence[str], k: int) -> list[list[Retrieved]]:
        """Return for each query at most `k` distinct passages, best first."""

    def fingerprint(self) -> str:
        """Return what changes whenever an answer of `retrieve` could change."""


def query_of(example: Example, *, history_turns: int = 1) -> str:
    """Return the text to retrieve with: the question, after the last `history_turns` messages of the user before it."""
    earlier = [turn.text for turn in example.chat_history if turn.role == "user"]
    return "\n".join([*earlier[max(0, len(earlier) - history_turns) :], example.question])


class Encoder:
    """A sentence-transformers checkpoint, which knows its pooling, prompts and normalisation.

    A plain Hugging Face checkpoint is pooled by the mean. Vectors are normalised, so that inner product is cosine.
    """

    def __init__(
        self,
        name_or_path: str,
        *,
        device: torch.device,
        batch_size: int = 64,
        query_prefix: str | None = None,
        passage_prefix: str | None = None,
    ) -> None:
        try:
            with _whole_weights():
                self.model = SentenceTransformer(
                    name_or_path,
                    device=str(device),
                    trust_remote_code=False,
                    model_kwargs={"use_safetensors": True, "dtype": torch.float32},
                ).eval()
        except (OSError, ValueError) as error:
            raise InputError(f"{name_or_path}: neither a checkpoint folder nor a model of the hub ({error})") from error
        self.device = device
        self.batch_size = batch_size
        prompts: dict[str, str | None] = self.model.prompts
        own_query, own_passage = prompts.get("query"), prompts.get("document") or prompts.get("passage")
        self.query_prefix = query_prefix if query_prefix is not None else own_query or ""
        self.passage_prefix = passage_prefix if passage_prefix is not None else own_passage or ""
        log.info(
            "encoder %s: before queries %r, before passages %r", name_or_path, self.query_prefix, self.passage_prefix
        )

    def encode_queries(self, queries: Sequence[str]) -> np.ndarray:
        """Return (n, D) float32. Queries are few and decide the ranking: always computed in float32."""
        return self._encode(queries, self.query_prefix, nullcontext(), progress=False)

    def encode_passages(self, passages: Sequence[Passage]) -> np.ndarray:
        """Return (n, D) float32, computed in bfloat16 where that is quicker."""
        quick = torch.autocast(self.device.type, torch.bfloat16, enabled=bf16_is_fast(self.device))
        return self._encode([passage.content for passage in passages], self.passage_prefix, quick, progress=True)

    def _encode(
        self, texts: Sequence[str], prefix: str, precision: AbstractContextManager[object], *, progress: bool
    ) -> np.ndarray:
        progress = progress and sys.stderr.isatty()
        with precision:
            embedded = self.model.encode(  # sorts by length inside
                list(texts), prompt=prefix, batch_size=self.batch_size, show_progress_bar=progress
            )
        vectors: np.ndarray = np.asarray(embedded, dtype=np.float32)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)  # normalised in bfloat16 they differ by up to 1 %
        np.divide(vectors, lengths, where=lengths > 0, out=vectors)
        return vectors

    def fingerprint(self) -> str:
        """Return a hash of modules, longest input and weights: a checkpoint in another folder is the same encoder."""
        digest = hashlib.sha256(f"{self.model!r} {self.model.max_seq_length}".encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()


@contextmanager
def _whole_weights() -> Iterator[None]:
    """Load a model that DeepSpeed does not shard: under ZeRO-3 transformers would load it with empty weights."""
    config = deepspeed._hf_deepspeed_config_weak_ref
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = config


class DenseRetriever:
    """Retrieves by cosine between the embeddings of query and passage."""

    def __init__(self, passages: PassageStore, encoder: Encoder, index: FaissIndex) -> None:
        self.passages = passages
        self.encoder = encoder
        self.index = index

    def retrieve(self, queries: Sequence[str], k: int) -> list[list[Retrieved]]:
        """Return for each query at most `k` distinct passages, best first, equal scores in the corpus' order."""
        if not queries:
            return []
        scores, rows = self.index.search(self.encoder.encode_queries(queries), k)
        return [
            [
                Retrieved(self.passages[row], score)
                for row, score in zip(row_list, score_list, strict=True)
                if row >= 0  # FAISS fills up with -1 where it finds fewer than k
            ]
            for row_list, score_list in zip(rows.tolist(), scores.tolist(), strict=True)
        ]

    def fingerprint(self) -> str:
        """Return the corpus', the index's, which holds the vectors that the encoder made, and the prefix of queries."""
        corpus, index = self.passages.fingerprint[:16], self.index.fingerprint[:16]
        return f"corpus {corpus} index {index} query_prefix {self.encoder.query_prefix!r}"


def open_retriever(
    passages: PassageStore,
    embedding_model: str,
    index_path: Path,
    *,
    device: torch.device,
    query_prefix: str | None = None,
    passage_prefix: str | None = None,
    index_factory: str = "Flat",
    embedding_batch_size: int = 64,
) -> DenseRetriever:
    """Return a retriever over `passages`: the index at `index_path`, which is built there where there is none.

    Raises StaleIndexError where the index there was built from other passages or with another encoder.
    """
    encoder = Encoder(
        embedding_model,
        device=device,
        batch_size=embedding_batch_size,
        query_prefix=query_prefix,
        passage_prefix=passage_prefix,
    )
    provenance = {
        "corpus": passages.fingerprint,
        "encoder": encoder.fingerprint(),
        "query_prefix": encoder.query_prefix,
        "passage_prefix": encoder.passage_prefix,
        "factory": index_factory,
    }
    try:
        index = FaissIndex.load(index_path, provenance=provenance)
    except FileNotFoundError:
        log.info("building the index of %d passages in %s", len(passages), index_path)
        index = FaissIndex.build(encoder.encode_passages(passages), index_factory)
        index.save(index_path, provenance=provenance)
    return DenseRetriever(passages, encoder, index)
