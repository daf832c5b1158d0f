"""Checks of the data of a training run: records, corpus, and rows in tokens."""

import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

from rqa.data.corpus import PassageStore
from rqa.data.fields import quoted
from rqa.data.passage_selection import GeneratorInput
from rqa.data.records import Example, Passage, distinct
from rqa.data.words import words
from rqa.doctor.answers import ITEM, answers_to_check, support_findings, unsupported_number
from rqa.doctor.findings import SHORT_PASSAGE_WORDS, Finding, Severity
from rqa.doctor.memory import Source
from rqa.errors import InputError
from rqa.prompts.answer_decoder import unknown_control_tokens
from rqa.prompts.collators import Builder, Collator, EncodedExample
from rqa.terminal import track
from rqa.training.schedule import MIN_WEIGHT_CHANGE, max_weight_change

Method = Literal["swr", "sft", "fid"]
Examples = Sequence[Example]
Splits = Mapping[str, Examples]  # by "train", "eval" and "test"
Sources = Mapping[str, Source]  # of each split

LONG_ANSWER_WORDS = 20  # an answer at least this long that ends in a letter was probably truncated


def _unfinished(answer: str) -> str:
    text = answer.rstrip()
    is_item = ITEM.match(text.rpartition("\n")[2])  # list items often have no full stop
    ends = re.search(r"[,;]$" if is_item else r"[\w,;]$", text)
    return f"… {text[-30:]!r}" if ends and len(words(text)) >= LONG_ANSWER_WORDS else ""


def _asked(example: Example) -> list[str]:
    return [example.question, *(turn.text for turn in example.chat_history)]


# A check of one example and its answers returns True, or a text with details, if there is a finding.
_CHECKS: dict[str, tuple[Severity, Callable[[Example, Sequence[str]], bool | str]]] = {
    "answer_is_question": ("problem", lambda e, answers: any(_key([a]) == _key([e.question]) for a in answers)),
    "empty_answer": ("warning", lambda _, answers: any({*words(a)} <= {"a", "an", "the"} for a in answers)),
    "unfinished_answer": ("warning", lambda _, answers: next(filter(None, map(_unfinished, answers)), False)),
    "unsupported_number": ("warning", unsupported_number),
    "no_answer": ("note", lambda e, _: not (e.answers or e.unanswerable)),
    "no_gold": ("note", lambda e, _: not (e.gold_passages or e.unanswerable)),
    "unanswerable": ("note", lambda e, _: e.unanswerable),
    "duplicate_gold": ("note", lambda e, _: len(distinct(e.gold_passages)) < len(e.gold_passages)),
}


def split_findings(split: str, examples: Examples) -> list[Finding]:
    """Check each example of one file, and compare it with the earlier ones."""
    severities = {name: severity for name, (severity, _) in _CHECKS.items()}
    severities |= {"duplicate_question": "warning", "conflicting_answers": "warning"}
    severities["no_answer"] = "problem" if split == "train" else "note"
    places: dict[str, list[str]] = {name: [] for name in severities}
    first_of: dict[tuple[str, ...], Example] = {}
    for example in track(examples, f"checking {split}", unit="examples"):
        for name, (_, check) in _CHECKS.items():
            if result := check(example, answers_to_check(split, example)):
                places[name].append(example.where if result is True else f"{example.where} ({result})")
        # The contexts are part of the question: the answer may depend on them.
        first = first_of.setdefault((*_key(_asked(example)), *sorted(_ids(example.contexts))), example)
        if first is not example:
            one, other = ((None,) if each.unanswerable else _key(each.answers) for each in (first, example))
            name = "conflicting_answers" if one and other and {*one}.isdisjoint(other) else "duplicate_question"
            places[name].append(f"{example.where} (as {first.where})")
    findings = [Finding.at(name, severity, split, len(examples), places[name]) for name, severity in severities.items()]
    return findings + support_findings(split, examples)


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


def sources_of(method: Method, splits: Splits, corpus: PassageStore | None, *, has_retriever: bool) -> Sources:
    """Return the source of each split. With a corpus and no retriever the recipes read the ctxs, if there are any."""
    has_ctxs = any(example.contexts for examples in splits.values() for example in examples)
    searched = corpus if has_retriever or not has_ctxs else None
    return {split: source_of(method, split, splits, searched) for split in splits}


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
        if (
            not example.unanswerable
            and (least := min(map(tokens, answers_to_check(split, example)), default=0)) > limit
        ):
            answers.append(f"{example.where} ({least} tokens)")
    severity: Severity = "problem" if is_train else "warning"
    return [
        Finding.at("long_prompt", "problem", split, len(examples), prompts),
        Finding.at("long_answer" if is_train else "long_reference", severity, split, len(examples), answers),
        Finding.at("long_refusal", severity, split, len(examples), refusals),
    ]


def sample_for_rows(
    split: str, examples: Examples, findings: Sequence[Finding], size: int, seed: int = 0
) -> list[Example]:
    """Return a random sample of the examples that can be encoded: not those of `findings` that training refuses."""
    refused = {place for finding in findings if finding.name == "long_prompt" for place in finding.places}
    fitting = [e for e in examples if e.where not in refused and (split != "train" or e.answers or e.unanswerable)]
    positions = random.Random(seed).sample(range(len(fitting)), min(size, len(fitting)))
    return [fitting[i] for i in sorted(positions)]


def truncation_finding(split: str, inputs: Sequence[GeneratorInput], rows: Sequence[EncodedExample]) -> Finding:
    """Check that the passages of `inputs`, encoded as `rows`, were not truncated."""
    pairs = zip(inputs, rows, strict=True)
    places = [f"{item.example.where} ({row.truncated} tokens)" for item, row in pairs if row.truncated]
    severity: Severity = "warning" if 10 * len(places) > len(rows) else "note"
    return Finding.at("truncated_passages", severity, split, len(rows), places)


def control_token_finding(builder: Builder) -> Finding:
    """Check that the prefixes and separators have no control tokens of another tokenizer."""
    unknown = [quoted(token) for token in unknown_control_tokens(builder)]
    total = max(len(unknown), len(builder.affixes))
    return Finding.at("unknown_control_token", "warning", "train", total, unknown)


def update_finding(num_steps: int, learning_rate: Callable[[int], float]) -> Finding:
    """Check that the steps together change a weight by more than rounding; see `MIN_WEIGHT_CHANGE`."""
    change = max_weight_change(learning_rate, num_steps)
    gap = f"{MIN_WEIGHT_CHANGE:.0e}, the distance of usual weights in bfloat16"
    place = f"{num_steps} steps change a weight by {change:.1e} at most, less than {gap}"
    is_small = change < MIN_WEIGHT_CHANGE
    return Finding("small_updates", "warning", "train", num_steps * is_small, num_steps, (place,) * is_small)
