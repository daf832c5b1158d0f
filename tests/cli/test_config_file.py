"""Config files: texts as they were written, round trips, and one line for everything else."""

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import pytest

from rqa.atomic_files import write_json
from rqa.cli.config_file import MAX_BYTES
from rqa.cli.data_args import DataArgs, FidPromptArgs, GeneratorArgs, PassageArgs, PromptArgs
from rqa.cli.evaluation_args import EvaluationArgs
from rqa.cli.judge_args import JudgeArgs
from rqa.cli.parser import flag, flat, parse_args
from rqa.cli.retrieval_args import RetrievalArgs
from rqa.cli.training_args import ModelArgs, OptimizationArgs, RunArgs
from rqa.cli.values import flags_of
from rqa.errors import InputError
from rqa.evaluation.results import read_object

NON_UTF8 = "café\udce9"  # bytes of a path, as Python decodes them
TEXTS = [
    *"null ~ true no 010 1e5 1.10 12:30:45 2024_11_25 0x10 nan [1 { 水 - --config=x !x &a *a #c ' @ ` = ...".split(),
    *("", " ", "- a", "a: b", "a #b", "a\nb", "a\r\n", "\t", '"', "\\", "%s", "|", "---", "\U0001f600"),
    *("\0", "\x1b[31m", "\x7f", "\x85", "\x9b", "\u2028", "\ufeff"),
]
PATHS = [*(text for text in TEXTS if "\0" not in text), "~/run", "~nobody-of-this-name/x", "a/~/b", NON_UTF8]
NUMBERS = ["0", "-1", "10", "1e-4", "0.1", "1e30", "inf", "-inf", "nan", ".inf", "5e-324", "1_000", "010", "x"]
TRUTH = ["true", "false", "yes", "no", "1", "0", "on", "None", ""]


@dataclass(frozen=True)
class EveryArgs:
    """A flag of every kind."""

    text: str = flag("a", "text", "other_text")
    path: str = flag("a", "path", is_path=True)
    note: str | None = flag(None, "text or none")
    number: int = flag(3, "number")
    size: int | None = flag(None, "number or none")
    rate: float = flag(1.0, "number")
    norm: float = flag(1.0, "number", may_be_infinite=True)
    lid: bool = flag(True, "truth")
    salt: bool | None = flag(None, "truth or none")
    choice: Literal["no", "1.10"] = flag("no", "choice")
    parameters: str = flag("{}", "JSON", is_json=True)


COMMON = (DataArgs(), RetrievalArgs(), PassageArgs(), OptimizationArgs(), RunArgs())
RECIPES = {
    "every kind": (EveryArgs(),),
    "decoder": (ModelArgs(), *COMMON, PromptArgs()),
    "fid": (ModelArgs(), *COMMON, FidPromptArgs()),
    "evaluation": (EvaluationArgs(), GeneratorArgs(), RetrievalArgs(), JudgeArgs()),
}
REQUIRED = dict.fromkeys(("model_name_or_path", "train_file", "test_file", "output_dir"), "x")


def read(tmp_path, content, name="c.yaml", default=EveryArgs()):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    [args] = parse_args(default, argv=["--config", str(path)])
    return args


def texts_for(each):
    if each.metadata.get("is_path"):
        return PATHS
    return TRUTH if each.kind is bool else NUMBERS if each.kind in (int, float) else [*get_args(each.kind), *TEXTS]


# Round trip


@pytest.mark.parametrize("groups", RECIPES.values(), ids=RECIPES)
def test_a_written_config_is_read_again_for_every_value_of_every_flag(tmp_path, groups):
    path, rng = tmp_path / "config.json", random.Random(0)
    flags = [each for args in groups for each in flags_of(args)]
    required = [f"--{each.name}={REQUIRED[each.name]}" for each in flags if each.name in REQUIRED]
    accepted = set()
    for each in flags:
        texts = texts_for(each)
        for text in texts if len(groups) == 1 else rng.sample(texts, min(5, len(texts))):
            try:
                parsed = parse_args(*groups, argv=[*required, f"--{each.name}={text}"])
            except InputError:  # some flags need others, and not every text is a value
                continue
            write_json(path, flat(parsed))
            assert parse_args(*groups, argv=["--config", str(path)]) == parsed
            assert read_object(path)[each.name] == flat(parsed)[each.name]  # by the report
            accepted.add(each.name)
    assert len(accepted) > 0.6 * len(flags)


