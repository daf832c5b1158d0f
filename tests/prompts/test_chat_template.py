"""chat_template: variables, date, and templates that do not work: an InputError, never another exception."""

import random
import sys
import time
from datetime import datetime

import pytest
from tiny_tokenizers import CHANNELS, CHATML, HEADED, HYBRID, INST, TEXTUAL, TURNS, channels, chatml, hybrid

from rqa.data.passage_selection import GeneratorInput
from rqa.data.records import Example, Passage, Turn
from rqa.errors import InputError
from rqa.prompts import chat_template
from rqa.prompts.chat_template import TEMPLATE_DATE, ChatTemplate
from rqa.prompts.decoder_prompt import PromptBuilder

HISTORY = (Turn("user", "Cats?"), Turn("assistant", "Yes."))
INPUT = GeneratorInput.from_ranked(Example("1", "Who?", ("So.",), chat_history=HISTORY), [Passage("Boil it.")])
DATED = CHATML + "{{ date_string if date_string is defined else '1 Jan 2024' }}"


def opening(tokenizer, kwargs=None, date=TEMPLATE_DATE):
    """Return the text after a question."""
    return ChatTemplate(tokenizer, kwargs, date).split(("user",), add_generation_prompt=True)[1]


def with_template(template):
    tokenizer = chatml()
    tokenizer.chat_template = template
    return tokenizer


# Variables


@pytest.mark.parametrize("switch", ["enable_thinking", "thinking"])
def test_thinking_is_off_where_the_template_has_a_switch_for_it(switch):
    tokenizer = hybrid(HYBRID.replace("enable_thinking", switch))
    assert opening(tokenizer).endswith("assistant\n<think>\n\n</think>\n\n")
    assert opening(tokenizer, {switch: False}) == opening(tokenizer, {}) == opening(tokenizer)
    assert opening(tokenizer, {switch: True}).endswith("assistant\n")


def test_a_variable_is_passed_to_the_template():
    template = with_template(CHATML + "{{ level | default('low') }}{% if thinking %}{% endif %}")
    assert opening(template).endswith("low")
    assert opening(template, {"level": 3}).endswith("3")


@pytest.mark.parametrize("value", ["level or 1", "level if level else 1", "level | default(1)", "level"])
def test_a_variable_that_the_template_assigns_only_as_a_default_is_passed(value):
    template = with_template(f"{{% set level = {value} %}}" + CHATML + "{{ level }}")
    assert opening(template, {"level": 3}).endswith("3")
    guarded = with_template("{% if level is not defined %}{% set level = 1 %}{% endif %}" + CHATML + "{{ level }}")
    assert [opening(guarded, kwargs)[-1] for kwargs in ({}, {"level": 3})] == ["1", "3"]


@pytest.mark.parametrize(
    "name", ["mood", "level", "messages", "add_generation_prompt", "tools", "eos_token", "strftime_now"]
)
def test_a_variable_that_the_template_does_not_refer_to_is_an_error(name):
    """Or one that the prompt or the template itself sets."""
    local = "{% if tone %}{% set level = 1 %}{% endif %}{{ level }}"
    tokenizer = hybrid(HYBRID + "{{ eos_token }}{{ strftime_now('') }}" + local)
    with pytest.raises(InputError, match=f"--chat_template_kwargs: .* got {name}. It refers to enable_thinking, tone$"):
        PromptBuilder(tokenizer, chat_template_kwargs={"tone": "low", name: 1})


# The date


def test_prompts_are_the_same_on_every_day(monkeypatch):
    expected = PromptBuilder(channels()).prompt(INPUT)
    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", None)
    monkeypatch.setattr(time, "time", lambda: 4e9)
    assert PromptBuilder(channels()).prompt(INPUT) == expected
    assert channels().decode(expected.ids).startswith(f"<|start|>system<|message|>Today: {TEMPLATE_DATE}<|end|>")


@pytest.mark.parametrize(
    ("template", "default", "changed"),
    [
        (CHATML + "{{ strftime_now('%d %b %Y') }}", "26 Jul 2024", "03 Feb 2021"),
        (DATED, "1 Jan 2024", "03 Feb 2021"),
        (CHATML + "{% set date_string = date_string or strftime_now('%d.%m') %}{{ date_string }}", "26.07", None),
    ],
)
def test_the_date_of_a_template_is_the_flag(template, default, changed):
    tokenizer, start = with_template(template), datetime.now()
    assert opening(tokenizer).endswith(f"\n{default}")
    assert opening(tokenizer, date="2021-02-03").endswith(f"\n{changed or '03 Feb 2021'}")
    assert datetime.now() >= start  # the clock itself stays


