"""evaluate: scores equal those of rqa.evaluation.metrics on the same texts; the loss is plain cross-entropy."""

import json
import math
import re
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from five_questions import EXAMPLES, FOUND, TEXTS, Clock, P, losses_of, retrieval, score_examples
from retrieving import retrieve_with
from tiny_models import decoder, tokenizer
from torch.nn.functional import cross_entropy
from world import ROOT, hand_over, results_of

from rqa.data.passage_selection import REFUSAL_ANSWER, GeneratorInput
from rqa.evaluation import metrics
from rqa.evaluation.attribution import leave_one_out
from rqa.evaluation.comparison import read_evaluation
from rqa.evaluation.evaluate import AnswerLoss, Evaluator
from rqa.evaluation.results import to_json
from rqa.evaluation.significance import LEVEL, RESAMPLES, interval
from rqa.models.decoder import AnswerLM
from rqa.prompts.collators import ConcatenatedCollator
from rqa.prompts.decoder_prompt import PromptBuilder
from rqa.report.html import write_report
from rqa.retrieval.retrieve import Retrieval


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def references(example):
    return (REFUSAL_ANSWER,) if example.unanswerable else example.answers


# Scores


def by_hand(ks):
    """Return the retrieval scores of the examples with gold, and the answer scores of all."""
    ranked = [
        metrics.retrieval_scores([passage.id for passage in example.gold_passages], [P[i].id for i in row], ks)
        for example, row in zip(EXAMPLES, FOUND, strict=True)
        if example.gold_passages
    ]
    return ranked, [metrics.answer_scores(text, references(e)) for e, text in zip(EXAMPLES, TEXTS, strict=True)]


def test_scores_equal_those_of_the_metrics(clock):
    scores = score_examples(EXAMPLES, retrieval=retrieval(), generate=clock.generate, loss=losses_of, k=2, ks=(1, 3))
    ranked, answered = by_hand((1, 3))
    bleu = metrics.corpus_bleu(TEXTS, list(map(references, EXAMPLES)))
    words = sum(map(metrics.answer_length, TEXTS)) / 5
    means = metrics.mean_scores(ranked) | metrics.mean_scores(answered)
    others = {"bleu": bleu.score, "answer_words": words, "cut_answers": 20.0, "loss": 25 / 15}
    assert scores.metrics == means | others
    assert len({value for value in scores.metrics.values() if 0 < value < 100}) > 10
    assert scores.score.signatures == {"bleu": bleu.signature, "rouge": metrics.ROUGE_SIGNATURE}
    assert [row.answer_scores for row in scores.predictions] == answered
    assert [row.retrieval_scores for row in scores.predictions if row.retrieval_scores] == ranked


def test_a_prediction_contains_question_passages_and_answer(clock):
    row = score_examples(EXAMPLES, retrieval=retrieval(), generate=clock.generate, k=2, ks=(3,)).predictions[1]
    passages = [
        {"id": P[i].id, "title": P[i].title, "text": P[i].text, "sources": [*P[i].sources]}
        | {"score": score, "is_gold": is_gold}
        for i, score, is_gold in [(5, 1.0, False), (8, 0.99, True), (3, 0.98, False)]
    ]
    assert {name: value for name, value in to_json(row).items() if not name.endswith("_scores")} == {
        "reference_nll": 3.0,
        "reference_tokens": 2,
        "id": "b",
        "question": "Where exactly was it?",
        "passages": passages,
        "num_passages_read": 2,
        "answer": TEXTS[1],
        "references": [*EXAMPLES[1].answers],
        "finished": False,
    }


def test_every_score_that_has_rows_has_the_interval_of_its_rows(clock):
    scores = score_examples(EXAMPLES, retrieval=retrieval(), generate=clock.generate, loss=losses_of, k=2, ks=(1, 3))
    intervals = scores.score.intervals
    assert intervals.keys() == scores.metrics.keys()
    assert intervals["f1"] == interval([row.answer_scores["f1"] for row in scores.predictions])
    assert intervals["loss"] == interval(losses_of(EXAMPLES))
    recall = [row.retrieval_scores["recall@3"] for row in scores.predictions if row.retrieval_scores]
    assert intervals["recall@3"] == interval(recall)
    assert (scores.score.level, scores.score.resamples) == (LEVEL, RESAMPLES)


