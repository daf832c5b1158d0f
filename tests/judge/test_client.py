"""Tests of the judge with a faulty server: both sides count the calls, and no response is paid for twice."""

import base64
import html
import itertools
import json
import logging
import math
import os
import random
import re
import signal
import string
import subprocess
import sys
import time
import traceback
import urllib.parse
from collections import Counter
from dataclasses import replace
from email.utils import formatdate
from fractions import Fraction

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from judge_server import JudgeServer, completion, escaped
from sklearn.metrics import cohen_kappa_score

from rqa.data.records import Turn
from rqa.endpoint.client import _CallError, _retry_after, _Run
from rqa.endpoint.redaction import without_key
from rqa.endpoint.response_cache import open_response_cache, read_responses
from rqa.errors import InputError
from rqa.judge.client import Judge
from rqa.judge.prompt import JudgeRequest
from rqa.judge.verdicts import Agreement, Verdict, cohens_kappa, read_verdict, summarize

KEY = "sk-sentinel-9f8e7d6c5b4a"
TRANSIENT = [
    "429",
    "429:0",
    "date:0",
    "500",
    "503:0",
    "reset",
    "truncated",
    "html",
    "empty",
    "midway",
    "echo",
    "noise",
    "endless headers",
]
PERMANENT = {
    "401": "JUDGE_KEY",
    "403": "JUDGE_KEY",
    "quota": "quota of the key in JUDGE_KEY",
    "404": "--judge_model",
    "301": "--judge_base_url",
    "unsuitable": "--judge_parameters",
}


def requests(n):
    """Return n requests; every third answer is incorrect."""
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
        options = {"cache_path": tmp_path / "runs" / "judge.jsonl", "key_name": "JUDGE_KEY", "api_key": KEY} | options
        return Judge(model="gpt-4-1106-preview", base_url=url, **options)

    return make


def ends(verdicts):
    return [(verdict.status, verdict.calls) for verdict in verdicts]


# Calls


def test_each_request_gets_one_call_and_one_verdict(make):
    with JudgeServer(seconds=0.02) as server:
        first = make(server.url)(requests(13))
        again = make(server.url)(requests(13))
    assert [verdict.correct for verdict in first] == [request.answer in request.references for request in requests(13)]
    assert [verdict.explanation for verdict in first] == [f"On {request.question}." for request in requests(13)]
    assert ends(first) == [("judged", 1)] * 13
    assert again == [replace(verdict, calls=0) for verdict in first]
    assert server.calls == Counter(request.question for request in requests(13))
    assert server.max_concurrency == 4


def test_request_body_and_headers(make):
    [request] = requests(1)
    with JudgeServer() as server:
        judge = make(server.url + "/", api_key=f"{KEY}\n", parameters={"temperature": 0, "seed": 3})
        judge([request])
    prompt = request.prompt
    assert server.bodies == [
        {"model": "gpt-4-1106-preview", "messages": [{"role": "user", "content": prompt}], "temperature": 0, "seed": 3}
    ]
    assert f"\r\nauthorization: bearer {KEY}\r\n" in server.headers[0].lower()
    assert server.headers[0].startswith("POST /v1/chat/completions HTTP/1.1\r\n")
    sent = json.JSONDecoder().raw_decode(prompt, prompt.index("{\n"))[0]
    assert sent == {
        "passages": list(request.passages),
        "conversation": [],
        "question": request.question,
        "references": list(request.references),
        "answer": request.answer,
    }


def test_deadline_counts_all_runs(make):
    with JudgeServer(seconds=0.3) as server:
        judge = make(server.url, deadline=0.5)
        ends_of_runs = [ends(judge([request])) for request in requests(3)]
    assert [status for [(status, _)] in ends_of_runs] == ["judged", "failed", "failed"]
    assert judge.used_budget == "the deadline of 0.5 s"


