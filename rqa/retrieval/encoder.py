"""The sentence encoder: texts to normalized vectors. n texts, D embedding size."""

import hashlib
import json
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from huggingface_hub import snapshot_download
from transformers.integrations import deepspeed

from rqa.atomic_files import sha256_of
from rqa.data.records import Passage
from rqa.distributed.device import bf16_is_fast
from rqa.errors import InputError
from rqa.terminal import Progress, track
from rqa.timing import Stopwatch

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

log = logging.getLogger(__name__)
PROMPTS_FILE = "config_sentence_transformers.json"
CHECKPOINT_FILES = ["*.safetensors", "*.json", "*.txt", "*.model"]
EXPORTS = ["onnx/*", "openvino/*"]  # for other runtimes


class Encoder:
    """A sentence-transformers checkpoint, with its pooling, prompts and normalization.

    A plain Hugging Face checkpoint gets mean pooling. Vectors are normalized, so that inner product is cosine. The
    weights are loaded when the first text is embedded. Raises InputError if there is no checkpoint.
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
        self.folder = _checkpoint_folder(name_or_path)
        prompts = _prompts(self.folder)
        own_query, own_passage = prompts.get("query"), prompts.get("document") or prompts.get("passage")
        self.query_prefix = own_query or "" if query_prefix is None else query_prefix
        self.passage_prefix = own_passage or "" if passage_prefix is None else passage_prefix
        log.info("encoder %s: query prefix %r, passage prefix %r", name_or_path, self.query_prefix, self.passage_prefix)

    @cached_property
    def model(self) -> "SentenceTransformer":
        """The frozen model."""
        from sentence_transformers import SentenceTransformer  # takes two seconds; a cached retrieval needs none

        weights = {"use_safetensors": True, "dtype": torch.float32}
        options: dict[str, Any] = {"device": str(self.device), "trust_remote_code": False, "model_kwargs": weights}
        try:
            with _without_zero3_init():
                model = SentenceTransformer(str(self.folder), **options)
        except (OSError, ValueError) as error:
            raise InputError(f"{self.name_or_path}: expected a sentence encoder, got {error}") from error
        return model.eval()

    def encode_queries(self, queries: Sequence[str]) -> np.ndarray:
        """Return (n, D) float32. Queries are few and decide the ranking: always computed in float32, and timed."""
        return self._encode(queries, self.query_prefix, "embedding queries", nullcontext(), Stopwatch())

    def encode_passages(self, passages: Sequence[Passage]) -> np.ndarray:
        """Return (n, D) float32, computed in bfloat16 on devices that are fast in it."""
        precision = torch.autocast(self.device.type, torch.bfloat16, enabled=bf16_is_fast(self.device))
        texts = [passage.content for passage in track(passages, "reading passages", unit="passages")]
        return self._encode(texts, self.passage_prefix, "embedding passages", precision)

    def _encode(
        self,
        texts: Sequence[str],
        prefix: str,
        description: str,
        precision: AbstractContextManager[object],
        watch: Stopwatch | None = None,
    ) -> np.ndarray:
        max_length, at_limit = self.model.max_seq_length or sys.maxsize, []

        def after_each_batch(_module: torch.nn.Module, inputs: Any, _output: Any) -> None:
            lengths = inputs[0]["attention_mask"].sum(1)
            at_limit.append((lengths >= max_length).sum())
            progress.advance(len(lengths))
            if watch:
                watch.lap("embed", len(lengths), int(lengths.sum()))

        hook = self.model[-1].register_forward_hook(after_each_batch)
        with hook, precision, Progress(description, len(texts), unit="texts") as progress:  # encode sorts by length
            encoded = self.model.encode(list(texts), prompt=prefix, batch_size=self.batch_size, show_progress_bar=False)
        if num_at_limit := int(sum(at_limit)):
            message = "%d of %d texts reach the encoder's limit of %d tokens: longer texts are truncated"
            log.warning(message, num_at_limit, len(texts), max_length)
        vectors: np.ndarray = np.asarray(encoded, dtype=np.float32)
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)  # normalized in bfloat16 they differ by up to 1 %
        np.divide(vectors, norms, where=norms > 0, out=vectors)
        return vectors

    def fingerprint(self) -> str:
        """Return a hash of the checkpoint's files, the same in another folder. It needs no loaded weights.

        The file of prompts is left out: a fingerprint of an index or retriever contains the prefixes themselves.
        """
        digest = hashlib.sha256()
        for path in track(_checkpoint_files(self.folder), f"hashing {self.name_or_path}", unit="files"):
            digest.update(f"{path.relative_to(self.folder)} {sha256_of(path)}".encode())
        return digest.hexdigest()


def _checkpoint_folder(name_or_path: str) -> Path:
    """Return the folder of a checkpoint: a hub name is downloaded into the hub's cache."""
    folder = Path(name_or_path)
    if not folder.is_dir():
        try:
            folder = Path(snapshot_download(name_or_path, allow_patterns=CHECKPOINT_FILES, ignore_patterns=EXPORTS))
        except (OSError, ValueError) as error:
            raise InputError(f"{name_or_path}: expected a checkpoint folder or a hub name: {error}") from error
    if not _checkpoint_files(folder):
        raise InputError(f"{name_or_path}: expected a checkpoint, got a folder without config.json and weights.")
    return folder


def _checkpoint_files(folder: Path) -> list[Path]:
    """Return the files that affect embeddings: weights, configurations, vocabularies."""
    names = {path.relative_to(folder) for pattern in CHECKPOINT_FILES for path in folder.rglob(pattern)}
    skipped = {Path(PROMPTS_FILE)} | {name for name in names if name.parts[0] in ("onnx", "openvino")}
    return sorted(folder / name for name in names - skipped)


def _prompts(folder: Path) -> dict[str, str | None]:
    path = folder / PROMPTS_FILE
    try:
        prompts: dict[str, str | None] = json.loads(path.read_bytes()).get("prompts") or {} if path.exists() else {}
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: expected a JSON object, got {error}.") from error
    return prompts


@contextmanager
def _without_zero3_init() -> Iterator[None]:
    """Hide the ZeRO-3 configuration from transformers: under it models load with empty weights."""
    config = deepspeed._hf_deepspeed_config_weak_ref
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = config
