"""Flags of data, retrieval and prompts."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from rqa.cli.parser import at_least, flag, options, require, require_package
from rqa.data.jsonl import parse_object
from rqa.data.passage_selection import REFUSAL_ANSWER, Order
from rqa.endpoint.address import check_key_name, endpoint_of, is_url
from rqa.errors import InputError
from rqa.prompts.chat_template import TEMPLATE_DATE
from rqa.prompts.decoder_prompt import INSTRUCTION, ChatFormat

RetrieverKind = Literal["dense", "bm25", "hybrid"]


@dataclass(frozen=True)
class RowArgs:
    """The rows of the files of examples."""

    max_bad_rows: int = flag(0, "rows with problems that are left out of each file of examples; more are an error")

    def check(self) -> None:
        """Raise InputError for values that are not allowed."""
        at_least(self, 0, "max_bad_rows")


@dataclass(frozen=True)
class DataArgs(RowArgs):
    """The files of examples."""

    train_file: str = flag("", "training examples: .jsonl, .jsonl.gz or .json", is_path=True)
    eval_file: str = flag(
        "", "validation examples, evaluated every --eval_steps steps; empty: no validation", is_path=True
    )
    test_file: str = flag(
        "", "test examples, evaluated once, after training; empty: no test", "eval_data_path", is_path=True
    )

    def check(self) -> None:
        """Raise InputError for values that are not allowed."""
        super().check()
        require(self, "train_file")

    @property
    def paths(self) -> Sequence[str]:
        """The three files, in the order train, eval, test."""
        return self.train_file, self.eval_file, self.test_file


@dataclass(frozen=True)
class IndexArgs:
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
    def corpus_options(self) -> dict[str, Any]:
        """Keyword arguments of `open_passages`; the corpus is cached in the folder of the index."""
        folder = self.full_dataset_index_path
        cache_dir = Path(folder, "corpus") if folder else None
        return {
            "path": self.full_dataset_file_path,
            "cache_dir": cache_dir,
            **options(self, "text_field", "title_field"),
        }

    @property
    def retriever_options(self) -> dict[str, Any]:
        """Keyword arguments of `open_retriever`."""
        dense = ("index_factory", "nprobe", "ef_search", "embedding_batch_size")
        further = ("retriever", "bm25_stemmer", "reranker_model", "rerank_top", "store", "store_key_name")
        names = ("embedding_model", "query_prefix", "passage_prefix", *dense, *further)
        return {"index_path": self.full_dataset_index_path, **options(self, *names)}


@dataclass(frozen=True)
class BuildArgs(IndexArgs):
    """The index to build."""

    rebuild: bool = flag(False, "replace an index of other inputs; passages embedded before are not embedded again")
    verify: bool = flag(False, "compare the whole corpus with that of its first opening, in place of samples")

    def check(self) -> None:
        """Raise InputError for values that are not allowed."""
        super().check()
        self.require_retriever()
        if self.rebuild and self.store:
            raise InputError("--rebuild true: no effect with --store: another corpus is another collection. Remove it")


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


def row_options(files: RowArgs, search: IndexArgs, prompt: "_TextArgs", *, is_sft: bool = False) -> dict[str, Any]:
    """Return keyword arguments of `load_splits`. With a retriever, only the training file of SFT needs `gold_docs`."""
    required = not search.has_retriever
    by_split = (True, required, required)
    own = options(files, "max_bad_rows")
    return {"gold_required": by_split if is_sft else required, **own, **prompt.speakers}


@dataclass(frozen=True)
class PassageArgs:
    """The passages that a training example reads."""

    passage_order: Order = flag("ranked", "order of gold and retrieved passages in training")
    gold_dropout: float = flag(0.0, "share of examples that read no gold passage; their answer is --refusal_answer")
    hard_negatives: int = flag(0, "hard negatives of its own that an example reads")
    refusal_answer: str = flag(REFUSAL_ANSWER, "the answer if the passages do not contain one")

    def check(self) -> None:
        """Raise InputError for values that are not allowed."""
        at_least(self, 0, "hard_negatives")
        if not 0 <= self.gold_dropout <= 1:
            raise InputError(f"--gold_dropout: expected a share from 0 to 1, got {self.gold_dropout}")

    @property
    def refusal_options(self) -> dict[str, Any]:
        """Keyword arguments of `Collator.check`."""
        return options(self, "gold_dropout", "refusal_answer")

    @property
    def selection_options(self) -> dict[str, Any]:
        """Keyword arguments of `select_passages`."""
        return options(self, "passage_order", "gold_dropout", "hard_negatives", "refusal_answer")


@dataclass(frozen=True)
class _TextArgs:
    """The flags that the prompts of decoders and of fusion-in-decoder share."""

    user_prefix: str | None = flag(
        None, "text before the user's turns; default: the chat template, for fusion-in-decoder: user"
    )
    assistant_prefix: str | None = flag(None, "text before the assistant's turns; only together with --user_prefix")
    max_answer_length: int = flag(512, "tokens of an answer; a longer one in the training file is an error")
    max_new_tokens: int | None = flag(None, "tokens to generate at most; default: --max_answer_length")
    citations: bool = flag(False, 'answers cite passages by number: "[1]" in an answer is the first of its gold_docs')

    def check(self) -> None:
        """Raise InputError for values that are not allowed."""
        at_least(self, 1, "max_answer_length", "max_new_tokens")
        if (self.user_prefix is None) != (self.assistant_prefix is None):
            raise InputError("--user_prefix and --assistant_prefix: expected both or neither, got one")

    @property
    def generation_limit(self) -> int:
        """Tokens to generate at most."""
        return self.max_answer_length if self.max_new_tokens is None else self.max_new_tokens

    @property
    def speakers(self) -> dict[str, str | None]:
        """Keyword arguments of `load_examples`: further names of the speakers in a chat history."""
        return options(self, "user_prefix", "assistant_prefix")


@dataclass(frozen=True)
class PromptArgs(_TextArgs):
    """The prompt of a decoder."""

    sep_user: str = flag(" ", "text after the user's turns; only with --user_prefix")
    sep_sys: str = flag("", "text after the assistant's turns; only with --user_prefix")
    instruction: str = flag(INSTRUCTION, "text before the passages; the default asks for citations if --citations")
    max_prompt_length: int = flag(2048, "tokens of a prompt; passages are truncated to fit, the last ranked first")
    chat_template_kwargs: str = flag(
        "",
        "JSON object of variables for the chat template; default: its switch for thinking, if it has one, is false",
        is_json=True,
    )
    chat_template_date: str = flag(TEMPLATE_DATE, "the date that the chat template writes, as YYYY-MM-DD")

    def check(self) -> None:
        """Raise InputError for values that are not allowed."""
        super().check()
        at_least(self, 1, "max_prompt_length")
        default = ChatFormat("", "")
        if self.user_prefix is None and (self.sep_user, self.sep_sys) != (default.sep_user, default.sep_sys):
            raise InputError("--sep_user and --sep_sys: expected --user_prefix and --assistant_prefix too, got neither")
        self._check_chat_template()

    def _check_chat_template(self) -> None:
        for name, default in (("chat_template_kwargs", ""), ("chat_template_date", TEMPLATE_DATE)):
            if self.user_prefix is not None and getattr(self, name) != default:
                raise InputError(f"--{name}: expected a chat template, got --user_prefix, which replaces it")
        try:
            datetime.strptime(self.chat_template_date, "%Y-%m-%d")
        except ValueError as error:
            date = self.chat_template_date
            raise InputError(f"--chat_template_date: expected a date such as {TEMPLATE_DATE}, got {date!r}") from error
        self._chat_template_variables()

    def _chat_template_variables(self) -> dict[str, Any]:
        try:
            return parse_object(self.chat_template_kwargs.encode()) if self.chat_template_kwargs else {}
        except ValueError as problem:
            raise InputError(f"--chat_template_kwargs: expected a JSON object: {problem}") from problem

    @property
    def chat(self) -> ChatFormat | None:
        """The chat format of the prefixes, or None: the chat template of the tokenizer."""
        if self.user_prefix is None or self.assistant_prefix is None:
            return None
        return ChatFormat(self.user_prefix, self.assistant_prefix, self.sep_user, self.sep_sys)

    @property
    def collator_options(self) -> dict[str, Any]:
        """Keyword arguments of `load_collator`."""
        names = ("chat", "instruction", "max_prompt_length", "max_answer_length", "chat_template_date", "citations")
        variables = {"chat_template_kwargs": self._chat_template_variables()}
        return {"max_new_tokens": self.generation_limit, **variables, **options(self, *names)}


@dataclass(frozen=True)
class FidPromptArgs(_TextArgs):
    """The texts that fusion-in-decoder reads, and the batch size of its encoder."""

    max_passage_length: int = flag(512, "tokens of history, question and one passage; the passage is truncated to fit")
    encoder_batch_size: int | None = flag(
        None, "passages in one encoder call: fewer need less memory and more time; default: the fastest"
    )

    def check(self) -> None:
        """Raise InputError for values that are not allowed."""
        super().check()
        at_least(self, 1, "max_passage_length", "encoder_batch_size")

    @property
    def collator_options(self) -> dict[str, Any]:
        """Keyword arguments of `load_collator`."""
        speakers = (self.user_prefix or "user", self.assistant_prefix or "assistant")
        own = options(self, "max_passage_length", "max_answer_length", "citations")
        return {"is_fid": True, "speakers": speakers, "max_new_tokens": self.generation_limit, **own}


@dataclass(frozen=True)
class GeneratorArgs(PromptArgs, FidPromptArgs):
    """A trained generator of either kind, and its prompts."""

    model_name_or_path: str = flag(
        "", "checkpoint folder or hub name of the generator", "qa_model_name_or_path", is_path=True
    )
    qa_is_fid: bool = flag(False, "the generator is an encoder-decoder for fusion-in-decoder")
    bf16: bool | None = flag(None, "bfloat16 autocast, true or false; default: true if the device is fast in it")
    use_flash_attention: bool = flag(False, "flash attention 2 (needs CUDA and the package flash-attn)")
    device_map: Literal["none", "auto"] = flag(
        "none", "auto: one process spreads the layers over its GPUs, and the rest over CPU memory and disk"
    )
    load_in_4bit: bool = flag(False, "hold the weights of linear layers in 4 bits (needs bitsandbytes)")

    @property
    def attention_options(self) -> dict[str, bool]:
        """Keyword arguments of `attention_for`."""
        return {"is_fid": self.qa_is_fid, "use_flash_attention": self.use_flash_attention}

    @property
    def load_options(self) -> dict[str, Any]:
        """Keyword arguments of `load_generator`."""
        device_map = None if self.device_map == "none" else self.device_map
        own = options(self, "encoder_batch_size", "load_in_4bit")
        return {"is_fid": self.qa_is_fid, "device_map": device_map, **own}

    def check(self) -> None:
        """Raise InputError for values that are not allowed."""
        super().check()
        processes = os.environ.get("WORLD_SIZE", "1")
        if self.device_map != "none" and processes != "1":
            raise InputError(
                f"--device_map {self.device_map}: expected one process, which uses all GPUs, got {processes}. "
                "Launch with `python recipes/evaluate.py …`"
            )
        default = type(self)()
        kind, other = (FidPromptArgs, PromptArgs) if self.qa_is_fid else (PromptArgs, FidPromptArgs)
        unused = other.__dataclass_fields__.keys() - kind.__dataclass_fields__
        if changed := sorted(name for name in unused if getattr(self, name) != getattr(default, name)):
            is_fid, flags = str(self.qa_is_fid).lower(), ", --".join(changed)
            raise InputError(f"--qa_is_fid {is_fid}: --{flags} would have no effect. Remove it")
        if self.load_in_4bit:
            require_package("--load_in_4bit", "bitsandbytes", "quantized")

    @property
    def collator_options(self) -> dict[str, Any]:
        """Keyword arguments of `load_collator`."""
        return super(PromptArgs, self).collator_options if self.qa_is_fid else super().collator_options
