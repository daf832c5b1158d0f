"""Concurrent questions, answered in batches by one thread, which alone uses the model and the retriever.

A batch is all that waits when the thread is free, up to a size. No question waits for others to arrive.
"""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from rqa.data.records import Example
from rqa.errors import InputError
from rqa.generation.answers import Answer
from rqa.generation.chat import Chat, ChatQuestion
from rqa.generation.streaming import Listener
from rqa.serving.errors import RequestError

log = logging.getLogger(__name__)

RETRY_SECONDS = 5  # of the header Retry-After
Event = str | tuple[ChatQuestion, Answer] | RequestError  # a piece of text; the end; an error


@dataclass(eq=False)
class Job:
    """A question in the queue; `events` yields the pieces of its answer, then the answer or an error."""

    example: Example
    deadline: float  # of time.monotonic
    max_new_tokens: int | None = None
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    events: "asyncio.Queue[Event]" = field(default_factory=asyncio.Queue)
    has_left: bool = False  # its client left, or its time is over

    def send(self, event: Event) -> None:
        """Pass an event to the event loop, from any thread."""
        try:
            self.loop.call_soon_threadsafe(self.events.put_nowait, event)
        except RuntimeError:  # the event loop is closed
            self.has_left = True

    def is_over(self) -> bool:
        """Return True if the answer is no longer needed."""
        return self.has_left or time.monotonic() > self.deadline

    def leave(self) -> None:
        """End the answer, whose client left."""
        self.has_left = True
        self.send(RequestError(499, "the client left"))

    async def next(self) -> Event:
        """Return the next event; after the deadline an error."""
        try:
            return await asyncio.wait_for(self.events.get(), max(0.0, self.deadline - time.monotonic()))
        except TimeoutError:
            return RequestError(504, "the answer took longer than the server allows (--answer_timeout)", code="timeout")


class Batcher:
    """Answers jobs in batches of at most `batch_size`; at most `max_queue` wait."""

    def __init__(self, chat: Chat, *, batch_size: int = 8, max_queue: int = 64) -> None:
        self.chat, self.batch_size, self.max_queue = chat, batch_size, max_queue
        self.num_batches = self.num_answers = 0
        self._waiting: deque[Job] = deque()
        self._running: Sequence[Job] = ()
        self._change = threading.Condition()
        self._is_closed = False
        self._thread = threading.Thread(target=self._work, name="batcher", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def counts(self) -> dict[str, int]:
        """Return the numbers of waiting and running questions, and those of answers and batches since the start."""
        with self._change:
            numbers = {"waiting": len(self._waiting), "running": len(self._running)}
        return {**numbers, "answers": self.num_answers, "batches": self.num_batches}

    def submit(self, job: Job) -> None:
        """Append a job to the queue. Raises RequestError if the queue is full, or the server stops."""
        with self._change:
            if self._is_closed:
                raise RequestError(503, "the server is stopping", code="stopping")
            self._waiting = deque(each for each in self._waiting if not each.is_over())
            if len(self._waiting) >= self.max_queue:
                raise RequestError(503, f"{self.max_queue} questions wait already. Try again later", code="overloaded")
            self._waiting.append(job)
            self._change.notify()

    def close(self, seconds: float = 10.0) -> None:
        """Drop all jobs, and wait for the thread: it stops at the next token."""
        with self._change:
            self._is_closed = True
            for job in (*self._waiting, *self._running):
                job.has_left = True
            self._change.notify()
        if self._thread.is_alive():
            self._thread.join(seconds)

    def _work(self) -> None:
        while batch := self._next_batch():
            try:
                self._answer(batch)
            except Exception:
                log.exception("a batch of %d questions failed", len(batch))
                for job in batch:
                    job.send(RequestError(500, "the server failed to answer; its log has the cause"))
            with self._change:
                self._running = ()

    def _next_batch(self) -> list[Job]:
        """Wait for jobs, and return at most `batch_size`; none if the batcher is closed."""
        while True:
            with self._change:
                self._change.wait_for(lambda: self._waiting or self._is_closed)
                if self._is_closed:
                    return []
                jobs = [self._waiting.popleft() for _ in range(min(self.batch_size, len(self._waiting)))]
                if batch := [job for job in jobs if not job.is_over()]:
                    self._running = batch
                    return batch

    def _answer(self, jobs: Sequence[Job]) -> None:
        retrieved = self.chat.retrieve([job.example for job in jobs])
        pairs: list[tuple[Job, ChatQuestion]] = []
        for job, hits in zip(jobs, retrieved, strict=True):
            try:
                pairs.append((job, self.chat.fit(job.example, hits)))
            except InputError as problem:
                job.send(RequestError(400, str(problem), "messages", "context_length_exceeded"))
        if not pairs:
            return
        pairs.sort(key=lambda pair: -pair[1].row.num_prompt_tokens)  # as an evaluation sorts
        listeners = [Listener(job.send, job.is_over, job.max_new_tokens) for job, _ in pairs]
        answers = self.chat.generator.stream_batch([question.row for _, question in pairs], listeners)
        self.num_batches += 1
        self.num_answers += len(answers)
        for (job, question), answer in zip(pairs, answers, strict=True):
            job.send((question, answer))
