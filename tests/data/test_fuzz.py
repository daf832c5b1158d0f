"""Mutated example files give examples or an InputError, nothing else."""

import json
import random
from dataclasses import asdict

import pytest

from rqa.data.file_report import FileReport
from rqa.data.records import Example, load_examples, read_examples
from rqa.errors import InputError

DOC = {"page_content": "Water boils.", "fmt_content": "x", "metadata": {"source": "a.html", "title": "Water"}}
TURN = {"speaker": "user", "message": "Hello"}
ROWS = [
    {"question": "When?", "gold_answer": ["At 100.", "100"], "gold_docs": [DOC], "hard_neg_docs": [DOC], "id": "a"},
    {"question": "Who?", "gold_answer": "I.", "gold_docs": [], "chat_history": [TURN, {**TURN, "speaker": "bot"}]},
    {
        "question": "Why?",
        "answers": [],
        "target": "So.",
        "ctxs": [{"text": "A", "score": "1"}, {"text": "B", "score": 2}],
    },
    {"question": "How?", "gold_docs": [DOC], "unanswerable": True, "chat_history": [{"role": "user", "content": "é"}]},
]
# Values in place of others, and bytes in place of others
VALUES = [None, True, 0, -1.5, 10**30, "", " ", "nan", "\x1b[2J", "\ud800", "é" * 50, [], [[]], {}, [None], {"a": 1}]
VALUES += [DOC, TURN, [DOC], {"text": []}, "system", ["text", 3]]
NAMES = [
    "question",
    "answer",
    "gold_answer",
    "ctxs",
    "score",
    "role",
    "content",
    "text",
    "metadata",
    "id",
    "",
    "\n\x07",
]
BYTES = [b"", b"\n", b"\r\n", b"\xef\xbb\xbf", b"\x00", b"\xff", b"{", b"}", b"[", b"]", b'"', b",", b"\\", b"NaN"]
BYTES += [b"[" * 5000, b"\\ud800", b"1e999", b"9" * 5000, b"PAR1", b"\x1f\x8b", b"\xe2\x80\xa8", b'"question": 1, ']


def mutated_value(rng, value, depth=0):
    """Return a value with other, new, renamed or missing parts."""
    if rng.random() < 0.04 or depth > 6:
        return rng.choice(VALUES)
    if isinstance(value, dict):
        items = [(rng.choice(NAMES) if rng.random() < 0.05 else name, item) for name, item in value.items()]
        items = [(name, mutated_value(rng, item, depth + 1)) for name, item in items if rng.random() > 0.02]
        return dict(items) | ({rng.choice(NAMES): rng.choice(VALUES)} if rng.random() < 0.1 else {})
    if isinstance(value, list):
        return [mutated_value(rng, item, depth + 1) for item in value] * rng.choice([1, 1, 1, 0, 2])
    return value


def mutated_bytes(rng, data):
    """Return data with some bytes replaced, repeated or removed."""
    for _ in range(rng.randrange(4)):
        start = rng.randrange(len(data) + 1)
        data = data[:start] + rng.choice(BYTES) + data[start + rng.choice([0, 0, 1, 5, 60]) :]
    return data


def mutated_file(rng):
    """Return the ending and the content of a file of examples that may be broken."""
    rows = [mutated_value(rng, row) if rng.random() < 0.7 else row for row in rng.choices(ROWS, k=rng.randrange(1, 5))]
    options = {"indent": rng.choice([None, None, None, 2]), "ensure_ascii": rng.random() < 0.5}
    ending = rng.choice([".jsonl", ".jsonl", ".json"])
    if ending == ".json":
        text = json.dumps(rows if rng.random() < 0.9 else rows[0], **options)
    else:
        text = "\n".join(json.dumps(row, **options) for row in rows)
    return ending, mutated_bytes(rng, text.encode(errors="surrogatepass"))


def check_mutated(folder, seeds):
    """Read a mutated file for each seed, and return the number of files that are read and that are refused."""
    counts = [0, 0]
    for seed in seeds:
        rng = random.Random(seed)
        ending, content = mutated_file(rng)
        path = folder / f"x{ending}"
        path.write_bytes(content)
        options = {"gold_required": rng.random() < 0.5}
        try:
            examples, report = read_examples(path, **options)
        except InputError as error:
            counts[1] += 1
            check_text(str(error), path)
            continue
        assert isinstance(report, FileReport)
        assert all(isinstance(example, Example) and example.question.strip() for example in examples)
        assert json.dumps([asdict(example) for example in examples], ensure_ascii=False).encode()
        assert len(examples) + report.num_bad_rows == report.num_rows
        if report.is_cut or not examples:
            continue
        assert load_examples(path, max_bad_rows=report.num_bad_rows, **options) == examples
        if report.num_bad_rows:
            with pytest.raises(InputError) as caught:
                load_examples(path, max_bad_rows=report.num_bad_rows - 1, **options)
            check_text(str(caught.value), path)
            counts[1] += 1
        else:
            counts[0] += 1
    return counts


def check_text(text, path):
    """Check that a message has few printable lines, each with the file."""
    assert text.encode()
    assert len(text) < 60_000
    lines = text.splitlines()
    assert len(lines) <= 25
    assert all(line.isprintable() for line in lines), text
    assert all(line.startswith((str(path), "and ")) for line in lines), text


def test_mutated_files_give_examples_or_an_input_error(tmp_path):
    read, refused = check_mutated(tmp_path, range(400))
    assert read > 30
    assert refused > 100


@pytest.mark.slow
def test_thousands_of_mutated_files_give_examples_or_an_input_error(tmp_path):
    read, refused = check_mutated(tmp_path, range(1000, 9000))
    assert read > 500
    assert refused > 2000
