"""recipes/serve.py: answers are those of the generator, also of 50 users at a time; SIGTERM finishes them."""

import asyncio
import re
import runpy
import signal
import subprocess
import time
from contextlib import contextmanager

import httpx
import pytest
from world import LAUNCH_SECONDS, PLACES, ROOT, launch, launch_environment, recipe_command

from rqa import cli
from rqa.data import Example, GeneratorInput

openai = pytest.importorskip("openai")
USERS = 50
QUESTIONS = [f"When was the lamp of {place} lit?{'?' * (i // 12)}" for i, place in enumerate((PLACES * 5)[:USERS])]


@pytest.fixture(scope="module")
def flags(world):
    return world.chat_flags(60)


@contextmanager
def serving(flags, folder):
    """Start the recipe; yield its process and its URL."""
    log = folder / "log"
    options = {"--port": "0", "--feedback_file": str(folder / "feedback.jsonl"), "--max_queue": "60"}
    with log.open("wb") as file:
        command = recipe_command("serve.py", flags | options)
        process = subprocess.Popen(command, stdout=file, stderr=file, env=launch_environment())
    try:
        end = time.monotonic() + LAUNCH_SECONDS
        while not (found := re.search(r"serving on (http://\S+)/", log.read_text(encoding="utf-8"))):
            assert process.poll() is None, log.read_text(encoding="utf-8")
            assert time.monotonic() < end
            time.sleep(0.1)
        yield process, found[1]
    finally:
        process.kill()
        process.wait()


def expected_answers(flags):
    """Return the answers of the generator, one question at a time."""
    argv = [word for flag in flags.items() for word in flag]
    generator, search = cli.parse_args(cli.GeneratorArgs(), cli.RetrievalArgs(), argv=argv)
    chat = runpy.run_path(str(ROOT / "recipes/serve.py"))["open_chat"](generator, search, 1)
    examples = [Example("", question, ()) for question in QUESTIONS]
    hits = [chat.retrieve([example])[0][: chat.k] for example in examples]
    passages = [[hit.passage for hit in each] for each in hits]
    inputs = [GeneratorInput.from_ranked(*pair) for pair in zip(examples, passages, strict=True)]
    return [answer.text for answer in chat.generator(inputs)], [[hit.passage.id for hit in each] for each in hits]


async def ask_together(url):
    """Return the answers and passages of all users, who ask at the same time, every other one as a stream."""
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:

        async def ask(number, question):
            messages = [{"role": "user", "content": question}]
            options = {"model": "rqa", "messages": messages}
            if number % 2:
                whole = await client.chat.completions.create(**options)
                return whole.choices[0].message.content, whole.rqa
            text = ""
            async for chunk in await client.chat.completions.create(**options, stream=True):
                text += chunk.choices[0].delta.content or ""
            return text, chunk.rqa

        return await asyncio.gather(*(ask(*pair) for pair in enumerate(QUESTIONS)))


@pytest.mark.slow
def test_50_users_at_a_time_get_the_answers_of_one_by_one_and_sigterm_finishes_them(flags, tmp_path):
    texts, ids = expected_answers(flags)
    with serving(flags, tmp_path) as (process, url):
        answers = asyncio.run(ask_together(url))
        assert [text for text, _ in answers] == texts
        assert [[each["id"] for each in more["passages"]] for _, more in answers] == ids
        counts = httpx.get(f"{url}/health").json()
        assert counts["answers"] == USERS
        assert counts["batches"] <= USERS / 4
        # SIGTERM while an answer is generated.
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            stream = client.chat.completions.create(
                model="rqa", messages=[{"role": "user", "content": QUESTIONS[0]}], stream=True
            )
            chunks = [next(stream)]
            process.send_signal(signal.SIGTERM)
            chunks += stream
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == texts[0]
        assert process.wait(30) == 0
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}/health")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"--host": "0.0.0.0"}, "expected a token"),
        ({"--token_name": "RQA_NO_SUCH_TOKEN"}, "RQA_NO_SUCH_TOKEN"),
        ({"--answer_timeout": "0"}, "--answer_timeout"),
    ],
)
def test_flags_are_checked_before_anything_is_loaded(flags, tmp_path, more, words):
    start = time.monotonic()
    assert words in launch("serve.py", flags | more | {"--feedback_file": str(tmp_path / "f")}, expect=2)
    assert time.monotonic() - start < 60
    assert not (tmp_path / "f").exists()
