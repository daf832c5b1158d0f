"""The judge against a server that misbehaves: every call is counted on both sides, and nothing is paid for twice."""

import itertools
import json
import logging
import math
import os
import random
import re
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from dataclasses import replace
from email.utils import formatdate
from fractions import Fraction

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from judge_server import JudgeServer, completion
from sklearn.metrics import cohen_kappa_score

from rqa.data.records import Turn
from rqa.errors import InputError
from rqa.judge.client import Judge
from rqa.judge.client import client as module
from rqa.judge.client import response_cache as responses
from rqa.judge.prompt import JudgeRequest
from rqa.judge.response_cache import open_store, read_store
from rqa.judge.verdicts import Agreement, Verdict, kappa, read_verdict, summary

KEY = "sk-sentinel-9f8e7d6c5b4a"
TRANSIENT = ["429", "429:0", "date:0", "500", "503:0", "reset", "truncated", "html", "empty", "midway", "echo", "noise"]
HOPELESS = {
    "401": "JUDGE_KEY",
    "403": "JUDGE_KEY",
    "quota": "JUDGE_KEY has nothing left to spend",
    "404": "--judge_model",
    "301": "--judge_base_url",
    "unsuitable": "--judge_parameters",
}


def cases(n):
    """Of which every third is wrong."""
    return [
        JudgeRequest(
            f'Which is "{i}"?',
            f"The é{i} {{case}}." if i % 3 else "None.",
            ("Another.", f"The é{i} {{case}}."),
            (f"It is {i}.\nIndeed.", '"answer": "Right.",'),
            (Turn("user", "Hello."), Turn("assistant", "Ask.")) * (i % 2),
        )
        for i in range(n)
    ]


@pytest.fixture
def make(tmp_path):
    def make(url, **options):
        options = {"retries": 2, "backoff": 0.01, "timeout": 20, "concurrency": 4} | options
        options = {"store": tmp_path / "runs" / "judge.jsonl", "key_name": "JUDGE_KEY", "api_key": KEY} | options
        return Judge(model="gpt-4-1106-preview", base_url=url, **options)

    return make


def ends(verdicts):
    return [(verdict.status, verdict.calls) for verdict in verdicts]


# Verdicts


def test_each_case_gets_its_verdict_once(make):
    with JudgeServer(seconds=0.02) as server:
        first = make(server.url)(cases(13))
        again = make(server.url)(cases(13))
    assert [verdict.correct for verdict in first] == [case.answer in case.references for case in cases(13)]
    assert [verdict.explanation for verdict in first] == [f"On {case.question}." for case in cases(13)]
    assert ends(first) == [("judged", 1)] * 13
    assert again == [replace(verdict, calls=0) for verdict in first]
    assert server.calls == Counter(case.question for case in cases(13))
    assert server.most_at_a_time == 4


def test_what_is_sent(make):
    [case] = cases(1)
    with JudgeServer() as server:
        judge = make(server.url + "/", api_key=f"{KEY}\n", parameters={"temperature": 0, "seed": 3})
        judge([case])
    prompt = case.prompt
    assert server.bodies == [
        {"model": "gpt-4-1106-preview", "messages": [{"role": "user", "content": prompt}], "temperature": 0, "seed": 3}
    ]
    assert f"\r\nauthorization: bearer {KEY}\r\n" in server.headers[0].lower()
    assert server.headers[0].startswith("POST /v1/chat/completions HTTP/1.1\r\n")
    sent = json.JSONDecoder().raw_decode(prompt, prompt.index("{\n"))[0]
    assert sent == {
        "passages": list(case.passages),
        "conversation": [],
        "question": case.question,
        "references": list(case.references),
        "answer": case.answer,
    }


