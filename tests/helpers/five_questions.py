"""Five questions with passages, retrieval results, answers and losses, and a clock that counts the work."""

from dataclasses import replace

from accelerate import Accelerator

from rqa.data.passage_selection import REFUSAL_ANSWER
from rqa.data.records import Example, Passage, Turn
from rqa.evaluation.evaluate import Evaluator
from rqa.generation.generator import Answer
from rqa.retrieval.retrieve import Retrieval, Retrieved

P = [Passage(f"The lamp of place {i} was lit. " * (i + 1), f"Lamp {i}", (f"{i}.html",)) for i in range(12)]
HISTORY = tuple(Turn(role, f"{role} {i}") for i in range(2) for role in ("user", "assistant"))
EXAMPLES = [
    Example("a", "When?", ("In the year 1907 of the lamp.", "1907"), (P[3],), HISTORY),
    Example("b", "Where exactly was it?", ("In the old town of Rome, Italy.",), (P[0], P[8])),
    Example("c", "Who?", ("Nobody knows.",)),
    Example("d", "Why?", ("Because.",), (P[11],), unanswerable=True),
    Example("e", "What is it that shines over the town at night?", ("The lamp that was lit in 1907.",), (P[1],)),
]
FOUND = [[3, 1, 2, 0, 4, 5, 6, 7, 9, 10, 8, 11], [5, 8, 3], [0, 1, 2], [], [2, 4, 1, 3]]
TEXTS = [
    "It was lit in the year 1907.",
    "In the old town of Rome, Italy.",
    "",
    REFUSAL_ANSWER,
    "In 1907 the lamp was lit.",
]
ANSWERS = {
    example.id: Answer(text, len(text), 100 + i, finished=i != 1, truncated=0, num_passages=0)
    for i, (example, text) in enumerate(zip(EXAMPLES, TEXTS, strict=True))
}


def losses_of(inputs):
    """Return (nats, tokens) of each answer: 1, 3, 5, 7 and 9 nats, 1 to 5 tokens."""
    return [(2.0 * i + 1, i + 1) for i in range(len(inputs))]


def score_examples(
    examples, retrieval=None, generate=None, loss=losses_of, attributions=(), citations=False, **options
):
    """Return the scores of an Evaluator with functions in place of its model."""
    evaluator = Evaluator(Accelerator(cpu=True), None, None, batch_size=1, max_new_tokens=1, **options)
    evaluator.has_generator, evaluator.citations = generate is not None, citations
    evaluator.generate, evaluator.loss, evaluator.attributions = generate, loss, dict(attributions)
    return evaluator(examples, retrieval)


def retrieval(found=FOUND):
    hits = [[Retrieved(P[i], 1 - rank / 100) for rank, i in enumerate(row)] for row in found]
    return Retrieval(hits, seconds=2.0, fingerprint="corpus 1")


class Clock:
    """A clock that counts the work: one second for each item, 1,000 for the first call, the warm-up."""

    def __init__(self, monkeypatch):
        self.now, self.calls = 0.0, []
        monkeypatch.setattr("time.perf_counter", lambda: self.now)

    def count(self, items):
        self.now += len(items) if self.calls else 1000
        self.calls.append(list(items))

    def retrieve(self, queries, k):
        self.count(queries)
        return [[Retrieved(P[i], 0.5) for i in range(k)] for _ in queries]

    def fingerprint(self):
        return "corpus 1"

    def generate(self, inputs):
        self.count(inputs)
        return [replace(ANSWERS[each.example.id], num_passages=len(each.passages)) for each in inputs]
