"""evaluate: the scores are those of rqa.evaluation.metrics on the same texts, and the loss is plain cross-entropy."""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from tiny_models import decoder, tokenizer
from torch.nn.functional import cross_entropy
from world import hand_over, results_of

from rqa.data.passage_selection import REFUSAL_ANSWER, GeneratorInput
from rqa.data.records import Example, Passage, Turn
from rqa.evaluation import metrics
from rqa.evaluation.evaluate import AnswerLoss, Scores, evaluate
from rqa.evaluation.significance import LEVEL, RESAMPLES, interval
from rqa.generation.generator import Answer
from rqa.models.decoder import AnswerLM
from rqa.prompts.collators import ConcatenatedCollator
from rqa.prompts.decoder_prompt import PromptBuilder
from rqa.retrieval.retrieve import Retrieval, Retrieved, retrieve_all

P = [Passage(f"The lamp of place {i} was lit. " * (i + 1), f"Lamp {i}", (f"{i}.html",)) for i in range(12)]
HISTORY = tuple(Turn(role, f"{role} {i}") for i in range(2) for role in ("user", "assistant"))
EXAMPLES = [
    Example("a", "When?", ("In the year 1907 of the lamp.", "1907"), (P[3],), HISTORY),
    Example("b", "Where exactly was it?", ("In the old town of Rome, Italy.",), (P[0], P[8])),
    Example("c", "Who?", ("Nobody knows.",)),
    Example("d", "Why?", ("Because.",), (P[11],), unanswerable=True),
    Example("e", "What is it that shines over the town at night?", ("The lamp that was lit in 1907.",), (P[1],)),
]
FOUND = [[3, 1, 2, 0, 4, 5, 6, 7, 9, 10, 8, 11], [5, 8, 3], [0, 1, 2], [], [2, 4, 1, 3]]
TEXTS = [
    "It was lit in the year 1907.",
    "In the old town of Rome, Italy.",
    "",
    REFUSAL_ANSWER,
    "In 1907 the lamp was lit.",
]
ANSWERS = {
    example.id: Answer(text, len(text), 100 + i, finished=i != 1)
    for i, (example, text) in enumerate(zip(EXAMPLES, TEXTS, strict=True))
}


def losses_of(readings):
    """Of the answers 1, 3, 5, 7 and 9 nats, and 1 to 5 tokens."""
    return [(2.0 * i + 1, i + 1) for i in range(len(readings))]


def retrieval(found=FOUND):
    hits = [[Retrieved(P[i], 1 - rank / 100) for rank, i in enumerate(row)] for row in found]
    return Retrieval(hits, seconds=2.0, fingerprint="corpus 1")


class Clock:
    """A clock that stands still but for what is done: a second for each item, and many for the first call."""

    def __init__(self, monkeypatch):
        self.now, self.calls = 0.0, []
        monkeypatch.setattr("rqa.evaluation.evaluate.time.perf_counter", lambda: self.now)

    def count(self, items):
        self.now += len(items) if self.calls else 1000
        self.calls.append(list(items))

    def retrieve(self, queries, k):
        self.count(queries)
        return [[Retrieved(P[i], 0.5) for i in range(k)] for _ in queries]

    def fingerprint(self):
        return "corpus 1"

    def generate(self, readings):
        self.count(readings)
        return [ANSWERS[reading.example.id] for reading in readings]


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def references(example):
    return (REFUSAL_ANSWER,) if example.unanswerable else example.answers


# Scores


def test_scores_are_those_of_the_metrics(clock):
    scores = evaluate(EXAMPLES, retrieval=retrieval(), generate=clock.generate, loss=losses_of, k=2, ks=(1, 3))
    ranked = [
        metrics.retrieval_scores([passage.id for passage in example.gold_passages], [P[i].id for i in row], (1, 3))
        for example, row in zip(EXAMPLES, FOUND, strict=True)
        if example.gold_passages
    ]
    answered = [metrics.answer_scores(text, references(e)) for e, text in zip(EXAMPLES, TEXTS, strict=True)]
    bleu = metrics.corpus_bleu(TEXTS, list(map(references, EXAMPLES)))
    words = sum(map(metrics.answer_length, TEXTS)) / 5
    expected = metrics.mean_scores(ranked) | metrics.mean_scores(answered)
    assert scores.metrics == expected | {"bleu": bleu.score, "answer_words": words, "loss": 25 / 15}
    assert len({value for value in scores.metrics.values() if 0 < value < 100}) > 10
    assert scores.about["signatures"] == {"bleu": bleu.signature, "rouge": metrics.ROUGE_SIGNATURE}
    rows = [{k: row[k] for k in row.keys() & {"retrieval_scores", "answer_scores"}} for row in scores.predictions]
    assert [row["answer_scores"] for row in rows] == answered
    assert [row["retrieval_scores"] for row in rows if "retrieval_scores" in row] == ranked


