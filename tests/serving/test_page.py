"""The page in a real browser: a question, its sources, feedback; hostile texts stay text; nothing else is loaded."""

import os
import re
from pathlib import Path

import httpx
import pytest
from scripted_server import ANSWER, HOSTILE, TOKEN, running
from world import read_jsonl

from rqa.serving.page import render_page

SIZES = {"desktop": {"width": 1280, "height": 800}, "phone": {"width": 390, "height": 844}}
SCREENSHOTS = os.environ.get("RQA_SCREENSHOTS")  # a folder for pictures of the page


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    with running(folder) as (url, chat):
        yield url, chat, folder


@pytest.fixture
def opened(browser, served):
    """Open the page; at the end, check that the console is empty and that only the server was requested."""
    contexts, messages, requested = [], [], []

    def by(url=served[0], **options):
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("console", lambda message: messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.on("request", lambda request: requested.append(request.url))
        page.goto(url)
        return page

    yield by
    for context in contexts:
        assert not context.pages[0].evaluate("'hacked' in window")
        context.close()
    assert messages == []
    assert {re.match(r"\w+://[^/]+", url)[0] for url in requested} <= {served[0]}


def ask(page, question):
    page.get_by_label("Question", exact=True).fill(question)
    page.keyboard.press("Enter")
    return page.locator("#list > li").last


def picture(page, name):
    if SCREENSHOTS:
        page.screenshot(path=Path(SCREENSHOTS) / f"{name}.png")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_ask_read_the_sources_and_rate_the_answer(opened, served, size, scheme):
    page = opened(viewport=SIZES[size], color_scheme=scheme)
    picture(page, f"{size}-{scheme}-empty")
    question = f"When was the lamp of Oslo lit, on a {size}, in the {scheme}?"
    exchange = ask(page, question)
    exchange.locator("aside").wait_for()
    assert exchange.locator(".answer").inner_text() == f"{question}: {ANSWER}"
    sources = exchange.locator("aside li")
    assert sources.count() == 3
    assert [sources.nth(i).get_attribute("class") for i in range(3)] == [None, "cited", None]
    assert sources.nth(1).inner_text().split() == ["[2]", "Lamp", "of", "Oslo", "cited", *text_if_open(sources.nth(1))]
    beside, answer = exchange.locator("aside").bounding_box(), exchange.locator("article").bounding_box()
    assert (beside["x"] > answer["x"] + answer["width"]) == (size == "desktop")
    exchange.get_by_role("button", name="Source 2").click()
    assert sources.nth(1).locator(".text").is_visible()
    assert exchange.get_by_role("button", name="Source 9").count() == 0
    assert page.evaluate("document.scrollingElement.scrollWidth <= innerWidth")
    exchange.get_by_role("button", name="Incorrect").click()
    exchange.get_by_label("Comment").fill("It is 1902.")
    picture(page, f"{size}-{scheme}")
    exchange.get_by_role("button", name="Send feedback").click()
    exchange.get_by_text("Saved.").wait_for()
    row = read_jsonl(served[2] / "feedback.jsonl")[-1]
    assert {name: row[name] for name in ("question", "correct", "comment")} == {
        "question": question,
        "correct": False,
        "comment": "It is 1902.",
    }
    assert HOSTILE in row["answer"]


def text_if_open(source):
    text = source.locator(".text")
    return [*text.inner_text().split(), "oslo.html"] if text.is_visible() else []


def test_a_question_continues_the_conversation_and_an_answer_can_be_stopped(opened, served):
    page = opened()
    _, chat, folder = served
    ask(page, "one").locator("aside").wait_for()
    page.locator("#list > li").last.get_by_role("button", name="Correct", exact=True).click()
    ask(page, "slow two").get_by_text("The lamp").wait_for()
    # A thumb alone is feedback as soon as the conversation continues.
    page.get_by_text("Saved.").wait_for()
    row = read_jsonl(folder / "feedback.jsonl")[-1]
    assert (row["question"], row["correct"], row["comment"]) == ("one", True, "")
    page.get_by_role("button", name="Stop").click()
    page.get_by_text("Stopped.").wait_for()
    with page.expect_request("**/v1/chat/completions") as request:
        ask(page, "three").locator("aside").wait_for()
    sent = request.value.post_data_json["messages"]
    assert [each["content"] for each in sent] == ["one", f"one: {ANSWER}", "three"]
    assert chat.num_words["slow two"] < len(ANSWER.split())
    page.get_by_role("button", name="New conversation").click()
    with page.expect_request("**/v1/chat/completions") as request:
        ask(page, "four").locator("aside").wait_for()
    assert len(request.value.post_data_json["messages"]) == 1


def test_an_error_is_shown_and_the_token_is_asked_for(browser, tmp_path):
    with running(tmp_path, token=TOKEN) as (url, _):
        page = browser.new_page(viewport=SIZES["phone"])
        page.set_default_timeout(10_000)
        page.goto(url)
        ask(page, "?").get_by_text("Enter the token").wait_for()
        page.get_by_label("Token of this server").fill(TOKEN)
        ask(page, "a long one").get_by_text("99 tokens").wait_for()
        picture(page, "phone-error")
        ask(page, "?").locator("aside").wait_for()
        assert page.evaluate("document.cookie") == ""
        page.close()


def test_the_page_loads_nothing_and_allows_no_other_script(served):
    response = httpx.get(served[0])
    policy = response.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert not re.findall(r"""(?:src|href)=["'](?!data:,|#)""", response.text)
    assert not re.findall(r"""\sstyle=|\son\w+=""", response.text)


def test_the_name_of_a_model_stays_text():
    html, _ = render_page(f'"{HOSTILE}', needs_token=False)
    assert HOSTILE not in html
