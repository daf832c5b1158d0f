"""What is wrong with the data of a run, found before an hour of a GPU is spent on it: in records, corpus and rows.

A check returns a `Finding` also where it found nothing: it was made. KINDS says what each name means, and what to do.
"""

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

Severity = Literal["problem", "warning", "note"]
Method = Literal["swr", "sft", "fid"]
Splits = Mapping[str, Sequence[Example]]  # by "train", "eval" and "test"

# Of an answer's words of four letters or more, and of its characters where words have no spaces, at least so many stand
# in its gold passages. Of 150 answers of GPT-4 on Databricks' documentation (LocalRQA) 19 have fewer: 12 say that the
# document does not tell, or add what it does not, 7 are right in many words. Beside the gold of another question 145
# and more of the same answers have fewer; of 4,402 summaries that are part of a docstring, none.
SUPPORTED = 0.4
LONG_ANSWER = 20  # words, from which on an answer that ends in a letter was probably cut
SHORT_PASSAGE = 5  # words

_FIT = "raise --max_prompt_length (FiD: --max_passage_length)"
KINDS = {  # what was found, and what to do
    "question_in_train": ("questions that train asks too", "take them out of one file: they measure learning by heart"),
    "question_in_eval": ("questions that eval asks too", "take them out of one file if --eval_file chooses the model"),
    "gold_in_train": ("examples whose gold is gold in train", "is the use on new documents? Then split by document"),
    "no_passages": ("examples that would be read without any passage", "give gold_docs (SFT), ctxs, or a corpus"),
    "no_gold": ("examples without gold passages", "no recall is counted for them"),
    "unanswerable": ("examples marked unanswerable", "they train, or expect, --refusal_answer"),
    "duplicate_gold": ("examples that have one gold passage twice", "it is read once"),
    "duplicate_question": ("questions that an earlier line asks too", "leave them out, unless they are to weigh more"),
    "conflicting_answers": ("questions that an earlier line answers otherwise", "ask more exactly, or make them one"),
    "answer_is_question": ("answers that repeat the question", "look for columns that were mixed up"),
    "empty_answer": ("answers without a word but a, an, the", "write them out: EM and F1 compare the other words"),
    "unfinished_answer": ("long answers that end in mid-sentence", "generate them with more tokens, or leave them out"),
    "unsupported_answer": (
        f"answers with less than {SUPPORTED:.0%} of their words in the gold",
        "wrong gold, or made up?",
    ),
    "unsupported_number": ("answers with a number that neither gold nor question have", "read: it may be made up"),
    "gold_cut_anew": ("examples whose gold the corpus lacks, not its source", "cut anew? Take gold from the corpus"),
    "gold_not_in_corpus": ("examples whose gold the corpus lacks", "add it: no retriever can find it"),
    "gold_not_given": ("examples with no gold among the ctxs read", "know their share: it bounds what can be right"),
    "duplicate_passages": ("passages whose text an earlier one has", "they are read as one"),
    "short_passages": (f"passages of less than {SHORT_PASSAGE} words", "leave out those that tell nothing"),
    "long_prompt": ("questions that do not fit even without passages", f"training refuses them: {_FIT}"),
    "long_answer": ("answers longer than --max_answer_length", "training refuses them: raise it, or leave them out"),
    "long_reference": ("examples without a reference that --max_new_tokens can hold", "raise it: no answer can match"),
    "long_refusal": ("examples to refuse, by a --refusal_answer longer than its limit", "shorten --refusal_answer"),
    "cut_passages": ("rows in which passages were cut to fit", f"{_FIT}, or read fewer passages, or shorter ones"),
}


@dataclass(frozen=True)
class Finding:
    """What a check found in one file: `count` of `of` examples, passages or rows, and where they are."""

    name: str  # one of KINDS
    severity: Severity
    split: str
    count: int
    of: int
    places: tuple[str, ...] = ()

    @classmethod
    def at(cls, name: str, severity: Severity, split: str, of: int, places: Sequence[str]) -> "Finding":
        """Return what was found at `places`."""
        return cls(name, severity, split, len(places), of, tuple(places))


_SCRIPT = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]"  # without spaces between words
_WORD = regex.compile(rf"(?V1){_SCRIPT}|[\w--{_SCRIPT}]+")
_ITEM = re.compile(r"^[ \t]*(?:[-*•]|(\d+|[A-Za-z])[.)])[ \t]+", re.MULTILINE)  # what opens an item of a list
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")