def test_a_prediction_tells_what_was_asked_read_and_answered(clock):
    row = evaluate(EXAMPLES, retrieval=retrieval(), generate=clock.generate, k=2, ks=(3,)).predictions[1]
    passages = [
        {"id": P[i].id, "title": P[i].title, "text": P[i].text, "sources": P[i].sources, "score": score, "gold": gold}
        for i, score, gold in [(5, 1.0, False), (8, 0.99, True), (3, 0.98, False)]
    ]
    assert {name: value for name, value in row.items() if not name.endswith("_scores")} == {
        "id": "b",
        "question": "Where exactly was it?",
        "passages": passages,
        "read": 2,
        "answer": TEXTS[1],
        "references": EXAMPLES[1].answers,
        "finished": False,
    }


def test_every_score_that_has_rows_has_the_interval_of_its_rows(clock):
    scores = evaluate(EXAMPLES, retrieval=retrieval(), generate=clock.generate, loss=losses_of, k=2, ks=(1, 3))
    assert scores.about["intervals"].keys() == scores.metrics.keys()
    f1 = [row["answer_scores"]["f1"] for row in scores.predictions]
    assert scores.about["intervals"]["f1"] == list(interval(f1))
    assert scores.about["intervals"]["loss"] == list(interval(losses_of(EXAMPLES)))
    recall = [row["retrieval_scores"]["recall@3"] for row in scores.predictions if "retrieval_scores" in row]
    assert scores.about["intervals"]["recall@3"] == list(interval(recall))
    assert (scores.about["level"], scores.about["resamples"]) == (LEVEL, RESAMPLES)


def test_a_loss_that_is_not_finite_is_null_and_has_no_interval(clock, tmp_path):
    loss = lambda readings: [(math.nan, 1), *losses_of(readings)[1:]]  # noqa: E731
    scores = evaluate(EXAMPLES, generate=clock.generate, loss=loss, k=1)
    assert "loss" not in scores.about["intervals"]
    scores.write(tmp_path)
    score = json.loads((tmp_path / "score.json").read_text(), parse_constant=pytest.fail)
    assert score["metrics"]["loss"] is None
    rows = [json.loads(line, parse_constant=pytest.fail) for line in (tmp_path / "predictions.jsonl").open()]
    assert [row["reference_nll"] for row in rows] == [None, 3.0, 5.0, 7.0, 9.0]


def test_what_was_measured_is_told(clock):
    about = evaluate(EXAMPLES, retrieval=retrieval(), generate=clock.generate, k=2).about
    assert about["retrieval"] == {"fingerprint": "corpus 1", "seconds_per_question": 2.0 / 5}
    assert about["generation"] == {
        "seconds_per_answer": 1.0,  # not the many seconds of the first call
        "prompt_tokens": 100 + 101 + 102 + 103 + 104,
        "passage_tokens_cut": 0,
        "answer_tokens": sum(map(len, TEXTS)),
        "unfinished": 1,
    }
    assert (about["examples"], about["examples_without_gold"]) == (5, 1)
    assert about["passages_read"] == "the first 2 retrieved"
    assert about["versions"].keys() == {"rqa", "torch", "transformers", "sacrebleu", "rouge-score"}


def test_more_hits_than_are_asked_for_change_nothing(clock):
    for k, ks, needed in [(2, (1, 3), 3), (3, (1, 2), 3), (3, (2,), 3)]:
        few, many = (
            evaluate(EXAMPLES, retrieval=found, generate=clock.generate, k=k, ks=ks)
            for found in (retrieval([row[:needed] for row in FOUND]), retrieval())
        )
        assert (few.metrics, few.predictions) == (many.metrics, many.predictions)
        assert [len(row["passages"]) for row in many.predictions] == [min(needed, len(row)) for row in FOUND]


def test_passages_that_were_given_are_scored_like_those_that_were_retrieved_without_score_or_time(clock, tmp_path):
    bringing = [replace(e, contexts=tuple(P[i] for i in row)) for e, row in zip(EXAMPLES, FOUND, strict=True)]
    given, retrieved = (
        evaluate(bringing, retrieval=found, generate=clock.generate, k=2)
        for found in (Retrieval.given(bringing), retrieval())
    )
    assert given.metrics == retrieved.metrics
    for row in retrieved.predictions:
        row["passages"] = [{**passage, "score": None} for passage in row["passages"]]
    assert given.predictions == retrieved.predictions
    assert given.about["retrieval"] == {"fingerprint": Retrieval.given(bringing).fingerprint}
    assert given.about["passages_read"] == "the first 2 given with the questions"
    given.write(tmp_path)
    assert "NaN" not in (tmp_path / "predictions.jsonl").read_text() + (tmp_path / "score.json").read_text()


# What is read


def test_the_generator_reads_the_first_k_retrieved_after_a_warm_up_of_one(clock):
    evaluate(EXAMPLES, retrieval=retrieval(), generate=clock.generate, k=2)
    expected = [GeneratorInput.from_ranked(e, [P[i] for i in row[:2]]) for e, row in zip(EXAMPLES, FOUND, strict=True)]
    assert clock.calls == [expected[:1], expected]