def test_a_loss_that_is_not_finite_is_null_and_has_no_interval(clock, tmp_path):
    loss = lambda inputs: [(math.nan, 1), *losses_of(inputs)[1:]]  # noqa: E731
    scores = score_examples(EXAMPLES, generate=clock.generate, loss=loss, k=1)
    assert "loss" not in scores.score.intervals
    scores.write(tmp_path)
    score = json.loads((tmp_path / "score.json").read_text(), parse_constant=pytest.fail)
    assert score["metrics"]["loss"] is None
    rows = [json.loads(line, parse_constant=pytest.fail) for line in (tmp_path / "predictions.jsonl").open()]
    assert [row["reference_nll"] for row in rows] == [None, 3.0, 5.0, 7.0, 9.0]


def test_times_and_counts_are_recorded(clock):
    score = score_examples(EXAMPLES, retrieval=retrieval(), generate=clock.generate, k=2).score
    assert score.retrieval == {"fingerprint": "corpus 1", "seconds_per_question": 2.0 / 5}
    assert score.generation == {
        "seconds_per_answer": 1.0,  # not the 1,000 of the warm-up
        "prompt_tokens": 100 + 101 + 102 + 103 + 104,
        "truncated_passage_tokens": 0,
        "truncated_prompts": 0,
        "answer_tokens": sum(map(len, TEXTS)),
        "answers_with_reasoning": 0,
        "unfinished": 1,
    }
    assert (score.examples, score.examples_without_gold) == (5, 1)
    assert score.passages_read == "the first 2 retrieved"
    assert score.versions.keys() == {"rqa", "torch", "transformers", "sacrebleu", "rouge-score"}


def test_examples_without_references_are_answered_counted_and_left_out_of_the_scores(clock, tmp_path):
    hidden = [replace(example, answers=()) if example.id in "ce" else example for example in EXAMPLES]
    options = {"generate": clock.generate, "loss": losses_of, "k": 2}
    scores = score_examples(hidden, retrieval=retrieval(), **options)
    kept = [i for i, example in enumerate(hidden) if example.id not in "ce"]
    alone = score_examples([EXAMPLES[i] for i in kept], retrieval=retrieval([FOUND[i] for i in kept]), **options)
    of_all = {name for name in scores.metrics if "@" in name} | {"answer_words", "cut_answers"}
    assert {name: value for name, value in scores.metrics.items() if name not in of_all} == {
        name: value for name, value in alone.metrics.items() if name not in of_all
    }
    assert scores.score.examples_without_references == 2
    assert [row.answer for row in scores.predictions] == TEXTS
    for i, row in enumerate(scores.predictions):
        assert (bool(row.references), bool(row.answer_scores), row.reference_nll is not None) == (i in kept,) * 3
    assert scores.score.intervals.keys() == scores.metrics.keys()
    scores.write(tmp_path)
    assert [*read_evaluation(tmp_path).predictions.values()] == scores.predictions
    assert "2 examples without references" in scores.summary
    assert "2 examples without references" in write_report(tmp_path).read_text(encoding="utf-8")


@pytest.mark.parametrize("hits", [None, retrieval()])
def test_evaluation_without_any_reference_has_predictions_and_times(clock, tmp_path, hits):
    hidden = [replace(example, answers=(), unanswerable=False) for example in EXAMPLES]
    loss = lambda inputs: pytest.fail("there is no reference")  # noqa: E731
    leave_one_out = {"leave_one_out": lambda inputs: [[1.0] * len(item.passages) for item in inputs]}
    scores = score_examples(hidden, hits, clock.generate, loss, leave_one_out, k=2)
    assert {name for name in scores.metrics if "@" not in name} == {
        "answer_words", "cut_answers", "leave_one_out_on_gold"
    }  # fmt: skip
    assert scores.score.signatures is None
    scores.write(tmp_path)
    assert [row.answer for row in read_evaluation(tmp_path).predictions.values()] == TEXTS
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "5 examples without references" in page


def test_cut_answers_are_counted_and_many_are_a_warning(clock, caplog, tmp_path):
    def generate(inputs):
        return [replace(answer, truncated=3 * (i < 3)) for i, answer in enumerate(clock.generate(inputs))]

    scores = score_examples(EXAMPLES, generate=generate, k=2)
    assert [row.finished for row in scores.predictions] == [True, False, True, True, True]
    assert (scores.metrics["cut_answers"], scores.score.intervals["cut_answers"]) == (20.0, interval([0, 100, 0, 0, 0]))
    notes = "  (1 answers cut by --max_new_tokens; 3 prompts with truncated passages)"
    assert scores.summary == metrics.format_scores(scores.metrics) + notes
    [warning] = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert re.search(r"--max_new_tokens 1: .* 1 of 5 .* Raise it", warning)
    caplog.clear()
    scores = score_examples([EXAMPLES[0]] * 9 + [EXAMPLES[1]], generate=clock.generate, k=2)
    assert (scores.metrics["cut_answers"], caplog.records) == (10.0, [])


