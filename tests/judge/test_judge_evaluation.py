"""Tests of judge_evaluation: the verdict of each answer is in its files, and the scores are those of the verdicts."""

import json
import os
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from five_questions import EXAMPLES, FOUND, HISTORY, TEXTS, Clock, P, losses_of, retrieval, score_examples
from judge_server import JudgeServer
from world import World, launch

from rqa.cli import JudgeArgs, parse_args
from rqa.errors import InputError
from rqa.evaluation.comparison import read_evaluation
from rqa.evaluation.significance import interval
from rqa.judge.client import Judge
from rqa.judge.judge_evaluation import RESPONSES_FILE, build_requests, judge_answers, read_labels
from rqa.judge.prompt import JudgeRequest
from rqa.judge.verdicts import cohens_kappa

SECRET = "sk-sentinel-3"
CORRECT = [False, True, False, True, False]  # by the server: an answer is correct if it equals a reference


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


@pytest.fixture
def folder(clock, tmp_path):
    out = tmp_path / "evaluation"
    score_examples(EXAMPLES, retrieval=retrieval(), generate=clock.generate, loss=losses_of, k=2, ks=(3,)).write(out)
    return out


def judge(server, folder, **options):
    return Judge(
        **{"model": "m", "base_url": server.url, "api_key": "", "cache_path": folder / RESPONSES_FILE, "retries": 0}
        | options
    )


def score(folder):
    return json.loads((folder / "score.json").read_text())


def rows(folder):
    return [json.loads(line) for line in (folder / "predictions.jsonl").open(encoding="utf-8")]


def predictions(folder):
    return [*read_evaluation(folder).predictions.values()]


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_request_has_the_passages_of_the_prompt(folder):
    expected = [
        JudgeRequest(
            example.question,
            text,
            tuple(row["references"]),
            tuple(P[i].content for i in retrieved[:2]),
            HISTORY if example.id == "a" else (),
        )
        for example, text, row, retrieved in zip(EXAMPLES, TEXTS, rows(folder), FOUND, strict=True)
    ]
    assert build_requests(predictions(folder)) == expected


def test_request_has_the_gold_passages_without_a_retrieval(clock, tmp_path):
    score_examples(EXAMPLES, generate=clock.generate, k=2).write(tmp_path)
    expected = [tuple(passage.content for passage in example.gold_passages) for example in EXAMPLES]
    assert [request.passages for request in build_requests(predictions(tmp_path))] == expected


def test_verdicts_and_scores_are_written_beside_the_others(folder):
    before, old = rows(folder), score(folder)
    with JudgeServer() as server:
        judge_answers(folder, judge(server, folder))
        assert len(server.received) == 5
    judged = [
        {"verdict": {"status": "judged", "correct": correct, "explanation": f"On {row['question']}."}}
        | {"judge_scores": {"judge_accuracy": 100.0 * correct}}
        for correct, row in zip(CORRECT, before, strict=True)
    ]
    assert rows(folder) == [row | fields for row, fields in zip(before, judged, strict=True)]
    new = score(folder)
    assert new["metrics"] == old["metrics"] | dict.fromkeys(
        ("judge_accuracy", "judge_accuracy_low", "judge_accuracy_high"), pytest.approx(40.0)
    )
    ends = list(interval([100.0 * correct for correct in CORRECT]))
    assert new["intervals"] == old["intervals"] | {"judge_accuracy": ends}
    report = new.pop("judge")
    assert (report["model"], report["judged"], report["calls"], report["failed"]) == ("m", 5, 5, 0)
    assert {name: value for name, value in new.items() if name not in ("metrics", "intervals")} == {
        name: value for name, value in old.items() if name not in ("metrics", "intervals")
    }


def test_second_run_makes_no_calls_and_another_judge_replaces_the_verdicts(folder):
    with JudgeServer() as server:
        judge_answers(folder, judge(server, folder))
        first = content(folder)
        judge_answers(folder, judge(server, folder))
        assert len(server.received) == 5
        assert rows(folder) == [json.loads(line) for line in first["predictions.jsonl"].splitlines()]
        judge_answers(folder, judge(server, folder, model="n"))
        assert len(server.received) == 10
    assert score(folder)["judge"]["model"] == "n"


def test_missing_verdicts_widen_the_bounds_and_stay_in_the_denominator(folder):
    faults = {EXAMPLES[1].question: ["500"], EXAMPLES[2].question: ["prose"], EXAMPLES[4].question: ["refusal"]}
    with JudgeServer(faults) as server:
        judge_answers(folder, judge(server, folder))
    new, report = score(folder)["metrics"], score(folder)["judge"]
    scores = [new[name] for name in ("judge_accuracy", "judge_accuracy_low", "judge_accuracy_high")]
    assert scores == pytest.approx([50, 20, 80])  # d of a and d is correct; the other three are incorrect, or correct
    assert [report[name] for name in ("judged", "failed", "malformed", "refused")] == [2, 1, 1, 1]
    assert [row["verdict"]["status"] for row in rows(folder)] == ["judged", "failed", "malformed", "judged", "refused"]
    assert score(folder)["intervals"]["judge_accuracy"] == list(interval([0.0, 100.0]))
    with JudgeServer({"*": ["500"]}) as server:
        judge_answers(folder, judge(server, folder, model="n"))
    assert "judge_accuracy" not in score(folder)["metrics"]
    assert score(folder)["metrics"]["judge_accuracy_high"] == 100


