"""parser: recipe defaults < --config < flags; other names of flags; every refusal."""

import json
from dataclasses import dataclass

import pytest

from rqa.cli.parser import at_least, check_output, flag, flat, options, parse_args, require, run_main
from rqa.cli.retrieval_args import RetrievalArgs
from rqa.errors import InputError


@dataclass(frozen=True)
class CookingArgs:
    """A group of flags."""

    heat: float = flag(1.0, "degrees", "temperature", "warmth")
    turns: int = flag(2, "number of turns")
    lid: bool = flag(True, "with a lid")
    salt: bool | None = flag(None, "with salt; default: none of both")
    herb: str | None = flag(None, "herb")
    sep: str = flag(" ", "separator")

    def check(self):
        at_least(self, 0, "turns")


def parse(*argv, default=CookingArgs(), **base):
    [parsed] = parse_args(default, argv=argv, **base)
    return parsed


# Values


def test_flags_override_the_file_and_the_file_overrides_the_recipe(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("turns: 5\nheat: 1e-4\n")  # PyYAML reads 1e-4 as a string
    assert parse(default=CookingArgs(turns=3, herb="sage")) == CookingArgs(turns=3, herb="sage")
    assert parse("--config", str(file), default=CookingArgs(turns=3, herb="sage")) == CookingArgs(1e-4, 5, herb="sage")
    assert parse("--turns", "7", "--config", str(file)) == CookingArgs(1e-4, 7)


@pytest.mark.parametrize(
    "value",
    [CookingArgs(), CookingArgs(0.5, 0, False, True, "- --x", "<|e|>\n"), CookingArgs(salt=False, herb="水")],
)
def test_a_written_config_repeats_the_values(tmp_path, value):
    (tmp_path / "config.json").write_text(json.dumps(flat([value])))
    assert parse("--config", str(tmp_path / "config.json")) == value


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (("--lid", "false"), CookingArgs(lid=False)),
        (("--lid",), CookingArgs()),
        (("--salt", "true"), CookingArgs(salt=True)),
        (("--sep", "<|end_of_turn|>"), CookingArgs(sep="<|end_of_turn|>")),
        (("--sep", " "), CookingArgs()),
        (("--no_lid",), CookingArgs(lid=False)),
        (("--salt",), CookingArgs(salt=True)),
    ],
)
def test_documented_forms_of_values(argv, expected):
    assert parse(*argv) == expected


@pytest.mark.parametrize("name", ["heat", "temperature", "warmth"])
def test_every_name_of_a_flag_sets_it(tmp_path, name):
    file = tmp_path / "c.yaml"
    file.write_text(f"{name}: 7\n")
    assert parse(f"--{name}", "7") == parse("--config", str(file)) == CookingArgs(heat=7.0)
    assert parse(f"--{name}", "8", "--config", str(file)) == CookingArgs(heat=8.0)


def test_options_are_the_named_fields():
    assert options(CookingArgs(turns=5), "turns", "lid") == {"turns": 5, "lid": True}


# The flags of an evaluation as defaults


@dataclass(frozen=True)
class QuestionArgs:
    """Flags of a recipe that takes the flags of an evaluation."""

    evaluation: str = flag("", "folder of an evaluation")
    embedding_model: str = flag("", "encoder", "encoder_name")
    model_name_or_path: str = flag("", "generator")
    qa_is_fid: bool = flag(False, "the generator is fusion-in-decoder")


@pytest.fixture
def evaluation(tmp_path):
    """A function that writes an evaluation with flags, alone or in a training run, and returns its folder."""

    def write(flags, *, name="evaluation", in_run=False):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "score.json").write_text('{"format": 2}')
        (folder.parent if in_run else folder).joinpath("config.json").write_text(json.dumps(flags))
        return str(folder)

    return write


def test_flags_override_the_flags_of_an_evaluation(evaluation):
    folder = evaluation({"embedding_model": "e5", "model_name_or_path": "m", "unknown": 1})
    expected = QuestionArgs(folder, "e5", "m")
    assert parse("--evaluation", folder, default=QuestionArgs(), base="evaluation") == expected
    argv = ("--evaluation", folder, "--encoder_name", "bge")
    assert parse(*argv, default=QuestionArgs(), base="evaluation") == QuestionArgs(folder, "bge", "m")


@pytest.mark.parametrize(("name", "has_model"), [("test", True), ("eval-000050", False)])
def test_the_test_of_a_run_has_the_exported_model(evaluation, tmp_path, name, has_model):
    flags = {"embedding_model": "e5", "model_name_or_path": "the model before training", "max_passage_length": 9}
    folder = evaluation(flags, name=name, in_run=True)
    model = str(tmp_path / "model") if has_model else ""
    expected = QuestionArgs(folder, "e5", model, qa_is_fid=True)
    assert parse("--evaluation", folder, default=QuestionArgs(), base="evaluation") == expected


