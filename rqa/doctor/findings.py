"""Findings: the results of the doctor's checks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Severity = Literal["problem", "warning", "note"]

# The least share of an answer's words of four or more letters (of its characters in scripts without spaces) that are in
# its gold passages; see `rqa.doctor.answers`.
MIN_SUPPORT = 0.4
SHORT_PASSAGE_WORDS = 5

_ROOM = "raise --max_prompt_length (FiD: --max_passage_length)"
KINDS = {  # of findings: name: (meaning, advice)
    "bad_row": ("rows with problems, which are not in any other check", "correct them, or set --max_bad_rows"),
    "misnamed_field": ("rows with a field that is not read but resembles one that is missing", "rename it"),
    "unread_field": ("rows with other fields that are not read", "nothing to do unless one of them matters"),
    "question_in_train": ("questions that are in train too", "remove them from one file: they measure memorization"),
    "question_in_eval": ("questions that are in eval too", "remove them if --eval_file selects the model"),
    "gold_in_train": ("examples whose gold is gold in train too", "split by document if new documents are the use"),
    "no_passages": ("examples without any passage to read", "add gold_docs (SFT), ctxs, or a corpus"),
    "no_answer": ("examples without an answer", "training refuses them; an evaluation does not score their answers"),
    "no_gold": ("examples without gold passages", "they do not count for recall"),
    "unanswerable": ("examples marked unanswerable", "their answer is --refusal_answer"),
    "duplicate_gold": ("examples with the same gold passage twice", "it is read once"),
    "duplicate_question": ("questions of an earlier line", "remove them unless a higher weight is intended"),
    "conflicting_answers": ("questions of an earlier line with another answer", "merge them or make them precise"),
    "answer_is_question": ("answers that repeat the question", "check for swapped columns"),
    "empty_answer": ("answers without a word except a, an, the", "write a sentence: EM and F1 ignore these words"),
    "unfinished_answer": ("long answers that end in mid-sentence", "generate them with more tokens, or remove them"),
    "unsupported_answer": (
        f"answers with under {MIN_SUPPORT:.0%} of their words in the gold, no more than in the gold of other examples",
        "check gold and answer",
    ),
    "reworded_answer": (
        f"answers with under {MIN_SUPPORT:.0%} of their words in the gold, but more than in the gold of other examples",
        "read some: other words for the same, or facts that the gold lacks",
    ),
    "unsupported_number": ("answers with a number that nothing in their row contains", "check for invented numbers"),
    "gold_split_differently": ("examples whose gold is not in the corpus, but its source", "take gold from the corpus"),
    "gold_not_in_corpus": ("examples whose gold is not in the corpus", "add it: no retriever can find it"),
    "gold_not_in_ctxs": ("examples without gold in the ctxs that are read", "their share limits the scores"),
    "duplicate_passages": ("passages with the text of an earlier one", "they are read as one"),
    "short_passages": (f"passages of less than {SHORT_PASSAGE_WORDS} words", "remove those without information"),
    "long_prompt": ("questions too long for a prompt without passages", f"training refuses them: {_ROOM}"),
    "long_answer": ("answers longer than --max_answer_length", "training refuses them: raise it, or remove them"),
    "long_reference": ("examples with no reference as short as --max_new_tokens", "raise it: no answer can match"),
    "long_refusal": ("examples whose target is a --refusal_answer that is too long", "shorten --refusal_answer"),
    "unknown_control_token": (
        "texts of the prompt that look like a control token and are none of this tokenizer",
        "the model reads them as plain text: use the prefixes of this model, or its chat template",
    ),
    "small_updates": ("steps that together hardly change the model", "raise --learning_rate or --num_train_epochs"),
    "truncated_passages": ("rows with truncated passages", f"{_ROOM}, or read fewer or shorter passages"),
}


@dataclass(frozen=True)
class Finding:
    """The result of one check of one file: `count` of `total` examples, passages or rows, maybe 0, and their places."""

    name: str  # one of KINDS
    severity: Severity
    split: str
    count: int
    total: int
    places: tuple[str, ...] = ()

    @classmethod
    def at(cls, name: str, severity: Severity, split: str, total: int, places: Sequence[str]) -> "Finding":
        """Return a finding that counts `places`."""
        return cls(name, severity, split, len(places), total, tuple(places))
