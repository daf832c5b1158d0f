"""judge_evaluation: verdicts stand beside the answers, and the scores are those of the verdicts, counted by hand."""

import json
import os
from dataclasses import asdict
from pathlib import Path

import pytest
from judge_server import JudgeServer
from test_evaluate import EXAMPLES, FOUND, HISTORY, TEXTS, P, losses_of, retrieval
from test_evaluate import clock as clock
from world import World, launch

from rqa.cli import data_args as inputs
from rqa.cli.parser import parse_configs
from rqa.errors import InputError
from rqa.evaluation.evaluate import evaluate
from rqa.evaluation.significance import interval
from rqa.judge.client import Judge
from rqa.judge.judge_evaluation import STORE, cases_of, judge_folder, read_labels
from rqa.judge.prompt import JudgeRequest
from rqa.judge.verdicts import kappa

SECRET = "sk-sentinel-3"
RIGHT = [False, True, False, True, False]  # the server's opinion: an answer is correct that is a reference


@pytest.fixture
def folder(clock, tmp_path):
    out = tmp_path / "evaluation"
    evaluate(EXAMPLES, retrieval=retrieval(), generate=clock.generate, loss=losses_of, k=2, ks=(3,)).write(out)
    return out


def judge(server, folder, **options):
    return Judge(
        **{"model": "m", "base_url": server.url, "api_key": "", "store": folder / STORE, "retries": 0} | options
    )


def score(folder):
    return json.loads((folder / "score.json").read_text())


def rows(folder):
    return [json.loads(line) for line in (folder / "predictions.jsonl").open(encoding="utf-8")]


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_case_is_the_answer_with_what_its_generator_read(folder):
    expected = [
        JudgeRequest(
            example.question,
            text,
            tuple(row["references"]),
            tuple(P[i].content for i in found[:2]),
            HISTORY if example.id == "a" else (),
        )
        for example, text, row, found in zip(EXAMPLES, TEXTS, rows(folder), FOUND, strict=True)
    ]
    assert cases_of(rows(folder)) == expected


def test_gold_that_was_read_is_judged_with(clock, tmp_path):
    evaluate(EXAMPLES, generate=clock.generate, k=2).write(tmp_path)
    expected = [tuple(passage.content for passage in example.gold_passages) for example in EXAMPLES]
    assert [case.passages for case in cases_of(rows(tmp_path))] == expected


def test_verdicts_stand_beside_the_answers_and_come_to_a_score(folder):
    before, old = rows(folder), score(folder)
    with JudgeServer() as server:
        judge_folder(folder, judge(server, folder))
        assert len(server.asked) == 5
    judged = [
        {"judge": {"status": "judged", "correct": right, "explanation": f"On {row['question']}."}}
        | {"judge_scores": {"judge_accuracy": 100.0 * right}}
        for right, row in zip(RIGHT, before, strict=True)
    ]
    assert rows(folder) == [row | told for row, told in zip(before, judged, strict=True)]
    new = score(folder)
    assert new["metrics"] == old["metrics"] | dict.fromkeys(
        ("judge_accuracy", "judge_accuracy_low", "judge_accuracy_high"), pytest.approx(40.0)
    )
    ends = list(interval([100.0 * right for right in RIGHT]))
    assert new["intervals"] == old["intervals"] | {"judge_accuracy": ends}
    told = new.pop("judge")
    assert (told["model"], told["judged"], told["calls"], told["failed"]) == ("m", 5, 5, 0)
    assert {name: value for name, value in new.items() if name not in ("metrics", "intervals")} == {
        name: value for name, value in old.items() if name not in ("metrics", "intervals")
    }


def test_who_is_asked_again_asks_nobody_and_another_judge_takes_the_place(folder):
    with JudgeServer() as server:
        judge_folder(folder, judge(server, folder))
        first = content(folder)
        judge_folder(folder, judge(server, folder))
        assert len(server.asked) == 5
        assert rows(folder) == [json.loads(line) for line in first["predictions.jsonl"].splitlines()]
        judge_folder(folder, judge(server, folder, model="n"))
        assert len(server.asked) == 10
    assert score(folder)["judge"]["model"] == "n"