def test_repeated_request_gets_one_call(make):
    with JudgeServer() as server:
        verdicts = make(server.url)(requests(3) * 2)
    assert verdicts[3:] == [replace(verdict, calls=0, prompt_tokens=0, completion_tokens=0) for verdict in verdicts[:3]]
    assert len(server.received) == summarize(verdicts)["judge_calls"] == 3
    sent = sum(len(body["messages"][0]["content"]) // 3 for body in server.bodies)
    assert (summarize(verdicts)["judge_prompt_tokens"], summarize(verdicts)["judge_completion_tokens"]) == (sent, 21)


def test_progress_is_logged(make, monkeypatch, caplog):
    monkeypatch.setattr("rqa.terminal.LOG_INTERVAL", 0.01)
    caplog.set_level("INFO", "rqa")
    with JudgeServer(seconds=0.05) as server:
        make(server.url, concurrency=1)(requests(3))
    tokens, done = re.findall(r"judging \(([\d,]+) tokens\): (\d) of 3", caplog.text)[-1]
    assert (int(tokens.replace(",", "")) > 0, int(done)) == (True, 2)


def test_cache_key_depends_on_request_and_prompt_version_not_on_endpoint(make, monkeypatch):
    with JudgeServer() as first, JudgeServer() as second:
        make(first.url)(requests(2))
        make(second.url)(requests(2))
        assert (len(first.received), len(second.received)) == (2, 0)
        make(first.url, parameters={})(requests(2))
        monkeypatch.setattr("rqa.judge.prompt.PROMPT_VERSION", 0)
        make(first.url)(requests(2))
        assert len(first.received) == 6


# Faults


@pytest.mark.parametrize("fault", TRANSIENT)
def test_transient_fault_is_retried(make, fault):
    state = random.getstate()
    with JudgeServer({request.question: [fault] * i for i, request in enumerate(requests(4))}) as server:
        verdicts = make(server.url)(requests(4))
    assert random.getstate() == state  # the judge does not use the global generator
    assert ends(verdicts) == [("judged", 1), ("judged", 2), ("judged", 3), ("failed", 3)]
    assert list(map(server.calls.get, (request.question for request in requests(4)))) == [1, 2, 3, 3]
    assert verdicts[3].correct is None
    assert verdicts[3].explanation.endswith(" (3 calls)")
    assert KEY not in verdicts[3].explanation


@pytest.mark.parametrize("fault", ["slow", "dribble"])
def test_timeout_limits_the_whole_call(make, fault):
    with JudgeServer({requests(2)[1].question: [fault]}) as server:
        verdicts = make(server.url, timeout=1)(requests(2))
    assert ends(verdicts) == [("judged", 1), ("judged", 2)]
    assert len(server.received) == 3


@pytest.mark.parametrize(
    ("fault", "status", "excerpt"),
    [
        ("filter", "refused", "filtered"),
        ("filtered", "refused", "content filter"),
        ("refusal", "refused", "I can't."),
        ("cut", "malformed", "token limit"),
        ("prose", "malformed", "0: It is correct."),
    ],
)
def test_response_without_a_verdict_is_cached(make, fault, status, excerpt):
    with JudgeServer({"*": [fault]}) as server:
        first, again = make(server.url)(requests(1)), make(server.url)(requests(1))
    assert ends(first) == [(status, 1)]
    assert again == [replace(first[0], calls=0)]
    assert excerpt in first[0].explanation
    assert len(server.received) == 1


@pytest.mark.parametrize(
    ("fault", "reason"), [("endless body", "at most 1,048,576 bytes"), ("bomb", "without compression")]
)
def test_body_without_end_is_read_to_a_limit_and_not_paid_again(make, fault, reason):
    with JudgeServer({requests(2)[0].question: [fault] * 9}) as server:
        judge = make(server.url)
        verdicts = judge(requests(2))
        assert ends(verdicts) == [("failed", 1), ("judged", 1)]
        assert verdicts[0].explanation.startswith("HTTP 200: expected a response ")
        assert reason in verdicts[0].explanation
        assert server.sent < 16 * 2**20  # the buffers of two sockets beside 1 MiB
        paid = verdicts[1].prompt_tokens + verdicts[1].completion_tokens
        assert judge.tokens > paid + len(judge.request_body(requests(2)[0])) // 4


def test_negative_token_count_does_not_raise_the_budget(make):
    with JudgeServer({"*": ["negative"]}) as server:
        judge = make(server.url, max_tokens=1500, concurrency=1)
        verdicts = judge(requests(9))
    used = [math.ceil(len(judge.request_body(request)) / 4) + 7 for request in requests(9)]
    allowed = next(n for n, total in enumerate(itertools.accumulate(used), 1) if total >= 1500)
    assert ends(verdicts) == [("judged", 1)] * allowed + [("failed", 0)] * (9 - allowed)
    assert judge.tokens == sum(used[:allowed])


def test_retries_are_counted_and_logged_once_for_each_kind(make, caplog, monkeypatch):
    monkeypatch.setattr("rqa.terminal.LOG_INTERVAL", 0.01)
    caplog.set_level("INFO", "rqa")
    faults = {request.question: ["429", "429", "500"] for request in requests(6)}
    with JudgeServer(faults, seconds=0.02) as server:
        make(server.url, retries=3)(requests(6))
    lines = [record.getMessage() for record in caplog.records if record.name == "rqa.endpoint.client"]
    assert [line.partition(": ")[2][:9] for line in lines] == ["HTTP 429:", "HTTP 500:", "failed ca"]
    assert lines[2] == "judge: failed calls: HTTP 429 (12), HTTP 500 (6)"
    assert re.search(r"judging \([\d,]+ tokens, 1\d failed calls\): ", caplog.text)


def test_control_characters_of_the_server_reach_no_message(make, caplog):
    caplog.set_level("INFO", "rqa")
    with JudgeServer({"*": ["terminal"]}) as server:
        [verdict] = make(server.url)(requests(1))
    assert "too long" in verdict.explanation
    for text in (verdict.explanation, caplog.text.replace("\n", "")):
        assert not re.search(r"[\x00-\x1f\x7f-\x9f]", text)


def test_request_error_is_not_retried(make):
    with JudgeServer({requests(2)[0].question: ["too long"]}) as server:
        verdicts = make(server.url)(requests(2))
    assert ends(verdicts) == [("failed", 1), ("judged", 1)]
    assert verdicts[0].explanation.startswith("HTTP 400: ")
    assert len(server.received) == 2


@pytest.mark.parametrize("fault", PERMANENT)
def test_permanent_error_stops_the_run(make, fault):
    with JudgeServer({requests(5)[3].question: [fault]}) as server:
        with pytest.raises(InputError) as caught:
            make(server.url, concurrency=1)(requests(5))
        assert len(server.received) == 4
        assert PERMANENT[fault] in str(caught.value)
        assert ends(make(server.url)(requests(5))) == [("judged", 0)] * 3 + [("judged", 1)] * 2


def test_missing_server_stops_the_run(make):
    with JudgeServer() as server:
        pass
    judge = make(server.url)
    with pytest.raises(InputError, match="--judge_base_url"):
        judge(requests(5))
    assert 3 <= judge.calls <= 12


# Waiting


@given(st.integers(0, 10**6), st.integers(0, 2**31))
def test_retry_after_in_seconds_equals_retry_after_as_date(seconds, now):
    until = {"Retry-After": formatdate(now + seconds, usegmt=True), "Date": formatdate(now, usegmt=True)}
    assert _retry_after(httpx.Headers({"Retry-After": str(seconds)})) == seconds
    assert _retry_after(httpx.Headers(until)) == seconds
    until["Date"], until["Retry-After"] = until["Retry-After"], until["Date"]
    assert _retry_after(httpx.Headers(until)) == 0


@pytest.mark.parametrize("value", ["", "soon", "-1", "inf", "nan", "Tue, 99 Foo 2020 25:61:61 GMT", "1e400"])
def test_invalid_retry_after_is_zero(value):
    assert _retry_after(httpx.Headers({"Retry-After": value})) == 0


@pytest.mark.parametrize("fault", ["429:1", "date:1"])
def test_all_calls_wait_for_retry_after(make, fault):
    with JudgeServer({requests(6)[0].question: [fault]}, seconds=0.05) as server:
        assert Counter(ends(make(server.url, concurrency=2)(requests(6)))) == {("judged", 1): 5, ("judged", 2): 1}
    times = sorted(time for _, time in server.received)
    assert len(times) == 7
    assert sum(time < times[0] + 1 for time in times) <= 3  # two at once, and one before the fault arrived


@pytest.mark.parametrize("fault", ["429:3600", "date:3600"])
def test_retry_after_beyond_the_deadline_fails_at_once(make, fault):
    with JudgeServer({"*": [fault]}) as server:
        verdicts = make(server.url, deadline=600, concurrency=2)(requests(6))
    assert {verdict.status for verdict in verdicts} == {"failed"}
    assert all(verdict.explanation.startswith("the deadline of 600 s") for verdict in verdicts)
    assert 1 <= len(server.received) == sum(verdict.calls for verdict in verdicts) <= 2


def test_deadline_ends_running_and_pending_calls(make):
    with JudgeServer({request.question: ["slow"] * 9 for request in requests(9)[1:]}) as server:
        verdicts = make(server.url, deadline=1.5, concurrency=3)(requests(9))
    assert ends(verdicts) == [("judged", 1)] + [("failed", 1)] * 3 + [("failed", 0)] * 5
    assert [verdict.explanation for verdict in verdicts[4:]] == ["the deadline of 1.5 s"] * 5
    for verdict in verdicts[1:4]:
        [seconds] = re.findall(r"deadline of 1.5 s.*no response within (\S+) s", verdict.explanation)
        assert float(seconds) < 10  # the timeout of a call is 20 s
    assert len(server.received) == 4


# Budgets


@pytest.mark.parametrize("concurrency", [1, 4])
def test_max_calls_counts_each_attempt(make, concurrency):
    with JudgeServer({request.question: ["500"] for request in requests(9)[::2]}) as server:
        judge = make(server.url, max_calls=8, concurrency=concurrency)
        verdicts = judge(requests(9))
        assert len(server.received) == judge.calls == sum(verdict.calls for verdict in verdicts) == 8
        left = [verdict for verdict in verdicts if verdict.status == "failed"]
        assert left
        assert all("the budget of 8 calls is used up" in verdict.explanation for verdict in left)
        judge(requests(9))
        assert len(server.received) == 8  # the budget is that of all runs
        assert {status for status, _ in ends(make(server.url)(requests(9)))} == {"judged"}
        assert len(server.received) == 9 + 5


def test_max_tokens_stops_new_calls(make, tmp_path):
    used = [len(request.prompt) // 3 + 7 for request in requests(9)]
    with JudgeServer() as server:
        for budget in (sum(used[:3]), sum(used[:3]) + 1):
            judge = make(server.url, max_tokens=budget, concurrency=1, cache_path=tmp_path / f"{budget}.jsonl")
            allowed = next(n for n, total in enumerate(itertools.accumulate(used), 1) if total >= budget)
            assert ends(judge(requests(9))) == [("judged", 1)] * allowed + [("failed", 0)] * (9 - allowed)
            assert judge.tokens == sum(used[:allowed])
        assert len(server.received) == 3 + 4
        make(server.url, max_tokens=1, concurrency=3)(requests(9))
        assert 7 < len(server.received) <= 7 + 3


def test_cost_is_estimated_without_a_call(make):
    with JudgeServer() as server:
        judge = make(server.url, api_key="")
        lengths = [len(judge.request_body(request)) for request in requests(9)]
        before = judge.estimate_cost(requests(9) * 2, prompt_price=10, completion_price=30)
        assert (before.calls, before.cached) == (9, 0)
        assert (before.prompt_tokens, before.completion_tokens) == (math.ceil(sum(lengths) / 4), 900)
        assert before.price == pytest.approx((10 * before.prompt_tokens + 30 * 900) / 1e6)
        assert not server.received
        assert not judge.cache_path.exists()
        judge(requests(4))
        between = judge.estimate_cost(requests(9))
        sent = sum(len(request.prompt) // 3 for request in requests(4))
        assert (between.calls, between.cached, between.price) == (5, 4, None)
        assert between.prompt_tokens == math.ceil(sum(lengths[4:]) * sent / sum(lengths[:4]))
        assert between.completion_tokens == 5 * 7
        judge(requests(9))
        assert len(server.received) == 9
    after = judge.estimate_cost(requests(9), prompt_price=10)
    assert (after.calls, after.cached, after.prompt_tokens, after.price) == (0, 9, 0, 0)


# The cache


CHILD = """
import sys
from rqa.judge import JudgeRequest, Judge
assert "torch" not in sys.modules
judge = Judge(model="m", base_url=sys.argv[1], api_key="", cache_path=sys.argv[2], concurrency=4, retries=0)
print(*(verdict.status for verdict in judge([JudgeRequest(f"Is {i} so?", "Yes.", ("Yes.",)) for i in range(60)])))
"""


def test_killed_run_repeats_only_calls_in_flight(tmp_path):
    path, lost = tmp_path / "judge.jsonl", []
    with JudgeServer(seconds=0.03) as server:
        command = [sys.executable, "-c", CHILD, server.url, str(path)]
        for kill_at in (6, 25, 41):
            child = subprocess.Popen(command, stdout=subprocess.PIPE)
            while len(server.received) < kill_at and child.poll() is None:
                time.sleep(0.002)
            os.kill(child.pid, signal.SIGKILL)
            assert child.wait() == -signal.SIGKILL
            child.stdout.close()
            time.sleep(0.1)  # requests in flight arrive
            lost.append(len(server.received) - len(read_responses(path)[0]) - sum(lost))
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["judged"] * 60
    assert len(server.received) == 60 + sum(lost)
    assert len(server.calls) == len(read_responses(path)[0]) == 60
    assert max(lost) <= 4


def test_response_is_on_disk_before_it_counts(make, monkeypatch):
    judge, seen = make("http://127.0.0.1:1"), []

    def fsync(file):
        if judge.cache_path.stat().st_size:
            seen.append((len(read_responses(judge.cache_path)[0]), judge.tokens))

    monkeypatch.setattr(os, "fsync", fsync)
    with JudgeServer() as server:
        judge.root = httpx.URL(server.url)
        verdicts = judge(requests(9))
    tokens = itertools.accumulate(
        (verdict.prompt_tokens + verdict.completion_tokens for verdict in verdicts), initial=0
    )
    assert [lines for lines, _ in seen] == list(range(1, 10))
    assert len({counted for _, counted in seen}) == 9
    assert max(counted for _, counted in seen) < max(tokens) == judge.tokens


@pytest.fixture
def cache_path(make):
    with JudgeServer() as server:
        judge = make(server.url)
        judge(requests(3))
    return judge.cache_path


def test_incomplete_last_line_is_removed(cache_path):
    data = cache_path.read_bytes()
    items = list(read_responses(cache_path)[0].items())
    ends = [i + 1 for i, byte in enumerate(data) if byte == ord("\n")]
    for size in range(0, len(data), 17):
        cache_path.write_bytes(data[:size])
        with open_response_cache(cache_path) as cache:
            lines = sum(end <= size for end in ends)
            assert list(cache.responses.items()) == items[:lines]
            assert cache_path.stat().st_size == (0, *ends)[lines]
            cache.append("key", "response")
        assert len(read_responses(cache_path)[0]) == lines + 1


def test_other_damage_raises_with_its_line(cache_path):
    data = cache_path.read_bytes()
    for at in range(0, len(data) - 1, 7):
        for bit in (1, 32):
            cache_path.write_bytes(data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :])
            with pytest.raises(InputError) as caught:
                read_responses(cache_path)
            assert f"{cache_path}:{data.count(10, 0, at) + 1}: " in str(caught.value)
    cache_path.write_bytes(data + b"\n" + data)
    with pytest.raises(InputError, match=":4: blank line"):
        read_responses(cache_path)


def test_full_disk_leaves_the_cache_unchanged(cache_path, monkeypatch):
    before, write = cache_path.read_bytes(), os.write
    with open_response_cache(cache_path) as cache, monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda file, line: write(file, line[:9]))
        with pytest.raises(OSError, match="the disk is full"):
            cache.append("key", "response")
    assert cache_path.read_bytes() == before


def test_second_run_with_the_same_cache_is_refused(cache_path, make):
    with open_response_cache(cache_path), pytest.raises(InputError, match=str(cache_path)):
        make("http://127.0.0.1:1")(requests(1))


# The key and the address


def test_key_is_in_no_file_log_or_error(make, tmp_path, caplog, capfd):
    for name in ("", "httpx", "httpcore"):  # an earlier recipe may have set higher levels
        caplog.set_level(logging.DEBUG, logger=name)
    texts = []
    others = ["slow", "too long", "filter", "refusal", "prose", "", "escaped", "escaped text", "escaped verdict"]
    for fault in [*TRANSIENT, *PERMANENT, *others]:
        if fault == "noise":
            continue  # httpcore's own DEBUG record shows a status line as it came
        with JudgeServer({"*": [fault]}) as server:
            judge = make(server.url, api_key=f"{KEY}\n", timeout=0.5, retries=1, cache_path=tmp_path / f"{fault}.jsonl")
            texts += [repr(judge), str(vars(judge)), str(judge.estimate_cost(requests(2)))]
            try:
                texts += map(repr, judge(requests(2)))
            except InputError as error:
                trace = traceback.TracebackException.from_exception(error, capture_locals=True)
                texts += [repr(error), *trace.format()]
        assert all(KEY in head for head in server.headers)
    texts += [str(vars(record)) for record in caplog.records] + [caplog.text, *capfd.readouterr()]
    texts += [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    assert "[key]" in " ".join(texts)  # the server repeated it
    assert {"httpx", "httpcore.http11", "rqa.endpoint.client"} <= {record.name for record in caplog.records}
    forms = [KEY, json.dumps(KEY)[1:-1], *escaped(KEY).values()]
    forms += [json.dumps(form)[1:-1] for form in forms]  # in the file of responses
    assert [text for text in texts if any(form in text for form in forms)] == []


KEYS = st.text(string.ascii_letters + string.digits + "-_.~+/=:@$", min_size=12, max_size=99)
ESCAPES = {  # (escape, its inverse)
    "JSON": (lambda text: json.dumps(text)[1:-1], lambda text: json.loads(f'"{text}"')),
    "JSON, all": (lambda text: "".join(f"\\u{ord(c):04x}" for c in text), lambda text: json.loads(f'"{text}"')),
    "HTML": (html.escape, html.unescape),
    "HTML, all": (lambda text: "".join(f"&#{ord(c)};" for c in text), html.unescape),
    "URL": (lambda text: urllib.parse.quote(text, safe=""), urllib.parse.unquote),
}


@given(KEYS, st.lists(st.sampled_from([*ESCAPES]), max_size=3))
def test_key_is_replaced_in_every_nesting_of_escapes(key, names):
    text = f"é {key}. "
    for name in names:
        text = ESCAPES[name][0](text)
    redacted = without_key(text, key)
    for name in reversed(names):
        redacted = ESCAPES[name][1](redacted)
    assert redacted == "é [key]. "


@given(KEYS, st.binary(max_size=9))
def test_key_is_replaced_in_base64_at_every_offset(key, before):
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        redacted = without_key(encode(before + key.encode() + b" end").decode(), key)
        assert "[key]" in redacted
        assert len(redacted) < len(before) * 4 / 3 + 20


@pytest.mark.parametrize("name", escaped(KEY))
def test_key_is_replaced_in_place(name):
    form = escaped(KEY)[name]
    redacted = without_key(f"é\n{form} \u200b", KEY)
    prefix, _, suffix = redacted.partition("[key]")
    assert redacted == f"{prefix}[key]{suffix}"
    assert prefix.startswith("é\n")
    assert suffix.endswith(" \u200b")
    assert KEY[:12] not in redacted
    assert len(redacted) < 24


def test_text_without_the_key_is_unchanged():
    texts = ["", "sk-sentinel…", "sk-sentinel", json.dumps({"a": "\u200b%41&amp;\\u0041"}), "\\", "%", "&#", KEY[1:]]
    assert [without_key(text, KEY) for text in texts] == texts


@pytest.mark.parametrize("key", [f"{KEY} {KEY}", f"{KEY}\n{KEY}", f"{KEY}é", f"{KEY}\x00"])
def test_invalid_key_is_refused_and_not_shown(make, key):
    with pytest.raises(InputError, match="JUDGE_KEY") as caught:
        make("http://127.0.0.1:1", api_key=key)
    assert KEY not in str(caught.value)


def test_placeholder_key_is_not_replaced_in_responses(make):
    with JudgeServer() as server:
        assert [verdict.correct for verdict in make(server.url, api_key="correct")(requests(2))] == [False, True]
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
def test_invalid_address_or_key_in_address_is_refused_and_not_shown(make, url):
    with pytest.raises(InputError, match="--judge_base_url: expected http") as caught:
        make(url)
    assert KEY not in str(caught.value)


def test_proxy_is_used_for_other_machines_only(make, monkeypatch, caplog):
    for name in ("no_proxy", "NO_PROXY", "http_proxy", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with JudgeServer() as server, JudgeServer() as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url.removesuffix("/v1"))
        make(server.url)(requests(2))
        assert (len(server.received), len(proxy.received)) == (2, 0)
        assert not caplog.records
        make("http://judge.invalid/v1")(requests(4))
        assert (len(server.received), len(proxy.received)) == (2, 2)
    assert proxy.headers[0].startswith("POST http://judge.invalid/v1/chat/completions ")
    assert "unencrypted to judge.invalid" in caplog.text


# Parsing of responses


def read(content, request="x" * 41, **choice):
    return read_verdict(completion(content, **choice).decode(), request)


@given(st.booleans(), st.text(), st.text().filter(lambda text: "{" not in text), st.sampled_from([None, 1, "\t"]))
def test_verdict_is_read_from_surrounding_text(correct, explanation, around, indent):
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
        # Quotations of another verdict
        ('The answer has {"correct": false}.\n{"correct": true}', True),
        ('An answer `{"correct": false}` is no verdict. My decision:\n\n```json\n{"correct": true}\n```', True),
        ('It quotes {"correct": false}.\n**My decision:** {"correct": true}', True),
        ('{"explanation": "It quotes {\\"correct\\": false}.", "correct": true}', True),
        ('{"correct": "true or false"} is the form.\n{"correct": false}', False),
        ('{"correct": true}\nNot {"correct": false}.', None),
        ('{"correct": true}\nThis is wrong: {"correct": false}', None),
        ('Example:\n{"correct": false}\nDecision:\n{"correct": true}', None),
        ('It quotes {"correct": true}, but {"correct": false}', None),
        ("It quotes {\"correct\": true}.\n{'correct': false}", None),
        ('It quotes {"correct": true}.\n{correct: false}', None),
        ('It quotes {"correct": true}.\n{"correct": false', None),
        ('It quotes {"correct": true}.\n{"correct": "false"}', None),
        # Drafts
        ('<think>{"correct": false}</think>{"correct": true}', True),
        ('Perhaps {"correct": false}.</think>\n{"correct": true}', True),
        ('<think>\n{"correct": false}\n</think>\n\nI wrote {"correct": false}.\n{"correct": true}', True),
        ('<Thinking>{"correct": fal</Thinking>{"correct": true}', True),
        ('[THINK]{"correct": false}[/THINK]{"correct": true}', True),
        ('<|channel|>analysis<|message|>{"correct": false}<|end|><|channel|>final<|message|>{"correct": true}', True),
        ('<think>{"correct": false}', None),
        ('<think>{"correct": false}</think>', None),
        ('<think>{"correct": false}</think>I cannot decide.', None),
        ('<|channel|>analysis<|message|>{"correct": false}', None),
        ('{"explanation": "It begins with <think> and has </think> {x}.", "correct": true}', True),
        ('<think>Or.</think>{"explanation": "It has </think>.", "correct": true}', True),
    ],
)
def test_ambiguous_content_has_no_verdict(content, correct):
    verdict = read(content)
    assert (verdict.status, verdict.correct) == ("malformed" if correct is None else "judged", correct)


