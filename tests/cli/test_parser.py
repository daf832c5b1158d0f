"""Flags: recipe defaults < --config < flags, and every refusal."""

import json
from dataclasses import dataclass

import pytest

from rqa.cli.parser import at_least, cli, flag, parse_configs, write_config
from rqa.errors import InputError


@dataclass(frozen=True)
class Cooking:
    """A concern."""

    heat: float = flag(1.0, "degrees")
    turns: int = flag(2, "how often")
    lid: bool = flag(True, "with a lid")
    salt: bool | None = flag(None, "with salt; default: as it comes")
    herb: str | None = flag(None, "which herb")
    sep: str = flag(" ", "between two")

    def check(self):
        at_least(self, 0, "turns")


def parse(*argv, default=Cooking()):
    [parsed] = parse_configs(default, argv=argv)
    return parsed


def test_flags_prevail_over_the_file_and_the_file_over_the_recipe(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("turns: 5\nheat: 1e-4\n")  # which PyYAML reads as a text
    assert parse(default=Cooking(turns=3, herb="sage")) == Cooking(turns=3, herb="sage")
    assert parse("--config", str(file), default=Cooking(turns=3, herb="sage")) == Cooking(1e-4, 5, herb="sage")
    assert parse("--turns", "7", "--config", str(file)) == Cooking(1e-4, 7)


@pytest.mark.parametrize("value", [Cooking(), Cooking(0.5, 0, False, True, "- --x", "<|e|>\n"), Cooking(salt=False)])
def test_what_a_run_writes_repeats_it(tmp_path, value):
    write_config(tmp_path / "config.json", [value])
    assert parse("--config", str(tmp_path / "config.json")) == value


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (("--lid", "false"), Cooking(lid=False)),
        (("--lid",), Cooking()),
        (("--salt", "true"), Cooking(salt=True)),
        (("--sep", "<|end_of_turn|>"), Cooking(sep="<|end_of_turn|>")),
        (("--sep", " "), Cooking()),
    ],
)
def test_documented_spellings(argv, expected):
    assert parse(*argv) == expected


@pytest.mark.parametrize(
    "argv", [("--turn", "3"), ("--turns", "x"), ("--lid", "perhaps"), ("--unknown", "1"), ("stray",)]
)
def test_usage_errors_exit_with_2(argv, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(*argv)
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert argv[0] in message or argv[-1] in message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("turns: [1", "c.yaml"),
        ("- turns", "expected lines of `flag: value`, found list"),
        ("turn: 3\nheats: 2", "unknown: heats, turn"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path, content, message):
    (tmp_path / "c.yaml").write_text(content)
    with pytest.raises(InputError, match=message):
        parse("--config", str(tmp_path / "c.yaml"))


def test_an_absent_file_is_refused():
    with pytest.raises(InputError, match=r"absent\.yaml"):
        parse("--config", "absent.yaml")


def test_values_are_checked_after_parsing():
    with pytest.raises(InputError, match="--turns: expected at least 0, found -1"):
        parse("--turns", "-1")


def test_the_config_file_is_readable_json(tmp_path):
    write_config(tmp_path / "config.json", [Cooking(herb="水")])
    assert json.loads((tmp_path / "config.json").read_text())["herb"] == "水"


def test_what_the_user_can_mend_is_a_message_and_status_2(capsys):
    def main():
        raise InputError("--seed: expected a number, found a cat")

    with pytest.raises(SystemExit) as exit:
        cli(main)
    assert exit.value.code == 2
    assert capsys.readouterr().err == "error: --seed: expected a number, found a cat\n"
    with pytest.raises(ZeroDivisionError):
        cli(lambda: 1 / 0)
