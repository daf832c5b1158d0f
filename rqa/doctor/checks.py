"""Checks of the data of a training run: records, corpus, and rows in tokens."""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import regex  # type: ignore[import-untyped]

from rqa.data.corpus import PassageStore
from rqa.data.passage_selection import GeneratorInput
from rqa.data.records import Example, Passage, distinct
from rqa.doctor.memory import Source
from rqa.errors import InputError
from rqa.prompts.collators import Collator, EncodedExample
from rqa.terminal import track

Severity = Literal["problem", "warning", "note"]
Method = Literal["swr", "sft", "fid"]
Examples = Sequence[Example]
Splits = Mapping[str, Examples]  # by "train", "eval" and "test"
Sources = Mapping[str, Source]  # of each split

# The least share of an answer's words of four or more letters (of its characters in scripts without spaces) that are in
# its gold passages. Measured on 150 answers of GPT-4 about Databricks' documentation (LocalRQA): 19 have less; of these
# 12 state that the document has no answer, or add facts to it, and 7 are right in other words. With the gold of another
# question 145 of the same answers have less. Of 4,402 summaries that are part of a docstring none has less.
MIN_SUPPORT = 0.4
LONG_ANSWER_WORDS = 20  # an answer at least this long that ends in a letter was probably truncated
SHORT_PASSAGE_WORDS = 5

_ROOM = "raise --max_prompt_length (FiD: --max_passage_length)"
KINDS = {  # of findings: name: (meaning, advice)
    "question_in_train": ("questions that are in train too", "remove them from one file: they measure memorization"),
    "question_in_eval": ("questions that are in eval too", "remove them if --eval_file selects the model"),
    "gold_in_train": ("examples whose gold is gold in train too", "split by document if new documents are the use"),
    "no_passages": ("examples without any passage to read", "add gold_docs (SFT), ctxs, or a corpus"),
    "no_gold": ("examples without gold passages", "they do not count for recall"),
    "unanswerable": ("examples marked unanswerable", "their answer is --refusal_answer"),
    "duplicate_gold": ("examples with the same gold passage twice", "it is read once"),
    "duplicate_question": ("questions of an earlier line", "remove them unless a higher weight is intended"),
    "conflicting_answers": ("questions of an earlier line with another answer", "merge them or make them precise"),
    "answer_is_question": ("answers that repeat the question", "check for swapped columns"),
    "empty_answer": ("answers without a word except a, an, the", "write a sentence: EM and F1 ignore these words"),
    "unfinished_answer": ("long answers that end in mid-sentence", "generate them with more tokens, or remove them"),
    "unsupported_answer": (f"answers with under {MIN_SUPPORT:.0%} of their words in the gold", "check gold and answer"),
    "unsupported_number": ("answers with a number that is in neither gold nor question", "check for invented numbers"),
    "gold_split_differently": ("examples whose gold is not in the corpus, but its source", "take gold from the corpus"),
    "gold_not_in_corpus": ("examples whose gold is not in the corpus", "add it: no retriever can find it"),
    "gold_not_in_ctxs": ("examples without gold in the ctxs that are read", "their share limits the scores"),
    "duplicate_passages": ("passages with the text of an earlier one", "they are read as one"),
    "short_passages": (f"passages of less than {SHORT_PASSAGE_WORDS} words", "remove those without information"),
    "long_prompt": ("questions too long for a prompt without passages", f"training refuses them: {_ROOM}"),
    "long_answer": ("answers longer than --max_answer_length", "training refuses them: raise it, or remove them"),
    "long_reference": ("examples with no reference as short as --max_new_tokens", "raise it: no answer can match"),
    "long_refusal": ("examples whose target is a --refusal_answer that is too long", "shorten --refusal_answer"),
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


_SCRIPT = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]"  # without spaces between words
_WORD = regex.compile(rf"(?V1){_SCRIPT}|[\w--{_SCRIPT}]+")
_ITEM = re.compile(r"^[ \t]*(?:[-*•]|(\d+|[A-Za-z])[.)])[ \t]+", re.MULTILINE)  # the start of a list item
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")


def words(text: str) -> list[str]:
    """Return the words of a text in lower case. In scripts without spaces every character is a word."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())  # type: ignore[no-any-return]


def support(answer: str, texts: Sequence[str]) -> float:
    """Return the share of an answer's longer words that are in `texts`, 1 if it has none; see MIN_SUPPORT."""
    longer = {w for w in words(_ITEM.sub("", answer)) if not w.isdigit() and (len(w) > 3 or not w.isascii())}
    available = {word for text in texts for word in words(text)}
    return len(longer & available) / len(longer) if longer else 1.0


def unsupported_numbers(answer: str, texts: Sequence[str]) -> list[str]:
    """Return the numbers of an answer that are in none of `texts`, except those that number its own list."""
    available = set(_ITEM.findall(answer))
    for text in texts:
        available.update(re.findall(r"\d+", text), (number.replace(",", "") for number in _NUMBER.findall(text)))
    stated = dict.fromkeys(re.findall(rf"(?<![\w.]){_NUMBER.pattern}", answer))
    return [n for n in stated if n.replace(",", "") not in available and not available.issuperset(n.split(","))]


