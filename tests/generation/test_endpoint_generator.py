"""A generator behind an endpoint answers as the local one; faults are retried, and answers are asked for once."""

import json
import logging

import pytest
from accelerate import Accelerator
from generator_server import GeneratorServer
from tiny_generation import INPUTS, MAX_NEW_TOKENS, PREFIXES, TEMPLATE, generator, language_model
from tiny_models import tokenizer

from rqa.errors import InputError
from rqa.generation.endpoint_generator import EndpointGenerator, GeneratorEndpoint
from rqa.prompts.decoder_prompt import INSTRUCTION, PromptBuilder, chat_messages

KEY = "sk-sentinel-0a1b2c3d4e5f"


@pytest.fixture
def make(tmp_path):
    def make(server, builder=TEMPLATE, api="auto", max_new_tokens=MAX_NEW_TOKENS, **options):
        options = {"retries": 2, "backoff": 0.01, "timeout": 20, "concurrency": 3, "api_key": KEY} | options
        client = GeneratorEndpoint(
            model="tiny", base_url=server.url, cache_path=tmp_path / "answers.jsonl", key_name="QA_KEY", **options
        )
        accelerator = Accelerator(cpu=True, mixed_precision="no")
        return EndpointGenerator(accelerator, client, builder, max_new_tokens=max_new_tokens, api=api)

    return make


def fields(answers):
    return [(a.text, a.num_tokens, a.num_prompt_tokens, a.finished, a.truncated, a.num_passages) for a in answers]


def served(**options):
    return GeneratorServer(language_model(), tokenizer(), **options)


@pytest.mark.parametrize("api", ["auto", "completions", "chat"])
@pytest.mark.parametrize("length", [2048, 200])
def test_answers_equal_those_of_the_local_generator(make, api, length):
    """Also by messages: the tiny template writes the same text around them, and passages are cut at the same token."""
    builder = PromptBuilder(tokenizer(), max_prompt_length=length)
    local = generator(language_model(), 2, builder)(INPUTS)
    with served() as server:
        answers = make(server, builder, api)(INPUTS)
    assert fields(answers) == fields(local)
    assert {answer.finished for answer in answers} == {True, False}
    assert any(answer.truncated for answer in answers) == (length == 200)
    assert all(("prompt" in body) == (api != "chat") for body in server.bodies)
    assert len(server.bodies) == len(INPUTS)


def test_answers_by_prefixes_equal_those_of_the_local_generator(make):
    local = generator(language_model(), 2, PREFIXES)(INPUTS)
    with served() as server:
        assert [a.num_prompt_tokens for a in make(server, PREFIXES)(INPUTS)] == [a.num_prompt_tokens for a in local]
        server.takes_ids = False
        with pytest.raises(InputError, match="--user_prefix"):
            make(server, PREFIXES, max_new_tokens=3)(INPUTS)


def test_messages_have_the_text_of_the_prompt(make):
    with served(takes_ids=False) as server:
        make(server, None)(INPUTS)
    sent = {json.dumps(body["messages"], sort_keys=True) for body in server.bodies}
    assert sent == {json.dumps(chat_messages(item), sort_keys=True) for item in INPUTS}
    for item in INPUTS:
        text = tokenizer().apply_chat_template(chat_messages(item), add_generation_prompt=True, tokenize=False)
        assert text == tokenizer().decode(TEMPLATE.prompt(item).ids)
        assert INSTRUCTION in text


def test_auto_is_chat_if_the_server_takes_no_ids_or_has_another_tokenizer(make, caplog):
    caplog.set_level(logging.INFO)
    with served(takes_ids=False) as server:
        own = make(server)
        own(INPUTS[:2])
    assert (own.api, ["prompt" in body for body in server.bodies]) == ("chat", [True, False, False])
    assert "--qa_api auto: chat" in caplog.text
    conditions = own.conditions()
    assert (conditions["model"], conditions["api"], conditions["host"]) == ("tiny-at-server", "chat", server.url[7:-3])
    assert KEY not in caplog.text + json.dumps(conditions)