def test_lone_surrogate_in_explanation_is_replaced():
    assert read('{"explanation": "\\ud800", "correct": true}').explanation == "?"


def test_reasoning_of_the_server_is_not_read():
    for message in (
        {"reasoning_content": '{"correct": false}', "content": '{"correct": true}'},
        {"content": [{"type": "thinking", "text": "No."}, {"type": "text", "text": '{"correct": true}'}]},
    ):
        assert read_verdict(completion("", message=message).decode(), "").correct is True
    only_draft = {"reasoning_content": '{"correct": false}', "content": None}
    verdict = read_verdict(completion("", message=only_draft, usage={"x": 1}).decode(), "")
    assert (verdict.status, verdict.completion_tokens) == ("malformed", 5)


@pytest.mark.parametrize("count", [-1, -(10**6), 10**9, 10**400, 12.0, True, "12", None, [12]])
def test_impossible_token_counts_are_estimated(count):
    usage = {"prompt_tokens": count, "completion_tokens": count}
    verdict = read_verdict(completion('{"correct": true}', usage=usage).decode(), "x" * 41)
    assert (verdict.prompt_tokens, verdict.completion_tokens) == (11, 5)


def test_missing_token_counts_are_estimated():
    body = json.loads(completion('{"correct": true}'))
    for usage in ({}, {"usage": None}, {"usage": []}, {"usage": {"prompt_tokens": None}}):
        verdict = read_verdict(json.dumps({"choices": body["choices"]} | usage), "x" * 41)
        assert (verdict.prompt_tokens, verdict.completion_tokens) == (11, 5)