def _unfinished(answer: str) -> str:
    text = answer.rstrip()
    is_item = _ITEM.match(text.rpartition("\n")[2])  # list items often have no full stop
    ends = re.search(r"[,;]$" if is_item else r"[\w,;]$", text)
    return f"… {text[-30:]!r}" if ends and len(words(text)) >= LONG_ANSWER_WORDS else ""


def _unsupported_answer(example: Example, answers: Sequence[str]) -> str:
    gold = [passage.content for passage in example.gold_passages]
    share = max((support(answer, gold) for answer in answers), default=1.0)
    return f"{int(100 * share)} %" if gold and share < MIN_SUPPORT else ""


def _unsupported_number(example: Example, answers: Sequence[str]) -> str:
    texts = [*(passage.content for passage in example.gold_passages), *_asked(example)]
    numbers = min((unsupported_numbers(answer, texts) for answer in answers), key=len, default=[])
    return ", ".join(numbers[:5]) if example.gold_passages else ""


def _answers(split: str, example: Example) -> tuple[str, ...]:
    """Return the answers to check: the first in train, else all; none if the example is unanswerable."""
    return () if example.unanswerable else example.answers[: 1 if split == "train" else None]


def _asked(example: Example) -> list[str]:
    return [example.question, *(turn.text for turn in example.chat_history)]


# A check of one example and its answers returns True, or a text with details, if there is a finding.
_CHECKS: dict[str, tuple[Severity, Callable[[Example, Sequence[str]], bool | str]]] = {
    "answer_is_question": ("problem", lambda e, answers: any(_key([a]) == _key([e.question]) for a in answers)),
    "empty_answer": ("warning", lambda _, answers: any({*words(a)} <= {"a", "an", "the"} for a in answers)),
    "unfinished_answer": ("warning", lambda _, answers: next(filter(None, map(_unfinished, answers)), False)),
    "unsupported_answer": ("warning", _unsupported_answer),
    "unsupported_number": ("warning", _unsupported_number),
    "no_gold": ("note", lambda e, _: not (e.gold_passages or e.unanswerable)),
    "unanswerable": ("note", lambda e, _: e.unanswerable),
    "duplicate_gold": ("note", lambda e, _: len(distinct(e.gold_passages)) < len(e.gold_passages)),
}


def split_findings(split: str, examples: Examples) -> list[Finding]:
    """Check each example of one file, and compare it with the earlier ones."""
    severities = {name: severity for name, (severity, _) in _CHECKS.items()}
    severities |= {"duplicate_question": "warning", "conflicting_answers": "warning"}
    places: dict[str, list[str]] = {name: [] for name in severities}
    first_of: dict[tuple[str, ...], Example] = {}
    for example in track(examples, f"checking {split}", unit="examples"):
        for name, (_, check) in _CHECKS.items():
            if result := check(example, _answers(split, example)):
                places[name].append(example.where if result is True else f"{example.where} ({result})")
        # The contexts are part of the question: the answer may depend on them.
        first = first_of.setdefault((*_key(_asked(example)), *sorted(_ids(example.contexts))), example)
        if first is not example:
            one, other = ((None,) if each.unanswerable else _key(each.answers) for each in (first, example))
            name = "conflicting_answers" if {*one}.isdisjoint(other) else "duplicate_question"
            places[name].append(f"{example.where} (as {first.where})")
    return [Finding.at(name, severity, split, len(examples), places[name]) for name, severity in severities.items()]


def _key(texts: Iterable[str]) -> tuple[str, ...]:
    """Return texts without case, punctuation and white space."""
    return tuple(" ".join(words(text)) or text for text in texts)


def leak_findings(splits: Splits) -> list[Finding]:
    """Compare eval and test with train, and test with eval."""
    findings = []
    for other, split in track((("train", "eval"), ("train", "test"), ("eval", "test")), "comparing files"):
        first_of = {_key(_asked(example)): example.where for example in reversed(splits[other])}
        places = [f"{e.where} (as {first_of[key]})" for e in splits[split] if (key := _key(_asked(e))) in first_of]
        severity: Severity = "problem" if other == "train" else "warning"
        total = len(splits[split]) if first_of else 0
        findings.append(Finding.at(f"question_in_{other}", severity, split, total, places))
    gold_in_train = _ids(passage for example in splits["train"] for passage in example.gold_passages)
    for split in ("eval", "test"):
        with_gold = [example for example in splits[split] if example.gold_passages]
        places = [e.where for e in with_gold if not gold_in_train.isdisjoint(_ids(e.gold_passages))]
        severity = "warning" if 2 * len(places) > len(with_gold) else "note"
        findings.append(Finding.at("gold_in_train", severity, split, len(with_gold), places))
    return findings


def _ids(passages: Iterable[Passage]) -> set[str]:
    return {passage.id for passage in passages}


