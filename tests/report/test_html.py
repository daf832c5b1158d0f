"""Tests of report.html: its numbers are those of the files, their texts stay text, and the page loads nothing."""

import base64
import hashlib
import json
import os
import re
from collections import Counter
from dataclasses import replace
from errno import ENOSPC
from html.parser import HTMLParser
from math import nan
from pathlib import Path

import pytest
from five_questions import score_examples
from tiny_evaluations import STEP, change, change_score, evaluation, write_run
from world import launch

from rqa.data.records import Example, Passage, Turn
from rqa.errors import InputError
from rqa.evaluation.comparison import read_results
from rqa.evaluation.context_report import build_contexts, compare_contexts
from rqa.evaluation.metrics import answer_scores
from rqa.evaluation.results import (
    CitationSupportRecord,
    EvaluationRecord,
    RunRecords,
    SentenceRecord,
    StepRecord,
    VerdictRecord,
    write_record,
)
from rqa.evaluation.significance import compare, resampled_scores, score_intervals
from rqa.generation.generator import Answer
from rqa.report.html import render, write_report
from rqa.report.plots import plot, training_plots
from rqa.retrieval.retrieve import Retrieval, Retrieved

HOSTILE = (
    "<script>hacked = 1</script></script><!-- <img src=//evil.example/x onerror='hacked = 1'> --> &amp; \" ' \\ "
    "{{ 7 * 7 }} \u2028 \u202e \x00\x07\x1b ]]> 雪 🙂 $x^2$ " + 200 * "long"
)

CITING = f"{HOSTILE} [2, 3] <b>x</b>[1] [a]"


def hostile(seed=0):
    """Return an evaluation in which every text of a user, a corpus or a model is hostile."""
    passages = [Passage(f"{HOSTILE} text {i}", f"{HOSTILE} title {i}", (f"{HOSTILE} source",)) for i in range(4)]
    examples = [
        Example(
            f"{HOSTILE} {i}",
            f"{HOSTILE} question {i}",
            (f"{HOSTILE} reference",),
            passages[i : i + 1],
            (Turn("user", HOSTILE), Turn("assistant", HOSTILE)),
        )
        for i in range(3)
    ]
    hits = [[Retrieved(passage, 0.5) for passage in passages[seed:]] for _ in examples]
    scores = score_examples(
        examples,
        retrieval=Retrieval(hits, 1.0, HOSTILE),
        generate=lambda inputs: [Answer(HOSTILE, 9, 9, False, 0, len(item.passages)) for item in inputs],
        attributions={"cross_attention": lambda inputs: [[0.75, 0.25] for _ in inputs]},
        k=2,
        ks=(1, 3),
    )
    verdict = VerdictRecord(status="judged", correct=False, explanation=HOSTILE)
    rows = [replace(row, reasoning=HOSTILE, verdict=verdict) for row in scores.predictions]
    return replace(scores, predictions=rows)


def citing():
    """Return an evaluation of hostile answers that cite the two passages of their prompt, and one that is not there.

    The judge found that in the first answer one passage supports the sentence, and none in the second.
    """
    passages = [Passage(f"{HOSTILE} text {i}") for i in range(3)]
    examples = [Example(f"{i}", f"Who {i}?", ("It [1].",), (passages[1],)) for i in range(4)]
    scores = score_examples(
        examples,
        retrieval=Retrieval([[Retrieved(passage, 0.5) for passage in passages] for _ in examples], 1.0, "corpus"),
        generate=lambda inputs: [Answer(CITING, 9, 9, True, 0, 2) for _ in inputs],
        citations=True,
        k=2,
        ks=(1, 3),
    )
    sentences = [SentenceRecord(CITING, (2, 3, 1), supporting, bool(supporting)) for supporting in ((1,), ())]
    records = [CitationSupportRecord("judged", HOSTILE, (sentence,)) for sentence in sentences]
    records += [CitationSupportRecord("malformed", HOSTILE), None]
    rows = [replace(row, citation_support=record) for row, record in zip(scores.predictions, records, strict=True)]
    return replace(scores, predictions=rows)