# Parts of responses that mutations insert
PARTS = [*map(bytes, zip(b'{}[]"\\,:-\x00\xff\n')), b"null", b"true", b"1e999", b"9" * 5000, b"[" * 600, b"\\ud800"]
PARTS += [b"<think>", b"</think>", b'{"correct": false}', b'"error": {"code": {}},', b'"content": [1],']


def mutated(body, numbers):
    """Return a body with some parts deleted, repeated or inserted."""
    for _ in range(numbers.randint(1, 4)):
        start, end = sorted(numbers.choices(range(len(body) + 1), k=2))
        middle = numbers.choice([b"", body[start:end] * 2, numbers.choice(PARTS), bytes([numbers.randrange(256)])])
        body = body[:start] + middle + body[end if numbers.random() < 0.3 else start :]
    return body


@pytest.mark.parametrize("count", [2000, pytest.param(50_000, marks=pytest.mark.slow)])
def test_mutated_responses_end_in_a_verdict_or_an_input_error(make, count):
    numbers, outcomes = random.Random(0), Counter()
    run = _Run.__new__(_Run)  # without a loop
    run.endpoint = make("http://127.0.0.1:1")
    bodies = [completion(json.dumps({"explanation": "So.", "correct": True}), "x" * 99)]
    bodies += [
        completion('Not {"correct": false}.\n{"correct": true}', "x"),
        completion("", message={"refusal": "No."}),
    ]
    bodies += [json.dumps({"error": {"message": "no", "code": code}}).encode() for code in ("content_filter", "x")]
    for _ in range(count):
        status = numbers.choice([200, 200, 200, 400, 429, 500])
        response = httpx.Response(status, headers={"Retry-After": mutated(b"120", numbers).hex()})
        text = run.without_key(mutated(numbers.choice(bodies), numbers).decode(errors="replace"))
        try:
            verdict = read_verdict(run.checked(response, text), "x")
            outcomes[verdict.status] += 1
            assert (verdict.status == "judged") == (type(verdict.correct) is bool)
            assert verdict.prompt_tokens >= 0
            assert verdict.completion_tokens >= 0
            verdict.explanation.encode()
        except (_CallError, InputError) as error:
            outcomes[type(error).__name__] += 1
            str(error).encode()
    assert {"judged", "malformed", "refused", "_CallError"} <= {*outcomes}