def source_of(method: Method, split: str, splits: Splits, corpus: Sequence[Passage] | None) -> Source:
    """Return the source of the passages that a recipe reads for a split."""
    if method == "sft" and split == "train":
        return "gold"
    if corpus is not None:
        return corpus
    has_ctxs = any(example.contexts for name in ("eval", "test") for example in splits[name])
    return "ctxs" if has_ctxs or method != "sft" else "gold"


def _source_findings(split: str, examples: Examples, source: Source, k: int) -> list[Finding]:
    """Check the passages that come with the examples, if they are read: gold, or the first `k` of ctxs."""
    if source not in ("gold", "ctxs"):
        return []
    bare = [e.where for e in examples if not (e.gold_passages if source == "gold" else e.contexts)]
    findings = [Finding.at("no_passages", "problem", split, len(examples), bare)]
    if source == "ctxs" and split != "train":
        with_gold = [example for example in examples if example.gold_passages]
        places = [e.where for e in with_gold if _ids(e.gold_passages).isdisjoint(_ids(e.contexts[:k]))]
        findings.append(Finding.at("gold_not_in_ctxs", "note", split, len(with_gold), places))
    return findings


def corpus_findings(splits: Splits, corpus: PassageStore) -> list[Finding]:
    """Check the passages of the corpus, and that it contains the gold passages."""
    short = []
    origins: Counter[str] = Counter()
    for passage in track(corpus, "checking the corpus", unit="passages"):
        origins.update({passage.title, *passage.sources})
        if len(passage.text) < 20 * SHORT_PASSAGE_WORDS and len(words(passage.text)) < SHORT_PASSAGE_WORDS:
            short.append(repr(passage.content))
    # A name that most passages share does not identify a document.
    documents = {name for name, count in origins.items() if name and 2 * count <= len(corpus)}
    findings = [
        Finding("duplicate_passages", "note", "corpus", corpus.duplicates, len(corpus) + corpus.duplicates),
        Finding.at("short_passages", "note", "corpus", len(corpus), short),
    ]
    for split, examples in splits.items():
        places: dict[str, list[str]] = {"gold_split_differently": [], "gold_not_in_corpus": []}
        for example in examples:
            missing = [passage for passage in example.gold_passages if corpus.row_of(passage.id) is None]
            names = [name for passage in missing for name in (passage.title, *passage.sources) if name in documents]
            if missing:
                place = f"{example.where} ({names[0]})" if names else example.where
                places["gold_split_differently" if names else "gold_not_in_corpus"].append(place)
        total = sum(bool(example.gold_passages) for example in examples)
        severity: Severity = "problem" if 2 * sum(map(len, places.values())) > total else "warning"
        findings += [Finding.at(name, severity, split, total, places[name]) for name in places]
    return findings


def record_findings(splits: Splits, sources: Sources, corpus: PassageStore | None, k: int) -> list[Finding]:
    """Run all checks that need no tokenizer. `sources` come from `source_of`; `k` passages are retrieved."""
    findings = leak_findings(splits) + (corpus_findings(splits, corpus) if corpus is not None else [])
    for split, examples in splits.items():
        findings += split_findings(split, examples) + _source_findings(split, examples, sources[split], k)
    return findings


def length_findings(
    split: str, examples: Examples, collator: Collator, max_new_tokens: int, refusal_answer: str, gold_dropout: float
) -> list[Finding]:
    """Check that questions fit a prompt, and answers --max_answer_length in train, else `max_new_tokens`."""
    is_train = split == "train"
    limit = collator.max_answer_length if is_train else max_new_tokens

    def tokens(answer: str) -> int:
        ids = collator.builder.answer(answer)  # the end token need not be generated for a correct text
        return len(ids) if is_train else min(map(ids.index, {*ids}.intersection(collator.builder.stop_ids)))

    is_long_refusal = tokens(refusal_answer) > limit
    prompts, answers, refusals = [], [], []
    for example in track(examples, f"measuring {split}", unit="examples"):
        try:
            collator.encode([GeneratorInput.from_ranked(example, ())])
        except InputError:
            prompts.append(example.where)
        if is_long_refusal and (example.unanswerable or (is_train and gold_dropout and example.gold_passages)):
            refusals.append(example.where)
        if not example.unanswerable and (least := min(map(tokens, _answers(split, example)), default=0)) > limit:
            answers.append(f"{example.where} ({least} tokens)")
    severity: Severity = "problem" if is_train else "warning"
    return [
        Finding.at("long_prompt", "problem", split, len(examples), prompts),
        Finding.at("long_answer" if is_train else "long_reference", severity, split, len(examples), answers),
        Finding.at("long_refusal", severity, split, len(examples), refusals),
    ]


def truncation_finding(split: str, inputs: Sequence[GeneratorInput], rows: Sequence[EncodedExample]) -> Finding:
    """Check that the passages of `inputs`, encoded as `rows`, were not truncated."""
    pairs = zip(inputs, rows, strict=True)
    places = [f"{item.example.where} ({row.truncated} tokens)" for item, row in pairs if row.truncated]
    severity: Severity = "warning" if 10 * len(places) > len(rows) else "note"
    return Finding.at("truncated_passages", severity, split, len(rows), places)
