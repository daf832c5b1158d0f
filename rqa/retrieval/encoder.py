"""The sentence encoder: texts to vectors. n texts, D embedding size."""

import logging
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rqa.data.records import Passage
from rqa.distributed.device import bf16_is_fast
from rqa.retrieval.encoder_checkpoint import (
    PASSAGE_PROMPTS,
    QUERY_PROMPTS,
    checkpoint_fingerprint,
    checkpoint_folder,
    load_encoder,
    read_encoder_settings,
)
from rqa.terminal import Progress, track
from rqa.timing import Stopwatch

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

log = logging.getLogger(__name__)


class Encoder:
    """A sentence-transformers checkpoint, with its pooling, prompts, similarity and dimensions.

    A plain Hugging Face checkpoint of an encoder gets mean pooling. Vectors are normalized, so that their inner product
    is the cosine, unless the checkpoint was trained for inner products (`similarity` "dot"). The weights are loaded
    when the first text is embedded. Raises InputError if there is no sentence encoder, or if weights are missing.
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
        self.name_or_path, self.device, self.batch_size = name_or_path, device, batch_size
        self.folder = checkpoint_folder(name_or_path)
        settings = read_encoder_settings(self.folder)
        self.similarity, self.truncate_dim = settings.similarity, settings.truncate_dim
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
        """Return (n, D) float32. Queries are few and decide the ranking: always computed in float32, and timed."""
        return self._encode(queries, "query", self.query_prefix, "embedding queries", nullcontext(), Stopwatch())

    def encode_passages(self, passages: Sequence[Passage]) -> np.ndarray:
        """Return (n, D) float32, computed in bfloat16 on devices that are fast in it."""
        self.model  # noqa: B018  # is loaded, or raises, before the passages are read
        precision = torch.autocast(self.device.type, torch.bfloat16, enabled=bf16_is_fast(self.device))
        texts = [passage.content for passage in track(passages, "reading passages", unit="passages")]
        return self._encode(texts, "document", self.passage_prefix, "embedding passages", precision)

    def _encode(
        self,
        texts: Sequence[str],
        task: Literal["query", "document"],
        prefix: str,
        description: str,
        precision: AbstractContextManager[object],
        watch: Stopwatch | None = None,
    ) -> np.ndarray:
        max_length, at_limit = _max_length(self.model, task), []

        def after_each_batch(_module: torch.nn.Module, inputs: Any, output: Mapping[str, Tensor]) -> None:
            num_texts, lengths = len(output["sentence_embedding"]), _lengths(inputs[0])
            at_limit.append((lengths >= max_length).sum())
            progress.advance(num_texts)
            if watch:
                watch.lap("embed", num_texts, int(lengths.sum()))

        hook = self.model[-1].register_forward_hook(after_each_batch)
        encode = self.model.encode_query if task == "query" else self.model.encode_document
        with hook, precision, Progress(description, len(texts), unit="texts") as progress:  # encode sorts by length
            encoded = encode(list(texts), prompt=prefix, batch_size=self.batch_size, show_progress_bar=False)
        if num_at_limit := int(sum(at_limit)):
            message = "%d of %d texts reach the encoder's limit of %d tokens: longer texts are truncated"
            log.warning(message, num_at_limit, len(texts), max_length)
        vectors: np.ndarray = np.asarray(encoded, dtype=np.float32)
        if self.similarity != "dot":
            norms = np.linalg.norm(vectors, axis=1, keepdims=True)  # normalized in bfloat16 they differ by up to 1 %
            np.divide(vectors, norms, where=norms > 0, out=vectors)
        return vectors

    @property
    def max_passage_tokens(self) -> int:
        """The number of tokens of a passage that the model reads; the rest would be truncated."""
        return _max_length(self.model, "document")

    def count_passage_tokens(self, content: str) -> int:
        """Return the number of tokens of a passage with its prefix and special tokens, without truncation."""
        tokenizer = _route(self.model, "document").tokenizer
        text = f"{self.passage_prefix}{content}"
        if isinstance(tokenizer, PreTrainedTokenizerBase):
            return len(tokenizer(text, truncation=False, verbose=False)["input_ids"])
        return len(tokenizer.encode(text, add_special_tokens=False).ids)  # of static embeddings

    def fingerprint(self) -> str:
        """Return a hash of the checkpoint's files, the same in another folder. It needs no loaded weights.

        The file of prompts is left out: an index or retriever keeps prefixes, similarity and dimensions themselves.
        """
        return checkpoint_fingerprint(self.name_or_path, self.folder)


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