def test_random_values_together_are_read_again(tmp_path):
    rng = random.Random(0)
    for _ in range(300):
        values = {"text": rng.choice(TEXTS), "note": rng.choice([None, *TEXTS])}
        values |= {"norm": rng.choice([float("inf"), 0.1, -1e-9]), "salt": rng.choice([None, True, False])}
        [args] = parse_args(EveryArgs(**values), argv=[f"--path={rng.choice(PATHS)}"])
        write_json(tmp_path / "config.json", flat([args]))
        assert parse_args(EveryArgs(), argv=["--config", str(tmp_path / "config.json")]) == (args,)


# Texts as they were written


@pytest.mark.parametrize(
    "text", ["2024_11_25", "no", "1.10", "12:30:45", "010", "1e-4", "0x10", "yes", "0o7", "1_000", "2024-11-25", ".5"]
)
def test_a_scalar_is_the_text_that_was_written(tmp_path, text):
    assert read(tmp_path, f"text: {text}\nnote: '{text}'\n") == EveryArgs(text=text, note=text)
    assert read(tmp_path, f'{{"text": "{text}"}}', "c.json") == EveryArgs(text=text)


def test_numbers_have_the_types_of_their_flags(tmp_path):
    expected = EveryArgs(number=10, rate=1e-4, norm=float("inf"), size=7, lid=False, salt=True, choice="1.10")
    content = "number: 010\nrate: 1e-4\nnorm: .inf\nsize: 7\nlid: off\nsalt: YES\nchoice: 1.10\n"
    assert read(tmp_path, content) == expected
    content = '{"number": 10, "rate": 1e-4, "norm": "inf", "size": 7, "lid": false, "salt": true, "choice": 1.10}'
    assert read(tmp_path, content, "c.json") == expected


@pytest.mark.parametrize("null", ["", "~", "null", "Null"])
def test_null_is_no_value_and_a_quoted_null_is_text(tmp_path, null):
    content = f"note: {null}\nnumber: {null}\ntext: '{null}'\n"
    assert read(tmp_path, content, default=EveryArgs(note="x")) == EveryArgs(note=None, text=null)


def test_only_a_tilde_at_the_start_of_a_path_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/ann")
    monkeypatch.setenv("ANN", "x")
    for text, path in [("~/run", "/home/ann/run"), ("$ANN/*", "$ANN/*"), ("a/~", "a/~"), ("./~/b/", "./~/b/")]:
        expected = EveryArgs(text=text, path=path)
        assert read(tmp_path, f"path: {text}\ntext: {text}\n") == expected
        [args] = parse_args(EveryArgs(), argv=[f"--path={text}", f"--text={text}"])
        assert args == expected


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ("parameters: {a: no, b: 1e-4, c: [~, true, '1']}", "c.yaml"),
        ("parameters:\n  a: no\n  b: 1e-4\n  c:\n  - ~\n  - true\n  - '1'\n", "c.yaml"),
        ('{"parameters": {"a": "no", "b": 1e-4, "c": [null, true, "1"]}}', "c.json"),
        (r"""parameters: '{"a": "no", "b": 0.0001, "c": [null, true, "1"]}'""", "c.yaml"),
    ],
)
def test_a_json_flag_may_be_an_object(tmp_path, content, name):
    expected = {"a": "no", "b": 1e-4, "c": [None, True, "1"]}
    assert json.loads(read(tmp_path, content, name).parameters) == expected


# Refusals