def words(text: str) -> list[str]:
    """Return the words of a text without case; in scripts written without spaces a character is a word."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())  # type: ignore[no-any-return]


def support(answer: str, texts: Sequence[str]) -> float:
    """Return the share of an answer's telling words that stand in `texts`, 1 where it has none; see SUPPORTED."""
    stated = {word for word in words(_ITEM.sub("", answer)) if not word.isdigit()}
    telling = {word for word in stated if len(word) > 3 or not word.isascii()}
    known = {word for text in texts for word in words(text)}
    return len(telling & known) / len(telling) if telling else 1.0


def unsupported_numbers(answer: str, texts: Sequence[str]) -> list[str]:
    """Return the numbers of an answer that stand in none of `texts`, but for those of its own list."""
    known = set(_ITEM.findall(answer))
    for text in texts:
        known.update(re.findall(r"\d+", text), (number.replace(",", "") for number in _NUMBER.findall(text)))
    stated = dict.fromkeys(re.findall(rf"(?<![\w.]){_NUMBER.pattern}", answer))
    return [n for n in stated if n.replace(",", "") not in known and not known.issuperset(n.split(","))]


def _unfinished(answer: str) -> str:
    text = answer.rstrip()
    is_item = _ITEM.match(text.rpartition("\n")[2])  # which often has no full stop
    ends = re.search(r"[,;]$" if is_item else r"[\w,;]$", text)
    return f"… {text[-30:]!r}" if ends and len(words(text)) >= LONG_ANSWER else ""


def _unsupported_answer(example: Example, answers: Sequence[str]) -> str:
    gold = [passage.content for passage in example.gold_passages]
    share = max((support(answer, gold) for answer in answers), default=1.0)
    return f"{int(100 * share)} %" if gold and share < SUPPORTED else ""


def _unsupported_number(example: Example, answers: Sequence[str]) -> str:
    texts = [*(passage.content for passage in example.gold_passages), *_asked(example)]
    found = min((unsupported_numbers(answer, texts) for answer in answers), key=len, default=[])
    return ", ".join(found[:5]) if example.gold_passages else ""


def _answers(split: str, example: Example) -> tuple[str, ...]:
    """Return the answers that count: in train the first, which is trained on, else all; none of those to refuse."""
    return () if example.unanswerable else example.answers[: 1 if split == "train" else None]


def _asked(example: Example) -> list[str]:
    return [example.question, *(turn.text for turn in example.chat_history)]


# Of one example and those of its answers that count: whether it is so, or where that helps in which way.
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


def split_findings(split: str, examples: Sequence[Example]) -> list[Finding]:
    """Check the examples of one file, each by itself, and against the earlier ones."""
    found: dict[str, list[str]] = {name: [] for name in _CHECKS}
    for example in examples:
        for name, (_, check) in _CHECKS.items():
            if so := check(example, _answers(split, example)):
                found[name].append(example.where if so is True else f"{example.where} ({so})")
    each = (Finding.at(name, _CHECKS[name][0], split, len(examples), places) for name, places in found.items())
    return [*each, *_repeated(split, examples)]


def _repeated(split: str, examples: Sequence[Example]) -> list[Finding]:
    first_of: dict[tuple[str, ...], Example] = {}
    found: dict[str, list[str]] = {"duplicate_question": [], "conflicting_answers": []}
    for example in examples:
        # What comes with a question is part of it: it may have another answer there.
        first = first_of.setdefault((*_key(_asked(example)), *sorted(_ids(example.contexts))), example)
        if first is not example:
            one, other = ((None,) if each.unanswerable else _key(each.answers) for each in (first, example))
            name = "conflicting_answers" if {*one}.isdisjoint(other) else "duplicate_question"
            found[name].append(f"{example.where} (as {first.where})")
    return [Finding.at(name, "warning", split, len(examples), places) for name, places in found.items()]


def _key(texts: Iterable[str]) -> tuple[str, ...]:
    """Return texts in a form that case, punctuation and white space do not change."""
    return tuple(" ".join(words(text)) or text for text in texts)


def leak_findings(splits: Splits) -> list[Finding]:
    """Check what eval and test have in common with train, and test with eval."""
    found = []
    for other, split in (("train", "eval"), ("train", "test"), ("eval", "test")):
        first_of = {_key(_asked(example)): example.where for example in reversed(splits[other])}
        places = [f"{e.where} (as {first_of[key]})" for e in splits[split] if (key := _key(_asked(e))) in first_of]
        severity: Severity = "problem" if other == "train" else "warning"
        of = len(splits[split]) if splits[other] else 0
        found.append(Finding.at(f"question_in_{other}", severity, split, of, places))
    known = _ids(passage for example in splits["train"] for passage in example.gold_passages)
    for split in ("eval", "test"):
        with_gold = [example for example in splits[split] if example.gold_passages]
        places = [e.where for e in with_gold if not known.isdisjoint(_ids(e.gold_passages))]
        severity = "warning" if 2 * len(places) > len(with_gold) else "note"
        found.append(Finding.at("gold_in_train", severity, split, len(with_gold), places))
    return found