FAULTS = ["429:0", "500", "html", "truncated", "reset", "empty"]


@pytest.mark.parametrize("api", ["completions", "chat"])
def test_faults_are_retried_and_missing_answers_stop(make, api):
    questions = [item.example.question for item in INPUTS]
    faults = {question: [fault] for question, fault in zip(questions, FAULTS, strict=False)}
    faults[questions[-1]] = ["500"] * 3
    with served(faults=faults) as server:
        with pytest.raises(InputError, match=r"expected 9 answers, got 8.*Repeat the command") as error:
            make(server, api=api)(INPUTS)
        assert KEY not in str(error.value)
        assert server.calls == {
            question: len(faults.get(question, ())) + (question != questions[-1]) for question in questions
        }
        before = len(server.received)
        answers = make(server, api=api)(INPUTS)  # the same command again
        assert len(server.received) == before + 1
    assert [answer.is_stored for answer in answers] == [True] * 8 + [False]
    assert [answer.text for answer in answers] == [a.text for a in generator(language_model(), 2)(INPUTS)]


@pytest.mark.parametrize("fault", ["filter", "filtered"])
def test_answers_that_a_content_filter_refused_are_counted_and_a_warning(make, caplog, fault):
    with served(faults={INPUTS[1].example.question: [fault]}) as server:
        own = make(server, api="chat")
        answers = own(INPUTS[:3])
    assert [bool(answer.text) for answer in answers] == [True, False, True]
    assert own.conditions()["filtered_answers"] == 1
    assert "a content filter refused 1 answer" in caplog.text


def test_slow_answers_time_out(make):
    with served(faults={"*": ["slow"]}) as server, pytest.raises(InputError, match="timeout"):
        make(server, api="chat", retries=0, timeout=0.3)(INPUTS[:1])


def test_budget_of_calls_stops_and_resumes(make):
    with served() as server:
        with pytest.raises(InputError, match="budget of 4 calls"):
            make(server, api="chat", max_calls=4)(INPUTS)
        assert len(server.received) == 4
        make(server, api="chat")(INPUTS)
        assert len(server.received) == len(INPUTS)


def test_parameters_replace_and_remove_fields(make):
    with served(takes_ids=False) as server:
        own = make(server, None, parameters={"temperature": None, "seed": 3})
        own(INPUTS[:1])
    assert {name: value for name, value in server.bodies[0].items() if name != "messages"} == {
        "model": "tiny",
        "max_tokens": MAX_NEW_TOKENS,
        "seed": 3,
    }
    body = json.loads(make(server, None, parameters={"max_completion_tokens": 9})._body(INPUTS[0], None))
    assert "max_tokens" not in body
    for name in ("prompt", "messages", "model", "stream"):
        with pytest.raises(InputError, match=f"--qa_parameters.*{name}.*--qa_model_name_or_path"):
            make(server, None, parameters={name: 1})


@pytest.mark.parametrize(
    ("text", "split_off", "expected"),
    [
        ("<think>So.</think> Rome.", "", ("Rome.", "So.")),
        (" Rome.", "So.", ("Rome.", "So.")),
        ("<think> is a tag", "", ("<think> is a tag", "")),
    ],
)
def test_reasoning_is_split_off(make, text, split_off, expected):
    class Reasoning(GeneratorServer):
        def answer(self, _body):
            message = {"role": "assistant", "content": text, "reasoning_content": split_off}
            return 200, json.dumps({"choices": [{"message": message, "finish_reason": "stop"}]}).encode()

    with Reasoning(language_model(), tokenizer()) as server:
        own = make(server, None)
        [answer] = own(INPUTS[:1])
    assert (answer.text, answer.reasoning) == expected
    assert own.conditions()["token_counts"] == "1 of them estimates from characters"