def test_a_verdict_that_is_missing_bounds_the_score_and_leaves_no_denominator(folder):
    faults = {EXAMPLES[1].question: ["500"], EXAMPLES[2].question: ["prose"], EXAMPLES[4].question: ["refusal"]}
    with JudgeServer(faults) as server:
        judge_folder(folder, judge(server, folder))
    new, told = score(folder)["metrics"], score(folder)["judge"]
    found = [new[name] for name in ("judge_accuracy", "judge_accuracy_low", "judge_accuracy_high")]
    assert found == pytest.approx([50, 20, 80])  # of a and d: d alone is right; the other three wrong, or right
    assert [told[name] for name in ("judged", "failed", "malformed", "refused")] == [2, 1, 1, 1]
    assert [row["judge"]["status"] for row in rows(folder)] == ["judged", "failed", "malformed", "judged", "refused"]
    assert score(folder)["intervals"]["judge_accuracy"] == list(interval([0.0, 100.0]))
    with JudgeServer({"*": ["500"]}) as server:
        judge_folder(folder, judge(server, folder, model="n"))
    assert "judge_accuracy" not in score(folder)["metrics"]
    assert score(folder)["metrics"]["judge_accuracy_high"] == 100


def test_what_judging_takes_is_told_without_a_call(folder, caplog):
    caplog.set_level("INFO", "rqa")
    before = content(folder)
    with JudgeServer() as server:
        asked = judge(server, folder)
        cost = asked.cost(cases_of(rows(folder)), prompt_price=2e6, completion_price=1e6)
        judge_folder(folder, asked, dry_run=True, prompt_price=2e6, completion_price=1e6)
        assert not server.asked
    assert content(folder) == before
    price = 2 * cost.prompt_tokens + cost.completion_tokens
    assert f"5 calls, {cost.prompt_tokens} tokens of requests and {cost.completion_tokens} of verdicts" in caplog.text
    assert f"which cost {price:.2f}" in caplog.text


def test_agreement_with_people_is_cohens_kappa(folder, tmp_path):
    labels = {"a": False, "b": True, "d": False, "e": True}
    path = tmp_path / "labels.jsonl"
    path.write_text("".join(json.dumps({"id": id, "correct": correct}) + "\n" for id, correct in labels.items()))
    with JudgeServer() as server:
        judge_folder(folder, judge(server, folder), labels=str(path))
    verdicts = dict(zip("abcde", RIGHT, strict=True))
    assert score(folder)["judge"]["agreement"] == asdict(kappa(verdicts, labels))


def test_labels_that_cannot_be_used_are_told_by_line(tmp_path):
    path = tmp_path / "labels.jsonl"
    path.write_text(
        '{"id": "a", "correct": true}\n{"id": "a", "correct": true}\n{"id": "z", "correct": 1}\n{"id": "b"}\n'
    )
    with pytest.raises(InputError) as caught:
        read_labels(path, ["a", "b"])
    assert [line.partition(": ")[0][-1] for line in str(caught.value).splitlines() if "jsonl:" in line] == list("2334")


def test_labels_that_nobody_can_open_are_refused(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        read_labels("no/labels.jsonl", ["a"])


def test_labels_without_a_verdict_in_common_cost_no_verdict(folder, tmp_path, caplog):
    path = tmp_path / "labels.jsonl"
    path.write_text('{"id": "b", "correct": true}\n')
    with JudgeServer({EXAMPLES[1].question: ["500"]}) as server:
        judge_folder(folder, judge(server, folder), labels=str(path), prompt_price=1e6, completion_price=2e6)
    told = score(folder)["judge"]
    assert (told["judged"], "agreement" in told) == (4, False)
    assert "none has a label of both" in caplog.text
    assert told["cost"] == pytest.approx(told["prompt_tokens"] + 2 * told["completion_tokens"])


def test_who_is_killed_while_files_are_written_can_judge_again(folder, monkeypatch):
    with JudgeServer() as server:
        judge_folder(folder, judge(server, folder))
        replace = Path.replace

        def killed(path, target):
            if target.name == "score.json" and "judge_accuracy" in path.read_text():
                raise KeyboardInterrupt
            return replace(path, target)

        monkeypatch.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt), JudgeServer({EXAMPLES[1].question: ["prose"]}) as other:
            judge_folder(folder, judge(other, folder, model="n"))
        monkeypatch.undo()
        judge_folder(folder, judge(server, folder))
    assert score(folder)["metrics"]["judge_accuracy"] == 40


