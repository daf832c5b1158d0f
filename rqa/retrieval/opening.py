"""The retriever of a run, by its flags."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator

from rqa.data.corpus import PassageStore
from rqa.errors import InputError
from rqa.retrieval.bm25 import open_bm25_retriever
from rqa.retrieval.dense import open_dense_retriever
from rqa.retrieval.hybrid import HybridRetriever
from rqa.retrieval.milvus import open_milvus_retriever
from rqa.retrieval.rerank import Reranker, RerankingRetriever
from rqa.retrieval.retrieve import CorpusRetriever

log = logging.getLogger(__name__)


def open_retriever(
    passages: PassageStore,
    embedding_model: str,
    index_path: str | Path,
    *,
    device: torch.device,
    retriever: Literal["dense", "bm25", "hybrid"] = "dense",
    query_encoder: str = "",
    query_prefix: str | None = None,
    passage_prefix: str | None = None,
    index_factory: str = "auto",
    nprobe: int | None = None,
    ef_search: int | None = None,
    embedding_batch_size: int = 64,
    bm25_stemmer: str = "",
    reranker_model: str = "",
    rerank_top: int = 50,
    store: str = "",
    store_key_name: str = "MILVUS_TOKEN",
    accelerator: Accelerator | None = None,
    rebuild: bool = False,
    recall_queries: Sequence[str] = (),
) -> CorpusRetriever:
    """Return a retriever over `passages` with its indexes in `index_path`, and its vectors in `store` if that is set.

    `recall_queries` measure the recall of an index of FAISS; see `open_dense_retriever`.

    If there is no index, this process builds it and others wait. With an `accelerator` every process calls this, and
    all of them embed. Raises StaleIndexError if the index of vectors was built from other passages or with another
    encoder, unless `rebuild` replaces it, and InputError if the folder cannot hold an index, or if a checkpoint is of
    another kind.
    """
    reranker = None
    if reranker_model:  # opened first: its errors come before anything is embedded
        reranker = Reranker(reranker_model, device=device, batch_size=embedding_batch_size)
    parts: list[CorpusRetriever] = []
    if retriever != "bm25":
        common: dict[str, Any] = {
            "device": device,
            "query_encoder": query_encoder,
            "query_prefix": query_prefix,
            "passage_prefix": passage_prefix,
            "index_factory": index_factory,
            "ef_search": ef_search,
            "embedding_batch_size": embedding_batch_size,
        }
        if store:
            if accelerator and accelerator.num_processes > 1:
                raise InputError(f"--store: expected one process, which embeds, got {accelerator.num_processes}")
            common |= {"store": store, "key_name": store_key_name}
            dense = open_milvus_retriever(passages, embedding_model, index_path, **common)
        else:
            common |= {"nprobe": nprobe, "accelerator": accelerator, "rebuild": rebuild}
            dense = open_dense_retriever(passages, embedding_model, index_path, recall_queries=recall_queries, **common)
        parts.append(dense)
    elif embedding_model:
        log.info("--retriever bm25: --embedding_model is not used")
    if retriever != "dense":
        parts.append(open_bm25_retriever(passages, index_path, stemmer=bm25_stemmer))
    opened = parts[0] if len(parts) == 1 else HybridRetriever(parts)
    return RerankingRetriever(opened, reranker, rerank_top) if reranker else opened
