"""The server over HTTP, with the openai client: answers, errors, limits, clients that leave, feedback."""

import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from errno import ENOSPC
from urllib.parse import urlsplit

import httpx
import pytest
from scripted_server import ANSWER, PASSAGES, TOKEN, running
from world import read_jsonl

from rqa.conversion import convert
from rqa.data import Example, Turn, load_examples
from rqa.data.citations import citation_problems
from rqa.errors import InputError
from rqa.evaluation import PredictionRecord
from rqa.judge import read_labels
from rqa.serving import Access, Feedback

openai = pytest.importorskip("openai")
PATH = "/v1/chat/completions"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    with running(folder, max_queue=3, batch_size=2, answer_timeout=6) as (url, chat):
        yield url, chat, folder


@pytest.fixture
def client(served):
    with client_of(served[0]) as client:
        yield client


def client_of(url, key="none"):
    return openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=20)


def ask(client, text, **options):
    messages = [{"role": "user", "content": text}]
    return client.chat.completions.create(model="lamps", messages=messages, **options)


def wait_until(condition):
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def health(served):
    return httpx.get(f"{served[0]}/health").json()


def test_an_answer_has_its_passages_whole_and_streamed(client):
    whole = ask(client, "Oslo?")
    expected = f"Oslo?: {ANSWER}"
    assert whole.choices[0].message.content == expected
    assert whole.choices[0].finish_reason == "stop"
    assert whole.usage.prompt_tokens == 6
    passages = whole.rqa["passages"]
    assert [(each["number"], each["text"]) for each in passages] == [(i, p.text) for i, p in enumerate(PASSAGES, 1)]
    assert [each["number"] for each in passages if each["is_cited"]] == [2]
    *chunks, end = ask(client, "Oslo?", stream=True, stream_options={"include_usage": True})
    assert len(chunks) > 5
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected
    assert (chunks[-1].choices[0].finish_reason, chunks[-1].rqa) == ("stop", whole.rqa)
    assert end.usage == whole.usage
    assert [model.id for model in client.models.list()] == ["lamps"]


def test_questions_that_wait_are_one_batch(served, client):
    _, chat, _ = served
    chat.gate.clear()
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(ask, client, "gate 1")
        wait_until(lambda: health(served)["running"] == 1)
        others = [pool.submit(ask, client, f"together {i}") for i in range(2)]
        wait_until(lambda: health(served)["waiting"] == 2)
        chat.gate.set()
        assert [each.result().choices[0].message.content for each in (first, *others)] == [
            f"{question}: {ANSWER}" for question in ("gate 1", "together 0", "together 1")
        ]
    assert sorted(chat.batches[-1]) == ["together 0", "together 1"]


GOOD = {"role": "user", "content": "?"}


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"{", 400, "JSON"),
        (b"[]", 400, "JSON"),
        (b"[" * 200_000, 400, "JSON"),
        ({}, 400, "messages"),
        ({"messages": [GOOD] * 101}, 400, "100"),
        ({"messages": ["?"]}, 400, "messages[0]"),
        ({"messages": [{"role": "tool", "content": "?"}]}, 400, "'tool'"),
        ({"messages": [{"role": "system", "content": "?"}, GOOD]}, 400, "--instruction"),
        ({"messages": [{"role": "user", "content": 3}]}, 400, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "messages[0].content"),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', 400, "surrogate"),
        ({"messages": [{"role": "assistant", "content": "?"}]}, 400, "user"),
        ({"messages": [{"role": "user", "content": " "}]}, 400, "user"),
        ({"messages": [GOOD], "n": 2}, 400, "n: "),
        ({"messages": [GOOD], "stream": "yes"}, 400, "stream"),
        ({"messages": [GOOD], "stream": True, "stream_options": 1}, 400, "stream_options"),
        ({"messages": [GOOD], "max_tokens": 0}, 400, "max_tokens"),
        ({"messages": [GOOD], "model": "gpt-4"}, 404, "lamps"),
        ({"messages": [{"role": "user", "content": "a long one"}]}, 400, "99 tokens"),
        ({"messages": [{"role": "user", "content": "a long one"}], "stream": True}, 400, "99 tokens"),
        ({"messages": [{"role": "user", "content": "x" * 300_000}]}, 413, "bytes"),
    ],
)
def test_a_bad_request_is_an_error_in_the_form_of_openai(served, body, status, words):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    response = httpx.post(served[0] + PATH, content=content)
    assert response.status_code == status
    error = response.json()["error"]
    assert words in error["message"]
    assert error.keys() == {"message", "type", "param", "code"}