def test_without_a_retrieval_the_generator_reads_the_gold(clock):
    scores = evaluate(EXAMPLES, generate=clock.generate, k=1)
    assert clock.calls[1] == [GeneratorInput.from_ranked(example, example.gold_passages) for example in EXAMPLES]
    assert scores.about["passages_read"] == "gold"
    both = evaluate(EXAMPLES, retrieval=retrieval(), generate=clock.generate, k=1)
    assert scores.metrics == {name: value for name, value in both.metrics.items() if "@" not in name}
    assert not any("retrieval_scores" in row for row in scores.predictions)
    for example, row in zip(EXAMPLES, scores.predictions, strict=True):
        assert [(passage["id"], passage["score"], passage["gold"]) for passage in row["passages"]] == [
            (passage.id, None, True) for passage in example.gold_passages
        ]


def test_without_a_generator_the_retriever_alone_is_scored(clock):
    scores = evaluate(EXAMPLES, retrieval=retrieval(), loss=losses_of, k=1)
    both = evaluate(EXAMPLES, retrieval=retrieval(), generate=clock.generate, k=1)
    assert scores.metrics == {name: value for name, value in both.metrics.items() if "@" in name}
    assert "generation" not in scores.about
    assert not any("answer" in row for row in scores.predictions)


@pytest.mark.parametrize("found", [None, retrieval()])
def test_the_loss_is_that_of_the_first_reference_of_what_was_read(clock, found):
    scored = []
    loss = lambda readings: scored.extend(readings) or losses_of(readings)  # noqa: E731
    evaluate(EXAMPLES, retrieval=found, generate=clock.generate, loss=loss, k=2, refusal_answer="No.")
    assert [reading.answer for reading in scored] == ["No." if e.unanswerable else e.answers[0] for e in EXAMPLES]
    assert [replace(reading, answer="") for reading in scored] == [replace(r, answer="") for r in clock.calls[1]]


# Retrieving


def test_all_is_retrieved_in_one_call_after_a_warm_up_of_one(clock):
    found = retrieve_all(clock, EXAMPLES, 4, history_turns=2)
    queries = [f"user 0\nuser 1\n{EXAMPLES[0].question}", *(example.question for example in EXAMPLES[1:])]
    assert clock.calls == [queries[:1], queries]
    assert (found.seconds, found.fingerprint) == (5.0, "corpus 1")
    assert found.passages(3) == P[:4]
    assert found.readings(EXAMPLES, 2) == [GeneratorInput.from_ranked(example, P[:2]) for example in EXAMPLES]
    retrieve_all(clock, EXAMPLES, 1)
    assert clock.calls[-1][0] == f"user 1\n{EXAMPLES[0].question}"


# Files


def test_scores_are_written_as_they_are(clock, tmp_path):
    examples = [replace(EXAMPLES[0], question="水\u2028 \n?"), *EXAMPLES[1:]]
    scores = evaluate(examples, retrieval=retrieval(), generate=clock.generate, k=2)
    scores.write(tmp_path / "new/folder")
    lines = (tmp_path / "new/folder/predictions.jsonl").read_text(encoding="utf-8").removesuffix("\n").split("\n")
    score = json.loads((tmp_path / "new/folder/score.json").read_text(encoding="utf-8"))
    as_json = json.loads(json.dumps(scores.predictions))  # tuples as lists
    assert Scores(score.pop("metrics"), list(map(json.loads, lines)), score) == replace(scores, predictions=as_json)
    assert "水" in lines[0]


# The loss of the references

READINGS = [
    GeneratorInput.from_ranked(example, P[i : 2 * i], references(example)[0]) for i, example in enumerate(EXAMPLES)
]
BATCH_SIZES = (1, 2, 3, 20)


def losses():
    """For each batch size, on as many processes as there are."""
    accelerator = Accelerator(cpu=True, mixed_precision="no")
    model = accelerator.prepare(AnswerLM(decoder(dropout=0.5)).train())
    collator = ConcatenatedCollator(PromptBuilder(tokenizer()))
    return [AnswerLoss(accelerator, model, collator, size)(READINGS) for size in BATCH_SIZES]


@pytest.fixture(scope="module")
def plain_loss():
    """Cross-entropy of each answer alone, and its tokens."""
    builder, lm, found = PromptBuilder(tokenizer()), decoder().eval(), []
    for reading in READINGS:
        prompt, answer = builder.prompt(reading).ids, builder.answer(reading.answer)
        with torch.no_grad():
            logits = lm(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1].double()
        loss = cross_entropy(logits, torch.tensor(answer), reduction="sum").item()
        found.append((pytest.approx(loss, rel=1e-5), len(answer)))
    return found


def test_the_loss_is_plain_cross_entropy_over_all_tokens_in_every_batch_size(plain_loss):
    assert losses() == [plain_loss] * len(BATCH_SIZES)


@pytest.mark.parametrize("processes", [2, 3])
def test_the_loss_is_the_same_on_more_processes(plain_loss, tmp_path, processes):
    assert results_of(__file__, tmp_path, processes=processes) == [[plain_loss] * len(BATCH_SIZES)] * processes


if __name__ == "__main__":
    hand_over(losses(), Path(sys.argv[1]))
