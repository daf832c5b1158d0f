"""The sentence encoder: texts to vectors. n texts, D embedding size."""

import logging
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rqa.data.records import Passage
from rqa.distributed.device import bf16_is_fast
from rqa.errors import InputError
from rqa.retrieval.encoder_checkpoint import (
    PASSAGE_PROMPTS,
    QUERY_PROMPTS,
    Side,
    checkpoint_fingerprint,
    checkpoint_folder,
    is_dpr,
    load_encoder,
    read_encoder_settings,
)
from rqa.retrieval.query_sharing import join_blocks, query_blocks, shared_embedding
from rqa.terminal import Progress
from rqa.timing import Stopwatch

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

log = logging.getLogger(__name__)

MAX_BATCH_LENGTH = 512  # tokens: of encoders with a longer limit, most texts are shorter
MAX_CPU_BATCH = 1024  # tokens: MiniLM took 4.0 s with 1,024, 4.7 with 32 texts, 6.0 with 64 texts
HALF_BATCHES = 4  # as many in a batch in bfloat16, whose matrix products (AMX) are short: 3.5 s in place of 4.8
BYTES_PER_TOKEN = 3  # in UTF-8: about 4 of English, 3 of Chinese
_QUIET: dict[str, Any] = {"show_progress_bar": False}