def test_rows_that_do_not_say_what_was_read_are_refused(folder):
    with pytest.raises(InputError, match="how many passages were read: evaluate again"):
        cases_of([{name: value for name, value in row.items() if name != "read"} for row in rows(folder)])


def test_without_answers_there_is_nothing_to_judge(tmp_path):
    evaluate(EXAMPLES, retrieval=retrieval(), k=2).write(tmp_path)
    with pytest.raises(InputError, match="a retriever alone was evaluated"), JudgeServer() as server:
        judge_folder(tmp_path, judge(server, tmp_path))


# Flags


def config(*argv):
    [found] = parse_configs(inputs.Judge(), argv=argv)
    return found


def test_the_flags_are_the_judge_s_own_arguments(monkeypatch, tmp_path):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-1")
    assert Judge(**config().endpoint, store=tmp_path / STORE).parameters == {"temperature": 0, "max_tokens": 1024}
    monkeypatch.setenv("MY_KEY", "sk-2")
    flags = ("--judge_model=m", "--judge_base_url=http://127.0.0.1:1/v1", "--judge_key_name=MY_KEY")
    found = config(*flags, '--judge_parameters={"seed": 3}', "--judge_max_calls=9")
    made = Judge(**found.endpoint, store=tmp_path / STORE)
    assert (made.model, made.url, made.key_name, made.max_calls) == (
        "m",
        "http://127.0.0.1:1/v1/chat/completions",
        "MY_KEY",
        9,
    )
    assert (made.headers["Authorization"], made.parameters) == ("Bearer sk-2", {"seed": 3})
    assert "sk-" not in json.dumps(vars(found))


def test_a_key_that_is_not_set_is_told_before_anything_is_done(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(InputError, match="OPENAI_API_KEY is not set"):
        config().endpoint  # noqa: B018
    assert config("--judge_dry_run=true").endpoint["api_key"] == ""
    assert config("--judge_base_url=http://127.0.0.1:8000/v1").endpoint["api_key"] == ""


def test_an_address_or_a_name_that_may_be_a_key_is_refused_and_not_shown():
    for flag in (f"--judge_base_url=https://user:{SECRET}@host/v1", f"--judge_key_name={SECRET}"):
        with pytest.raises(InputError, match=flag.partition("=")[0]) as caught:
            config(flag)
        assert SECRET not in str(caught.value)


def test_parameters_do_not_say_what_flags_say(tmp_path):
    with pytest.raises(InputError, match="--judge_parameters: messages, model cannot be set there"):
        Judge(
            **config(
                "--judge_base_url=http://127.0.0.1:1/v1", '--judge_parameters={"model": "n", "messages": []}'
            ).endpoint,
            store=tmp_path / STORE,
        )


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
def test_values_that_cannot_be_are_refused(flag):
    with pytest.raises(InputError, match=flag.partition("=")[0]):
        config(flag)


# Recipes


def test_an_evaluation_is_written_before_it_is_judged_and_can_be_judged_later(tmp_path, monkeypatch):
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
        told = launch("evaluate.py", flags, expect=2)
    assert "set OPENAI_API_KEY to a key that may use m" in told
    answered = [row["answer"] for row in rows(tmp_path / "out")]
    with JudgeServer() as server:
        config = json.loads((tmp_path / "out/config.json").read_text())
        assert config["judge_model"] == "m"
        (tmp_path / "out/config.json").write_text(json.dumps(config | {"judge_base_url": server.url}))
        [printed] = [line for line in told.splitlines() if "go on with" in line]
        assert printed.endswith(f"python recipes/judge.py --evaluation {tmp_path / 'out'}")
        flags = {"--evaluation": str(tmp_path / "out")}
        told += launch("judge.py", flags)
        assert len(server.asked) == len(answered)
    assert [row["answer"] for row in rows(tmp_path / "out")] == answered
    assert score(tmp_path / "out")["judge"]["judged"] == len(answered)
    for path in (tmp_path / "out").iterdir():
        told += path.read_text()
    assert os.environ["OPENAI_API_KEY"] not in told
