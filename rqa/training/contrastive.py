"""Contrastive training of a sentence encoder: each question against the passages of its batch.

B questions, P distinct passages, T = B + P texts, L tokens in the longest, D embedding size.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator, DistributedType
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, normalize
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedTokenizerBase

from rqa.atomic_files import atomic_folder
from rqa.data.records import Example
from rqa.errors import InputError
from rqa.prompts.collators import IGNORE_INDEX
from rqa.retrieval.encoder import Encoder
from rqa.retrieval.retrieve import build_query
from rqa.terminal import Progress, plural

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

log = logging.getLogger(__name__)

TEMPERATURES = {"cosine": 0.05, "dot": 1.0}  # defaults of sentence-transformers for the two similarities


@dataclass(frozen=True)
class ContrastiveRow:
    """The tokens of a question, of one gold passage and of hard negatives. `ids` are those of these passages.

    With a teacher, the passages are those of its lesson.
    """

    question: list[int]
    passages: list[list[int]]  # gold first
    ids: tuple[str, ...]
    gold_ids: tuple[str, ...]  # of all gold passages: none is a negative
    targets: tuple[float, ...] = ()  # with a teacher: the share of each passage

    def __len__(self) -> int:
        return len(self.question) + sum(map(len, self.passages))


class ContrastiveCollator:
    """Tokenizes examples with the prompts of their encoder, and makes batches of distinct passages.

    Raises InputError if questions and passages have no common transformer, or if pooling leaves out the prompt.
    """

    def __init__(self, encoder: Encoder, *, hard_negatives: int, history_turns: int = 1) -> None:
        self.encoder, self.hard_negatives, self.history_turns = encoder, hard_negatives, history_turns
        first = encoder.model[0]
        tokenizer = getattr(first, "tokenizer", None)
        if hasattr(first, "sub_modules") or not isinstance(tokenizer, PreTrainedTokenizerBase):
            kind = type(first).__name__
            raise InputError(f"{encoder.name_or_path}: expected one transformer for all texts, got {kind}")
        self.tokenizer = tokenizer
        has_prompt = encoder.query_prefix or encoder.passage_prefix
        if has_prompt and any(getattr(module, "include_prompt", True) is False for module in encoder.model):
            raise InputError(f"{encoder.name_or_path}: expected pooling with the prompt, got include_prompt false")

    def usable(self, examples: Sequence[Example]) -> list[Example]:
        """Return the examples that have gold passages; log the others, and those with too few hard negatives.

        Raises InputError if there is no gold passage, or no hard negative where some are wanted.
        """
        usable = [example for example in examples if example.gold_passages]
        if not usable:
            raise InputError("--train_file: expected questions with gold_docs, got none")
        if left_out := len(examples) - len(usable):
            log.warning("--train_file: %s without gold_docs are left out", plural(left_out, "question"))
        fewer = sum(len(example.hard_negatives) < self.hard_negatives for example in usable)
        if self.hard_negatives and not any(example.hard_negatives for example in usable):
            raise InputError(
                f"--hard_negatives {self.hard_negatives}: expected hard_neg_docs in --train_file, got none. Run "
                "recipes/mine_negatives.py, or set --hard_negatives 0"
            )
        if fewer:
            log.warning("%s have fewer than %d hard negatives", plural(fewer, "question"), self.hard_negatives)
        return usable

    def encode(self, epoch: int, examples: Sequence[Example]) -> list[ContrastiveRow]:
        """Return the rows of an epoch. Of several gold passages each epoch takes the next."""
        return [self._row(example, epoch) for example in examples]

    def _row(self, example: Example, epoch: int) -> ContrastiveRow:
        golds = example.gold_passages
        gold_ids = tuple(passage.id for passage in golds)
        negatives = [passage for passage in example.hard_negatives if passage.id not in gold_ids]
        passages = [golds[epoch % len(golds)], *negatives[: self.hard_negatives]]
        [question] = self._tokens([build_query(example, history_turns=self.history_turns)], self.encoder.query_prefix)
        tokens = self._tokens([passage.content for passage in passages], self.encoder.passage_prefix)
        return ContrastiveRow(question, tokens, tuple(passage.id for passage in passages), gold_ids)

    def _tokens(self, texts: Sequence[str], prefix: str) -> list[list[int]]:
        features = (self.encoder.model.preprocess([text], prompt=prefix) for text in texts)
        return [each["input_ids"][0].tolist() for each in features]

    def collate(self, rows: Sequence[ContrastiveRow]) -> dict[str, Tensor]:
        """Return a batch: tokens and mask (T, L), questions first; labels (B, 1) and candidates (B, P).

        A label is the column of the gold passage. `candidates` is False for other gold passages of the question. A
        question without a negative has no label: its loss would be 0. A batch of no rows has a question and a passage
        without content, and no label.
        """
        batch, columns = self._texts(rows)
        candidates = torch.ones(len(rows) or 1, len(columns) or 1, dtype=torch.bool)
        labels = torch.full((len(rows) or 1, 1), IGNORE_INDEX)
        for i, row in enumerate(rows):
            candidates[i, [columns[name] for name in row.gold_ids if name in columns]] = False
            candidates[i, gold := columns[row.ids[0]]] = True
            if candidates[i].sum() > 1:
                labels[i, 0] = gold
        return batch | {"labels": labels, "candidates": candidates}

    def _texts(self, rows: Sequence[ContrastiveRow]) -> tuple[dict[str, Tensor], dict[str, int]]:
        """Return tokens and mask (T, L) of questions and distinct passages, and the column of each passage id."""
        texts = {name: tokens for row in rows for name, tokens in zip(row.ids, row.passages, strict=True)}
        ids = sorted(texts, key=lambda name: len(texts[name]))  # mini-batches of similar length have little padding
        batch = [row.question for row in rows] + [texts[name] for name in ids] or self._tokens(["", ""], "")
        padded = self.tokenizer.pad({"input_ids": batch}, return_tensors="pt")
        return {name: padded[name] for name in ("input_ids", "attention_mask")}, {name: i for i, name in enumerate(ids)}


class ContrastiveEncoder(nn.Module):
    """A sentence encoder whose forward pass returns the loss of each question (B,), for `train_steps`.

    The loss is InfoNCE (van den Oord et al. 2018): the cross-entropy of the gold passage among all passages of the
    micro-batch, hard negatives included, with similarity / `temperature` as logits. Other ranks have other passages.
    With targets of a teacher it is the Kullback-Leibler divergence of the softmax of the logits from these.

    With a `mini_batch_size`, that many texts are encoded at a time, and encoded again in the backward pass. Memory then
    depends on it, not on the batch, and gradients are the same. This is the cache of gradients of Gao et al. (2021),
    "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup".
    """

    def __init__(
        self, encoder: Encoder, *, temperature: float | None = None, mini_batch_size: int | None = None
    ) -> None:
        super().__init__()
        self.model: SentenceTransformer = encoder.model
        self.is_normalized, self.truncate_dim = encoder.similarity != "dot", encoder.truncate_dim
        self.temperature = temperature or TEMPERATURES["cosine" if self.is_normalized else "dot"]
        self.mini_batch_size = mini_batch_size

    def embed(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the vectors (T, D) of texts, in float32."""
        size = self.mini_batch_size or len(input_ids)
        parts = zip(torch.split(input_ids, size), torch.split(attention_mask, size), strict=True)
        if size >= len(input_ids) or not torch.is_grad_enabled():
            vectors = [self._embed(*part) for part in parts]
        else:
            vectors = [checkpoint(self._embed, *part, use_reentrant=False) for part in parts]
        return torch.cat(vectors)

    def _embed(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        is_used = attention_mask.any(0)  # without the padding of the longer texts of other mini-batches
        features: dict[str, Any] = {"input_ids": input_ids[:, is_used], "attention_mask": attention_mask[:, is_used]}
        vectors = self.model(features)["sentence_embedding"][:, : self.truncate_dim].float()
        return normalize(vectors, dim=1) if self.is_normalized else vectors

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        labels: Tensor,
        candidates: Tensor,
        targets: Tensor | None = None,
    ) -> Tensor:
        """Return the loss of each question (B,) in nats; 0 without a label. Shapes: see the collators."""
        num_questions = len(labels)
        questions = self.embed(input_ids[:num_questions], attention_mask[:num_questions])
        passages = self.embed(input_ids[num_questions:], attention_mask[num_questions:])
        with torch.autocast(input_ids.device.type, enabled=False):
            logits = questions @ passages.T / self.temperature
        logits = logits.masked_fill(~candidates, -torch.inf)
        if targets is None:
            return cross_entropy(logits, labels[:, 0], ignore_index=IGNORE_INDEX, reduction="none")
        log_shares = logits.log_softmax(1).masked_fill(~candidates, 0.0)
        return kl_div(log_shares, targets, reduction="none").sum(1)


def check_replicated(accelerator: Accelerator) -> None:
    """Raise InputError unless each process has all weights: one process or DDP."""
    if (kind := accelerator.distributed_type) in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        raise InputError(f"accelerate launch: expected one process or DDP for a sentence encoder, got {kind.value}")


def export_encoder(accelerator: Accelerator, model: nn.Module, encoder: Encoder, path: Path) -> None:
    """Write the trained encoder to a folder that --embedding_model takes, with the settings of its checkpoint.

    Its prompts are those of the training. A folder is whole or does not exist. Every rank calls this.
    """
    plain: SentenceTransformer = accelerator.unwrap_model(model).model
    if accelerator.is_main_process:
        own = {"query": encoder.query_prefix, "document": encoder.passage_prefix}
        plain.prompts = {**plain.prompts, **own}
        with Progress(f"exporting the encoder to {path}"), atomic_folder(path) as partial:
            plain.save_pretrained(str(partial), create_model_card=False)
    accelerator.wait_for_everyone()