def test_other_paths_and_methods_are_errors_of_the_same_form(served):
    for response, status in ((httpx.get(f"{served[0]}/x"), 404), (httpx.get(served[0] + PATH), 405)):
        assert response.status_code == status
        assert response.json()["error"]["message"]


def test_another_site_is_refused(served):
    """DNS rebinding: the site's own name leads to this server."""
    for headers in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}, {"Origin": "null"}):
        response = httpx.post(served[0] + PATH, json={"messages": [GOOD]}, headers=headers)
        assert response.status_code == 403
    assert httpx.post(served[0] + PATH, json={"messages": [GOOD]}, headers={"Origin": served[0]}).status_code == 200


def test_a_token_is_required_if_there_is_one(tmp_path, caplog):
    caplog.set_level("DEBUG")
    with running(tmp_path, token=TOKEN) as (url, _):
        assert ask(client_of(url, TOKEN), "?").choices
        for key in ("none", TOKEN[:-1], TOKEN + "x", "é" * 23):
            headers = {"Authorization": f"Bearer {key}".encode()}
            for path in ("/v1/models", PATH, "/feedback"):
                method = "GET" if path == "/v1/models" else "POST"
                assert httpx.request(method, url + path, headers=headers).status_code == 401
        with pytest.raises(openai.AuthenticationError):
            ask(client_of(url, "none"), "?")
        assert httpx.get(url).status_code == httpx.get(url, headers={"Host": "name.example"}).status_code == 200
    server_log = [record.getMessage() for record in caplog.records if record.name.startswith(("rqa", "uvicorn"))]
    assert TOKEN not in f"{server_log}{Access('0.0.0.0', TOKEN)}"


def test_an_address_of_the_network_requires_a_token():
    for host, token in (("0.0.0.0", ""), ("::", ""), ("10.0.0.1", ""), ("0.0.0.0", "short")):
        with pytest.raises(InputError, match="token"):
            Access(host, token)
    for host in ("127.0.0.1", "::1", "localhost"):
        assert Access(host).token == ""


def test_a_full_queue_is_status_503(served, client):
    _, chat, _ = served
    chat.gate.clear()
    with ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(ask, client, "gate")]
        wait_until(lambda: health(served)["running"] == 1)
        answers += [pool.submit(ask, client, f"waits {i}") for i in range(3)]
        wait_until(lambda: health(served)["waiting"] == 3)
        with pytest.raises(openai.InternalServerError) as refused:
            ask(client, "one too many")
        assert refused.value.status_code == 503
        assert int(refused.value.response.headers["Retry-After"]) > 0
        chat.gate.set()
        assert all(answer.result().choices for answer in answers)


def test_after_the_deadline_an_answer_is_an_error(tmp_path):
    with running(tmp_path, answer_timeout=0.3) as (url, chat):
        client = client_of(url)
        with pytest.raises(openai.InternalServerError) as refused:
            ask(client, "slow")
        assert refused.value.status_code == 504
        wait_until(lambda: not httpx.get(f"{url}/health").json()["running"])
        assert chat.num_words["slow"] < len(ANSWER.split())
        with pytest.raises(openai.APIError, match="answer_timeout"):
            list(ask(client, "slow and streamed", stream=True))


@pytest.mark.parametrize("is_streamed", [True, False])
def test_a_client_that_leaves_ends_its_answer_and_the_next_is_served(served, is_streamed):
    url, chat, _ = served
    question = f"slow, streamed {is_streamed}"
    body = json.dumps({"messages": [{"role": "user", "content": question}], "stream": is_streamed})
    address = urlsplit(url)
    with socket.create_connection((address.hostname, address.port)) as connection:
        head = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall((head + body).encode())
        wait_until(lambda: chat.num_words.get(question, 0) >= 2)
    assert ask(client_of(url), "next").choices
    wait_until(lambda: not health(served)["running"])
    assert chat.num_words[question] < len(f"{question}: {ANSWER}".split()) - 2