def test_reasoning_is_kept_and_counted_and_has_no_effect_on_the_scores(clock, tmp_path):
    def generate(inputs):
        return [replace(answer, reasoning="One." * (i % 2)) for i, answer in enumerate(clock.generate(inputs))]

    scores = score_examples(EXAMPLES, generate=generate, k=2)
    assert [row.reasoning for row in scores.predictions] == [None, "One.", None, "One.", None]
    assert scores.score.generation["answers_with_reasoning"] == 2
    assert scores.metrics == score_examples(EXAMPLES, generate=clock.generate, k=2).metrics
    scores.write(tmp_path)
    # As text: a passage without a score has NaN there, which equals nothing.
    assert repr([*read_evaluation(tmp_path).predictions.values()]) == repr(scores.predictions)


def test_hits_beyond_the_cut_offs_have_no_effect(clock):
    for k, ks, needed in [(2, (1, 3), 3), (3, (1, 2), 3), (3, (2,), 3)]:
        few, many = (
            score_examples(EXAMPLES, retrieval=hits, generate=clock.generate, k=k, ks=ks)
            for hits in (retrieval([row[:needed] for row in FOUND]), retrieval())
        )
        assert (few.metrics, few.predictions) == (many.metrics, many.predictions)
        assert [len(row.passages) for row in many.predictions] == [min(needed, len(row)) for row in FOUND]


def test_given_passages_are_scored_as_retrieved_ones_without_score_or_time(clock, tmp_path):
    examples = [replace(e, contexts=tuple(P[i] for i in row)) for e, row in zip(EXAMPLES, FOUND, strict=True)]
    given, retrieved = (
        score_examples(examples, retrieval=hits, generate=clock.generate, k=2)
        for hits in (Retrieval.given(examples), retrieval())
    )
    assert given.metrics == retrieved.metrics
    expected = [to_json(row) for row in retrieved.predictions]
    for row in expected:
        row["passages"] = [{**passage, "score": None} for passage in row["passages"]]
    assert [to_json(row) for row in given.predictions] == expected
    assert given.score.retrieval == {"fingerprint": Retrieval.given(examples).fingerprint}
    assert given.score.passages_read == "the first 2 given with the questions"
    given.write(tmp_path)
    assert "NaN" not in (tmp_path / "predictions.jsonl").read_text() + (tmp_path / "score.json").read_text()


# A metric of your own


def test_a_metric_of_your_own_is_in_files_and_tables(clock, tmp_path, capsys, monkeypatch):
    def quotes_a_year(answer, references):
        return 100.0 * any(word.strip(".").isdigit() for word in answer.split())

    own = (*metrics.METRICS, metrics.Metric("years", "answers with a year, %", quotes_a_year))
    unlabelled = metrics.Metric("letters", score=lambda answer, references: len(answer), is_percentage=False)
    scores = score_examples(EXAMPLES, generate=clock.generate, k=1, metrics=(*own, unlabelled))
    by_question = [100.0, 0.0, 0.0, 0.0, 100.0]
    assert [row.answer_scores["years"] for row in scores.predictions] == by_question
    assert scores.metrics["years"] == 40
    assert scores.score.intervals["years"] == interval(by_question)
    assert scores.metrics["letters"] == sum(map(len, TEXTS)) / 5
    plain = score_examples(EXAMPLES, generate=clock.generate, k=1)
    assert {**scores.metrics, **plain.metrics} == scores.metrics

    scores.write(tmp_path)
    assert read_evaluation(tmp_path).scores["years"] == 40
    monkeypatch.setattr(sys, "argv", ["compare.py", str(tmp_path)])
    with pytest.raises(SystemExit):
        runpy.run_path(str(ROOT / "recipes/compare.py"), run_name="__main__")
    table = capsys.readouterr().out
    page = write_report(tmp_path).read_text(encoding="utf-8")
    for label in ("answers with a year, %", "letters"):
        assert re.search(rf"^{label} +\d", table, flags=re.MULTILINE)
        assert f'<th scope="row">{label}</th>' in page


