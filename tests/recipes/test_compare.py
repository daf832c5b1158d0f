"""recipes/compare.py: the table and the file contain the results of rqa.evaluation.significance for the folders."""

import json
import re
import runpy
import sys
from dataclasses import asdict

import pytest
from tiny_evaluations import change, change_score, evaluation
from world import ROOT, launch

from rqa.evaluation.metrics import answer_length
from rqa.evaluation.significance import compare, score_intervals

README = (ROOT / "README.md").read_text(encoding="utf-8")
CELL = r"([+-]?\d+\.\d\d)(?: \[ *([+-]?\d+\.\d\d), *([+-]?\d+\.\d\d)\])?"
TITLES = {
    "recall@1": "Recall@1, %",
    "recall@3": "Recall@3, %",
    "bleu": "BLEU",
    "rougeL": "ROUGE-L, %",
    "em": "EM, %",
    "f1": "F1, %",
    "answer_words": "words in an answer",
    "cut_answers": "answers cut short, %",
    "loss": "loss, nats per token",
    "seconds": "seconds per answer",
}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Return three evaluations of the same questions, and the folder in which they are written."""
    folder = tmp_path_factory.mktemp("evaluations")
    scores = {name: evaluation(seed) for seed, name in enumerate(["before", "after", "later"])}
    for name, score in scores.items():
        score.write(folder / name)
    return folder, scores


@pytest.fixture
def here(written, monkeypatch, tmp_path):
    """Write the first two evaluations to the working directory."""
    for name in ("before", "after"):
        written[1][name].write(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(monkeypatch, capsys, *argv):
    """Run the recipe in this process; return its status and output."""
    monkeypatch.setattr(sys, "argv", ["compare.py", *map(str, argv)])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / "recipes/compare.py"), run_name="__main__")
    return end.value.code, capsys.readouterr()


@pytest.fixture
def printed(monkeypatch, capsys):
    def by(*argv):
        status, output = run(monkeypatch, capsys, *argv)
        assert (status, output.err) == (None, "")
        return output.out

    return by


@pytest.fixture
def refused(monkeypatch, capsys):
    def by(*argv):
        status, output = run(monkeypatch, capsys, *argv)
        assert (status, output.out) == (2, "")
        return output.err

    return by


def cells(out):
    """Return the numbers of the table by label, (score, low, high) of each column, and the p-values."""
    table = out.split("\n\n")[0].splitlines()
    rows = {line[:22].strip(): line[22:] for line in table[1:]}
    numbers = {
        title: [tuple(map(float, filter(None, cell))) for cell in re.findall(CELL + r"(?![\d])", line)]
        for title, line in rows.items()
    }
    p_values = {title: float(match[1]) for title, line in rows.items() if (match := re.search(r"  (\d\.\d{4})$", line))}
    return numbers, p_values


def rounded(*numbers):
    return tuple(float(f"{number:.2f}") for number in numbers)


def scores_of(score):
    """Return the metrics and the seconds per answer."""
    return score.metrics | {"seconds": score.score.generation["seconds_per_answer"]}


# The table


@pytest.mark.parametrize("names", [["before"], ["before", "after"], ["before", "after", "later"]])
def test_every_column_has_scores_and_intervals(written, printed, monkeypatch, names):
    folder, scores = written
    monkeypatch.chdir(folder)
    numbers, _ = cells(printed(*names))
    assert list(numbers) == list(TITLES.values())
    for column, name in enumerate(names):
        intervals = score_intervals(scores[name].predictions)
        for metric, score in scores_of(scores[name]).items():
            if title := TITLES.get(metric):
                assert numbers[title][column] == rounded(score, *intervals.get(metric, ()))


def test_two_evaluations_have_differences_and_p_values(written, printed, monkeypatch):
    folder, scores = written
    monkeypatch.chdir(folder)
    out = printed("before", "after")
    numbers, p_values = cells(out)
    assert out.splitlines()[0].split() == ["[95%", "interval]", "before", "after", "difference", "p"]
    results = compare(scores["before"].predictions, scores["after"].predictions)
    expected = {TITLES[name]: result for name, result in results.items() if name in TITLES}
    assert p_values == {title: round(result.p_value, 4) for title, result in expected.items()}
    for title, result in expected.items():
        assert numbers[title][2] == rounded(result.difference, result.low, result.high)
    assert len(numbers["seconds per answer"]) == 2


def test_columns_are_aligned(written, printed, monkeypatch):
    monkeypatch.chdir(written[0])
    table = printed("before", "after").split("\n\n")[0].splitlines()[1:]
    for column in range(2):
        points = {[match.end(1) for match in re.finditer(CELL, line[22:])][column] for line in table}
        assert len(points) == 1


def test_counts_without_which_scores_are_misread_stand_below_the_table(here, printed):
    change_score(here / "after", generation={"seconds_per_answer": 1.0, "unfinished": 7}, examples_without_references=2)
    below = printed("before", "after").split("\n\n")[0].splitlines()[-2:]
    assert below[0].startswith("seconds per answer")
    assert below[1].startswith("after: 7 answers cut by --max_new_tokens; 2 examples without references")


def test_the_readme_s_table_can_be_printed(written, printed, monkeypatch):
    monkeypatch.chdir(written[0])
    [table] = re.findall(r"^```\n(.*runs/quickstart/before(?s:.*?))(?:\n\n|^```$)", README, flags=re.MULTILINE)
    rows = {line[:22].strip() for line in table.splitlines()[1:] if not line.startswith("runs/")}
    assert "Recall@10, %" in rows  # which needs more passages than there are here
    assert rows - {"Recall@10, %"} <= cells(printed("before", "after"))[0].keys()


def test_a_folder_has_no_difference_to_itself(written):
    folder = str(written[0] / "before")
    numbers, p_values = cells(out := launch("compare.py", {folder: folder}))
    assert {numbers[title][2] for title in p_values} == {(0, 0, 0)}
    assert set(p_values.values()) == {1}
    assert "f1 differs at 0 of 12 questions." in out


def test_a_rounded_zero_has_no_minus_sign():
    cell = runpy.run_path(str(ROOT / "recipes/compare.py"))["cell"]
    assert cell(-1e-15, (-1e-15, 1e-15), "+") == cell(0.0, (0.0, 0.0), "+") == "+0.00 [  +0.00,   +0.00]"


# The questions


def score_by(metric, row):
    if metric == "answer_words":
        return float(answer_length(row.answer))
    return ((row.retrieval_scores if "@" in metric else row.answer_scores) or {}).get(metric)


@pytest.mark.parametrize("metric", ["f1", "em", "rougeL", "answer_words", "hit@1", "ndcg@3"])
def test_questions_with_the_largest_differences_have_both_answers(here, written, printed, metric):
    out = printed("before", "after", "--show", "3", *(["--metric", metric] if metric != "f1" else []))
    _, heading, *questions = out.removesuffix("\n").split("\n\n")
    expected = []
    for a, b in zip(*(written[1][name].predictions for name in ("before", "after")), strict=True):
        scores = [score_by(metric, row) for row in (a, b)]
        if scores[0] != scores[1]:
            lines = [
                "{}: {:.2f} -> {:.2f}".format(a.id, *scores),
                f"    question: {a.question}",
                f"    before: {a.answer.strip()}",
                f"    after: {b.answer.strip()}",
                f"    references: {a.references[0]}",
            ]
            expected.append((-abs(scores[1] - scores[0]), "\n".join(lines)))
    assert questions == [text for _, text in sorted(expected, key=lambda pair: pair[0])[:3]]
    assert len(expected) > 1
    assert heading == f"{metric} differs at {len(expected)} of 12 questions; most at:"


def test_no_questions_are_shown_with_show_0(here, printed):
    assert not re.search(r"test:\d+", printed("before", "after", "--show", "0"))


def test_a_long_text_is_truncated_to_one_line(here, printed):
    for name, answer in [("before", "one\n two"), ("after", "x" * 1000)]:
        change(here / name, lambda i, row, answer=answer: row | {"answer": answer} if i == 0 else row)
    out = printed("before", "after", "--show", "12", "--output", "c.json")
    assert "    before: one two\n" in out
    assert f"    after: {'x' * 300} ...\n" in out
    answers = [row["answers"] for row in json.loads((here / "c.json").read_text())["differing_most"]]
    assert ["one\n two", "x" * 1000] in answers


def test_ids_and_answers_have_no_control_characters(here, printed):
    for name, answer in [("before", "\x9b31m one"), ("after", "\x9b31m one two")]:
        change(here / name, lambda i, row, answer=answer: row | {"id": f"\x1b[2J{i}", "answer": answer})
    out = printed("before", "after", "--metric", "answer_words", "--show", "12")
    assert "␛[2J" in out
    assert not set(out) & {"\x1b", "\x9b"}


def test_a_question_with_one_score_only_is_not_compared(here, printed):
    """For example of a verdict: only questions with two are compared."""
    for name, right in [("before", {0, 1}), ("after", {1, 2})]:
        change(
            here / name,
            lambda i, row, right=right: row | {"judge_scores": {"judge_accuracy": 100.0 * (i in right)} if i else {}},
        )
    change(here / "after", lambda i, row: row | {"judge_scores": {}} if i == 2 else row)
    out = printed("before", "after", "--metric", "judge_accuracy", "--output", "c.json")
    assert "judge_accuracy differs at 0 of 12 questions." in out
    assert json.loads((here / "c.json").read_text())["differences"]["judge_accuracy"]["questions"] == 10


# The file


def test_the_file_contains_everything(here, written, printed):
    scores = [written[1][name] for name in ("before", "after")]
    printed("before", "after", "--show", "2", "--output", "new/folder/c.json")
    report = json.loads((here / "new/folder/c.json").read_text(encoding="utf-8"))
    assert report["folders"] == ["before", "after"]
    assert (report["questions"], report["level"], report["resamples"]) == ([12, 12], 0.95, 10_000)
    assert report["differences"] == {
        name: asdict(result) for name, result in compare(*(score.predictions for score in scores)).items()
    }
    for i, score in enumerate(scores):
        assert {name: values[i] for name, values in report["scores"].items()} == scores_of(score)
        intervals = {name: list(ends) for name, ends in score_intervals(score.predictions).items()}
        assert {name: ends[i] for name, ends in report["intervals"].items() if ends[i]} == intervals
    assert (report["metric"], len(report["differing_most"])) == ("f1", 2)
    assert report["differing_most"][0].keys() == {"id", "question", "references", "scores", "answers"}


def test_order_of_rows_has_no_effect(here, printed):
    reports = []
    for _ in range(2):
        printed("before", "after", "--output", "c.json")
        reports.append(json.loads((here / "c.json").read_text()))
        lines = (here / "after/predictions.jsonl").read_text().splitlines(keepends=True)
        (here / "after/predictions.jsonl").write_text("".join(reversed(lines)))
    for name in ("differences", "differing_most", "scores"):
        assert reports[0][name] == reports[1][name]


def test_retrievers_alone_can_be_compared(here, printed):
    kept = ("format", "id", "question", "passages", "retrieval_scores")
    for name in ("before", "after"):
        change(here / name, lambda i, row: {key: row[key] for key in kept if key in row}, keep_scores=True)
        metrics = json.loads((here / name / "score.json").read_text())["metrics"]
        change_score(here / name, metrics={metric: value for metric, value in metrics.items() if "@" in metric})
        score = json.loads((here / name / "score.json").read_text())
        del score["generation"]
        (here / name / "score.json").write_text(json.dumps(score))
    out = printed("before", "after")
    assert set(cells(out)[1]) == {"Recall@1, %", "Recall@3, %"}
    assert "hit@1 differs at" in out
    assert not re.search("before:|references:", out)


# Refusals


def test_a_missing_folder_is_refused(here, refused):
    assert refused("before", "absent").startswith(
        "error: absent: expected the folder of an evaluation, with score.json"
    )


def test_other_questions_are_refused(here, refused):
    change(here / "after", lambda i, row: row if i > 1 else None)
    assert '2 ids that only one of them has, the first "test:1"' in refused("before", "after")


def test_three_need_not_be_of_the_same_questions(here, printed):
    change(here / "after", lambda i, row: row if i > 1 else None)
    numbers, _ = cells(printed("before", "after", "before"))
    assert len(numbers["seconds per answer"]) == 3


def test_flags_are_checked(here, refused):
    assert "--show: expected at least 0, got -1" in refused("before", "after", "--show", "-1")
    error = refused("before", "after", "--metric", "bleu")
    assert re.search(r"--metric bleu: expected a score of single questions: .*f1, .*hit@1", error)
    assert "--metric em: expected two folders, got 3" in refused("before", "after", "before", "--metric", "em")