class Page(HTMLParser):
    """A parsed page: elements with their attributes and texts; scripts are raw."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.elements, self.cells, self._open = [], [], []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append([tag, dict(attributes), ""])
        if tag not in ("meta", "input", "rect", "circle"):
            self._open.append(self.elements[-1])

    def handle_endtag(self, tag):
        while self._open and self._open.pop()[0] != tag:
            pass

    def handle_data(self, data):
        for element in self._open:
            element[2] += data

    def all(self, tag, **attributes):
        """Return the text of each such element, white space folded."""
        return [
            " ".join(text.split())
            for name, attrs, text in self.elements
            if name == tag and attributes.items() <= attrs.items()
        ]

    def raw(self, tag, **attributes):
        return [text for name, attrs, text in self.elements if name == tag and attributes.items() <= attrs.items()]

    def rows(self):
        """Return the texts of the cells of each row of a table, without surrounding white space."""
        rows = []
        for tag, _, text in self.elements:
            if tag == "tr":
                rows.append([])
            elif tag in ("td", "th"):
                rows[-1].append(text.strip(" \n"))
        return rows

    @property
    def data(self):
        [text] = self.raw("script", id="data")
        return json.loads(text)


def page_of(*folders):
    return Page(render([read_results(folder) for folder in folders]))


@pytest.fixture(scope="module")
def scores():
    """Two evaluations of the same questions, in which every third and every fourth answer is exact."""
    return [exact(evaluation(seed, size=45), 3 + seed) for seed in range(2)]


def exact(scores, every):
    predictions = list(scores.predictions)
    for i in range(0, len(predictions), every):
        [text] = predictions[i].references
        predictions[i] = replace(predictions[i], answer=text, answer_scores=answer_scores(text, [text]))
    metrics = scores.metrics | {name: each.value for name, each in resampled_scores(predictions).items()}
    return replace(
        scores,
        predictions=predictions,
        score=replace(scores.score, metrics=metrics, intervals=score_intervals(predictions)),
    )


@pytest.fixture
def pair(scores, tmp_path):
    folders = tmp_path / "before", tmp_path / "after"
    for folder, score in zip(folders, scores, strict=True):
        score.write(folder)
        (folder / "config.json").write_text(json.dumps({"batch_size": 8, "output_dir": folder.name}))
    return folders


def one_decimal(value):
    return f"{value:z.1f}"


# The file


def test_report_is_byte_identical_in_another_process(pair, scores, tmp_path):
    write_run(tmp_path / "before", [replace(STEP, number=i) for i in range(1, 200)], [("eval-000100", scores[0])])
    path = write_report(*pair, tmp_path / "new/report.html")
    printed = launch("report.py", {str(pair[0]): str(pair[1]), "--output": str(tmp_path / "again.html")})
    assert printed.splitlines()[-1] == str(tmp_path / "again.html")
    assert (tmp_path / "again.html").read_bytes() == path.read_bytes()


def test_report_is_written_to_the_folder_by_default(pair):
    assert write_report(pair[0]) == pair[0] / "report.html"
    assert "<title>" in (pair[0] / "report.html").read_text(encoding="utf-8")


def test_path_that_cannot_be_written_is_refused(pair, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=f"{tmp_path}/file/page.html: "):
        write_report(pair[0], output=tmp_path / "file/page.html")


def test_failed_write_keeps_the_old_report(pair, monkeypatch):
    path = write_report(pair[0])
    old = path.read_bytes()
    change_score(pair[0], level=0.9)

    def full(path, target):
        raise OSError(ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(InputError, match="No space left on device"):
        write_report(pair[0])
    assert path.read_bytes() == old


def test_comparison_requires_evaluations_of_the_same_questions(pair, tmp_path):
    (tmp_path / "run").mkdir()
    with pytest.raises(InputError, match=f"{tmp_path}/run: "):
        write_report(pair[0], write_run(tmp_path / "run"))
    change(pair[1], lambda i, row: row if i else None)
    with pytest.raises(InputError, match="1 ids"):
        write_report(*pair)


# Numbers


def test_scores_are_shown_with_intervals(pair, scores):
    rows = {row[0]: row[1:3] for row in page_of(pair[0]).rows()}
    shown = {"f1": "F1, %", "recall@1": "Recall@1, %", "bleu": "BLEU", "mrr@3": "mrr@3", "rouge1": "rouge1"}
    for name, title in shown.items():
        low, high = scores[0].score.intervals[name]
        expected = [one_decimal(scores[0].metrics[name]), f"[{one_decimal(low)}, {one_decimal(high)}]"]
        assert rows[title] == expected
    assert rows["loss, nats per token"][0] == f"{scores[0].metrics['loss']:.3f}"


def test_comparison_shows_differences(pair, scores):
    rows = {row[0]: row[1:] for row in page_of(*pair).rows()}
    results = compare(*(score.predictions for score in scores))
    for name, title in {"f1": "F1, %", "em": "EM, %", "answer_words": "words in an answer"}.items():
        a, _, b, _, difference, ends, p_value, _ = rows[title]
        assert [a, b] == [one_decimal(score.metrics[name]) for score in scores]
        shown = [float(text.replace("−", "-")) for text in (difference, *ends.strip("[]").split(", "))]
        assert shown == [round(value, 1) for value in (results[name].difference, results[name].low, results[name].high)]
        assert p_value == f"{results[name].p_value:.4f}"


STAGE = {"seconds": 3.0, "questions": 2, "batch": 2, "seconds_per_question": 1.5, "p50": 0.0123, "p95": 2.5}


def runtime_of(**stages):
    return {"device": "cpu", "warm_up": "the first question", "stages": stages}


def test_stage_times_are_in_milliseconds(pair):
    change_score(pair[0], runtime=runtime_of(search=STAGE | {"tokens_per_second": 1234.5}, answer=STAGE))
    rows = {row[0]: row[1:] for row in page_of(pair[0]).rows()}
    assert rows["search"][:4] == ["1,500", "12.3", "2,500", "1,234"]
    assert rows["answer"][3] == ""
    assert rows["total"][0] == "3,000"
    assert rows["runtime.device"] == ["cpu"]
    assert not any("stages" in name for name in rows)


def test_verdicts_are_counted(pair):
    judged = [("judged", True)] * 3 + [("judged", False)] * 2 + [("malformed", None)]
    change(
        pair[0],
        lambda i, row: (
            row | {"verdict": dict(zip(("status", "correct"), judged[i % 6], strict=True)) | {"explanation": ""}}
        ),
        keep_scores=True,
    )
    change_score(pair[0], metrics={"judge_accuracy_low": 50.0, "judge_accuracy_high": 66.67})
    page = page_of(pair[0])
    facts = dict(zip(page.all("dt"), page.all("dd"), strict=True))
    counts = Counter(judged[i % 6] for i in range(45))
    assert facts["correct"] == str(counts["judged", True])
    assert facts["incorrect"] == str(counts["judged", False])
    assert facts["malformed"] == str(counts["malformed", None])
    assert facts["bounds of the accuracy"] == "50.0 % to 66.7 %"


def test_settings_list_flags_and_measurement_and_mark_differences(pair, scores):
    page = page_of(*pair)
    assert ["batch_size", "8", "8"] in page.rows()
    assert ["output_dir, differs", "before", "after"] in page.rows()
    assert ["versions.torch", *[score.score.versions["torch"] for score in scores]] in page.rows()
    assert ["signatures.bleu", *[score.score.signatures["bleu"] for score in scores]] in page.rows()


def test_results_of_the_second_folder_alone_are_marked_b(pair, scores):
    change(pair[1], lambda i, row: row | {"verdict": {"status": "judged", "correct": True, "explanation": ""}})
    change_score(pair[0], runtime=runtime_of())
    change_score(pair[1], runtime=runtime_of(search=STAGE))
    write_run(pair[1], [STEP], [])
    html = render([read_results(folder) for folder in pair])
    [judge] = re.findall('<h2 id="judge">.*?</section>', html, re.DOTALL)
    [times] = re.findall('<h2 id="time">.*?</section>', html, re.DOTALL)
    for section in (judge, times):
        assert ">B<" in section
        assert ">A<" not in section
    loss = description_of(Page(html), "Loss")
    assert "B: training: " in loss
    assert "A: " not in loss


def test_context_report_is_shown(pair):
    passages = [Passage(f"Text {i}.") for i in range(5)]
    examples = [Example(str(i), "Who?", (f"Text {i}.",), (passages[i],)) for i in range(2)]
    hits = [[Retrieved(passage, 1.0) for passage in passages]] * 2

    def generate(inputs):  # the first passage, or a memorized text
        texts = [item.passages[0].text if item.passages else "Text 0." for item in inputs]
        return [Answer(text, 1, 1, True, 0, len(item.passages)) for text, item in zip(texts, inputs, strict=True)]

    report = compare_contexts(build_contexts(examples, hits, k=3), generate)
    write_record(pair[0] / "contexts.json", report)
    page = page_of(pair[0])
    rows = {row[0]: row[1:] for row in page.rows()}
    for name, condition in report.conditions.items():
        if not name.startswith("gold_at_"):
            f1, _, *others = rows[name.replace("_", " ")]
            expected = [condition["scores"][score] for score in ("f1", "em", "rougeL", "bleu", "refusal")]
            assert [float(text) for text in (f1, *others)] == pytest.approx(expected, abs=0.05)
    cost = report.differences["distractor_cost"]["f1"].difference
    assert rows["distractor cost"][0].replace("−", "-") == f"{cost:+.1f}"
    f1 = [report.conditions[f"gold_at_{i}"]["scores"]["f1"] for i in (1, 2, 3)]
    description = description_of(page, "Position of the gold passage")
    assert description.endswith(f"F1: {f1[0]:.3g} at 1, {f1[1]:.3g} at 2, {f1[2]:.3g} at 3.")


# Plots


def description_of(page, title):
    labels = [attributes.get("aria-label", "") for _, attributes, _ in page.elements]
    [description] = [label for label in labels if label.startswith(title)]
    return description


def test_training_run_is_plotted_and_described(tmp_path, scores):
    steps = [
        replace(STEP, number=1, loss=8.0, gradient_norm=4.0, learning_rate=0.001),
        replace(STEP, number=2, loss=nan, gradient_norm=nan, learning_rate=0.002, skipped=True),
        replace(STEP, number=3, loss=1.25, gradient_norm=0.5, learning_rate=0.0),
    ]
    page = page_of(write_run(tmp_path, steps, [("eval-000003", scores[0]), ("test", scores[1])]))
    assert f"training: 8 at 1, 1.25 at 3. validation: {scores[0].metrics['loss']:.3g} at 3." in description_of(
        page, "Loss"
    )
    assert "norm: 4 at 1, 0.5 at 3." in description_of(page, "Gradient norm")
    assert "rate: 0.001 at 1, 0.002 at 2, 0 at 3." in description_of(page, "Learning rate")
    description = description_of(page, "Validation scores")
    for title, name in {"F1": "f1", "EM": "em", "ROUGE-L": "rougeL", "BLEU": "bleu"}.items():
        assert f"{title}: {scores[0].metrics[name]:.3g} at 3." in description
    facts = dict(zip(page.all("dt"), page.all("dd"), strict=True))
    assert (facts["steps"], facts["skipped steps (not finite)"], facts["examples"]) == ("3", "1", "12")
    assert one_decimal(scores[1].metrics["f1"]) in {row[0]: row[1] for row in page.rows()}["F1, %"]


@pytest.mark.parametrize("side", [0, 1])
def test_all_curves_of_the_only_run_of_two_sides(side):
    metrics = {"f1": 40.0, "em": 30.0, "rougeL": 20.0, "bleu": 10.0}
    runs = [None, None]
    runs[side] = RunRecords([], [EvaluationRecord("eval-000003", metrics)], [])
    [scores] = training_plots(runs)
    for label, value in {"F1": 40, "EM": 30, "ROUGE-L": 20, "BLEU": 10}.items():
        assert f"{'AB'[side]}: {label}: {value} at 3." in scores.svg
    assert {f"series-{i}" for i in range(4)} <= set(re.findall(r"series-\d", scores.svg))


def test_mean_loss_is_weighted_by_target_tokens():
    other = {"gradient_norm": 1.0, "learning_rate": 1.0, "positions": 9, "examples": 1, "skipped": False}
    steps = [StepRecord(step=i, loss=float(i % 7), target_tokens=1 + i % 3, **other) for i in range(1, 201)]
    description = str(training_plots([RunRecords(steps, [], [])])[0].svg)
    means = [
        (a.loss * a.target_tokens + b.loss * b.target_tokens) / (a.target_tokens + b.target_tokens)
        for a, b in zip(steps[::2], steps[1::2], strict=True)
    ]
    assert f"mean: first {means[0]:.3g} at 1.5, last {means[-1]:.3g} at 199.5, lowest {min(means):.3g}" in description


def test_recall_is_described_at_every_k(pair, scores):
    alone = description_of(page_of(pair[0]), "Gold among")
    values = {name: [f"{scores[0].metrics[f'{name}@{k}']:.3g}" for k in (1, 3)] for name in ("recall", "hit", "all")}
    assert values["recall"] == values["hit"] == values["all"]  # with one gold passage a question
    assert (
        f"recall, any gold passage, all gold passages: {values['recall'][0]} at 1, {values['recall'][1]} at 3." in alone
    )
    both = description_of(page_of(*pair), "Gold among")
    for letter, score in zip("AB", scores, strict=True):
        assert f"{letter}: recall: {score.metrics['recall@1']:.3g} at 1, {score.metrics['recall@3']:.3g} at 3." in both


def test_plots_use_css_colors_and_unique_ids(tmp_path, scores):
    write_run(tmp_path, (STEP, replace(STEP, number=2)), [("eval-000002", scores[0])])
    html = render([read_results(tmp_path)])
    svg = "".join(re.findall(r"<svg role.*?</svg>", html, flags=re.DOTALL))
    assert len(re.findall("<svg role", html)) == 5
    assert {"ink", "line", "series-0"} <= set(re.findall(r"var\(--([\w-]+)\)", svg))
    assert not re.search("#[0-9a-f]{6}", svg)
    ids = re.findall(r' id="([^"]*)"', html)
    assert len(ids) == len(set(ids))
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', html)) - {"main"}
    assert used <= set(ids)


def test_plot_without_points_is_none():
    assert plot("Nothing", "x", "y", []) == []
    assert training_plots([RunRecords([], [], [])]) == []


# Questions


def test_data_has_every_question_and_each_passage_once(pair, scores):
    data = page_of(*pair).data
    assert len(data["questions"]) == 45
    assert len(data["passages"]) == len(
        {passage.id for each in scores for row in each.predictions for passage in row.passages}
    )
    for i, question in enumerate(data["questions"]):
        rows = [score.predictions[i] for score in scores]
        assert (question["id"], question["question"]) == (rows[0].id, rows[0].question)
        assert question["references"] == list(rows[0].references)
        for side, row in zip(question["sides"], rows, strict=True):
            assert (side["answer"], side["finished"], side["num_passages_read"]) == (row.answer, True, 2)
            assert dict(zip(data["metrics"], side["scores"], strict=True))["F1"] == row.answer_scores["f1"]
            shown = [(*data["passages"][number], score, is_gold) for number, score, is_gold in side["passages"]]
            assert shown == [
                (passage.id, passage.title, passage.text, *passage.sources, passage.score, passage.is_gold)
                for passage in row.passages
            ]


def test_attribution_is_shown_for_each_passage(tmp_path):
    hostile().write(tmp_path)
    data = page_of(tmp_path).data
    assert data["attributions"] == ["cross-attention, share"]
    for question in data["questions"]:
        assert [passage[3:] for passage in question["sides"][0]["passages"]] == [[0.75], [0.25], []]


def test_evaluation_of_a_retriever_or_a_generator_alone_has_a_page(pair):
    kept = ("format", "id", "question", "passages", "retrieval_scores")
    change(pair[0], lambda i, row: {name: row[name] for name in kept if name in row})
    data = page_of(pair[0]).data
    assert "answer" not in data["questions"][0]["sides"][0]
    assert "F1" not in data["metrics"]
    both = page_of(*pair).data["questions"]
    assert [question["references"] for question in both] == [
        [*row.references] for row in read_results(pair[1]).evaluation.predictions.values()
    ]
    change(pair[1], lambda i, row: {name: row[name] for name in row if name != "retrieval_scores"} | {"passages": []})
    data = page_of(pair[1]).data
    assert data["questions"][0]["sides"][0]["passages"] == []
    assert "F1" in data["metrics"]


def test_counts_without_which_scores_are_misread_stand_below_them(pair):
    generation = {"seconds_per_answer": 1.0, "unfinished": 1200, "truncated_prompts": 2, "answers_with_reasoning": 3}
    change_score(pair[0], generation=generation, examples_without_references=4)
    [note] = [text for text in page_of(pair[0]).all("p") if "max_new_tokens" in text]
    counts = re.findall(r"(?:^|; )([\d,]+) (answers cut|prompts|answers with reasoning|examples)", note)
    assert [number for number, _ in counts] == ["1,200", "2", "3", "4"]
    change_score(pair[0], generation={"seconds_per_answer": 1.0, "unfinished": 0}, examples_without_references=0)
    assert not any("max_new_tokens" in text for text in page_of(pair[0]).all("p"))
    change_score(pair[1], generation=generation)
    [note] = [text for text in page_of(*pair).all("p") if "max_new_tokens" in text]
    assert note.startswith("B 1,200 answers cut")


# Few or odd values: fields of all predictions, and fields of score.json beside empty metrics
NO_TIME = {"seconds_per_question": 0, "p50": 0, "p95": 0}
ODD = {
    "no passages": ({"passages": [], "retrieval_scores": None}, {}),
    "no scores": ({"answer_scores": None, "retrieval_scores": None, "references": []}, {}),
    "no answers": ({"answer": None, "answer_scores": None, "finished": None, "num_passages_read": None}, {}),
    "null metrics": ({}, {"metrics": {"f1": None, "loss": None}, "intervals": {}}),
    "equal scores": ({"answer_scores": {"f1": 50.0, "em": 0.0}}, {"intervals": {"f1": [50.0, 50.0]}}),
    "no answer is finished": ({"answer": "", "finished": False}, {"metrics": {"cut_answers": 100.0}}),
    "no time": ({}, {"generation": None, "runtime": {"stages": {}}}),
    "a time of 0": ({}, {"runtime": {"stages": {"embed": NO_TIME}}, "generation": {"seconds_per_answer": 0}}),
    "extreme values": (
        {},
        {"metrics": {"zero": -0.0, "huge": 1e300, "tiny": 5e-324, "recall@9": -1.0, "recall@": 1.0}},
    ),
    "a loss that is not finite": ({"reference_nll": None}, {}),
}


@pytest.mark.parametrize("kept", [1, 2])
@pytest.mark.parametrize("name", ODD)
def test_odd_evaluations_have_a_page(pair, name, kept):
    fields, values = ODD[name]
    for folder in pair:
        rows = [json.loads(line) | fields for line in (folder / "predictions.jsonl").open(encoding="utf-8")]
        rows = [{k: v for k, v in row.items() if v is not None or k == "reference_nll"} for row in rows[:kept]]
        (folder / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        change_score(folder, **{"metrics": {}, "intervals": {}} | values)
    for folders in (pair[:1], pair):
        html = write_report(*folders).read_text(encoding="utf-8")
        assert len(Page(html).data["questions"]) == kept
        assert not re.search(r"\b(?:nan|NaN|inf|None)\b", re.sub("(?s)<script.*?</script>", "", html))


def test_missing_intervals_are_left_out(pair):
    change_score(pair[1], intervals={"f1": [1, 2]})
    rows = {row[0]: row[1:5] for row in page_of(*pair).rows()}
    assert rows["EM, %"][1].startswith("[")
    assert (rows["EM, %"][3], rows["F1, %"][3]) == ("", "[1.0, 2.0]")


def test_metric_of_the_user_has_its_label(pair):
    score = json.loads((pair[0] / "score.json").read_text())
    change_score(pair[0], metrics=score["metrics"] | {"digits": 25.0}, labels={"digits": "digits, %"})
    rows = {row[0]: row[1] for row in page_of(pair[0]).rows()}
    assert rows["digits, %"] == "25.0"


def test_run_without_an_evaluation_has_a_page(tmp_path):
    page = page_of(write_run(tmp_path))
    assert page.all("h2") == ["Training", "Settings"]
    assert page.raw("script") == []


# Texts


def test_texts_are_escaped(tmp_path):
    folder = tmp_path / "<script>hacked = 1<!--'\"&amp;"
    hostile().write(folder)
    (folder / "config.json").write_text(
        json.dumps({HOSTILE: HOSTILE, "plain": "a < b", "empty": "", "list": [HOSTILE]})
    )
    html = render([read_results(folder)])
    page = Page(html)
    assert [attributes for tag, attributes, _ in page.elements if tag == "script"] == [
        {"id": "data", "type": "application/json"},
        {},
    ]
    assert not [tag for tag, _, _ in page.elements if tag in ("img", "link", "iframe", "object", "embed", "base")]
    assert page.raw("h1")[0].strip() == str(folder)
    assert page.raw("title")[0].startswith(str(folder))
    rows = {row[0]: row[1] for row in page.rows() if len(row) == 2}
    assert rows["plain"] == "a < b"
    assert rows["empty"] == '""'
    assert json.loads(rows["list"]) == [HOSTILE]
    question = page.data["questions"][1]
    assert question["question"] == f"{HOSTILE} question 1"
    assert question["chat_history"] == [{"role": role, "text": HOSTILE} for role in ("user", "assistant")]
    side = question["sides"][0]
    assert side["answer"] == side["reasoning"] == side["verdict"]["explanation"] == HOSTILE


def test_folder_name_that_is_not_unicode_is_escaped(tmp_path, scores):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    scores[0].write(folder)
    assert "\\udcff" in Page(write_report(folder).read_text(encoding="utf-8")).raw("h1")[0]


def test_policy_allows_one_script_and_no_loading(pair):
    html = render([read_results(pair[0])])
    page = Page(html)
    [policy] = [attributes["content"] for _, attributes, _ in page.elements if attributes.get("http-equiv")]
    rules = dict(rule.split(maxsplit=1) for rule in policy.split("; "))
    script = page.raw("script")[-1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert rules == {
        "default-src": "'none'",
        "style-src": "'unsafe-inline'",
        "script-src": f"'sha256-{digest}'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    links = [
        value
        for _, attributes, _ in page.elements
        for name, value in attributes.items()
        if name in ("src", "href", "xlink:href")
    ]
    assert links
    assert all(link.startswith("#") for link in links)


def test_citations_are_links_only_if_answers_cite_passages(tmp_path):
    for name, score in {"citing": citing(), "plain": hostile()}.items():
        (tmp_path / name).mkdir()
        score.write(tmp_path / name)
        sides = [side for question in page_of(tmp_path / name).data["questions"] for side in question["sides"]]
        assert [side.get("cites", False) for side in sides] == [name == "citing"] * len(sides)
    assert {side["answer"] for side in sides} == {HOSTILE}


# In a browser


@pytest.fixture(scope="module")
def pages(tmp_path_factory, scores):
    """The pages of an evaluation, of two, and of two hostile ones."""
    folder = tmp_path_factory.mktemp("pages")
    for name, score in {"before": scores[0], "after": scores[1], "<b>&": hostile(), "other": hostile(1)}.items():
        score.write(folder / name)
    citing().write(folder / "citing")
    write_run(folder / "before", [replace(STEP, number=i) for i in range(1, 9)], [("eval-000008", scores[0])])
    return {
        "one": write_report(folder / "before"),
        "two": write_report(folder / "before", folder / "after", folder / "two.html"),
        "hostile": write_report(folder / "<b>&", folder / "other"),
        "citing": write_report(folder / "citing"),
    }


@pytest.fixture
def opened(browser, pages):
    """Open a page; at the end, check that the console is empty and that nothing but the page was requested."""
    contexts, messages, requested = [], [], []

    def by(name, **options):
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(5_000)
        page.on("console", lambda message: messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.on("request", lambda request: requested.append(request.url))
        page.goto(pages[name].as_uri())
        return page

    yield by
    documents = [context.pages[0].url for context in contexts]
    for context in contexts:
        context.close()
    assert messages == []
    assert [url.partition("#")[0] for url in requested] == [url.partition("#")[0] for url in documents]


# The element in focus, and true if its focus is visible.
FOCUSED = """() => {
    const { outlineStyle, outlineWidth } = getComputedStyle(document.activeElement);
    const { id, name, tagName } = document.activeElement;
    return [id || name || tagName, outlineStyle !== "none" && outlineWidth !== "0px"];
}"""
# The colour of the text and of the background, of each element with a text of its own.
COLORS = """() => [...document.querySelectorAll("body *")]
    .filter((element) => [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim()))
    .map((element) => {
        let background = element;
        while (background !== document.body && getComputedStyle(background).backgroundColor === "rgba(0, 0, 0, 0)")
            background = background.parentElement;
        const { fill, color } = getComputedStyle(element);
        return [element.closest("svg") ? fill : color, getComputedStyle(background).backgroundColor];
    })"""


def shown(page):
    return page.locator("#list .question").all_text_contents()


def questions(rows):
    return [row.question for row in rows]


def test_questions_are_shown_in_pages_of_twenty(opened, scores):
    page = opened("one")
    expected = questions(scores[0].predictions)
    assert shown(page) == expected[:20]
    assert page.inner_text("#count") == "1–20 of 45 questions"
    assert page.is_disabled("#previous")
    for start in (20, 40):
        page.click("#next")
        assert shown(page) == expected[start : start + 20]
    assert page.is_disabled("#next")
    assert page.inner_text("#page") == "3 of 3"
    page.click("#previous")
    assert shown(page) == expected[20:40]


def test_questions_are_filtered(opened, scores):
    page = opened("two")
    a, b = (score.predictions for score in scores)
    page.fill("#text", "WHEN 7?")
    assert shown(page) == ["When 7?"]
    page.fill("#text", "no such text")
    assert (shown(page), page.inner_text("#count")) == ([], "No matching questions.")
    page.fill("#text", "when 1")
    assert page.inner_text("#count") == "1–11 of 11 questions, out of 45"
    page.select_option("#metric", label="EM")
    page.click("text=Clear")
    page.wait_for_selector("#list > li:nth-child(20)")
    assert page.locator("#metric option:checked").text_content() == "F1"
    kinds = {
        "not exact": lambda *rows: any(row.answer_scores["em"] < 100 for row in rows),
        "gold not retrieved": lambda *rows: any(
            row.retrieval_scores and not any(passage.is_gold for passage in row.passages) for row in rows
        ),
        "answers differ": lambda row, other: row.answer != other.answer,
    }
    for name, applies in kinds.items():
        expected = [row.question for row, other in zip(a, b, strict=True) if applies(row, other)]
        page.check(f"text={name} ({len(expected)})")
        assert shown(page) == expected[:20]
        assert 0 < len(expected) < 45
        page.uncheck(f"text={name}")
    assert page.locator("text=judged incorrect").count() == 0


def test_questions_are_sorted_by_score_or_difference(opened, scores):
    page = opened("two")
    rows = list(zip(*(score.predictions for score in scores), strict=True))
    metrics = {
        "F1": lambda row: row.answer_scores["f1"],
        "words in an answer": lambda row: len(re.findall(r"\w+", row.answer)),
        "ndcg@3": lambda row: (row.retrieval_scores or {}).get("ndcg@3"),
    }
    for metric, value in metrics.items():
        page.select_option("#metric", label=metric)
        keys = {
            "A, lowest first": lambda a, b, value=value: value(a),
            "B, highest first": lambda a, b, value=value: -value(b),
            "B − A, lowest first": lambda a, b, value=value: value(b) - value(a),
            "B − A, highest first": lambda a, b, value=value: value(a) - value(b),
        }
        scored = [pair for pair in rows if value(pair[0]) is not None]
        for order, key in keys.items():
            page.select_option("#order", label=order)
            expected = sorted(scored, key=lambda pair, key=key: key(*pair))
            expected += [pair for pair in rows if pair not in scored]
            assert shown(page) == questions(a for a, _ in expected)[:20]
    page.click("#next")
    page.click("#next")
    assert shown(page) == questions(a for a, _ in expected)[40:]


def test_opened_question_shows_its_passages(opened, scores):
    page = opened("one")
    first = next(row for row in scores[0].predictions if any(passage.is_gold for passage in row.passages))
    page.fill("#text", first.question)
    exactness = "✓ exact" if first.answer_scores["em"] == 100 else "✗ not exact"
    rank = [passage.is_gold for passage in first.passages].index(True) + 1
    assert page.locator("#list .tags > span").all_text_contents() == [exactness, f"gold at {rank}"]
    for is_open in (True, False, True):
        page.click("#list summary >> nth=0")
        page.wait_for_selector("#list .body", state="visible" if is_open else "hidden")
    body = page.locator("#list .body")
    assert body.locator("h3:has-text('Answer') + .text").text_content() == first.answer
    assert body.locator(".passages > li .text").all_text_contents() == [passage.text for passage in first.passages]
    assert body.locator(".passages > li .title").all_text_contents() == [passage.title for passage in first.passages]
    assert body.locator("text=★ gold").count() == sum(passage.is_gold for passage in first.passages)
    assert body.locator("text=not read").count() == len(first.passages) - first.num_passages_read


def test_hostile_text_stays_text_in_a_browser(opened):
    page = opened("hostile")
    for summary in page.locator("#list > li > details > summary").all():
        summary.click()
    assert shown(page) == [f"{HOSTILE} question {i}" for i in range(3)]
    body = page.locator("#list .body").first
    assert body.locator(".note code").text_content() == f"{HOSTILE} 0"
    assert body.locator(".title").first.text_content() == f"{HOSTILE} title 0"
    assert body.locator(".passages .text").first.text_content() == f"{HOSTILE} text 0"
    assert body.locator(".text:has(.label)").first.text_content() == f"user{HOSTILE}"
    reasoning = body.locator("details:has(> summary:text('Reasoning')) > .text").first
    assert (reasoning.text_content(), reasoning.is_visible()) == (HOSTILE, False)
    body.locator("summary:text('Reasoning')").first.click()
    assert reasoning.is_visible()
    assert body.locator("text=Cut short by --max_new_tokens.").count() == 2
    page.check("text=cut short (3)")
    assert len(shown(page)) == 3
    assert page.locator("h1").text_content().endswith("other")
    assert page.evaluate("[typeof hacked, document.scripts.length, document.images.length]") == ["undefined", 2, 0]


def test_citations_are_links_to_the_passages_of_the_same_answer(opened):
    page = opened("citing")
    for summary in page.locator("#list > li > details > summary").all():
        summary.click()
    page.locator("#list .body").nth(3).wait_for()  # a body is written after the click, when its question has opened
    # Marks of the judge behind 2, 3 and 1, and the numbers in the colour of errors; the prompt has two passages.
    expected = [(" ✗", " ✗", " ✓", ["2 ✗", "3 ✗"]), (" ✗", " ✗", " ✗", ["2 ✗", "3 ✗", "1 ✗"]), ("", "", "", ["3"])]
    for body, (two, three, one, wrong) in zip(
        page.locator("#list .body").all(), [*expected, expected[-1]], strict=True
    ):
        answer = body.locator("h3:has-text('Answer') + .text")
        assert answer.text_content() == CITING.replace("2, 3", f"2{two}, 3{three}").replace("b>[1]", f"b>[1{one}]")
        assert answer.locator("a").all_text_contents() == [f"2{two}", f"1{one}"]
        assert answer.locator(".wrong").all_text_contents() == wrong
        assert [
            ("cited" in (li.get_attribute("class") or "").split()) for li in body.locator(".passages > li").all()
        ] == [
            True,
            True,
            False,
        ]
        answer.locator("a").first.click()
        assert body.locator(".passages > li:target .place").text_content() == "2."
    for text in ("✓ 1 of 1 sentences", "✗ 0 of 1 sentences", "Not supported: ", "no verdict on citations: malformed"):
        assert page.locator(f"#list .body >> text={text}").count() == 1
    counts = page.locator("section:has(#judge)").text_content()
    assert "".join(counts.split()) == "Judgecitations:judged2citations:malformed1"
    page.check("text=citations not supported (1)")
    assert len(shown(page)) == 1
    assert page.evaluate("[typeof hacked, document.images.length]") == ["undefined", 0]


def test_browser_enforces_the_policy(browser, pages):
    page = browser.new_page()
    messages, failed = [], []
    page.on("console", lambda message: messages.append(message.text))
    page.on("requestfailed", lambda request: failed.append((request.url, request.failure)))
    page.goto(pages["one"].as_uri())
    page.evaluate(
        """() => {
            const script = document.createElement("script");
            script.textContent = "hacked = 1";
            const image = document.createElement("img");
            image.src = "http://127.0.0.1:9/x.png";
            document.body.append(script, image);
        }"""
    )
    page.wait_for_timeout(100)
    assert page.evaluate("typeof hacked") == "undefined"
    assert (len(messages), failed) == (2, [("http://127.0.0.1:9/x.png", "csp")])
    page.close()


def test_every_control_is_reachable_by_keyboard(opened):
    page = opened("two")
    reached: list[tuple[str, bool]] = []
    while "SUMMARY" not in [name for name, _ in reached[-1:]] or "order" not in [name for name, _ in reached]:
        page.keyboard.press("Tab")
        reached.append(page.evaluate(FOCUSED))
        assert len(reached) < 60
    names = [name for name, _ in reached]
    order = ["text", "metric", "order", "not exact", "gold not retrieved", "answers differ", "BUTTON", "SUMMARY"]
    assert names[-len(order) :] == order
    assert all(is_visible for _, is_visible in reached)
    page.keyboard.press("Enter")
    page.wait_for_selector("#list .body")


@pytest.mark.parametrize("name", ["one", "two", "hostile"])
def test_page_fits_the_width_of_a_phone(opened, name):
    page = opened(name, viewport={"width": 360, "height": 740})
    page.evaluate("for (const each of document.querySelectorAll('details')) each.open = true")
    page.wait_for_selector("#list .body")
    assert page.evaluate("document.documentElement.scrollWidth") == 360


def luminance(color):
    channels = [int(part) / 255 for part in re.findall(r"\d+", color)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_enough_contrast(opened, scheme):
    """The contrast is at least 4.5, as WCAG 2.2 requires at level AA."""
    page = opened("two", color_scheme=scheme)
    page.click("#list summary >> nth=0")
    pairs = {tuple(pair) for pair in page.evaluate(COLORS)}
    assert len(pairs) > 5
    for color, background in pairs:
        lighter, darker = sorted((luminance(color), luminance(background)), reverse=True)
        assert (lighter + 0.05) / (darker + 0.05) >= 4.5, (color, background)
