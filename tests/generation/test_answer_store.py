"""AnswerStore: a generator that was killed answers what is missing, and all answers are those without a kill."""

import json
from dataclasses import replace

import pytest
from tiny_generation import INPUTS, PREFIXES, generator, language_model
from tiny_models import decoder

from rqa.errors import InputError
from rqa.generation.answers import ANSWERS_FILE
from rqa.generation.generator import Generator

BATCH_SIZE = 2
NUM_BATCHES = 5  # of the nine inputs


@pytest.fixture
def calls(monkeypatch):
    """The number of rows in each call of a model."""
    numbers, plain = [], Generator._answers
    monkeypatch.setattr(
        Generator, "_answers", lambda self, rows, *more: numbers.append(len(rows)) or plain(self, rows, *more)
    )
    return numbers


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """The answers, and the content of the file of answers, of a generator that was not killed."""
    folder = tmp_path_factory.mktemp("unbroken")
    answers = generator(language_model(), BATCH_SIZE).resumable(folder)(INPUTS)
    assert answers == generator(language_model(), BATCH_SIZE)(INPUTS)
    return answers, (folder / ANSWERS_FILE).read_bytes()


def resumed(folder, inputs=INPUTS, batch_size=BATCH_SIZE, lm=None, **options):
    made = replace(generator(lm or language_model(), batch_size), **options)
    return made.resumable(folder)(inputs)


@pytest.mark.parametrize("num_batches", range(NUM_BATCHES + 1))
@pytest.mark.parametrize("cut", [b"", b'{"settings": {"weig'])
def test_only_missing_answers_are_generated(tmp_path, unbroken, calls, num_batches, cut):
    """A kill leaves the lines of finished batches, and perhaps a part of the next."""
    answers, lines = unbroken
    kept = lines.splitlines(keepends=True)[:num_batches]
    path = tmp_path / ANSWERS_FILE
    path.write_bytes(b"".join(kept) + cut)
    ours = resumed(tmp_path)
    assert ours == answers
    assert sum(answer.is_stored for answer in ours) == sum(len(json.loads(line)["answers"]) for line in kept)
    assert len(calls) == NUM_BATCHES - num_batches
    assert path.read_bytes() == lines


def test_every_batch_is_on_the_disk_before_the_next_is_generated(tmp_path, monkeypatch, unbroken):
    plain, numbers = Generator._answers, []

    def answers(self, rows):
        path = tmp_path / ANSWERS_FILE
        numbers.append(len(path.read_bytes().splitlines()) if path.exists() else 0)
        return plain(self, rows)

    monkeypatch.setattr(Generator, "_answers", answers)
    resumed(tmp_path)
    assert numbers == [*range(NUM_BATCHES)]


@pytest.mark.parametrize(
    "change", [lambda line: line.replace(b'"num_tokens": ', b'"num_tokens": 1'), lambda line: b"x"]
)
def test_a_damaged_line_is_generated_again(tmp_path, unbroken, calls, caplog, change):
    answers, lines = unbroken
    first, *others = lines.splitlines()
    (tmp_path / ANSWERS_FILE).write_bytes(b"\n".join([change(first), *others]) + b"\n")
    assert resumed(tmp_path) == answers
    assert len(calls) == 1
    assert "1 damaged lines are ignored" in caplog.text


def other_weights():
    lm = language_model()
    lm.model.norm.weight.data[0] *= 1 + 1e-6
    return lm


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"lm": other_weights()}, "weights"),
        ({"lm": decoder(seed=1)}, "weights"),
        ({"max_new_tokens": 3}, "max_new_tokens"),
        ({"batch_size": 3}, "batch size"),
        ({"collator": generator(language_model(), 1, PREFIXES).collator}, "stop tokens"),
    ],
    ids=["a bit of a weight", "weights", "max_new_tokens", "batch size", "stop tokens"],
)
def test_answers_of_other_settings_are_kept_and_not_used(tmp_path, unbroken, calls, caplog, options, name):
    """The setting is named, and the first settings find their answers again."""
    answers, lines = unbroken
    (tmp_path / ANSWERS_FILE).write_bytes(lines)
    others = resumed(tmp_path, **options)
    assert not any(answer.is_stored for answer in others)
    assert f"9 answers are not used: they were generated with other {name}." in caplog.text
    calls.clear()
    assert resumed(tmp_path) == answers
    assert resumed(tmp_path, **options) == others
    assert not calls


def test_a_batch_with_another_prompt_is_generated_again(tmp_path, unbroken, calls):
    """In bfloat16 an answer depends on the other prompts of its batch."""
    (tmp_path / ANSWERS_FILE).write_bytes(unbroken[1])
    example = replace(INPUTS[8].example, question="Where is Turin?")
    changed = [*INPUTS[:8], replace(INPUTS[8], example=example)]
    assert resumed(tmp_path, changed) == generator(language_model(), BATCH_SIZE)(changed)
    assert calls == [2, 2, 2, 2, 2, 1]


def test_a_file_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / ANSWERS_FILE).mkdir()
    with pytest.raises((InputError, IsADirectoryError)):
        resumed(tmp_path)
