"""Prompt lookup: greedy decoding of several tokens in one forward pass, if an answer copies from its prompt.

The last tokens of a row are looked up in its prompt and answer so far, and the tokens after them there are candidates
(Saxena, 2023). One pass over the candidates computes the greedy choice after each of them: those that are equal to the
choice before them are kept. In float32 the answers are those of `generate`.

B rows, L positions of the longest prompt, T tokens of each row in a pass, V vocabulary.
"""

import inspect
from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from rqa.models.loading import CACHE

# Families whose tokens attend to all earlier ones, by positions that are an argument; the tests compare each of them.
LOOKUP_MODELS = frozenset(
    "cohere gemma glm glm4 gpt_neox granite llama mistral mixtral olmo olmo2 phi phi3 qwen2 qwen2_moe qwen3 qwen3_moe "
    "smollm3 stablelm starcoder2".split()
)
NGRAM_SIZES = (3, 2)  # tokens that are looked up; a single one occurs too often
PASS_COST = 32  # positions that take as long as a pass without any, on a CPU; more on a GPU
SHARE_MEMORY = 0.7  # weight of the candidates of the pass before, in the share that was right
FIRST_RIGHT, FIRST_TRIED = 2.0, 3.0  # that share before the first pass: copied answers begin with a copy


def can_look_up(model: PreTrainedModel) -> bool:
    """Return True if the cache of a model keeps every token, and may have gaps.

    Excluded are windows, which count positions of the cache, recurrent states, which are not cut, weights on several
    devices, and attention kernels without a test.
    """
    names = inspect.signature(model.forward).parameters
    return (
        model.config.model_type in LOOKUP_MODELS
        and {"position_ids", CACHE, "logits_to_keep"} <= names.keys()
        and model.config._attn_implementation in ("sdpa", "eager")
        and not hasattr(model, "hf_device_map")
        and all(type(layer) is DynamicLayer for layer in DynamicCache(config=model.config).layers)
    )


def generate_with_lookup(
    model: PreTrainedModel,
    input_ids: Tensor,
    attention_mask: Tensor,
    *,
    num_candidates: int,
    max_new_tokens: int,
    eos_token_id: Collection[int],
    pad_token_id: int,
    after_prefill: Callable[[], object] = lambda: None,
) -> Tensor:
    """Return the ids of the answers (B, answer length) to prompts (B, L) that are padded on the left.

    Each pass adds T positions to the cache of every row. Those of rejected candidates are gaps: the mask excludes them.
    """
    mask = attention_mask
    prompts = [ids[is_token].tolist() for ids, is_token in zip(input_ids, mask.bool(), strict=True)]
    rows = active = [_Row(prompt, num_candidates, max_new_tokens, eos_token_id) for prompt in prompts]
    cache = DynamicCache(config=model.config)
    options = {CACHE: cache, "use_cache": True}
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    logits = model(input_ids, attention_mask=mask, position_ids=positions, logits_to_keep=1, **options).logits
    after_prefill()
    for row, choices in zip(rows, _choices(logits), strict=True):
        row.accept([], choices)
    while unfinished := [i for i, row in enumerate(active) if not row.is_finished]:
        if len(unfinished) < len(active):
            indices = torch.tensor(unfinished, device=mask.device)
            cache.batch_select_indices(indices)
            active, mask = [active[i] for i in unfinished], mask[indices]
        candidates = _worth_trying(active, [row.candidates() for row in active])
        ids, positions = _pass_inputs(active, candidates, pad_token_id, mask.device)
        mask = nn.functional.pad(mask, (0, ids.shape[1]), value=1)
        logits = model(ids, attention_mask=mask, position_ids=positions, **options).logits
        accepted = zip(active, candidates, _choices(logits), strict=True)
        counts = torch.tensor([row.accept(own, choices) for row, own, choices in accepted], device=mask.device)
        most = int(counts.max())
        rejected = ids.shape[1] - most  # by every row
        cache.crop(-rejected)
        mask = mask[:, : mask.shape[1] - rejected]
        mask[:, -most:] = torch.arange(most, device=mask.device) < counts[:, None]
    answers = [torch.tensor(row.answer, device=mask.device) for row in rows]
    return nn.utils.rnn.pad_sequence(answers, True, pad_token_id)