def test_a_date_for_a_template_without_one_is_an_error():
    with pytest.raises(InputError, match=r"--chat_template_date 2021-02-03: .*no date"):
        PromptBuilder(chatml(), chat_template_date="2021-02-03")


# Templates that do not work

LOOP = "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"
PARTS = "{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}<|im_end|>{% endfor %}"


@pytest.mark.parametrize(
    ("template", "need"),
    [
        ("{{ tools[0].function.name }}" + LOOP, "rejects messages of user: .*It requires tools"),
        ("{{ documents | length }}" + LOOP, "has no len.*It requires documents"),
        ("{{ tools | length + documents | length }}" + LOOP, "It requires tools and documents"),
        ("{% if not tools %}{{ raise_exception('no tools') }}{% endif %}" + LOOP, "no tools. It requires tools"),
        (PARTS, "requires messages that are lists of parts, for images"),
        ("{% if tools %}" + LOOP + "{% endif %}", "requires tools"),
    ],
)
def test_a_template_that_requires_more_than_messages_of_text_is_an_error_that_names_it(template, need):
    with pytest.raises(InputError, match=f"{need}.* Set --user_prefix and --assistant_prefix"):
        PromptBuilder(with_template(template))


FAULTS = [
    "{{ 1 / 0 }}",
    "{{ messages[9].content }}",
    "{{ messages[0] + 1 }}",
    "{{ none.x.y }}",
    "{{ {}.popitem() }}",
    "{{ strftime_now(1) }}",
    "{{ messages | sum }}",
    "{{ range(10 ** 9) | list }}",
    "{{ messages.append(1) }}",
    "{{ messages | tojson(indent='\ud800') }}",
    "{{ 9 ** 99999 }}",
    "{{ ''.__class__.x }}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{% include 'a' %}",
    "{% if %}",
    "{% for m in 3 %}{% endfor %}",
    "{{ raise_exception('never') }}",
    "{% set messages = 3 %}{{ messages.x.y }}",
    "\ud800",
    "{{ '\ud800' }}",
    "{{ 'a' * 10000000 }}",
    "{{ 'a'.ljust(2000000) }}",
    "{{" + "(" * 300 + "1" + ")" * 300 + "}}",
]


@pytest.mark.parametrize("fault", FAULTS, ids=[fault[:30].encode("ascii", "replace").decode() for fault in FAULTS])
def test_an_error_in_a_template_is_an_input_error(fault):
    inside = CHATML.replace("{{ message.content", fault + "{{ message.content")
    for template in (fault + CHATML, CHATML + fault, inside):
        with pytest.raises(InputError, match="--user_prefix"):
            PromptBuilder(with_template(template)).prompt(INPUT)


ENDLESS = {
    "nested loops": (
        "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}",
        "more than 9,000 steps",
    ),
    "recursion": (
        "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
        "more than 9,000 steps",
    ),
    "filter": ("{{ lipsum(n=99999) }}", "more than 9,000 steps"),
    "power": ("{% set x = 9 ** (9 ** 9) %}", "a power"),
    "product": ("{% set x = 'x' * 9999999999 %}", "a product above 1,000,000"),
}


@pytest.mark.parametrize(("fault", "message"), ENDLESS.values(), ids=ENDLESS)
def test_a_template_that_does_not_end_is_an_input_error(monkeypatch, fault, message):
    monkeypatch.setattr(chat_template, "MAX_LINES", 9_000)
    before = sys.gettrace()
    with pytest.raises(InputError, match=message):
        PromptBuilder(with_template(fault + CHATML))
    assert sys.gettrace() is before


def test_products_are_computed():
    assert opening(with_template(CHATML + "{{ 2 * 3 }}{{ 'ab' * 2 }}{{ [1] * 2 }}")).endswith("6abab[1, 1]")


def test_mutated_templates_are_used_or_an_input_error():
    numbers, counts = random.Random(7), {True: 0, False: 0}
    for _ in range(400):
        template = numbers.choice([CHATML, HYBRID, CHANNELS, HEADED, INST, TEXTUAL, TURNS, DATED, LOOP, PARTS])
        for _ in range(numbers.choice([1, 1, 2, 4])):
            start = numbers.randrange(len(template))
            end = start + numbers.randrange(30)
            middle = numbers.choice(
                ["", template[start:end] * 2, numbers.choice(FAULTS), chr(numbers.randrange(1, 127))]
            )
            template = template[:start] + middle + template[end:]
        try:
            built = PromptBuilder(with_template(template))
            built.prompt(INPUT)
        except InputError:
            counts[False] += 1
        else:
            assert built.answer_text(built.answer("So.")) == "So."
            counts[True] += 1
    assert min(counts.values()) > 20
