"""Citations that the judge finds supported by their passages: requests, records and scores.

Scores after citation recall and precision of ALCE (Gao et al. 2023, arXiv:2305.14627).
"""

import math
from collections.abc import Iterable, Sequence

from rqa.data.citations import cited_numbers, sentences
from rqa.data.records import Passage
from rqa.evaluation.results import CitationSupportRecord, PredictionRecord, SentenceRecord
from rqa.judge.prompt import SupportRequest
from rqa.judge.verdicts import Support, Verdict

PRECISION, RECALL = "citation_support_precision", "citation_support_recall"
SUPPORT_SCORES = tuple(f"{name}{end}" for name in (PRECISION, RECALL) for end in ("", "_low", "_high"))


def build_support_requests(predictions: Iterable[PredictionRecord]) -> dict[str, SupportRequest]:
    """Return a request for each answer that cites a passage of its prompt, by id. The passages are whole."""
    requests = {}
    for row in predictions:
        parts = tuple((text, tuple(sorted(_passage_numbers(row, text)))) for text in _sentences(row))
        if cited := {number for _, numbers in parts for number in numbers}:
            passages = {i: Passage(row.passages[i - 1].text, row.passages[i - 1].title).content for i in sorted(cited)}
            requests[row.id] = SupportRequest(row.question, parts, passages, row.chat_history)
    return requests


def support_record(row: PredictionRecord, verdict: Verdict | None) -> CitationSupportRecord | None:
    """Return the verdict on the citations of an answer, None if it has none. Without a request there is no verdict."""
    if not _sentences(row):
        return None
    if verdict is None:
        return CitationSupportRecord("judged", "No passage of the prompt has a cited number.", _records(row, {}))
    judged = () if verdict.support is None else _records(row, verdict.support)
    return CitationSupportRecord(verdict.status, verdict.explanation, judged)


def support_scores(judged: Sequence[SentenceRecord]) -> dict[str, float]:
    """Score the citations of one answer, in per cent.

    - citation_support_precision: the share of the citations whose passage supports at least a part of their sentence.
      A number that a sentence cites twice is one citation. A number without a passage supports nothing.
    - citation_support_recall: the share of the sentences that their cited passages together support. A sentence
      without citations is not supported.
    """
    supporting = [number in each.supporting for each in judged for number in {*each.cited}]
    return {
        PRECISION: 100 * sum(supporting) / len(supporting),
        RECALL: 100 * sum(each.is_supported for each in judged) / len(judged),
    }


def summarize_support(predictions: Iterable[PredictionRecord]) -> dict[str, float]:
    """Return the mean of each score over the judged answers, and its bounds over all answers with citations.

    The bounds, `_low` and `_high`, count missing verdicts as no support, and as support by every cited passage.
    """
    rows = [(row, row.citation_support) for row in predictions if row.citation_support]
    scores = _means([record.sentences for _, record in rows if record.sentences])
    bounds = [
        (record.sentences or _records(row, {}), record.sentences or _records(row, _full(row))) for row, record in rows
    ]
    for end, assumed in zip(("_low", "_high"), zip(*bounds, strict=True), strict=False):
        scores |= {f"{name}{end}": value for name, value in _means(assumed).items()}
    return scores


def _means(answers: Sequence[Sequence[SentenceRecord]]) -> dict[str, float]:
    scores = list(map(support_scores, answers))
    return {name: math.fsum(each[name] for each in scores) / len(scores) for name in (PRECISION, RECALL) if scores}


def _full(row: PredictionRecord) -> Support:
    """Return the support of each sentence by all passages that it cites."""
    numbers = {i: _passage_numbers(row, text) for i, text in enumerate(_sentences(row), 1)}
    return {i: (True, own) for i, own in numbers.items() if own}


def _sentences(row: PredictionRecord) -> list[str]:
    """Return the sentences of an answer with citations, [] of another."""
    has_citations = row.citation_scores is not None and cited_numbers(row.answer or "")
    return sentences(row.answer or "") if has_citations else []


def _passage_numbers(row: PredictionRecord, text: str) -> frozenset[int]:
    """Return the numbers that a sentence cites and that a passage of the prompt has."""
    return frozenset(number for number in cited_numbers(text) if 1 <= number <= (row.num_passages_read or 0))


def _records(row: PredictionRecord, support: Support) -> tuple[SentenceRecord, ...]:
    """Return the sentences of an answer; those that `support` lacks are not supported."""
    records = []
    for number, text in enumerate(_sentences(row), 1):
        is_supported, supporting = support.get(number, (False, frozenset[int]()))
        records.append(SentenceRecord(text, tuple(cited_numbers(text)), tuple(sorted(supporting)), is_supported))
    return tuple(records)