class _Row:
    """The tokens of a prompt and of its answer so far."""

    def __init__(
        self, prompt: Sequence[int], num_candidates: int, max_new_tokens: int, stop_ids: Collection[int]
    ) -> None:
        self.ids: list[int] = []
        self.stop_ids, self.num_prompt, self.limit = stop_ids, len(prompt), len(prompt) + max_new_tokens
        self.is_finished = False
        self._num_candidates, self._num_right, self._num_tried = num_candidates, FIRST_RIGHT, FIRST_TRIED
        self._index_after: dict[tuple[int, ...], int] = {}  # by n-gram, of its last occurrence
        for id in prompt:
            self._append(id)

    @property
    def answer(self) -> list[int]:
        """The tokens after the prompt."""
        return self.ids[self.num_prompt :]

    @property
    def share_right(self) -> float:
        """The share of candidates that were right; those after a wrong one are not counted."""
        return self._num_right / self._num_tried

    def candidates(self) -> list[int]:
        """Return the tokens after the last occurrence of the last n-gram, at most as many as are left to generate."""
        most = min(self._num_candidates, self.limit - len(self.ids) - 1)
        for size in NGRAM_SIZES:
            index = self._index_after.get(tuple(self.ids[-size:]))
            if index is not None:
                period = len(self.ids) - index  # shorter than the candidates if the answer repeats itself
                return [self.ids[index + i % period] for i in range(most)]
        return []

    def accept(self, candidates: Sequence[int], choices: Sequence[int]) -> int:
        """Append the model's choice after the last token and after each right candidate; return their number.

        choices[0] follows the last token, and choices[i] the candidate i - 1. That many tokens of the pass are right.
        """
        num_right = 0
        while num_right < len(candidates) and candidates[num_right] == choices[num_right]:
            num_right += 1
        if candidates:
            self._num_right = SHARE_MEMORY * self._num_right + num_right
            self._num_tried = SHARE_MEMORY * self._num_tried + min(num_right + 1, len(candidates))
        for id in choices[: num_right + 1]:
            if not self.is_finished:
                self._append(id)
                self.is_finished = id in self.stop_ids or len(self.ids) == self.limit
        return num_right + 1

    def _append(self, id: int) -> None:
        """Append a token, the one after the last n-gram of each size."""
        for size in NGRAM_SIZES:
            if len(self.ids) >= size:
                self._index_after[tuple(self.ids[-size:])] = len(self.ids)
        self.ids.append(id)


def _worth_trying(rows: Sequence[_Row], candidates: Sequence[Sequence[int]]) -> list[Sequence[int]]:
    """Return the first candidates of each row: the number with the most expected tokens for the time of the pass.

    Each candidate has the cost of one position in every row. An answer that is not copied is decoded token by token.
    """
    tokens = float(len(rows))
    best, best_rate = 0, tokens / (PASS_COST + len(rows))
    for number in range(1, max(map(len, candidates)) + 1):
        pairs = zip(rows, candidates, strict=True)
        tokens += sum(row.share_right**number for row, own in pairs if len(own) >= number)
        rate = tokens / (PASS_COST + len(rows) * (1 + number))
        if rate > best_rate:
            best, best_rate = number, rate
    return [own[:best] for own in candidates]


def _pass_inputs(
    rows: Sequence[_Row], candidates: Sequence[Sequence[int]], pad_id: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return ids and positions (B, T) of the last token of each row and its candidates, padded on the right."""
    longest = max(map(len, candidates))
    ids = [[row.ids[-1], *own, *[pad_id] * (longest - len(own))] for row, own in zip(rows, candidates, strict=True)]
    first = torch.tensor([[len(row.ids) - 1] for row in rows], device=device)
    return torch.tensor(ids, device=device), first + torch.arange(longest + 1, device=device)


def _choices(logits: Tensor) -> list[list[int]]:
    """Return the ids (B, T) with the highest scores (B, T, V), compared in float32, as `generate` does."""
    ids: list[list[int]] = logits.float().argmax(-1).tolist()
    return ids
