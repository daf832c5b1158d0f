"""Passages and examples about lamps, for the tests of the doctor."""


def doc(text, title="", source=""):
    return {"page_content": text, "metadata": {"title": title, "source": source}}


def lamp(i):
    return doc(f"The lamp number {i} of the harbour was lit in {1800 + i}.", f"Lamp {i}", f"{i}.html")


def row(i, **fields):
    """Return an example without problems."""
    return {
        "question": f"When was lamp {i} lit?",
        "gold_answer": f"It was lit in {1800 + i}.",
        "gold_docs": [lamp(i)],
    } | fields
