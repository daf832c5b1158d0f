"""Scores of citations: by hand, with intervals, compared, and beside scores of texts without citations."""

from dataclasses import replace

import pytest
from accelerate import Accelerator
from five_questions import EXAMPLES, P, losses_of, retrieval

from rqa.evaluation.citation_scores import citation_scores
from rqa.evaluation.comparison import differences, read_evaluation
from rqa.evaluation.evaluate import Evaluator
from rqa.evaluation.significance import interval
from rqa.generation.answers import Answer
from rqa.judge.judge_evaluation import build_requests


@pytest.mark.parametrize(
    ("cited", "read", "gold", "expected"),
    [
        ([1, 1, 3], "abc", "ab", (100.0, 50.0, 50.0)),
        ([1, 2], "abc", "ab", (100.0, 100.0, 100.0)),
        ([4], "abc", "a", (100.0, 0.0, 0.0)),  # no passage has the number
        ([0, 2], "abc", "b", (100.0, 50.0, 100.0)),
        ([], "abc", "a", (0.0, None, 0.0)),
        ([1], "abc", "x", (100.0, 0.0, None)),  # gold is not in the prompt
        ([1, 2, 3], "abc", "abcx", (100.0, 100.0, 100.0)),
        ([], "", "", (0.0, None, None)),
    ],
)
def test_scores_by_hand(cited, read, gold, expected):
    names = ("cited_answers", "citation_precision", "citation_recall")
    scores = {name: value for name, value in zip(names, expected, strict=True) if value is not None}
    assert citation_scores(cited, list(read), list(gold)) == scores


# Of the five questions the prompts contain the first two of FOUND.
TEXTS = (
    "It was lit [1] in the year 1907 [1, 3].",  # gold is the first; there is no third
    "In the old town [1, 2] of Rome, Italy.",  # gold is the second
    "Lit [2].",  # no gold passage
    "I do not know.",  # no passages
    "In 1907 the lamp [2] was lit.",  # gold is the fourth, not in the prompt
)
PLAIN = (
    "It was lit in the year 1907.",
    "In the old town of Rome, Italy.",
    "Lit.",
    "I do not know.",
    "In 1907 the lamp was lit.",
)


def evaluated(texts=TEXTS, *, citations=True, references=" [1]"):
    """Return the scores of an Evaluator with functions in place of its model."""
    examples = [replace(one, answers=tuple(f"{text}{references}" for text in one.answers)) for one in EXAMPLES]
    answers = {one.id: text for one, text in zip(examples, texts, strict=True)}
    evaluator = Evaluator(Accelerator(cpu=True), None, None, k=2, batch_size=1, max_new_tokens=1, ks=(1,))
    evaluator.has_generator, evaluator.citations, evaluator.loss = True, citations, losses_of
    evaluator.generate = lambda inputs: [
        Answer(answers[item.example.id], 9, 9, finished=True, truncated=0, num_passages=len(item.passages))
        for item in inputs
    ]
    return evaluator(examples, retrieval())


def test_scores_are_means_over_the_answers_that_have_them():
    scores = evaluated()
    expected = {
        "cited_answers": [100, 100, 100, 0, 100],
        "citation_precision": [50, 50, 0, 0],  # of the answers with citations
        "citation_recall": [100, 100],  # of the prompts with gold
    }
    for name, values in expected.items():
        assert [row.citation_scores[name] for row in scores.predictions if name in row.citation_scores] == values
        assert scores.metrics[name] == sum(values) / len(values)
        assert scores.score.intervals[name] == interval(values)
    cited = [[P[i].id for i in row] for row in ([3], [5, 8], [1], [], [4])]
    assert [[*row.cited_ids] for row in scores.predictions] == cited
    assert "citation_precision 25  citation_recall 100" in scores.summary


def test_other_scores_are_those_of_texts_without_citations():
    with_citations, plain = evaluated(), evaluated(PLAIN, citations=False, references="")
    names = {"cited_answers", "citation_precision", "citation_recall"}
    assert with_citations.metrics.keys() - plain.metrics.keys() == names
    assert {name: with_citations.metrics[name] for name in plain.metrics} == plain.metrics
    assert {name: with_citations.score.intervals[name] for name in plain.metrics} == plain.score.intervals
    assert [row.answer for row in with_citations.predictions] == [*TEXTS]
    assert evaluated(citations=False).metrics["f1"] < plain.metrics["f1"]


def test_without_the_flag_there_are_no_scores_of_citations():
    scores = evaluated(citations=False)
    assert not [name for name in scores.metrics if "cit" in name]
    assert all(row.cited_ids is row.citation_scores is None for row in scores.predictions)


def test_scores_are_read_and_compared_on_the_questions_that_both_have(tmp_path):
    for name, texts in {"a": TEXTS, "b": (*TEXTS[:1], PLAIN[1], *TEXTS[2:])}.items():
        (tmp_path / name).mkdir()
        evaluated(texts).write(tmp_path / name)
    a, b = (read_evaluation(tmp_path / name) for name in "ab")
    assert [*a.predictions.values()] == evaluated().predictions
    results = differences(a, b)
    assert (results["citation_precision"].difference, results["citation_precision"].questions) == (0, 3)
    assert (results["citation_recall"].difference, results["citation_recall"].questions) == (-50, 2)
    assert (results["cited_answers"].difference, results["cited_answers"].questions) == (-20, 5)
    assert results["f1"].difference == 0
    evaluated(citations=False).write(tmp_path / "b")
    assert "citation_recall" not in differences(a, read_evaluation(tmp_path / "b"))


def test_the_judge_reads_texts_without_citations():
    for request, text in zip(build_requests(evaluated().predictions), PLAIN, strict=True):
        assert request.answer == text
        assert "[1]" not in " ".join(request.references)