def test_dry_run_logs_the_cost_without_a_call(folder, caplog):
    caplog.set_level("INFO", "rqa")
    before = content(folder)
    with JudgeServer() as server:
        client = judge(server, folder)
        cost = client.estimate_cost(build_requests(predictions(folder)), prompt_price=2e6, completion_price=1e6)
        judge_answers(folder, client, dry_run=True, prompt_price=2e6, completion_price=1e6)
        assert not server.received
    assert content(folder) == before
    price = 2 * cost.prompt_tokens + cost.completion_tokens
    for part in ("5 calls", f"{cost.prompt_tokens} prompt", f"{cost.completion_tokens} completion", f"{price:.2f}"):
        assert part in caplog.text


def test_agreement_with_labels_is_cohens_kappa(folder, tmp_path):
    labels = {"a": False, "b": True, "d": False, "e": True}
    path = tmp_path / "labels.jsonl"
    path.write_text("".join(json.dumps({"id": id, "correct": correct}) + "\n" for id, correct in labels.items()))
    with JudgeServer() as server:
        judge_answers(folder, judge(server, folder), labels=str(path))
    verdicts = dict(zip("abcde", CORRECT, strict=True))
    assert score(folder)["judge"]["agreement"] == asdict(cohens_kappa(verdicts, labels))


def test_invalid_labels_are_listed_by_line(tmp_path):
    path = tmp_path / "labels.jsonl"
    path.write_text(
        '{"id": "a", "correct": true}\n{"id": "a", "correct": true}\n{"id": "z", "correct": 1}\n{"id": "b"}\n'
    )
    with pytest.raises(InputError) as caught:
        read_labels(path, EXAMPLES[:2])
    assert [line.partition(": ")[0][-1] for line in str(caught.value).splitlines() if "jsonl:" in line] == list("2334")


def test_missing_labels_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        read_labels("no/labels.jsonl", EXAMPLES)


def test_verdicts_are_written_without_common_labels(folder, tmp_path, caplog):
    path = tmp_path / "labels.jsonl"
    path.write_text('{"id": "b", "correct": true}\n')
    with JudgeServer({EXAMPLES[1].question: ["500"]}) as server:
        judge_answers(folder, judge(server, folder), labels=str(path), prompt_price=1e6, completion_price=2e6)
    report = score(folder)["judge"]
    assert (report["judged"], "agreement" in report) == (4, False)
    assert f"--judge_labels {path}: " in caplog.text
    assert report["cost"] == pytest.approx(report["prompt_tokens"] + 2 * report["completion_tokens"])


@pytest.mark.parametrize("writes", [0, 1, 2])
def test_files_agree_after_a_kill_between_writes(folder, monkeypatch, writes):
    with JudgeServer() as server:
        judge_answers(folder, judge(server, folder))
        replace, replaced = Path.replace, []

        def killed(path, target):
            if len(replaced) == writes:
                raise KeyboardInterrupt
            replaced.append(target.name)
            return replace(path, target)

        monkeypatch.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt), JudgeServer({EXAMPLES[1].question: ["prose"]}) as other:
            judge_answers(folder, judge(other, folder, model="n"))
        monkeypatch.undo()
        assert len(replaced) == writes
        judge_answers(folder, judge(server, folder))  # it reads the files, and checks that they agree
    assert score(folder)["metrics"]["judge_accuracy"] == 40


def test_predictions_without_the_number_of_passages_are_refused(folder):
    with pytest.raises(InputError, match="num_passages_read"):
        build_requests([replace(row, num_passages_read=None) for row in predictions(folder)])


def test_answers_without_references_are_not_judged(clock, tmp_path, caplog):
    caplog.set_level("INFO", "rqa")
    hidden = [replace(example, answers=()) if example.id in "be" else example for example in EXAMPLES]
    score_examples(hidden, retrieval=retrieval(), generate=clock.generate, loss=losses_of, k=2).write(tmp_path)
    before = rows(tmp_path)
    with JudgeServer() as server:
        judge_answers(tmp_path, judge(server, tmp_path))
        assert sorted(server.calls) == sorted(example.question for example in EXAMPLES if example.id not in "be")
    assert [row.get("verdict", {}).get("correct") for row in rows(tmp_path)] == [False, None, False, True, None]
    assert [rows(tmp_path)[i] for i in (1, 4)] == [before[i] for i in (1, 4)]
    new = score(tmp_path)
    assert (new["judge"]["judged"], new["examples_without_references"]) == (3, 2)
    bounds = [new["metrics"][f"judge_accuracy{end}"] for end in ("", "_low", "_high")]
    assert bounds == pytest.approx([100 / 3] * 3)
    assert "2 answers without references are not judged" in caplog.text