def test_a_request_that_stands_twice_is_paid_once(make):
    with JudgeServer() as server:
        verdicts = make(server.url)(cases(3) * 2)
    assert verdicts[3:] == [replace(verdict, calls=0, prompt_tokens=0, completion_tokens=0) for verdict in verdicts[:3]]
    assert len(server.asked) == summary(verdicts)["judge_calls"] == 3
    sent = sum(len(body["messages"][0]["content"]) // 3 for body in server.bodies)
    assert (summary(verdicts)["judge_prompt_tokens"], summary(verdicts)["judge_completion_tokens"]) == (sent, 21)


def test_another_request_or_prompt_version_is_asked_and_another_address_is_not(make, monkeypatch):
    with JudgeServer() as first, JudgeServer() as second:
        make(first.url)(cases(2))
        make(second.url)(cases(2))
        assert (len(first.asked), len(second.asked)) == (2, 0)
        make(first.url, parameters={})(cases(2))
        monkeypatch.setattr(responses, "PROMPT_VERSION", 0)
        make(first.url)(cases(2))
        assert len(first.asked) == 6


# Faults


@pytest.mark.parametrize("fault", TRANSIENT)
def test_a_fault_that_passes_costs_a_call(make, fault):
    state = random.getstate()
    with JudgeServer({case.question: [fault] * i for i, case in enumerate(cases(4))}) as server:
        verdicts = make(server.url)(cases(4))
    assert random.getstate() == state  # others draw from it
    assert ends(verdicts) == [("judged", 1), ("judged", 2), ("judged", 3), ("failed", 3)]
    assert list(map(server.calls.get, (case.question for case in cases(4)))) == [1, 2, 3, 3]
    assert verdicts[3].correct is None
    assert verdicts[3].explanation.endswith(" (3 calls)")
    assert KEY not in verdicts[3].explanation


@pytest.mark.parametrize("fault", ["slow", "dribble"])
def test_the_timeout_is_that_of_a_whole_call(make, fault):
    with JudgeServer({cases(2)[1].question: [fault]}) as server:
        verdicts = make(server.url, timeout=1)(cases(2))
    assert ends(verdicts) == [("judged", 1), ("judged", 2)]
    assert len(server.asked) == 3


@pytest.mark.parametrize(
    ("fault", "status", "told"),
    [
        ("filter", "refused", "filtered"),
        ("filtered", "refused", "content filter"),
        ("refusal", "refused", "I can't."),
        ("cut", "malformed", "cut at the limit"),
        ("prose", "malformed", "found 0: It is correct."),
    ],
)
def test_an_answer_without_a_verdict_is_an_answer(make, fault, status, told):
    with JudgeServer({"*": [fault]}) as server:
        first, again = make(server.url)(cases(1)), make(server.url)(cases(1))
    assert ends(first) == [(status, 1)]
    assert again == [replace(first[0], calls=0)]
    assert told in first[0].explanation
    assert len(server.asked) == 1


def test_a_case_that_cannot_be_judged_is_not_tried_again(make):
    with JudgeServer({cases(2)[0].question: ["too long"]}) as server:
        verdicts = make(server.url)(cases(2))
    assert ends(verdicts) == [("failed", 1), ("judged", 1)]
    assert verdicts[0].explanation.startswith("HTTP 400: ")
    assert len(server.asked) == 2


@pytest.mark.parametrize("fault", HOPELESS)
def test_what_no_call_can_pass_stops_the_run(make, fault):
    with JudgeServer({cases(5)[3].question: [fault]}) as server:
        with pytest.raises(InputError) as caught:
            make(server.url, concurrency=1)(cases(5))
        assert len(server.asked) == 4
        assert HOPELESS[fault] in str(caught.value)
        assert ends(make(server.url)(cases(5))) == [("judged", 0)] * 3 + [("judged", 1)] * 2


def test_without_a_server_it_stops(make):
    with JudgeServer() as server:
        pass
    judge = make(server.url)
    with pytest.raises(InputError, match="--judge_base_url"):
        judge(cases(5))
    assert 3 <= judge.calls <= 12


# Waiting


@given(st.integers(0, 10**6), st.integers(0, 2**31))
def test_both_forms_of_retry_after_say_the_same(seconds, now):
    until = {"Retry-After": formatdate(now + seconds, usegmt=True), "Date": formatdate(now, usegmt=True)}
    assert module._seconds_asked(httpx.Headers({"Retry-After": str(seconds)})) == seconds
    assert module._seconds_asked(httpx.Headers(until)) == seconds
    until["Date"], until["Retry-After"] = until["Retry-After"], until["Date"]
    assert module._seconds_asked(httpx.Headers(until)) == 0


@pytest.mark.parametrize("value", ["", "soon", "-1", "inf", "nan", "Tue, 99 Foo 2020 25:61:61 GMT", "1e400"])
def test_a_retry_after_that_says_nothing_asks_for_nothing(value):
    assert module._seconds_asked(httpx.Headers({"Retry-After": value})) == 0


@pytest.mark.parametrize("fault", ["429:1", "date:1"])
def test_all_wait_for_as_long_as_the_server_asks(make, fault):
    with JudgeServer({cases(6)[0].question: [fault]}, seconds=0.05) as server:
        assert Counter(ends(make(server.url, concurrency=2)(cases(6)))) == {("judged", 1): 5, ("judged", 2): 1}
    times = sorted(time for _, time in server.asked)
    assert len(times) == 7
    assert sum(time < times[0] + 1 for time in times) <= 3  # two together, and one before the fault had come


@pytest.mark.parametrize("fault", ["429:3600", "date:3600"])
def test_it_does_not_wait_for_what_comes_after_the_deadline(make, fault):
    with JudgeServer({"*": [fault]}) as server:
        verdicts = make(server.url, deadline=600, concurrency=2)(cases(6))
    assert {verdict.status for verdict in verdicts} == {"failed"}
    assert all(verdict.explanation.startswith("the deadline of 600 s") for verdict in verdicts)
    assert 1 <= len(server.asked) == sum(verdict.calls for verdict in verdicts) <= 2


def test_the_deadline_ends_calls_and_what_is_left(make):
    with JudgeServer({case.question: ["slow"] * 9 for case in cases(9)[1:]}) as server:
        verdicts = make(server.url, deadline=1.5, concurrency=3)(cases(9))
    assert ends(verdicts) == [("judged", 1)] + [("failed", 1)] * 3 + [("failed", 0)] * 5
    assert [verdict.explanation for verdict in verdicts[4:]] == ["the deadline of 1.5 s"] * 5
    for verdict in verdicts[1:4]:
        told = re.fullmatch(r"the deadline of 1.5 s; before: no response within (\S+) s", verdict.explanation)
        assert float(told[1]) < 10  # that is, not for as long as a call may take
    assert len(server.asked) == 4


# Budgets


@pytest.mark.parametrize("concurrency", [1, 4])
def test_the_budget_of_calls_counts_each_attempt(make, concurrency):
    with JudgeServer({case.question: ["500"] for case in cases(9)[::2]}) as server:
        judge = make(server.url, max_calls=8, concurrency=concurrency)
        verdicts = judge(cases(9))
        assert len(server.asked) == judge.calls == sum(verdict.calls for verdict in verdicts) == 8
        left = [verdict for verdict in verdicts if verdict.status == "failed"]
        assert left
        assert all("the budget of 8 calls is used up" in verdict.explanation for verdict in left)
        judge(cases(9))
        assert len(server.asked) == 8  # it is the budget of all runs
        assert {status for status, _ in ends(make(server.url)(cases(9)))} == {"judged"}
        assert len(server.asked) == 9 + 5


def test_the_budget_of_tokens_ends_with_the_answer_that_reaches_it(make, tmp_path):
    used = [len(case.prompt) // 3 + 7 for case in cases(9)]
    with JudgeServer() as server:
        for budget in (sum(used[:3]), sum(used[:3]) + 1):
            judge = make(server.url, max_tokens=budget, concurrency=1, store=tmp_path / f"{budget}.jsonl")
            allowed = next(n for n, total in enumerate(itertools.accumulate(used), 1) if total >= budget)
            assert ends(judge(cases(9))) == [("judged", 1)] * allowed + [("failed", 0)] * (9 - allowed)
            assert judge.tokens == sum(used[:allowed])
        assert len(server.asked) == 3 + 4
        make(server.url, max_tokens=1, concurrency=3)(cases(9))
        assert 7 < len(server.asked) <= 7 + 3


def test_the_cost_is_told_without_a_call(make):
    with JudgeServer() as server:
        judge = make(server.url, api_key="")
        lengths = [len(judge.request(case)) for case in cases(9)]
        before = judge.cost(cases(9) * 2, prompt_price=10, completion_price=30)
        assert (before.calls, before.stored) == (9, 0)
        assert (before.prompt_tokens, before.completion_tokens) == (math.ceil(sum(lengths) / 4), 900)
        assert before.price == pytest.approx((10 * before.prompt_tokens + 30 * 900) / 1e6)
        assert not server.asked
        assert not judge.store.exists()
        judge(cases(4))
        between = judge.cost(cases(9))
        sent = sum(len(case.prompt) // 3 for case in cases(4))
        assert (between.calls, between.stored, between.price) == (5, 4, None)
        assert between.prompt_tokens == math.ceil(sum(lengths[4:]) * sent / sum(lengths[:4]))
        assert between.completion_tokens == 5 * 7
        judge(cases(9))
        assert len(server.asked) == 9
    after = judge.cost(cases(9), prompt_price=10)
    assert (after.calls, after.stored, after.prompt_tokens, after.price) == (0, 9, 0, 0)


# The store


CHILD = """
import sys
from rqa.judge.client import JudgeRequest, Judge
assert "torch" not in sys.modules
judge = Judge(model="m", base_url=sys.argv[1], api_key="", store=sys.argv[2], concurrency=4, retries=0)
print(*(verdict.status for verdict in judge([JudgeRequest(f"Is {i} so?", "Yes.", ("Yes.",)) for i in range(60)])))
"""


def test_a_killed_run_pays_again_for_what_was_under_way(tmp_path):
    store, lost = tmp_path / "judge.jsonl", []
    with JudgeServer(seconds=0.03) as server:
        command = [sys.executable, "-c", CHILD, server.url, str(store)]
        for kill_at in (6, 25, 41):
            child = subprocess.Popen(command, stdout=subprocess.PIPE)
            while len(server.asked) < kill_at and child.poll() is None:
                time.sleep(0.002)
            os.kill(child.pid, signal.SIGKILL)
            assert child.wait() == -signal.SIGKILL
            child.stdout.close()
            time.sleep(0.1)  # what was sent arrives
            lost.append(len(server.asked) - len(read_store(store)[0]) - sum(lost))
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["judged"] * 60
    assert len(server.asked) == 60 + sum(lost)
    assert len(server.calls) == len(read_store(store)[0]) == 60
    assert max(lost) <= 4


def test_an_answer_is_on_the_disk_before_it_counts(make, monkeypatch):
    judge, seen = make("http://127.0.0.1:1"), []

    def fsync(file):
        if judge.store.stat().st_size:
            seen.append((len(read_store(judge.store)[0]), judge.tokens))

    monkeypatch.setattr(os, "fsync", fsync)
    with JudgeServer() as server:
        judge.url = httpx.URL(f"{server.url}/chat/completions")
        verdicts = judge(cases(9))
    tokens = itertools.accumulate(
        (verdict.prompt_tokens + verdict.completion_tokens for verdict in verdicts), initial=0
    )
    assert [lines for lines, _ in seen] == list(range(1, 10))
    assert len({counted for _, counted in seen}) == 9
    assert max(counted for _, counted in seen) < max(tokens) == judge.tokens


@pytest.fixture
def stored(make):
    with JudgeServer() as server:
        judge = make(server.url)
        judge(cases(3))
    return judge.store


def test_a_line_that_was_cut_anywhere_is_dropped(stored):
    data = stored.read_bytes()
    whole = list(read_store(stored)[0].items())
    ends = [i + 1 for i, byte in enumerate(data) if byte == ord("\n")]
    for size in range(0, len(data), 17):
        stored.write_bytes(data[:size])
        with open_store(stored) as store:
            lines = sum(end <= size for end in ends)
            assert list(store.responses.items()) == whole[:lines]
            assert stored.stat().st_size == (0, *ends)[lines]
            store.append("key", "response")
        assert len(read_store(stored)[0]) == lines + 1


def test_any_other_damage_is_refused_with_its_line(stored):
    data = stored.read_bytes()
    for at in range(0, len(data) - 1, 7):
        for bit in (1, 32):
            stored.write_bytes(data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :])
            with pytest.raises(InputError) as caught:
                read_store(stored)
            assert f"{stored}:{data.count(10, 0, at) + 1}: " in str(caught.value)
    stored.write_bytes(data + b"\n" + data)
    with pytest.raises(InputError, match=":4: blank line"):
        read_store(stored)


def test_a_full_disk_leaves_the_store_whole(stored, monkeypatch):
    before, write = stored.read_bytes(), os.write
    with open_store(stored) as store, monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda file, line: write(file, line[:9]))
        with pytest.raises(OSError, match="the disk is full"):
            store.append("key", "response")
    assert stored.read_bytes() == before


def test_one_run_at_a_time(stored, make):
    with open_store(stored), pytest.raises(InputError, match="another run"):
        make("http://127.0.0.1:1")(cases(1))


# The key and the address


def test_the_key_is_in_no_file_log_or_error(make, tmp_path, caplog, capfd):
    for name in ("", "httpx", "httpcore"):  # a recipe that ran here before has quietened some
        caplog.set_level(logging.DEBUG, logger=name)
    told = []
    for fault in [*TRANSIENT, *HOPELESS, "slow", "too long", "filter", "refusal", "prose", ""]:
        if fault == "noise":
            continue  # httpcore's own DEBUG record shows a status line as it came
        with JudgeServer({"*": [fault]}) as server:
            judge = make(server.url, api_key=f"{KEY}\n", timeout=0.5, retries=1, store=tmp_path / f"{fault}.jsonl")
            told += [repr(judge), str(vars(judge)), str(judge.cost(cases(2)))]
            try:
                told += map(repr, judge(cases(2)))
            except InputError as error:
                trace = traceback.TracebackException.from_exception(error, capture_locals=True)
                told += [repr(error), *trace.format()]
        assert all(KEY in head for head in server.headers)
    told += [str(vars(record)) for record in caplog.records] + [caplog.text, *capfd.readouterr()]
    told += [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    assert "[key]" in " ".join(told)  # the server did repeat it
    assert {"httpx", "httpcore.http11", "rqa.judge.client"} <= {record.name for record in caplog.records}
    assert [text for text in told if KEY in text] == []


@pytest.mark.parametrize("key", [f"{KEY} {KEY}", f"{KEY}\n{KEY}", f"{KEY}é", f"{KEY}\x00"])
def test_a_key_that_is_none_is_refused_and_not_shown(make, key):
    with pytest.raises(InputError, match="the key in JUDGE_KEY") as caught:
        make("http://127.0.0.1:1", api_key=key)
    assert KEY not in str(caught.value)


def test_a_word_for_a_key_changes_no_answer(make):
    with JudgeServer() as server:
        assert [verdict.correct for verdict in make(server.url, api_key="correct")(cases(2))] == [False, True]
    assert "Bearer correct" in server.headers[0]


@pytest.mark.parametrize(
    "url",
    [
        "",
        "127.0.0.1:8000/v1",
        "ftp://host/v1",
        f"https://{KEY}@host/v1",
        f"https://host/v1?key={KEY}",
        "http://host:x/v1",
    ],
)
def test_an_address_that_is_none_or_holds_a_key_is_refused_and_not_shown(make, url):
    with pytest.raises(InputError, match="--judge_base_url: expected http") as caught:
        make(url)
    assert KEY not in str(caught.value)


def test_a_proxy_is_for_other_machines(make, monkeypatch, caplog):
    for name in ("no_proxy", "NO_PROXY", "http_proxy", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with JudgeServer() as server, JudgeServer() as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url.removesuffix("/v1"))
        make(server.url)(cases(2))
        assert (len(server.asked), len(proxy.asked)) == (2, 0)
        assert not caplog.records
        make("http://judge.invalid/v1")(cases(4))
        assert (len(server.asked), len(proxy.asked)) == (2, 2)
    assert proxy.headers[0].startswith("POST http://judge.invalid/v1/chat/completions ")
    assert "unencrypted to judge.invalid" in caplog.text


# What a response says


def read(content, request="x" * 41, **choice):
    return read_verdict(completion(content, **choice).decode(), request)


@given(st.booleans(), st.text(), st.text().filter(lambda text: "{" not in text), st.sampled_from([None, 1, "\t"]))
def test_reads_a_verdict_whatever_stands_around_it(correct, explanation, around, indent):
    verdict = json.dumps({"explanation": explanation, "correct": correct}, indent=indent)
    for content in (verdict, f"{around}{verdict}{around}", f"```json\n{verdict}\n```{around}", f"{verdict}, {verdict}"):
        assert read(content) == Verdict("judged", correct, explanation, 0, 7)


@pytest.mark.parametrize(
    ("content", "correct"),
    [
        ('{"correct": true}', True),
        ('{"explanation": "over\ntwo lines", "correct": false}', False),
        ('{"note": 1} {"correct": false} {x}', False),
        ('{"explanation": "not {\\"correct\\": false}", "correct": true}', True),
        ("", None),
        ("correct: true", None),
        ("true", None),
        ('{"correct": "true"}', None),
        ('{"correct": 1}', None),
        ('{"correct": null}', None),
        ('{"Correct": true}', None),
        ('{"correct": true', None),
        ('{"correct": true, "correct": false}', None),
        ('{"correct": true} {"correct": false}', None),
        ('{"verdict": {"correct": true}}', None),
        ('{"verdict": {"correct": true}, }', None),
        ('{"explanation": "...", "correct": true or false} {"correct": true}', None),
        ('{"a":' * 100_000, None),
    ],
)
def test_does_not_guess(content, correct):
    verdict = read(content)
    assert (verdict.status, verdict.correct) == ("malformed" if correct is None else "judged", correct)


def test_half_of_a_surrogate_pair_is_in_no_explanation():
    assert read('{"explanation": "\\ud800", "correct": true}').explanation == "?"


def test_tokens_that_the_server_does_not_count_are_estimated():
    body = json.loads(completion('{"correct": true}'))
    for usage in ({}, {"usage": None}, {"usage": {"prompt_tokens": None}}):
        verdict = read_verdict(json.dumps({"choices": body["choices"]} | usage), "x" * 41)
        assert (verdict.prompt_tokens, verdict.completion_tokens) == (11, 5)


# Scores


@given(st.lists(st.sampled_from([True, False, "malformed", "refused", "failed"]), max_size=7))
def test_the_bounds_are_those_of_all_ways_to_fill_in_the_missing(kinds):
    verdicts = [Verdict("judged", kind) if type(kind) is bool else Verdict(kind) for kind in kinds]
    scores = summary(verdicts)
    missing = [kind for kind in kinds if type(kind) is not bool]
    judged = [kind for kind in kinds if type(kind) is bool]
    filled = [judged + list(ways) for ways in itertools.product([True, False], repeat=len(missing))]
    means = [100 * sum(answers) / len(answers) for answers in filled if answers]
    bounds = {"judge_accuracy_low": min(means), "judge_accuracy_high": max(means)} if means else {}
    counts = {f"judge_{kind}": missing.count(kind) for kind in ("malformed", "refused", "failed")}
    zeros = dict.fromkeys(("judge_calls", "judge_prompt_tokens", "judge_completion_tokens"), 0)
    accuracy = {"judge_accuracy": 100 * sum(judged) / len(judged)} if judged else {}
    assert scores == accuracy | bounds | counts | zeros | {"judge_judged": len(judged)}


def textbook(table):
    """Cohen's kappa of a table of counts, rows a's yes and no, columns b's."""
    n = sum(map(sum, table))
    rows, columns = map(sum, table), map(sum, zip(*table, strict=True))
    observed = Fraction(table[0][0] + table[1][1], n)
    expected = sum(Fraction(row, n) * Fraction(column, n) for row, column in zip(rows, columns, strict=True))
    return None if expected == 1 else (observed - expected) / (1 - expected)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1))
def test_kappa_is_the_textbooks_and_scikit_learns(pairs):
    a, b = ({str(i): pair[side] for i, pair in enumerate(pairs)} for side in (0, 1))
    found = kappa(a | {"only a": True, "x": None}, b | {"only b": False, "x": True})
    expected = textbook([[pairs.count((x, y)) for y in (True, False)] for x in (True, False)])
    assert found.both == len(pairs)
    assert found.per_cent == 100 * sum(x == y for x, y in pairs) / len(pairs)
    if expected is None:
        assert found.kappa is None
    else:
        assert found.kappa == pytest.approx(float(expected))
        assert found.kappa == pytest.approx(cohen_kappa_score(list(a.values()), list(b.values())))


def test_kappa_of_an_example_that_is_often_printed():
    pairs = [(True, True)] * 20 + [(True, False)] * 5 + [(False, True)] * 10 + [(False, False)] * 15
    assert kappa(*(dict(enumerate(side)) for side in zip(*pairs, strict=True))) == Agreement(50, 70.0, 0.4)


def test_kappa_of_nothing_in_common_is_refused():
    with pytest.raises(InputError, match="of 1 and 2 ids none"):
        kappa({"a": True}, {"a": None, "b": True})
