"""Flags of the corpus and of retrieval."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rqa.cli.parser import at_least, flag, options, require, require_package
from rqa.endpoint.address import check_key_name, endpoint_of, is_url
from rqa.errors import InputError

RetrieverKind = Literal["dense", "bm25", "hybrid"]


@dataclass(frozen=True)
class CorpusArgs:
    """The corpus, and the folder of its index."""

    full_dataset_file_path: str = flag(
        "",
        "the corpus of passages: .jsonl, .tsv (both also .gz), .parquet, LocalRQA's document.pkl, or a folder of these",
        "document_path",
        is_path=True,
    )
    full_dataset_index_path: str = flag(
        "", "folder of the index and of the cached corpus; built if it does not exist", "index_path", is_path=True
    )
    text_field: str | None = flag(None, "text of a row of the corpus; default: page_content, for columns also text")
    title_field: str | None = flag(None, "title of a row of the corpus; default: metadata.title, for columns title")

    @property
    def corpus_options(self) -> dict[str, Any]:
        """Keyword arguments of `open_passages`; the corpus is cached in the folder of the index."""
        folder = self.full_dataset_index_path
        cache_dir = Path(folder, "corpus") if folder else None
        return {
            "path": self.full_dataset_file_path,
            "cache_dir": cache_dir,
            **options(self, "text_field", "title_field"),
        }


@dataclass(frozen=True)
class IndexArgs(CorpusArgs):
    """The corpus, its index, and the retriever."""

    retriever: RetrieverKind = flag(
        "dense", "dense: --embedding_model; bm25: words (needs bm25s); hybrid: both, their ranks added"
    )
    embedding_model: str = flag(
        "",
        "checkpoint folder or hub name of the sentence encoder; empty: the passages of the questions (ctxs) are read",
        "embedding_model_name_or_path",
        "eval_embedding_model",
        is_path=True,
    )
    query_encoder: str = flag(
        "",
        "checkpoint folder or hub name of the encoder of queries, such as that of a DPR pair; empty: --embedding_model",
        is_path=True,
    )
    query_prefix: str | None = flag(
        None, 'text before each query ("query: " for E5); default: the prompt in the checkpoint'
    )
    passage_prefix: str | None = flag(
        None, 'text before each passage ("passage: " for E5); default: the prompt in the checkpoint'
    )
    index_factory: str = flag(
        "auto",
        "FAISS index factory; Flat is exact; auto: that of an existing index, else Flat up to 200,000 passages, then "
        "IVF with SQ8; with --store: Flat, or HNSW32, which auto takes above 200,000 passages",
    )
    nprobe: int | None = flag(None, "lists that a search of an IVF index reads; default: as many as recall needed")
    ef_search: int | None = flag(
        None, "candidates that a search of an HNSW index keeps; default: as many as recall needed"
    )
    store: str = flag(
        "", "Milvus that holds the vectors: http(s)://HOST:PORT, or a folder; empty: an index of FAISS", is_path=True
    )
    store_key_name: str = flag("MILVUS_TOKEN", "environment variable that holds the key of --store")
    embedding_batch_size: int = flag(64, "texts embedded, or reranked, at a time")
    bm25_stemmer: str = flag("", "language of the stemmer of bm25, such as english or german; empty: whole words")
    reranker_model: str = flag(
        "", "checkpoint folder or hub name of a cross-encoder that orders the passages again; empty: none", is_path=True
    )
    rerank_top: int = flag(50, "passages of a question that --reranker_model reads; at least those retrieved")

    def check(self) -> None:
        """Raise InputError for values that are not allowed."""
        at_least(self, 1, "embedding_batch_size", "rerank_top", "nprobe", "ef_search")
        if self.query_encoder and (self.retriever == "bm25" or not self.embedding_model):
            raise InputError(f"--query_encoder {self.query_encoder}: no effect without vectors: --embedding_model")
        if self.retriever == "hybrid":
            require(self, "embedding_model")
        self._check_store()
        if self.retriever == "dense" and self.bm25_stemmer:
            raise InputError(f"--bm25_stemmer {self.bm25_stemmer}: no effect with --retriever dense. Remove it")
        if self.retriever != "dense":
            require_package(f"--retriever {self.retriever}", "bm25s", "bm25")
        if self.bm25_stemmer:
            require_package("--bm25_stemmer", "Stemmer", "bm25")
        if self.has_retriever:
            require(self, "full_dataset_file_path", "full_dataset_index_path")
        elif self.reranker_model:
            raise InputError("--reranker_model: expected --embedding_model or --retriever bm25 too, got neither")

    def _check_store(self) -> None:
        if not self.store:
            if self.store_key_name != IndexArgs.store_key_name:
                raise InputError(f"--store_key_name {self.store_key_name}: no effect without --store. Remove it")
            return
        if self.retriever == "bm25" or not self.embedding_model:
            raise InputError(f"--store {self.store}: no effect without vectors: --embedding_model, dense or hybrid")
        check_key_name("--store_key_name", self.store_key_name)
        if is_url(self.store):
            endpoint_of(self.store, "--store")
        elif re.fullmatch(r"[\w.-]+:\d+", self.store):
            raise InputError(f"--store: expected http(s)://HOST:PORT or a folder, got {self.store}")
        else:
            require_package("--store", "milvus_lite", "milvus")
        require_package("--store", "pymilvus", "milvus")
        if self.nprobe:
            raise InputError(f"--nprobe {self.nprobe}: no effect with --store. Remove it")
        if not re.fullmatch(r"auto|Flat|HNSW\d+", self.index_factory):
            raise InputError(f"--index_factory: expected auto, Flat or HNSW32 with --store, got {self.index_factory}")

    @property
    def has_retriever(self) -> bool:
        """True if passages are retrieved from the corpus."""
        return bool(self.embedding_model) or self.retriever != "dense"

    def require_retriever(self) -> None:
        """Raise InputError if there is no retriever, or no corpus and index."""
        if not self.has_retriever:
            require(self, "embedding_model")
        require(self, "full_dataset_file_path", "full_dataset_index_path")

    @property
    def retriever_options(self) -> dict[str, Any]:
        """Keyword arguments of `open_retriever`."""
        dense = ("index_factory", "nprobe", "ef_search", "embedding_batch_size")
        further = ("retriever", "bm25_stemmer", "reranker_model", "rerank_top", "store", "store_key_name")
        names = ("embedding_model", "query_encoder", "query_prefix", "passage_prefix", *dense, *further)
        return {"index_path": self.full_dataset_index_path, **options(self, *names)}


@dataclass(frozen=True)
class BuildArgs(IndexArgs):
    """The index to build."""

    index_queries: str = flag(
        "",
        "file of examples whose questions measure the recall of an index that is not Flat, which may exist; "
        "default: the first sentences of passages",
        is_path=True,
    )
    rebuild: bool = flag(False, "replace an index of other inputs; passages embedded before are not embedded again")
    verify: bool = flag(False, "compare the whole corpus with that of its first opening, in place of samples")

    def check(self) -> None:
        """Raise InputError for values that are not allowed."""
        super().check()
        self.require_retriever()
        if self.rebuild and self.store:
            raise InputError("--rebuild true: no effect with --store: another corpus is another collection. Remove it")
        if self.index_queries and (self.retriever == "bm25" or self.store):
            raise InputError(f"--index_queries {self.index_queries}: no effect without an index of FAISS. Remove it")


@dataclass(frozen=True)
class SearchArgs(IndexArgs):
    """The frozen retriever, and its queries."""

    query_history: int = flag(1, "user messages before the question that are part of the query")

    def check(self) -> None:
        """Raise InputError for values that are not allowed."""
        super().check()
        at_least(self, 0, "query_history")

    @property
    def search_options(self) -> dict[str, Any]:
        """Keyword arguments of `retrieve_splits`; results are cached in the folder of the index."""
        return {"history_turns": self.query_history, "cache_dir": Path(self.full_dataset_index_path, "retrieved")}


@dataclass(frozen=True)
class RetrievalArgs(SearchArgs):
    """The frozen retriever, and how many passages it retrieves."""

    embedding_max_num_to_retrieve: int = flag(3, "passages to retrieve for a question, and to read at inference")

    def check(self) -> None:
        """Raise InputError for values that are not allowed."""
        super().check()
        at_least(self, 1, "embedding_max_num_to_retrieve")