def test_a_client_that_leaves_the_queue_is_not_answered(served, client):
    url, chat, _ = served
    chat.gate.clear()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(ask, client, "gate")
        wait_until(lambda: health(served)["running"] == 1)
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(url + PATH, json={"messages": [{"role": "user", "content": "impatient"}]}, timeout=0.3)
        chat.gate.set()
        assert first.result().choices
    assert ask(client, "next").choices
    assert "impatient" not in chat.num_words


def test_a_failed_batch_is_status_500_and_the_next_is_served(client):
    with pytest.raises(openai.InternalServerError) as failed:
        ask(client, "fail")
    assert failed.value.status_code == 500
    assert "memory" not in failed.value.message
    assert ask(client, "next").choices


# Feedback


def rate(url, **values):
    return httpx.post(f"{url}/feedback", json=values)


def test_feedback_is_a_row_that_describes_the_answer(served, client):
    url, _, folder = served
    history = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Ask."}]
    first = client.chat.completions.create(model="lamps", messages=[*history, GOOD])
    [*_, second] = ask(client, "Oslo?", stream=True)
    assert rate(url, id=first.id, correct=False, comment="No.\nIt is 1902.").status_code == 200
    assert rate(url, id=second.id, correct=True).status_code == 200
    one, two = read_jsonl(folder / "feedback.jsonl")[-2:]
    assert {name: one[name] for name in ("id", "question", "answer", "correct", "comment")} == {
        "id": first.id,
        "question": "?",
        "answer": f"?: {ANSWER}",
        "correct": False,
        "comment": "No.\nIt is 1902.",
    }
    assert one["chat_history"] == [{"speaker": each["role"], "message": each["content"]} for each in history]
    assert one["passages"] == first.rqa["passages"]
    assert two["id"] == second.id
    assert rate(url, id=first.id, correct=True).status_code == 404  # once


HISTORY = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Ask."}]


@pytest.fixture(scope="module")
def rated(tmp_path_factory):
    """The path of a real server's feedback: two answers are correct, one of them after a history; two are wrong."""
    folder = tmp_path_factory.mktemp("rated")
    with running(folder) as (url, _), client_of(url) as client:
        for question, history, verdict in (
            ("Oslo?", HISTORY, True),
            ("Oslo?", [], False),
            ("Rome?", [], True),
            ("Bern?", [], False),
        ):
            messages = [*history, {"role": "user", "content": question}]
            answer = client.chat.completions.create(model="lamps", messages=messages)
            assert rate(url, id=answer.id, correct=verdict, comment="Because.").status_code == 200
    return folder / "feedback.jsonl"


def answered(*rows):
    """Return predictions of (question, answer) with the ids test:1, test:2, ..."""
    return [
        PredictionRecord(id=f"test:{i}", question=question, passages=(), answer=answer, chat_history=history)
        for i, (question, answer, history) in enumerate(rows, 1)
    ]


TURNS = tuple(Turn(turn["role"], turn["content"]) for turn in HISTORY)


def test_feedback_becomes_questions_whose_gold_passages_are_the_cited_ones(rated, tmp_path, caplog):
    caplog.set_level("INFO", "rqa")
    done = convert(rated, tmp_path / "train.jsonl", corpus_path=tmp_path / "corpus.jsonl")
    assert (done.format, done.questions, done.passages) == ("rqa_feedback", 2, 1)
    oslo, rome = load_examples(tmp_path / "train.jsonl")
    rows = [row for row in read_jsonl(rated) if row["correct"]]
    assert [oslo.id, rome.id] == [row["id"] for row in rows]
    # The answer cites passage 2, which is the first gold passage, and 9, which is none.
    text = ANSWER.replace("[2]", "[1]").replace(" [9]", "")
    assert [oslo.answers, rome.answers] == [(f"Oslo?: {text}",), (f"Rome?: {text}",)]
    assert oslo.gold_passages == rome.gold_passages == (PASSAGES[1],)
    assert oslo.gold_passages[0].sources == PASSAGES[1].sources
    assert (oslo.chat_history, rome.chat_history) == (TURNS, ())
    assert [*citation_problems(oslo.answers, len(oslo.gold_passages))] == []
    for note in ("rated as wrong are left out", "are removed from the answers"):
        assert any(note in line and "2 rows" in line for line in caplog.messages)
    assert '"comment" (2 rows)' in caplog.text