def test_evaluation_without_references_is_refused(clock, tmp_path):
    hidden = [replace(example, answers=(), unanswerable=False) for example in EXAMPLES]
    score_examples(hidden, retrieval=retrieval(), generate=clock.generate, k=2).write(tmp_path)
    before = content(tmp_path)
    with pytest.raises(InputError, match=r'expected "references".* got none'), JudgeServer() as server:
        judge_answers(tmp_path, judge(server, tmp_path))
    assert content(tmp_path) == before


def test_evaluation_without_answers_is_refused(tmp_path):
    score_examples(EXAMPLES, retrieval=retrieval(), k=2).write(tmp_path)
    with pytest.raises(InputError, match="retriever alone"), JudgeServer() as server:
        judge_answers(tmp_path, judge(server, tmp_path))


# Flags


def parsed(*argv):
    [args] = parse_args(JudgeArgs(), argv=argv)
    return args


def client(args, folder):
    return Judge(**args.client_options, cache_path=folder / RESPONSES_FILE)


def test_flags_are_the_arguments_of_the_judge(monkeypatch, tmp_path):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-1")
    assert client(parsed(), tmp_path).parameters == {"temperature": 0, "max_tokens": 1024}
    monkeypatch.setenv("MY_KEY", "sk-2")
    flags = ("--judge_model=m", "--judge_base_url=http://127.0.0.1:1/v1", "--judge_key_name=MY_KEY")
    args = parsed(*flags, '--judge_parameters={"seed": 3}', "--judge_max_calls=9")
    made = client(args, tmp_path)
    assert (made.model, made.url, made.key_name, made.max_calls) == (
        "m",
        "http://127.0.0.1:1/v1/chat/completions",
        "MY_KEY",
        9,
    )
    assert (made.headers["Authorization"], made.parameters) == ("Bearer sk-2", {"seed": 3})
    assert "sk-" not in json.dumps(vars(args))


def test_missing_key_is_refused(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(InputError, match="OPENAI_API_KEY"):
        parsed().client_options  # noqa: B018
    assert parsed("--judge_dry_run=true").client_options["api_key"] == ""
    assert parsed("--judge_base_url=http://127.0.0.1:8000/v1").client_options["api_key"] == ""


def test_value_that_may_be_a_key_is_refused_and_not_shown():
    for flag in (f"--judge_base_url=https://user:{SECRET}@host/v1", f"--judge_key_name={SECRET}"):
        with pytest.raises(InputError, match=flag.partition("=")[0]) as caught:
            parsed(flag)
        assert SECRET not in str(caught.value)


def test_reserved_parameters_are_refused(tmp_path):
    args = parsed("--judge_base_url=http://127.0.0.1:1/v1", '--judge_parameters={"model": "n", "messages": []}')
    with pytest.raises(InputError, match=r"--judge_parameters: .*messages, model"):
        client(args, tmp_path)


@pytest.mark.parametrize(
    "flag",
    [
        "--judge_parameters=[1]",
        "--judge_parameters=x",
        "--judge_concurrency=0",
        "--judge_timeout=0",
        "--judge_retries=-1",
    ],
)
def test_invalid_values_are_refused(flag):
    with pytest.raises(InputError, match=flag.partition("=")[0]):
        parsed(flag)


# Recipes


@pytest.mark.slow
def test_evaluation_is_written_before_judging_and_can_be_judged_later(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-sentinel-recipe-1")
    world = World.make(tmp_path / "world")
    with JudgeServer({"*": ["401"]}) as server:
        flags = {
            "--qa_model_name_or_path": world.model,
            "--eval_data_path": world.test,
            "--output_dir": str(tmp_path / "out"),
            "--max_new_tokens": "4",
            "--gen_gpt4eval": "true",
            "--judge_base_url": server.url,
            "--judge_model": "m",
        }
        output = launch("evaluate.py", flags, expect=2)
    assert "HTTP 401" in output
    assert "OPENAI_API_KEY" in output
    answered = [row["answer"] for row in rows(tmp_path / "out")]
    with JudgeServer() as server:
        config = json.loads((tmp_path / "out/config.json").read_text())
        assert config["judge_model"] == "m"
        (tmp_path / "out/config.json").write_text(json.dumps(config | {"judge_base_url": server.url}))
        command = f"python recipes/judge.py --evaluation {tmp_path / 'out'}"
        assert any(line.endswith(command) for line in output.splitlines())
        flags = {"--evaluation": str(tmp_path / "out")}
        output += launch("judge.py", flags)
        assert len(server.received) == len(answered)
    assert [row["answer"] for row in rows(tmp_path / "out")] == answered
    assert score(tmp_path / "out")["judge"]["judged"] == len(answered)
    for path in (tmp_path / "out").iterdir():
        output += path.read_text()
    assert os.environ["OPENAI_API_KEY"] not in output
