"""recipes/ask.py: answers are those of an evaluation; in a terminal they are streamed and can be stopped."""

import fcntl
import io
import json
import os
import pty
import re
import runpy
import select
import signal
import subprocess
import sys
import termios
import threading
import time
from types import SimpleNamespace

import pytest
from tiny_seq2seq import save_seq2seq
from world import ROOT, World, write_jsonl

from rqa.data.records import Example, Passage
from rqa.errors import InputError
from rqa.generation.chat import Chat, ChatQuestion
from rqa.generation.generator import Answer
from rqa.models.decoder import AnswerLM
from rqa.prompts.collators import EncodedExample
from rqa.retrieval import verification
from rqa.retrieval.retrieve import Retrieved
from rqa.retrieval.verification import Verification
from rqa.terminal import printable

QUESTIONS = ["When was the lamp of Rome lit?", "And that of Oslo\x9b1m\x7f?"]
RECIPE = str(ROOT / "recipes/ask.py")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World.make(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def flags(world):
    """Return flags for evaluation and chat."""
    return world.chat_flags(12)


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a recipe in this process; return its status, standard output and standard error."""

    def by(flags, recipe="ask.py", stdin=b""):
        monkeypatch.setattr(sys, "argv", [recipe, *(word for flag in flags.items() for word in flag)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(ROOT / "recipes" / recipe), run_name="__main__")
        return end.value.code, *capsys.readouterr()

    return by


def evaluation(run, flags, out, rows):
    """Return the predictions of recipes/evaluate.py."""
    data = write_jsonl(out.with_suffix(".jsonl"), [{"gold_answer": "?", "gold_docs": [], **row} for row in rows])
    more = {"--test_file": data, "--per_device_eval_batch_size": "1", "--output_dir": str(out)}
    status, _, err = run(flags | more, "evaluate.py")
    assert not status, err
    return [json.loads(line) for line in (out / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("kind", ["decoder", "fid"])
def test_answer_and_passages_are_those_of_an_evaluation(run, world, flags, tmp_path, kind):
    if kind == "fid":
        flags = flags | {"--model_name_or_path": save_seq2seq(tmp_path / "seq2seq"), "--qa_is_fid": "true"}
    expected = evaluation(run, flags, tmp_path / "out", [{"question": question} for question in QUESTIONS])
    for question, row in zip(QUESTIONS, expected, strict=True):
        # The other flags are those of the evaluation.
        status, out, err = run({"--evaluation": str(tmp_path / "out"), "--question": question})
        assert not status, err
        assert not re.search("[\0-\x09\x0b-\x1f\x7f-\x9f]", out)
        answer = json.loads(out)
        assert list(answer) == ["question", "answer", "finished", "passages", "seconds"]
        assert {name: answer[name] for name in ("question", "answer", "finished")} == {
            name: row[name] for name in ("question", "answer", "finished")
        }
        names = ("id", "title", "text", "sources")
        scores = [passage.pop("score") for passage in answer["passages"]]
        # The query was embedded alone here, and in a batch there: some CPUs round differently.
        assert scores == pytest.approx([passage["score"] for passage in row["passages"][:2]], rel=1e-5)
        assert answer["passages"] == [
            {"number": number, **{name: passage[name] for name in names}}
            for number, passage in enumerate(row["passages"][:2], 1)
        ]
        assert answer["seconds"].keys() == {"retrieve", "generate"}
        assert min(answer["seconds"].values()) > 0


def test_the_test_of_a_training_run_has_the_flags_of_the_run_and_its_exported_model(run, world, flags, tmp_path):
    expected = json.loads(run(flags | {"--question": QUESTIONS[0]})[1])
    for name in ("test", "eval-000004"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "score.json").write_text('{"format": 2}')
    (tmp_path / "model").symlink_to(world.model)
    config = {name.removeprefix("--"): value for name, value in flags.items()} | {"model_name_or_path": "hub/base"}
    (tmp_path / "config.json").write_text(json.dumps(config | {"learning_rate": 5e-6, "output_dir": str(tmp_path)}))
    status, out, err = run({"--evaluation": str(tmp_path / "test"), "--question": QUESTIONS[0]})
    assert not status, err
    names = ("question", "answer", "finished", "passages")
    assert {name: json.loads(out)[name] for name in names} == {name: expected[name] for name in names}
    status, _, err = run({"--evaluation": str(tmp_path / "eval-000004"), "--question": QUESTIONS[0]})
    assert status == 2
    assert "--model_name_or_path is required" in err
    (tmp_path / "config.json").write_text(json.dumps(config | {"max_passage_length": 100}))  # of recipes/fid_flan_t5.py
    _, _, err = run({"--evaluation": str(tmp_path / "test"), "--question": QUESTIONS[0]})
    assert "expected an encoder-decoder" in err


def test_no_question_is_answered_from_a_damaged_index(run, flags, tmp_path, monkeypatch):
    """The damaged block is read after everything was loaded."""
    monkeypatch.setattr(verification, "BLOCK_BYTES", 1000)
    flags = {**flags, "--full_dataset_index_path": str(tmp_path / "index"), "--question": QUESTIONS[0]}
    assert not run(flags)[0]
    [file] = (tmp_path / "index").glob("*.faiss")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    gate, wait = threading.Event(), Verification.wait
    gated = SimpleNamespace(pread=lambda *args: (not args[2] or gate.wait(30)) and os.pread(*args))
    monkeypatch.setattr(verification, "os", gated)
    monkeypatch.setattr(Verification, "wait", lambda self: (gate.set(), wait(self)))
    status, out, err = run(flags)
    assert (status, out) == (2, "")
    assert "expected the saved bytes, got damage between the bytes" in err


def test_the_lines_of_a_pipe_are_one_conversation(run, flags, tmp_path, caplog):
    first, second = QUESTIONS
    [alone] = evaluation(run, flags, tmp_path / "first", [{"question": first}])
    history = [{"speaker": "user", "message": first}, {"speaker": "assistant", "message": alone["answer"]}]
    [after] = evaluation(run, flags, tmp_path / "second", [{"question": second, "chat_history": history}])
    caplog.set_level("INFO")
    lines = f"{first}\n\n  {second} \n/new\n{first}\n/nonsense\n/quit\n{first}\n"
    status, out, err = run(flags, stdin=lines.encode())
    assert not status, err
    assert out == "".join(f"{printable(row['answer'])}\n" for row in (alone, after, alone))
    assert "/nonsense is not a command" in caplog.text


def test_the_output_of_libraries_is_not_on_the_standard_output(run, flags, monkeypatch):
    """Transformers imports DeepSpeed at the first answer, which then prints."""
    plain, loaded = AnswerLM.generate, []

    def generate(*args, **options):
        loaded or print("loaded")
        loaded.append(True)
        return plain(*args, **options)

    monkeypatch.setattr(AnswerLM, "generate", generate)
    _, out, err = run(flags | {"--question": QUESTIONS[0]})
    assert json.loads(out)["question"] == QUESTIONS[0]
    assert "loaded\n" in err


# In a terminal


# The third answer, after the warm-up and a first one, is slow enough to be stopped on any machine.
SLOW = """
import runpy, sys, time
from rqa.generation import generator

class Slow(generator.AnswerStreamer):
    made = 0

    def __init__(self, *args):
        super().__init__(*args)
        Slow.made += 1
        self.seconds = 0.1 if Slow.made == 3 else 0

    def put(self, value):
        time.sleep(self.seconds)
        super().put(value)

generator.AnswerStreamer = Slow
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def own_terminal():
    """Make the standard input the terminal of this process, where Ctrl-C works also in a shell's background job."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Terminal:
    """The recipe in its own pseudo-terminal, where `\x03` is Ctrl-C."""

    def __init__(self, flags):
        self.master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", SLOW, RECIPE, *(word for flag in flags.items() for word in flag)],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=own_terminal,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TERM": "dumb"},
        )
        os.close(slave)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.process.kill()
        self.process.wait()
        os.close(self.master)

    def press(self, keys):
        os.write(self.master, keys.encode())

    def read(self, until="\n> "):
        """Return the parts of the output up to a text, or to the end."""
        reads, end = [], time.monotonic() + 90
        while until not in "".join(reads):
            ready, _, _ = select.select([self.master], [], [], end - time.monotonic())
            assert ready, f"no {until!r} in {''.join(reads)!r}"
            try:
                reads.append(os.read(self.master, 2**16).decode(errors="replace").replace("\r\n", "\n"))
            except OSError:  # the other end is closed
                break
        return reads


def test_a_user_in_a_terminal(run, flags, tmp_path):
    """Streaming, sources, a stopped answer, a new conversation, end."""
    question = QUESTIONS[0]
    flags = flags | {"--max_new_tokens": "200"}
    _, out, _ = run(flags, stdin=f"{question}\n".encode())
    first = out.removesuffix("\n")
    _, out, _ = run(flags, stdin=f"{question}\n{question}\n/sources\n".encode())
    second, sources = out.removeprefix(f"{first}\n").split("\n[1] ")
    assert first != second
    with Terminal(flags) as terminal:
        assert "Ask a question." in "".join(terminal.read())

        terminal.press(f"{question}\n")
        reads = terminal.read()
        assert len(reads) > 5
        output = "".join(reads)
        assert output.startswith(f"{question}\n{first}\n\n[1] ")
        assert re.search(r"\n\[1\] Lamp \d+ - \w+\.html - \d\.\d{3}\n\[2\] Lamp .*\n(\(.*200.*\n)?\n> $", output)

        terminal.press("\n\n")
        assert "".join(terminal.read("\n> \n\n> ")) == "\n\n> \n\n> "

        terminal.press(f"{question}\n")
        begun = "".join(terminal.read(f"{question}\n{second[:3]}"))
        terminal.press("\x03")
        begun += "".join(terminal.read())
        assert begun.endswith("\n(stopped: not part of the conversation)\n\n> ")
        assert second not in begun

        terminal.press(f"{question}\n")
        assert f"{question}\n{second}\n\n[1] " in "".join(terminal.read())
        terminal.press("/sources\n")
        assert f"\n[1] {sources}" in "".join(terminal.read())
        terminal.press("/new\n")
        terminal.read()
        terminal.press(f"{question}\n")
        assert f"{question}\n{first}\n\n[1] " in "".join(terminal.read())

        terminal.press("\x04")
        terminal.read("never written")
        assert terminal.process.wait(60) == 0


@pytest.fixture
def scripted(monkeypatch, capsys):
    """Run a chat on a terminal with scripted lines and answers; return (question, history) pairs and the output."""
    terminal = io.TextIOWrapper(io.BytesIO())
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stdin", terminal)
    hit = Retrieved(Passage("The \x1b[31mlamp\x1b[0m."), 0.5)

    def next_of(script):
        value = next(script)
        if isinstance(value, str):
            return value
        raise value

    def by(lines, answers):
        lines, answers, questions = iter(lines), iter(answers), []

        class Scripted(Chat):
            def encode(self, question, history=()):
                questions.append((question, [turn.text for turn in history]))
                row = EncodedExample([[1]], [2], num_passages=1)
                return ChatQuestion(Example("", question, (), chat_history=history), (hit,), row, 0)

        def stream(row, show):
            show("\x1b]0;title\x07")
            return Answer(next_of(answers), 1, 1, finished=True, truncated=0, num_passages=1)

        monkeypatch.setattr("builtins.input", lambda prompt: next_of(lines))
        Scripted(None, SimpleNamespace(stream=stream), k=1).run()
        out = capsys.readouterr().out
        assert "\x1b" not in out
        return questions, out

    return by


@pytest.mark.parametrize("end", [EOFError, KeyboardInterrupt, "/quit"])
def test_ctrl_d_ctrl_c_and_quit_end_the_chat(scripted, end):
    questions, out = scripted(["a", end, "b"], ["A"])
    assert questions == [("a", [])]
    assert out.endswith("\n")


def test_stopped_answers_and_errors_are_printed_and_not_part_of_the_conversation(scripted):
    questions, out = scripted(
        ["a", "b", "/sources", "c", "d", EOFError], ["A", KeyboardInterrupt, InputError("take 9 tokens"), "D"]
    )
    assert questions == [("a", []), ("b", ["a", "A"]), ("c", ["a", "A"]), ("d", ["a", "A"])]
    assert "(stopped: " in out
    assert "(take 9 tokens)" in out
    assert "[1] The ␛[31mlamp␛[0m. - 0.500\nThe ␛[31mlamp␛[0m.\n" in out


def test_an_unknown_command_is_not_a_question_but_a_path_is(scripted, caplog):
    caplog.set_level("INFO")
    questions, _ = scripted(["/new ", "/sources", "/hlep", "/etc/hosts?", EOFError], ["A"])
    assert questions == [("/etc/hosts?", [])]
    assert "/hlep is not a command: /new " in caplog.text


# Errors


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--embedding_model": ""}, "--embedding_model is required: .* encoder"),
        ({"--model_name_or_path": ""}, "--model_name_or_path is required"),
        ({"--full_dataset_index_path": ""}, "--full_dataset_index_path is required"),
        ({"--question": " \n"}, "--question: expected text, got none"),
        ({"--question": "why " * 3000}, "error: --question: instruction, history and question take"),
        ({"--evaluation": "no/such"}, "--evaluation no/such: .* score.json"),
        ({"--per_device_eval_batch_size": "3"}, "unknown flag --per_device_eval_batch_size"),
    ],
)
def test_errors_are_printed_before_anything_is_loaded(run, flags, changes, message):
    """The encoder does not exist, and loading it would be another error."""
    status, out, err = run({**flags, "--embedding_model": "no/such/encoder", **changes})
    assert (status, out) == (2, "")
    assert re.search(message, err)


def test_a_question_that_does_not_fit_ends_a_pipe(run, flags):
    status, out, err = run(flags, stdin=("why " * 3000).encode())
    assert (status, out) == (2, "")
    assert "error: instruction, history and question take" in err


def test_more_processes_are_an_error_with_the_command_of_one(run, flags, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    status, _, err = run(flags)
    assert status == 2
    assert f"got 2. Launch with `python {RECIPE} …`" in err


def test_another_folder_is_an_error(run, tmp_path):
    (tmp_path / "score.json").write_text('{"format": 2}')
    for content in ("[1]", "{", "3"):
        (tmp_path / "config.json").write_text(content)
        status, _, err = run({"--evaluation": str(tmp_path)})
        assert status == 2
        assert f"error: --evaluation {tmp_path}: config.json: " in err
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    _, _, err = run({"--evaluation": str(tmp_path)})
    assert "--embedding_model is required" in err