def _ids(passages: Iterable[Passage]) -> set[str]:
    return {passage.id for passage in passages}


def source_of(method: Method, split: str, splits: Splits, corpus: Sequence[Passage] | None) -> Source:
    """Return where the passages come from that a recipe reads of a split."""
    if method == "sft" and split == "train":
        return "gold"
    if corpus is not None:
        return corpus
    given = any(example.contexts for name in ("eval", "test") for example in splits[name])
    return "ctxs" if given or method != "sft" else "gold"


def given_findings(split: str, examples: Sequence[Example], source: Source, k: int) -> list[Finding]:
    """Check what the examples of a file bring to read: gold passages, or the first `k` of ctxs."""
    if source not in ("gold", "ctxs"):
        return []
    bare = [e.where for e in examples if not (e.gold_passages if source == "gold" else e.contexts)]
    found = [Finding.at("no_passages", "problem", split, len(examples), bare)]
    if source == "ctxs" and split != "train":
        asked = [example for example in examples if example.gold_passages]
        places = [e.where for e in asked if _ids(e.gold_passages).isdisjoint(_ids(e.contexts[:k]))]
        found.append(Finding.at("gold_not_given", "note", split, len(asked), places))
    return found


def corpus_findings(splits: Splits, corpus: PassageStore) -> list[Finding]:
    """Check the corpus, and that it has the gold passages."""
    short = []
    origins: Counter[str] = Counter()
    for passage in corpus:
        origins.update({passage.title, *passage.sources})
        if len(passage.text) < 20 * SHORT_PASSAGE and len(words(passage.text)) < SHORT_PASSAGE:
            short.append(repr(passage.content))
    telling = {name for name, count in origins.items() if name and 2 * count <= len(corpus)}  # which document it is
    found = [
        Finding("duplicate_passages", "note", "corpus", corpus.duplicates, len(corpus) + corpus.duplicates),
        Finding.at("short_passages", "note", "corpus", len(corpus), short),
    ]
    for split, examples in splits.items():
        lacking: dict[str, list[str]] = {"gold_cut_anew": [], "gold_not_in_corpus": []}
        for example in examples:
            missing = [passage for passage in example.gold_passages if corpus.row_of(passage.id) is None]
            known = [name for passage in missing for name in (passage.title, *passage.sources) if name in telling]
            if missing:
                place = f"{example.where} ({known[0]})" if known else example.where
                lacking["gold_cut_anew" if known else "gold_not_in_corpus"].append(place)
        of = sum(bool(example.gold_passages) for example in examples)
        severity: Severity = "problem" if 2 * sum(map(len, lacking.values())) > of else "warning"
        found += [Finding.at(name, severity, split, of, places) for name, places in lacking.items()]
    return found


def record_findings(
    splits: Splits, sources: Mapping[str, Source], corpus: PassageStore | None, k: int
) -> list[Finding]:
    """Make all checks that need no tokenizer; see `source_of`, and `k` is how many passages are retrieved."""
    found = leak_findings(splits) + (corpus_findings(splits, corpus) if corpus is not None else [])
    for split, examples in splits.items():
        found += split_findings(split, examples) + given_findings(split, examples, sources[split], k)
    return found


def length_findings(
    split: str,
    examples: Sequence[Example],
    collator: Collator,
    max_new_tokens: int,
    refusal_answer: str,
    gold_dropout: float = 0.0,
) -> list[Finding]:
    """Check that the questions fit a prompt; the answers --max_answer_length in train, else what is generated."""
    is_train = split == "train"
    limit = collator.max_answer_length if is_train else max_new_tokens

    def tokens(answer: str) -> int:
        ids = collator.builder.answer(answer)  # whose end need not be generated for the text to be right
        return len(ids) if is_train else min(map(ids.index, {*ids}.intersection(collator.builder.stop_ids)))

    is_long_refusal = tokens(refusal_answer) > limit
    prompts, answers, refusals = [], [], []
    for example in examples:
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


def cut_finding(split: str, readings: Sequence[GeneratorInput], rows: Sequence[EncodedExample]) -> Finding:
    """Check that the passages of `readings`, encoded as `rows`, were not cut."""
    places = [f"{of.example.where} ({row.cut} tokens)" for of, row in zip(readings, rows, strict=True) if row.cut]
    return Finding.at("cut_passages", "warning" if 10 * len(places) > len(rows) else "note", split, len(rows), places)