class Encoder:
    """A sentence-transformers checkpoint, with its pooling, prompts, similarity and dimensions.

    A plain Hugging Face checkpoint of an encoder gets mean pooling. Vectors are normalized, so that their inner product
    is the cosine, unless the checkpoint was trained for inner products (`similarity` "dot"). A checkpoint of DPR embeds
    one side; its passages have [SEP] between title and text, in one segment, as in the original. The weights are loaded
    when the first text is embedded. Raises InputError if there is no sentence encoder of `side`, or if weights are
    missing.
    """

    def __init__(
        self,
        name_or_path: str,
        *,
        device: torch.device,
        batch_size: int = 64,
        query_prefix: str | None = None,
        passage_prefix: str | None = None,
        side: Side = "both",
    ) -> None:
        self.name_or_path, self.device, self.batch_size, self.side = name_or_path, device, batch_size, side
        self.folder = checkpoint_folder(name_or_path, side=side)
        settings = read_encoder_settings(self.folder)
        self.is_dpr = is_dpr(self.folder)
        self.similarity, self.truncate_dim = "dot" if self.is_dpr else settings.similarity, settings.truncate_dim
        self.query_prefix = settings.prompt(*QUERY_PROMPTS) if query_prefix is None else query_prefix
        own_passage = settings.prompt(*PASSAGE_PROMPTS)
        self.passage_prefix = own_passage if passage_prefix is None else passage_prefix
        log.info("encoder %s: query prefix %r, passage prefix %r", name_or_path, self.query_prefix, self.passage_prefix)
        if settings.unknown_prompts and query_prefix is None:
            names = ", ".join(settings.unknown_prompts)
            log.warning("%s: its prompts %s are not used. Set --query_prefix, --passage_prefix", name_or_path, names)
        if self.similarity not in ("cosine", "dot"):
            log.warning("%s was trained for %s distances: passages are ranked by cosine", name_or_path, self.similarity)

    @cached_property
    def model(self) -> "SentenceTransformer":
        """The frozen model."""
        return load_encoder(self.name_or_path, self.folder, self.device, self.truncate_dim)

    def encode_queries(self, queries: Sequence[str]) -> np.ndarray:
        """Return (n, D) float32; inside `share_queries` all processes embed. See `encode_query_blocks`."""
        if embed := shared_embedding.get():
            return embed(self, queries)
        blocks = query_blocks(queries)
        parts = [*self.encode_query_blocks(([queries[i] for i in block] for block in blocks), len(queries))]
        return join_blocks(blocks, parts)

    def encode_query_blocks(self, blocks: Iterable[Sequence[str]], num_queries: int) -> Iterator[np.ndarray]:
        """Yield the vectors (n, D) of each block of queries. The vectors depend on the block.

        `num_queries` is their number in all blocks. They decide the ranking: computed in float32, and timed.
        """
        options: dict[str, Any] = {"precision": nullcontext(), "watch": Stopwatch()}
        return self._encode(blocks, num_queries, "query", self.query_prefix, "embedding queries", **options)

    def __getstate__(self) -> dict[str, Any]:
        """Return the attributes without the loaded model, which another process loads itself."""
        return {name: value for name, value in vars(self).items() if name != "model"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        if not self.folder.is_dir():  # another machine, with another cache of the hub
            self.folder = checkpoint_folder(self.name_or_path, side=self.side)

    def encode_passages(self, passages: Sequence[Passage]) -> np.ndarray:
        """Return (n, D) float32, computed in bfloat16 on devices that are fast in it."""
        [vectors] = self.encode_blocks([passages], len(passages))
        return vectors

    def encode_blocks(self, blocks: Iterable[Sequence[Passage]], num_passages: int) -> Iterator[np.ndarray]:
        """Yield the vectors (n, D) of each block of passages; see `encode_passages`. The vectors depend on the block.

        `num_passages` is the number of passages in all blocks.
        """
        self.model  # noqa: B018  # is loaded, or raises, before the passages are read
        texts = ([self._content(passage.content, passage.title) for passage in block] for block in blocks)
        precision = torch.autocast(self.device.type, torch.bfloat16, enabled=self.is_half)
        return self._encode(
            texts, num_passages, "document", self.passage_prefix, "embedding passages", precision=precision
        )

    def _content(self, content: str, title: str) -> str:
        """Return the text of a passage, whose title and line end come first."""
        return content.replace("\n", str(self.model.tokenizer.sep_token), 1) if self.is_dpr and title else content

    @property
    def is_half(self) -> bool:
        """Return True if passages are computed in bfloat16."""
        return bf16_is_fast(self.device)

    def _encode(
        self,
        blocks: Iterable[Sequence[str]],
        num_texts: int,
        task: Literal["query", "document"],
        prefix: str,
        description: str,
        *,
        precision: AbstractContextManager[object],
        watch: Stopwatch | None = None,
    ) -> Iterator[np.ndarray]:
        max_length, at_limit = _max_length(self.model, task), []
        scale = HALF_BATCHES if task == "document" and self.is_half else 1

        def after_each_batch(_module: torch.nn.Module, inputs: Any, output: Mapping[str, Tensor]) -> None:
            num_texts, lengths = len(output["sentence_embedding"]), _lengths(inputs[0])
            at_limit.append((lengths >= max_length).sum())
            progress.advance(num_texts)
            if watch:
                watch.lap("embed", num_texts, int(lengths.sum()))

        hook = self.model[-1].register_forward_hook(after_each_batch)
        encode = self.model.encode_query if task == "query" else self.model.encode_document
        with hook, Progress(description, num_texts, unit="texts") as progress:
            for texts in blocks:
                vectors: np.ndarray = np.empty((len(texts), 0), np.float32)
                for batch in self._batches(texts, max_length, scale):
                    with precision:  # not around the yield: it would apply to the caller too
                        part = encode([texts[i] for i in batch], prompt=prefix, batch_size=len(batch), **_QUIET)
                    if not vectors.shape[1]:
                        vectors = np.empty((len(texts), part.shape[1]), np.float32)
                    vectors[batch] = part
                if self.similarity != "dot":
                    norms = np.linalg.norm(vectors, axis=1, keepdims=True)  # in bfloat16 they differ by up to 1 %
                    np.divide(vectors, norms, where=norms > 0, out=vectors)
                yield vectors
        if num_at_limit := int(sum(at_limit)):
            message = "%d of %d texts reach the encoder's limit of %d tokens: longer texts are truncated"
            log.warning(message, num_at_limit, num_texts, max_length)

    def _batches(self, texts: Sequence[str], max_length: int, cpu_scale: int = 1) -> Iterator[list[int]]:
        """Yield the places of the texts of each batch, the longest texts first.

        A batch has at most the bytes of `batch_size` texts of the encoder's length, or of MAX_BATCH_LENGTH: short texts
        are more in a batch. A CPU is faster with small batches, whose numbers stay in its cache: they have at most
        MAX_CPU_BATCH tokens and `batch_size` texts, both times `cpu_scale`.
        """
        lengths = [len(text.encode()) for text in texts]
        order = sorted(range(len(texts)), key=lambda i: -lengths[i])
        is_cpu = self.device.type == "cpu"
        tokens = self.batch_size * min(max_length, MAX_BATCH_LENGTH)
        budget = BYTES_PER_TOKEN * (min(tokens, cpu_scale * MAX_CPU_BATCH) if is_cpu else tokens)
        start = 0
        while start < len(order):
            size = budget // max(1, lengths[order[start]])
            size = max(1, min(size, cpu_scale * self.batch_size)) if is_cpu else max(size, self.batch_size)
            yield order[start : start + size]
            start += size

    @property
    def max_passage_tokens(self) -> int:
        """The number of tokens of a passage that the model reads; the rest would be truncated."""
        return _max_length(self.model, "document")

    def count_passage_tokens(self, content: str) -> int:
        """Return the number of tokens of a passage with its prefix and special tokens, without truncation."""
        tokenizer = _route(self.model, "document").tokenizer
        text = f"{self.passage_prefix}{content}"
        if isinstance(tokenizer, PreTrainedTokenizerBase):
            text = self._content(text, title="title")  # a text without a title counts one token more
            return len(tokenizer(text, truncation=False, verbose=False)["input_ids"])
        return len(tokenizer.encode(text, add_special_tokens=False).ids)  # of static embeddings

    def provenance(self) -> dict[str, str | int | None]:
        """Return everything that the vectors of passages depend on, but for the passages."""
        return {
            "encoder": self.fingerprint(),
            "passage_prefix": self.passage_prefix,
            "similarity": self.similarity,
            "truncate_dim": self.truncate_dim,
        }

    def fingerprint(self) -> str:
        """Return a hash of the checkpoint's files, the same in another folder. It needs no loaded weights.

        The file of prompts is left out: an index or retriever keeps prefixes, similarity and dimensions themselves.
        """
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        return checkpoint_fingerprint(self.name_or_path, self.folder)


def open_encoders(
    embedding_model: str,
    query_encoder: str = "",
    *,
    query_prefix: str | None = None,
    passage_prefix: str | None = None,
    **options: Any,
) -> tuple[Encoder, Encoder]:
    """Return the encoder of passages and that of queries, which is the same without a `query_encoder`.

    `options` are those of `Encoder`. Raises InputError as it does, and if their vectors are compared in two ways.
    """
    options |= {"query_prefix": query_prefix, "passage_prefix": passage_prefix}
    if not query_encoder:
        encoder = Encoder(embedding_model, **options)
        return encoder, encoder
    # Each gets the prefix of the other side too: its own texts alone have one.
    passages = Encoder(embedding_model, **options, side="passage")
    queries = Encoder(query_encoder, **options, side="query")
    if passages.similarity != queries.similarity:
        raise InputError(
            f"--query_encoder {query_encoder}: expected the similarity of --embedding_model, {passages.similarity}, "
            f"got {queries.similarity}. Choose encoders that were trained together"
        )
    return passages, queries


def check_dimensions(passages: Encoder, queries: Encoder) -> None:
    """Raise InputError unless both encoders have the same number of dimensions. Their weights are loaded."""
    if queries is passages:
        return
    own = len(passages.model.encode_document(["a"], prompt="", **_QUIET)[0])
    if (other := len(queries.model.encode_query(["a"], prompt="", **_QUIET)[0])) != own:
        raise InputError(
            f"--query_encoder {queries.name_or_path}: expected vectors of {own} dimensions as --embedding_model, "
            f"got {other}. Choose encoders that were trained together"
        )


def _max_length(model: "SentenceTransformer", task: str) -> int:
    """Return the largest number of tokens of a text."""
    limit = getattr(_route(model, task), "max_seq_length", None)
    return min(limit or sys.maxsize, sys.maxsize)  # without a limit None or 10**30


def _route(model: "SentenceTransformer", task: str) -> Any:
    """Return the module that tokenizes. A model may have one for queries and another for documents."""
    routes = getattr(model[0], "sub_modules", {})
    return routes[task][0] if task in routes else model[0]


def _lengths(features: Mapping[str, Any]) -> Tensor:
    """Return the number of tokens of each text of a batch; none if the model does not count them."""
    if "attention_mask" in features:
        return torch.as_tensor(features["attention_mask"].sum(1))
    if "offsets" in features:  # of the texts in one row of tokens: static embeddings have no padding
        return torch.diff(features["offsets"], append=features["offsets"].new_tensor([len(features["input_ids"])]))
    return torch.zeros(0)