@pytest.mark.parametrize(("present", "missing"), [("", "score.json"), ("score.json", "config.json")])
def test_a_folder_that_is_no_evaluation_is_refused(tmp_path, present, missing):
    folder = tmp_path / "run/test"
    folder.mkdir(parents=True)
    if present:
        (folder / present).write_text('{"format": 2}')
    with pytest.raises(InputError) as refused:
        parse("--evaluation", str(folder), default=QuestionArgs(), base="evaluation")
    for part in ("--evaluation", str(folder), missing):
        assert part in str(refused.value)


# Refusals


@pytest.mark.parametrize(
    "argv", [("--turn", "3"), ("--turns", "x"), ("--lid", "perhaps"), ("--unknown", "1"), ("stray",)]
)
def test_usage_errors_are_one_line(argv):
    with pytest.raises(InputError) as refused:
        parse(*argv)
    assert argv[0] in str(refused.value) or argv[-1] in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("turns: [1", ("c.yaml",)),
        ("- turns", ("flag: value", "list")),
        ("turn: 3\nheats: 2", ("c.yaml:1: unknown flag turn. Did you mean turns?", "c.yaml:2: unknown flag heats")),
        ("heat: 3\nwarmth: 2", ("warmth", "heat")),
    ],
)
def test_an_invalid_file_is_refused(tmp_path, content, words):
    (tmp_path / "c.yaml").write_text(content)
    with pytest.raises(InputError) as refused:
        parse("--config", str(tmp_path / "c.yaml"))
    assert all(word in str(refused.value) for word in words)


def test_a_missing_file_is_refused():
    with pytest.raises(InputError, match=r"--config absent\.yaml"):
        parse("--config", "absent.yaml")


def test_values_are_checked_after_parsing():
    with pytest.raises(InputError, match=r"--turns: .*0.*-1"):
        parse("--turns", "-1")


def test_a_required_flag_is_named_with_its_help():
    with pytest.raises(InputError, match=r"--herb.*: herb"):
        require(CookingArgs(), "turns", "herb")


def test_run_main_prints_invalid_input_and_exits_with_2(capsys):
    def main():
        raise InputError("--seed: expected a number, got a cat")

    with pytest.raises(SystemExit) as exit:
        run_main(main)
    assert exit.value.code == 2
    assert capsys.readouterr().err == "error: --seed: expected a number, got a cat\n"
    with pytest.raises(ZeroDivisionError):
        run_main(lambda: 1 / 0)


def test_two_names_of_one_flag_in_a_config_file_are_an_error(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("embedding_model_name_or_path: a\neval_embedding_model: b\n")
    with pytest.raises(InputError, match="embedding_model_name_or_path and eval_embedding_model"):
        parse_args(RetrievalArgs(), argv=["--config", str(path)])


@pytest.mark.parametrize("flag", ["--document_path", "--document-path", "--full-dataset-file-path"])
def test_aliases_have_the_spellings_of_flags(flag, tmp_path):
    (tmp_path / "c.yaml").write_text(f"{flag.removeprefix('--')}: corpus.jsonl")
    for argv in ([flag, "corpus.jsonl"], [f"{flag}=corpus.jsonl"], ["--config", str(tmp_path / "c.yaml")]):
        [args] = parse_args(RetrievalArgs(), argv=argv)
        assert args.full_dataset_file_path == "corpus.jsonl"


def test_two_names_of_one_flag_on_the_command_line_are_an_error():
    with pytest.raises(InputError, match="--heat 1 and --warmth 2"):
        parse("--heat", "1", "--warmth", "2")
    assert parse("--heat", "1", "--heat", "2") == parse("--heat", "2", "--warmth", "2") == CookingArgs(2.0)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--embeding_model", "x"), "unknown flag --embeding_model. Did you mean --embedding_model?"),
        (("--query=x",), "unknown flag --query. Did you mean --query_encoder?"),
        (("--entirely_different", "x"), "unknown flag --entirely_different"),
        (
            ("--index_factory",),
            "--index_factory: expected a value, got none. If it begins with -, write --index_factory=VALUE",
        ),
        (("--query_history", "2.5"), "--query_history: expected a whole number, got '2.5'"),
        (("stray",), "unexpected argument 'stray': expected flags, each with one value"),
    ],
)
def test_an_error_of_the_command_line_names_flag_value_and_expectation(argv, message):
    with pytest.raises(InputError) as refused:
        parse_args(RetrievalArgs(), argv=argv)
    assert str(refused.value) == message


def test_a_file_of_another_recipe_is_one_error_with_the_way_to_an_evaluation(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(flat([RetrievalArgs()])))
    with pytest.raises(InputError, match=f"--config {path}: 19 flags of another recipe, such as .* --evaluation"):
        parse("--config", str(path), default=QuestionArgs(), base="evaluation")


def test_an_output_that_cannot_be_written_is_an_error(tmp_path):
    for path in (tmp_path, "/proc/nowhere/file.json"):
        with pytest.raises(InputError, match=f"--output {path}"):
            check_output(path)
    for path in (None, "", tmp_path / "new/file.json", "/dev/null"):
        check_output(path)
