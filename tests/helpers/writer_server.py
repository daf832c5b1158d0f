"""A writer of questions and their judge on this machine, which follow rules; and a corpus for them."""

import json
import re
from collections.abc import Mapping
from typing import Any

from judge_server import JudgeServer, completion, verdict

PEOPLE = ["Anna Berg", "Ben Koh", "Carla Rossi", "Dmitri Orlov", "Esra Kaya", "Farid Haddad", "Grace Obi"]
FACTS = re.compile(r"The lamp of (\w+) was lit in (\d+) by (\w+ \w+)\. It is (\d+) metres tall")


def place_of(number: int) -> str:
    """Return a name that no other number has."""
    return "".join("bdfgklmn"[number // 8**i % 8] + "aeiou"[number % 5] for i in range(3)).capitalize() + f"x{number}"


def lamp(number: int, document: int) -> dict[str, Any]:
    """Return a passage of a corpus as make_corpus.py writes it."""
    place, person = place_of(number), PEOPLE[number % len(PEOPLE)]
    text = f"The lamp of {place} was lit in {1700 + number} by {person}. It is {20 + number % 61} metres tall,  and\n"
    text += f"the keepers of {place} paint it white before every winter begins."
    source = f"lamps/{document:02}.md#{100 * number}-{100 * number + len(text)}"
    return {"page_content": text, "metadata": {"source": source, "title": f"lamps{document:02} > {place}"}}


def lamps(num_documents: int, passages_of_each: int) -> list[dict[str, Any]]:
    """Return the rows of a corpus."""
    return [lamp(i, i // passages_of_each) for i in range(num_documents * passages_of_each)]


class WriterServer(JudgeServer):
    """Writes and judges questions about lamps.

    `replies` are texts in place of the writer's, by place. `known` are places that the model knows without a passage,
    and `guessed` those where its answer is wrong. Of `unsupported` ones the judge refuses the first question.
    """

    def __init__(
        self,
        *,
        replies: Mapping[str, str] | None = None,
        known: frozenset[str] = frozenset(),
        guessed: frozenset[str] = frozenset(),
        unsupported: frozenset[str] = frozenset(),
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.replies, self.known, self.guessed, self.unsupported = replies or {}, known, guessed, unsupported

    def question_of(self, body: dict[str, Any]) -> str:
        return body["messages"][0]["content"]

    def answer(self, body: dict[str, Any]) -> tuple[int, bytes]:
        prompt = self.question_of(body)
        case, _ = json.JSONDecoder().raw_decode(prompt, prompt.index("{\n"))
        if prompt.startswith("You write questions"):
            return 200, completion(self.written(prompt, case), prompt)
        if prompt.startswith("You grade"):
            return 200, verdict(prompt)
        if prompt.startswith("Answer the last question"):
            return 200, completion(self.closed_book(case), prompt)
        if prompt.startswith("You check a question and its answer"):
            place, year, person, height = FACTS.search(case["passage"].partition("\n")[2]).groups()
            is_true = any(fact in case["answer"] for fact in (year, person, height))
            correct = is_true and not (place in self.unsupported and not case["conversation"])
        else:
            correct = "cost" in case["question"]
        return 200, completion(json.dumps({"explanation": "By the rules.", "correct": correct}), prompt)

    def written(self, prompt: str, case: dict[str, Any]) -> str:
        place, *_ = FACTS.search(case["text"]).groups()
        if place in self.replies:
            return self.replies[place]
        count = int(re.search(r"(\d) question", prompt)[1])
        return f"```json\n{json.dumps({'questions': questions_on(case['text'], prompt)[:count]})}\n```"

    def closed_book(self, case: dict[str, Any]) -> str:
        place = re.search(r"lamp of (\w+)", json.dumps(case))[1]
        if place in self.known and "When" in case["question"]:
            return f"It was lit in {1700 + int(place.partition('x')[2])}."
        return "In 1492." if "*" in self.guessed or place in self.guessed else "Unknown."


def questions_on(text: str, prompt: str = "") -> list[dict[str, str]]:
    """Return what the writer writes about a passage."""
    place, year, person, height = FACTS.search(text).groups()
    if "does not answer" in prompt:
        return [{"question": f"What did the lamp of {place} cost?"}]
    is_conversation = "Write a conversation" in prompt
    subject = "it" if is_conversation else f"the lamp of {place}"
    first = f"The lamp of {place} was lit in {year} by {person}."
    return [
        {"question": f"When was the lamp of {place} lit?", "answer": f"It was lit in {year}.", "evidence": first},
        {"question": f"Who was it that lit {subject}?", "answer": f"{person} lit it.", "evidence": first},
        {
            "question": f"How many metres tall is {subject}?",
            "answer": f"It is {height} metres tall.",
            "evidence": f"It is {height} metres tall, and the",
        },
    ]
