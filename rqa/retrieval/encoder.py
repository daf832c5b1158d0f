"""The sentence encoder: texts to normalised vectors. n texts, D embedding size."""

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

from rqa.data.records import Passage
from rqa.distributed.device import bf16_is_fast
from rqa.errors import InputError
from rqa.timing import Stopwatch

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

log = logging.getLogger(__name__)

PROMPTS = "config_sentence_transformers.json"
PATTERNS = ["*.safetensors", "*.json", "*.txt", "*.model"]
OTHER_RUNTIMES = ["onnx/*", "openvino/*"]


class Encoder:
    """A sentence-transformers checkpoint, which knows its pooling, prompts and normalisation.

    A plain Hugging Face checkpoint is pooled by the mean. Vectors are normalised, so that inner product is cosine. The
    weights are loaded when the first text is embedded. Raises InputError where there is no checkpoint.
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
        self.name_or_path = name_or_path
        self.folder = _checkpoint_folder(name_or_path)
        self.device = device
        self.batch_size = batch_size
        prompts = _prompts(self.folder)
        own_query, own_passage = prompts.get("query"), prompts.get("document") or prompts.get("passage")
        self.query_prefix = query_prefix if query_prefix is not None else own_query or ""
        self.passage_prefix = passage_prefix if passage_prefix is not None else own_passage or ""
        log.info(
            "encoder %s: before queries %r, before passages %r", name_or_path, self.query_prefix, self.passage_prefix
        )

    @cached_property
    def model(self) -> "SentenceTransformer":
        """The frozen model."""
        from sentence_transformers import (
            SentenceTransformer,  # takes two seconds, which a cached retrieval does without
        )

        try:
            with _without_zero3_init():
                model = SentenceTransformer(
                    str(self.folder),
                    device=str(self.device),
                    trust_remote_code=False,
                    model_kwargs={"use_safetensors": True, "dtype": torch.float32},
                )
        except (OSError, ValueError) as error:
            raise InputError(f"{self.name_or_path}: no encoder can be loaded from it: {error}") from error
        return model.eval()

    def encode_queries(self, queries: Sequence[str]) -> np.ndarray:
        """Return (n, D) float32. Queries are few and decide the ranking: always computed in float32, and timed."""
        return self._encode(queries, self.query_prefix, nullcontext(), watch=Stopwatch())

    def encode_passages(self, passages: Sequence[Passage]) -> np.ndarray:
        """Return (n, D) float32, computed in bfloat16 where that is quicker."""
        quick = torch.autocast(self.device.type, torch.bfloat16, enabled=bf16_is_fast(self.device))
        return self._encode([passage.content for passage in passages], self.passage_prefix, quick)

    def _encode(
        self,
        texts: Sequence[str],
        prefix: str,
        precision: AbstractContextManager[object],
        *,
        watch: Stopwatch | None = None,
    ) -> np.ndarray:
        progress = watch is None and sys.stderr.isatty()
        window, full = self.model.max_seq_length or sys.maxsize, []

        def after_each_batch(_module: torch.nn.Module, inputs: Any, _output: Any) -> None:
            lengths = inputs[0]["attention_mask"].sum(1)
            full.append((lengths >= window).sum())
            if watch:
                watch.lap("embed", len(lengths), int(lengths.sum()))

        hook = self.model[-1].register_forward_hook(after_each_batch)
        try:
            with precision:
                embedded = self.model.encode(  # sorts by length inside
                    list(texts), prompt=prefix, batch_size=self.batch_size, show_progress_bar=progress
                )
        finally:
            hook.remove()
        if num_full := int(sum(full)):
            log.warning(
                "%d of %d texts fill the encoder's window of %d tokens: of longer ones the end is not embedded",
                num_full,
                len(texts),
                window,
            )
        vectors: np.ndarray = np.asarray(embedded, dtype=np.float32)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)  # normalised in bfloat16 they differ by up to 1 %
        np.divide(vectors, lengths, where=lengths > 0, out=vectors)
        return vectors

    def fingerprint(self) -> str:
        """Return a hash of the checkpoint's files: the same in another folder, and known before it is loaded.

        The file of prompts is left out: prefixes are told apart by themselves.
        """
        digest = hashlib.sha256()
        for path in _checkpoint_files(self.folder):
            with path.open("rb") as file:
                digest.update(
                    f"{path.relative_to(self.folder)} {hashlib.file_digest(file, 'sha256').hexdigest()}".encode()
                )
        return digest.hexdigest()


def _checkpoint_folder(name_or_path: str) -> Path:
    """Return the folder of a checkpoint, of the hub's cache where it is a name there."""
    folder = Path(name_or_path)
    if not folder.is_dir():
        try:
            folder = Path(snapshot_download(name_or_path, allow_patterns=PATTERNS, ignore_patterns=OTHER_RUNTIMES))
        except (OSError, ValueError) as error:
            raise InputError(f"{name_or_path}: neither a checkpoint folder nor a model of the hub ({error})") from error
    if not _checkpoint_files(folder):
        raise InputError(f"{name_or_path}: expected a checkpoint, found a folder without config.json and weights")
    return folder


def _checkpoint_files(folder: Path) -> list[Path]:
    """Return the files that shape embeddings: weights, configurations, vocabularies."""
    names = {path.relative_to(folder) for pattern in PATTERNS for path in folder.rglob(pattern)}
    skipped = {Path(PROMPTS)} | {name for name in names if name.parts[0] in ("onnx", "openvino")}
    return sorted(folder / name for name in names - skipped)


def _prompts(folder: Path) -> dict[str, str | None]:
    path = folder / PROMPTS
    try:
        prompts: dict[str, str | None] = json.loads(path.read_bytes()).get("prompts") or {} if path.exists() else {}
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: expected a JSON object: {error}") from error
    return prompts


@contextmanager
def _without_zero3_init() -> Iterator[None]:
    """Load a model that DeepSpeed does not shard: under ZeRO-3 transformers would load it with empty weights."""
    config = deepspeed._hf_deepspeed_config_weak_ref
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = config