@pytest.mark.parametrize(
    ("content", "name", "words"),
    [
        ("text: a\ntext: b", "c.yaml", ("c.yaml:2: text",)),
        ("text: a\ntext: a", "c.yaml", ("c.yaml:2: text",)),
        ("other-text: a\nother_text: b", "c.yaml", ("c.yaml:2", "other-text and other_text")),
        ("parameters:\n  a: 1\n  b: {a: 1, a: 2}", "c.yaml", ("c.yaml:1: parameters", "a is set twice", "line 3")),
        ('{"text": "a", "text": "b"}', "c.json", ("c.json", '"text" appears twice')),
        ('{"parameters": {"a": 1, "a": 1}}', "c.json", ("c.json", '"a" appears twice')),
        ("number: 1\ntext: [a, b]", "c.yaml", ("c.yaml:2: text", '["a", "b"]')),
        ("lid: {a: 1}", "c.yaml", ("c.yaml:1: lid", '{"a": 1}')),
        ('{"text": [1]}', "c.json", ("c.json: text", "[1]")),
        ("number: 12:30", "c.yaml", ("c.yaml:1: number", "whole number", "12:30")),
        ("number: 0x10", "c.yaml", ("c.yaml:1: number", "0x10")),
        ("rate: nan", "c.yaml", ("c.yaml:1: rate", "finite", "nan")),
        ("rate: inf", "c.yaml", ("c.yaml:1: rate", "finite", "inf")),
        ("lid: maybe", "c.yaml", ("c.yaml:1: lid", "true or false", "maybe")),
        ("choice: maybe", "c.yaml", ("c.yaml:1: choice", "no, 1.10", "maybe")),
        ("text: !x y", "c.yaml", ("c.yaml:1: text", "!x")),
        ('path: "a\\0b"', "c.yaml", ("c.yaml:1: path", "NUL")),
        (b'{"text": "\\udce9"}', "c.json", ("c.json: text", "UTF-8")),
        ("a: &x [1]\nparameters: [*x, *x]", "c.yaml", ("c.yaml:2: parameters", "alias")),
        ("parameters: &a [*a]", "c.yaml", ("c.yaml:1: parameters", "alias")),
        ("text: 'a\nnumber: 1", "c.yaml", ("c.yaml:2:10", "not YAML", "end of stream")),
        ("\ttext: a", "c.yaml", ("c.yaml:1:1", "not YAML")),
        ("text: \x07", "c.yaml", ("c.yaml", "not YAML", "#x0007")),
        ('text: "\\U00110000"', "c.yaml", ("c.yaml", "not YAML")),
        ("a: " + "[" * 5000, "c.yaml", ("c.yaml", "nested too deeply")),
        ('{"text": ' + "[" * 200_000, "c.json", ("c.json", "nested too deeply")),
        ('{"text": NaN}', "c.json", ("c.json", "NaN")),
        ('{"text": "a",}', "c.json", ("c.json", "column 1")),
        ("", "c.yaml", ("c.yaml", "empty")),
        ("\ufeff \n", "c.json", ("c.json", "empty")),
        ("# text: a", "c.yaml", ("c.yaml", "flag: value")),
        ("text: é".encode("latin-1"), "c.yaml", ("c.yaml", "UTF-8", "byte 7")),
        ("text: a".encode("utf-16"), "c.yaml", ("c.yaml", "UTF-8", "byte 1")),
        (b"#" * (MAX_BYTES + 1), "c.yaml", ("c.yaml", str(MAX_BYTES))),
    ],
)
def test_another_file_is_one_line(tmp_path, content, name, words):
    with pytest.raises(InputError) as refused:
        read(tmp_path, content, name)
    message = str(refused.value)
    assert "\n" not in message
    assert all(word in message for word in (f"--config {tmp_path}", *words)), message


@pytest.mark.parametrize(
    ("path", "problem"), [("/", "directory"), ("/dev/zero", str(MAX_BYTES)), ("no.yaml", "No such file")]
)
def test_a_path_that_is_no_config_file_is_one_line(path, problem):
    with pytest.raises(InputError, match=f"--config {Path(path)}: .*{problem}"):
        parse_args(EveryArgs(), argv=["--config", path])


def test_a_mark_for_byte_order_is_allowed(tmp_path):
    assert read(tmp_path, "\ufefftext: b") == read(tmp_path, '\ufeff{"text": "b"}', "c.json") == EveryArgs(text="b")


def test_mutated_files_are_read_or_refused(tmp_path):
    """No other exception, and no message of several lines."""
    rng = random.Random(0)
    seeds = [
        "text: no\nnumber: 010\nparameters:\n  a: [1, 'b', \"c\\n\"]\n",
        "text: |\n  a\nnote: &x y\nother-text: *x\n",
    ]
    parts = ["[" * 300, "- ", "\n", "\t", "&a ", "*a", "!!", "<<", "\0", "\x85", *'[]{}:|"\\~%@']
    for _ in range(1000):
        content = rng.choice(seeds).encode()
        for _ in range(rng.randint(1, 4)):
            at = rng.randint(0, len(content))
            part = rng.choice(parts).encode() if rng.random() < 0.7 else bytes([rng.randrange(256)])
            content = content[:at] + part + content[at + rng.randint(0, 3) :]
        try:
            read(tmp_path, content, rng.choice(["c.yaml", "c.json"]))
        except InputError as refused:
            message = str(refused)
            if "\n" in message:
                raise