def test_an_evaluator_has_the_metrics_and_attributions_that_it_was_given():
    accelerator = Accelerator(cpu=True, mixed_precision="no")
    model, collator = accelerator.prepare(AnswerLM(decoder())), ConcatenatedCollator(PromptBuilder(tokenizer()))
    length = metrics.Metric("letters", score=lambda answer, references: float(len(answer)))
    options = {"k": 2, "batch_size": 3, "max_new_tokens": 4, "refusal_answer": "No.", "attributions": ["leave_one_out"]}
    evaluator = Evaluator(accelerator, model, collator, **options, metrics=(length,))
    scores = evaluator(EXAMPLES, retrieval())
    inputs = retrieval().inputs(EXAMPLES, 2)
    assert [row.answer for row in scores.predictions] == [answer.text for answer in evaluator.generate(inputs)]
    assert [row.answer_scores for row in scores.predictions] == [{"letters": len(r.answer)} for r in scores.predictions]
    assert [row.references for row in scores.predictions][2:4] == [("Nobody knows.",), ("No.",)]
    assert [len(row.attribution) for row in scores.predictions] == [len(item.passages) for item in inputs]
    assert [[*part] for row in scores.predictions for part in row.attribution] == [
        ["id", "is_gold", "leave_one_out"]
    ] * 8
    assert scores.score.runtime["batch_size"] == 3
    assert scores.score.runtime["prompt_lookup_tokens"] == 8
    assert {"loss", "bleu", "recall@3", "letters"} <= scores.metrics.keys()


def test_the_reference_is_attributed_in_place_of_the_answer():
    accelerator = Accelerator(cpu=True, mixed_precision="no")
    model, collator = accelerator.prepare(AnswerLM(decoder())), ConcatenatedCollator(PromptBuilder(tokenizer()))
    options = {"k": 2, "batch_size": 3, "max_new_tokens": 4, "refusal_answer": "No."}
    name = "leave_one_out_reference"
    examples = [replace(example, answers=()) if i == 1 else example for i, example in enumerate(EXAMPLES)]
    scores = Evaluator(accelerator, model, collator, **options, attributions=[name])(examples, retrieval())
    rows = scores.predictions
    inputs = [
        replace(item, answer=row.references[0])
        for item, row in zip(retrieval().inputs(examples, 2), rows, strict=True)
        if row.references
    ]
    expected = leave_one_out(AnswerLoss(accelerator, model, collator, 3), inputs)
    assert [[part[name] for part in row.attribution] for row in rows if row.references] == [
        pytest.approx(values, abs=1e-4) for values in expected
    ]
    assert all(math.isnan(part[name]) for part in rows[1].attribution)
    assert rows[1].attribution_scores is None
    assert f"{name}_on_gold" in scores.metrics


# Inputs


def test_inputs_are_the_first_k_retrieved_after_a_warm_up_of_one(clock):
    score_examples(EXAMPLES, retrieval=retrieval(), generate=clock.generate, k=2)
    expected = [GeneratorInput.from_ranked(e, [P[i] for i in row[:2]]) for e, row in zip(EXAMPLES, FOUND, strict=True)]
    assert clock.calls == [expected[:1], expected]


def test_without_a_retrieval_inputs_are_the_gold_passages(clock):
    scores = score_examples(EXAMPLES, generate=clock.generate, k=1)
    assert clock.calls[1] == [GeneratorInput.from_ranked(example, example.gold_passages) for example in EXAMPLES]
    assert scores.score.passages_read == "gold"
    both = score_examples(EXAMPLES, retrieval=retrieval(), generate=clock.generate, k=1)
    assert scores.metrics == {name: value for name, value in both.metrics.items() if "@" not in name}
    assert not any(row.retrieval_scores for row in scores.predictions)
    for example, row in zip(EXAMPLES, scores.predictions, strict=True):
        assert [(passage.id, str(passage.score), passage.is_gold) for passage in row.passages] == [
            (passage.id, "nan", True) for passage in example.gold_passages
        ]


def test_without_a_generator_only_retrieval_is_scored(clock):
    scores = score_examples(EXAMPLES, retrieval=retrieval(), loss=losses_of, k=1)
    both = score_examples(EXAMPLES, retrieval=retrieval(), generate=clock.generate, k=1)
    assert scores.metrics == {name: value for name, value in both.metrics.items() if "@" in name}
    assert scores.score.generation is None
    assert not any("answer" in to_json(row) for row in scores.predictions)


