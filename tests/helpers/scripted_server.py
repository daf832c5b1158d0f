"""A server whose answers are scripted: real HTTP, queue and batches, without a model.

    python tests/helpers/scripted_server.py FOLDER

serves until SIGTERM.
"""

import asyncio
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field

import uvicorn

from rqa.data.records import Passage
from rqa.errors import InputError
from rqa.generation.answers import Answer
from rqa.generation.chat import ChatQuestion
from rqa.prompts.collators import EncodedExample
from rqa.retrieval.retrieve import Retrieved
from rqa.serving import Access, Batcher, Feedback, make_app

HOSTILE = "<img src=//evil.example/x onerror='hacked = 1'><script>hacked = 1</script>"
PASSAGES = [
    Passage("The lamp of Rome was lit in 1900. It shines over the old harbour.", "Lamp of Rome", ("rome.html",)),
    Passage(
        "The lamp of Oslo was lit in 1901, and moved to the new pier in 1934. " * 6, "Lamp of Oslo", ("oslo.html",)
    ),
    Passage(f"A note. {HOSTILE}", HOSTILE, (HOSTILE,)),
]
ANSWER = f"The lamp of Oslo was lit in 1901 [2]. Nothing is known of others [9]. {HOSTILE}"
STEP_SECONDS = 0.05  # of a word of a slow answer
TOKEN = "a-token-of-twenty-three"


@dataclass
class ScriptedChat:
    """Stands for a Chat and its Generator. A question with the word "slow" takes STEP_SECONDS a word."""

    batches: list = field(default_factory=list)  # the questions of each
    num_words: dict = field(default_factory=dict)  # that were generated, by question
    gate: threading.Event = field(default_factory=threading.Event)  # a question with "gate" waits for it

    @property
    def generator(self):
        return self

    def retrieve(self, examples):
        return [[Retrieved(passage, 0.9 - i / 10) for i, passage in enumerate(PASSAGES)] for _ in examples]

    def fit(self, example, hits):
        if "long" in example.question:
            raise InputError("instruction, history and question take 99 tokens, --max_prompt_length is 9")
        row = EncodedExample([list(map(ord, example.question))], [2], num_passages=len(hits))
        return ChatQuestion(example, tuple(hits), row, 0)

    def stream_batch(self, rows, listeners):
        questions = ["".join(map(chr, row.prompts[0])) for row in rows]
        self.batches.append(questions)
        if any("gate" in question for question in questions):
            self.gate.wait(20)
        if any("fail" in question for question in questions):
            raise RuntimeError("out of memory")
        pause = STEP_SECONDS * any("slow" in question for question in questions)
        texts = [f"{question}: {ANSWER}" for question in questions]
        for step in range(max(len(text.split(" ")) for text in texts)):
            time.sleep(pause)
            for question, text, listener in zip(questions, texts, listeners, strict=True):
                words = text.split(" ")
                if step < len(words) and not listener.has_left():
                    listener.show((" " if step else "") + words[step])
                    self.num_words[question] = step + 1
        return [Answer(text, 9, len(row), True, 0, 3) for text, row in zip(texts, rows, strict=True)]


@contextmanager
def running(folder, *, token="", host="127.0.0.1", chat=None, batch_size=8, max_queue=64, answer_timeout=20.0):
    """Serve in a thread of this process; yield the base URL and the scripted chat."""
    chat = chat or ScriptedChat()
    batcher = Batcher(chat, batch_size=batch_size, max_queue=max_queue)
    feedback = Feedback(folder / "feedback.jsonl", citations=True)
    app = make_app(batcher, feedback, Access(host, token), model="lamps", answer_timeout=answer_timeout)
    server = uvicorn.Server(
        uvicorn.Config(app, host="127.0.0.1", port=0, log_config=None, lifespan="on", timeout_graceful_shutdown=1)
    )
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()), daemon=True)
    thread.start()
    end = time.monotonic() + 20
    while not server.started and time.monotonic() < end:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}", chat
    finally:
        chat.gate.set()
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()