@pytest.mark.parametrize(("citations", "answer"), [(False, "Oslo [2]."), (True, "Oslo.")])
def test_feedback_on_an_answer_without_citations_has_all_passages_as_gold(rated, tmp_path, citations, answer):
    [first, *_] = read_jsonl(rated)
    path = tmp_path / "feedback.jsonl"
    path.write_text(json.dumps(first | {"citations": citations, "answer": answer}) + "\n")
    convert(path, tmp_path / "train.jsonl")
    [example] = load_examples(tmp_path / "train.jsonl")
    assert (example.answers, example.gold_passages) == ((answer,), tuple(PASSAGES))


def test_feedback_is_the_verdict_on_an_equal_answer_of_the_evaluation(rated, caplog):
    caplog.set_level("INFO", "rqa")
    text = f"Oslo?: {ANSWER}"
    predictions = answered(
        ("Oslo?", text, ()),
        ("Oslo?", text, TURNS),
        ("Rome?", text, ()),  # rated with another answer
        ("Bern?", f"Bern?: {ANSWER}", TURNS),  # rated without a history
    )
    assert read_labels(rated, predictions) == {"test:1": False, "test:2": True}
    assert "2 of 4 rows are on answers of the evaluation" in caplog.text
    examples = [Example(row.id, row.question, (), chat_history=row.chat_history) for row in predictions]
    assert read_labels(rated, examples) == {"test:1": False, "test:2": True, "test:3": True}


def test_feedback_with_different_verdicts_on_one_answer_is_left_out(rated, tmp_path, caplog):
    caplog.set_level("INFO", "rqa")
    rows = read_jsonl(rated)
    path = tmp_path / "feedback.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, rows[2] | {"id": "x", "correct": False}]))
    both = answered(("Oslo?", f"Oslo?: {ANSWER}", ()), ("Rome?", f"Rome?: {ANSWER}", ()))
    assert read_labels(path, both) == {"test:1": False}
    assert "3 of 5 rows are on answers of the evaluation; 1 answers with different verdicts" in caplog.text


def test_feedback_without_an_answer_of_the_evaluation_is_refused(rated):
    with pytest.raises(InputError, match=r"--judge_labels .* got none in 4 rows, of which 1 are on its questions"):
        read_labels(rated, answered(("Rome?", "Another answer.", ()), ("Paris?", "Here.", ())))


def test_bad_feedback_is_refused(served, client):
    url, _, folder = served
    id, before = ask(client, "?").id, (folder / "feedback.jsonl").read_bytes()
    for values in ({}, {"correct": "no"}, {"correct": True, "comment": 1}, {"correct": True, "comment": "x" * 4001}):
        assert rate(url, id=id, **values).status_code == 400
    assert rate(url, id="unknown", correct=True).status_code == 404
    assert (folder / "feedback.jsonl").read_bytes() == before


def test_feedback_is_confirmed_only_if_it_is_on_the_disk(served, client, monkeypatch):
    url, _, folder = served
    id, before = ask(client, "?").id, (folder / "feedback.jsonl").read_bytes()

    def full(descriptor):
        raise OSError(ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    response = rate(url, id=id, correct=True)
    assert response.status_code == 507
    assert "No space left" in response.json()["error"]["message"]
    assert (folder / "feedback.jsonl").read_bytes() == before
    monkeypatch.undo()
    assert rate(url, id=id, correct=True).status_code == 200


def test_an_incomplete_row_of_a_killed_server_is_removed(tmp_path):
    path = tmp_path / "new" / "feedback.jsonl"
    Feedback(path)
    path.write_text('{"id": "a"}\n{"id": "b', encoding="utf-8")
    Feedback(path)
    assert path.read_text(encoding="utf-8") == '{"id": "a"}\n'
    with pytest.raises(InputError, match=str(tmp_path)):
        Feedback(tmp_path)


def test_concurrent_feedback_has_whole_rows(served, client):
    url, _, folder = served
    ids = [ask(client, "?").id for _ in range(8)]
    threads = [threading.Thread(target=rate, args=(url,), kwargs={"id": id, "correct": True}) for id in ids]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {row["id"] for row in read_jsonl(folder / "feedback.jsonl")[-8:]} == set(ids)