@pytest.mark.parametrize("hits", [None, retrieval()])
def test_the_loss_is_that_of_the_first_reference_with_the_same_passages(clock, hits):
    scored = []
    loss = lambda inputs: scored.extend(inputs) or losses_of(inputs)  # noqa: E731
    score_examples(EXAMPLES, retrieval=hits, generate=clock.generate, loss=loss, k=2, refusal_answer="No.")
    assert [item.answer for item in scored] == ["No." if e.unanswerable else e.answers[0] for e in EXAMPLES]
    assert [replace(item, answer="") for item in scored] == [replace(r, answer="") for r in clock.calls[1]]


# Retrieving


def test_all_queries_are_retrieved_in_one_call_after_a_warm_up_of_one(clock, tmp_path):
    hits = retrieve_with(clock, EXAMPLES, P, 4, tmp_path, history_turns=2)
    queries = [f"user 0\nuser 1\n{EXAMPLES[0].question}", *(example.question for example in EXAMPLES[1:])]
    assert clock.calls == [queries[:1], queries]
    assert (hits.seconds, hits.fingerprint) == (5.0, "corpus 1")
    assert hits.passages(3) == P[:4]
    assert hits.inputs(EXAMPLES, 2) == [GeneratorInput.from_ranked(example, P[:2]) for example in EXAMPLES]
    retrieve_with(clock, EXAMPLES, P, 1, tmp_path)
    assert clock.calls[-1][0] == f"user 1\n{EXAMPLES[0].question}"


# Files


def test_scores_are_written_as_they_are(clock, tmp_path):
    examples = [replace(EXAMPLES[0], question="水\u2028 \n?"), *EXAMPLES[1:]]
    scores = score_examples(examples, retrieval=retrieval(), generate=clock.generate, k=2)
    scores.write(tmp_path / "new/folder")
    lines = (tmp_path / "new/folder/predictions.jsonl").read_text(encoding="utf-8").removesuffix("\n").split("\n")
    score = json.loads((tmp_path / "new/folder/score.json").read_text(encoding="utf-8"))
    assert score == {"format": 2, **to_json(scores.score)}
    assert [json.loads(line) for line in lines] == [{"format": 2, **to_json(row)} for row in scores.predictions]
    assert "水" in lines[0]


# The loss of the references

INPUTS = [
    GeneratorInput.from_ranked(example, P[i : 2 * i], references(example)[0]) for i, example in enumerate(EXAMPLES)
]
BATCH_SIZES = (1, 2, 3, 20)


def losses():
    """Return the losses of each batch size, on all processes."""
    accelerator = Accelerator(cpu=True, mixed_precision="no")
    model = accelerator.prepare(AnswerLM(decoder(dropout=0.5)).train())
    collator = ConcatenatedCollator(PromptBuilder(tokenizer()))
    return [AnswerLoss(accelerator, model, collator, size)(INPUTS) for size in BATCH_SIZES]


@pytest.fixture(scope="module")
def plain_loss():
    """Return the cross-entropy of each answer alone, and its number of tokens."""
    builder, lm, losses = PromptBuilder(tokenizer()), decoder().eval(), []
    for item in INPUTS:
        prompt, answer = builder.prompt(item).ids, builder.answer(item.answer)
        with torch.no_grad():
            logits = lm(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1].double()
        loss = cross_entropy(logits, torch.tensor(answer), reduction="sum").item()
        losses.append((pytest.approx(loss, rel=1e-5), len(answer)))
    return losses


def test_the_loss_is_plain_cross_entropy_in_every_batch_size(plain_loss):
    assert losses() == [plain_loss] * len(BATCH_SIZES)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_the_loss_is_the_same_on_more_processes(plain_loss, tmp_path, processes):
    assert results_of(__file__, tmp_path, processes=processes) == [[plain_loss] * len(BATCH_SIZES)] * processes


if __name__ == "__main__":
    hand_over(losses(), Path(sys.argv[1]))


def test_a_wrong_argument_of_an_evaluator_is_an_error():
    options = {"k": 1, "batch_size": 1, "max_new_tokens": 1}
    with pytest.raises(ValueError, match="cross-attention"):
        Evaluator(Accelerator(cpu=True), None, None, attributions=("cross-attention",), **options)
    with pytest.raises(ValueError, match="model and collator"):
        Evaluator(Accelerator(cpu=True), AnswerLM(decoder()), None, **options)