# Scores


@given(st.lists(st.sampled_from([True, False, "malformed", "refused", "failed"]), max_size=7))
def test_bounds_cover_all_values_of_missing_verdicts(kinds):
    verdicts = [Verdict("judged", kind) if type(kind) is bool else Verdict(kind) for kind in kinds]
    scores = summarize(verdicts)
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
    """Return Cohen's kappa of a table of counts: rows are a's yes and no, columns b's."""
    n = sum(map(sum, table))
    rows, columns = map(sum, table), map(sum, zip(*table, strict=True))
    observed = Fraction(table[0][0] + table[1][1], n)
    expected = sum(Fraction(row, n) * Fraction(column, n) for row, column in zip(rows, columns, strict=True))
    return None if expected == 1 else (observed - expected) / (1 - expected)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1))
def test_kappa_equals_formula_and_scikit_learn(pairs):
    a, b = ({str(i): pair[side] for i, pair in enumerate(pairs)} for side in (0, 1))
    agreement = cohens_kappa(a | {"only a": True, "x": None}, b | {"only b": False, "x": True})
    expected = textbook([[pairs.count((x, y)) for y in (True, False)] for x in (True, False)])
    assert agreement.both == len(pairs)
    assert agreement.per_cent == 100 * sum(x == y for x, y in pairs) / len(pairs)
    if expected is None:
        assert agreement.kappa is None
    else:
        assert agreement.kappa == pytest.approx(float(expected))
        assert agreement.kappa == pytest.approx(cohen_kappa_score(list(a.values()), list(b.values())))


def test_kappa_of_a_published_example():
    pairs = [(True, True)] * 20 + [(True, False)] * 5 + [(False, True)] * 10 + [(False, False)] * 15
    assert cohens_kappa(*(dict(enumerate(side)) for side in zip(*pairs, strict=True))) == Agreement(50, 70.0, 0.4)


def test_kappa_without_common_ids_is_refused():
    with pytest.raises(InputError, match="1 and 2 ids"):
        cohens_kappa({"a": True}, {"a": None, "b": True})
