"""Command line: dataclasses become flags, a config file and help; `run_main` runs a recipe."""

import argparse
import dataclasses
import errno
import logging
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Literal, NoReturn, TypeVar, get_args, get_origin

from rqa.cli.config_file import Entry, read_config
from rqa.cli.values import Flag, flags_of, path_of
from rqa.errors import InputError
from rqa.evaluation.results import check_format, read_object
from rqa.terminal import printable, results_on_stdout, stdout_as_file, write_result

T = TypeVar("T")

STDOUT_PATHS = ("/dev/stdout", "/dev/fd/1", "/proc/self/fd/1")
MAX_UNKNOWN = 3  # flags of a file that are named as misspelt; a file with more is of another recipe
LEAST_LIKENESS = 0.75  # of a name that is suggested in place of an unknown one, by difflib
# Parts of argparse's messages, and their replacements. A flag with several names is written --first/--second.
MESSAGES = (
    (r"^argument ([^/:]*)[^:]*", r"\1"),
    (r"^(.*): expected one argument", r"\1: expected a value, got none. If it begins with -, write \1=VALUE"),
    ("invalid int value:", "expected a whole number, got"),
    (r"^the following arguments are required: (.*)", r"\1: expected a value, got none"),
)


def flag(default: T, help: str, *aliases: str, **kinds: Literal[True]) -> T:
    """Return a dataclass field with a default, a help text, and other names that the flag accepts.

    Of `kinds`, is_path expands `~`, may_be_infinite accepts "inf", and is_json accepts an object in a config file.
    """
    return dataclasses.field(default=default, metadata={"help": help, "aliases": aliases, **kinds})


def require(args: Any, *names: str) -> None:
    """Raise InputError if one of the fields is empty."""
    for name in names:
        if not getattr(args, name):
            help = type(args).__dataclass_fields__[name].metadata["help"]
            raise InputError(f"--{name} is required: {help.partition('; empty:')[0]}")


def require_package(flag: str, package: str, extra: str) -> None:
    """Raise InputError if the package that a flag needs is not installed; an extra of rqa installs it."""
    if find_spec(package) is None:
        raise InputError(f'{flag}: the package {package} is not installed. Run `pip install ".[{extra}]"`')


def changed_flags(args: Any) -> list[str]:
    """Return the names of the flags of a group that differ from their defaults."""
    default = type(args)()
    return [name for name, value in vars(args).items() if value != getattr(default, name)]


def at_least(args: Any, least: float, *names: str) -> None:
    """Raise InputError if one of the fields is smaller than `least`; None is allowed."""
    for name in names:
        if (value := getattr(args, name)) is not None and not value >= least:
            raise InputError(f"--{name}: expected at least {least}, got {value}")


def check_output(output: str | Path | None) -> Path | None:
    """Return the path of --output, if it is set; create its folder. Raises InputError if no file can be written there.

    If the path is the standard output, results go to the standard error.
    """
    if not output:
        return None
    path = Path(output).expanduser()
    if str(path) in STDOUT_PATHS:
        return stdout_as_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        if path.is_file() or not path.exists():  # not a device or a pipe
            TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise InputError(f"--output {path}: expected a writable file, got {error.strerror}") from error
    return path


def options(args: Any, *names: str) -> dict[str, Any]:
    """Return the named fields of `args` by name: keyword arguments of a library function."""
    return {name: getattr(args, name) for name in names}


def flat(parsed: Sequence[Any]) -> dict[str, Any]:
    """Return the fields of all dataclasses by name: the content of config.json, where infinity is the text "inf"."""
    values = {name: value for args in parsed for name, value in vars(args).items()}
    return {name: str(value) if value in (math.inf, -math.inf) else value for name, value in values.items()}


# The command line


class Parser(argparse.ArgumentParser):
    """An argument parser that raises InputErrors; its help is the docstring of the recipe.

    The words of a flag are joined by `_` or `-`. A flag cannot be abbreviated: another one could be meant.
    """

    def __init__(self) -> None:
        formatter = argparse.RawDescriptionHelpFormatter
        super().__init__(description=sys.modules["__main__"].__doc__, formatter_class=formatter, allow_abbrev=False)
        self.color = False  # of Python 3.14: `write_result` replaces control characters

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """Return the values. Raises InputError."""
        words = list(sys.argv[1:] if args is None else args)
        end = words.index("--") if "--" in words else len(words)
        namespace, unknown = self.parse_known_args([*map(_underscored, words[:end]), *words[end:]], namespace)
        for name in sorted(unknown, key=lambda word: not word.startswith("-")):  # flags before their values
            if not name.startswith("-"):
                raise InputError(f"unexpected argument {name!r}: expected flags, each with one value")
            name = name.partition("=")[0]
            names = [option for action in self._actions for option in action.option_strings]
            raise InputError(unknown_flag(name, names))
        return namespace

    def error(self, message: str) -> NoReturn:
        """Raise InputError in place of argparse's usage of all flags."""
        for pattern, replacement in MESSAGES:
            message = re.sub(pattern, replacement, message)
        raise InputError(message)

    def print_help(self, file: object = None) -> None:  # noqa: ARG002
        """Write the help to the standard output."""
        write_result(self.format_help(), end="")


def _underscored(word: str) -> str:
    """Return a word of the command line; --learning-rate becomes --learning_rate."""
    name, equals, value = word.partition("=")
    return f"--{name[2:].replace('-', '_')}{equals}{value}" if name.startswith("--") else word


def unknown_flag(name: str, names: Iterable[str]) -> str:
    """Return the message about an unknown flag, with the most similar of `names`."""
    longer = [other for other in names if other.startswith(name)]
    similar = longer or get_close_matches(name, names, 1, LEAST_LIKENESS)
    return f"unknown flag {name}" + "".join(f". Did you mean {other}?" for other in similar[:1])


class _Collect(argparse.Action):
    """Appends the field, the flag as it was written, and its text to the list `collected`."""

    def __call__(self, _parser: object, namespace: Any, values: Any, option: str | None = None) -> None:
        namespace.collected.append((self.dest, option, self.const if values == [] else values))


def parse_args(*defaults: Any, argv: Sequence[str] | None = None, base: str = "") -> tuple[Any, ...]:
    """Return `defaults`, dataclasses, with the values of `--config FILE`, and then of the flags, in place of theirs.

    FILE is YAML or JSON: one flat object with the names of the flags or their aliases. The config.json of a run is
    one. `base` names a field that holds the folder of an evaluation: the flags of that evaluation replace the defaults
    if this recipe has them. Raises InputError.
    """
    flags = [flag for args in defaults for flag in flags_of(args)]
    names = {name: flag for flag in flags for name in flag.names}
    entries = _collected(_parser_of(flags, flat(defaults)), argv)
    if config := entries.pop("config", None):
        entries = _flags_of_file(Path(path_of(str(config.text))), names, base) | entries
    if base and (folder := entries.get(base)):
        entries = _flags_of_results(Path(names[base].value(folder)), f"--{base}", names) | entries
    values = {name: names[name].value(entry) for name, entry in entries.items()}
    parsed = [
        dataclasses.replace(args, **{name: value for name, value in values.items() if name in vars(args)})
        for args in defaults
    ]
    for args in parsed:
        if check := getattr(args, "check", None):
            check()
    return tuple(parsed)


def _parser_of(flags: Sequence[Flag], defaults: Mapping[str, Any]) -> Parser:
    parser = Parser()
    collect: dict[str, Any] = {"action": _Collect, "default": argparse.SUPPRESS}
    parser.add_argument(
        "--config", metavar="FILE", help="YAML or JSON file of flags; the command line overrides it", **collect
    )
    for flag in flags:
        default, help = defaults[flag.name], flag.metadata["help"]
        if default not in (None, ""):
            help += f" (default: {str(default).lower() if flag.kind is bool else default})"
        collect |= {"dest": flag.name, "help": help.replace("%", "%%")}
        options = [f"--{name}" for name in flag.names]
        if flag.kind is bool:  # the flag alone is true
            parser.add_argument(*options, nargs="?", const="true", **collect)
            if default is True:
                parser.add_argument(f"--no_{flag.name}", nargs=0, const="false", **collect)
        else:
            choices = get_args(flag.kind) if get_origin(flag.kind) is Literal else ()
            parser.add_argument(*options, metavar=f"{{{','.join(choices)}}}" if choices else None, **collect)
    return parser


def _collected(parser: Parser, argv: Sequence[str] | None) -> dict[str, Entry]:
    """Return the flags on the command line. Of one flag with two values, the last is used if the name is the same."""
    first: dict[str, tuple[str, str]] = {}
    entries: dict[str, Entry] = {}
    for name, option, text in parser.parse_args(argv, argparse.Namespace(collected=[])).collected:
        first_option, first_text = first.setdefault(name, (option, text))
        if option != first_option and text != first_text:
            both = f"{first_option} {first_text} and {option} {text}"
            raise InputError(f"{both}: expected one value, got two of one flag. Remove one of them")
        entries[name] = Entry(option, text)
    return entries


def _flags_of_file(path: Path, names: Mapping[str, Flag], base: str) -> dict[str, Entry]:
    """Return the entries of a config file by the names of their fields."""
    entries: dict[str, Entry] = {}
    keys: dict[str, str] = {}
    unknown: dict[str, Entry] = {}
    for key, entry in read_config(path, f"--config {path}"):
        flag = names.get(key.replace("-", "_"))
        if flag is None:
            unknown[key] = entry
        elif first := keys.get(flag.name):
            both = "" if first == key else f", by {first} and {key}"
            raise InputError(f"{entry.where}: expected one value, got two{both}. Keep one of them")
        else:
            keys[flag.name] = key
            entries[flag.name] = entry
    if len(unknown) > MAX_UNKNOWN:
        fix = f"Set --{base} to the folder of an evaluation, to use its flags" if base else "Remove them"
        some = ", ".join([*unknown][:MAX_UNKNOWN])
        raise InputError(f"--config {path}: {len(unknown)} flags of another recipe, such as {some}. {fix}")
    if unknown:
        problems = (
            f"{entry.where.removesuffix(key)}{unknown_flag(key.replace('-', '_'), names)}"
            for key, entry in unknown.items()
        )
        raise InputError("; ".join(problems))
    return _without_unset(entries, names)


def _without_unset(entries: Mapping[str, Entry], names: Mapping[str, Flag]) -> dict[str, Entry]:
    """Return the entries without those of null, which is a value of optional flags alone."""
    return {name: entry for name, entry in entries.items() if entry.text is not None or names[name].is_optional}


def _flags_of_results(folder: Path, flag: str, names: Mapping[str, Flag]) -> dict[str, Entry]:
    """Return the flags of an evaluation; the evaluations of a training run share the config.json of the run."""
    if not (folder / "score.json").is_file():
        raise InputError(f"{flag} {folder}: expected the folder of an evaluation, got one without score.json")
    check_format(read_object(folder / "score.json"), str(folder / "score.json"))
    for path in (folder / "config.json", folder.parent / "config.json"):
        if path.is_file():
            entries = dict(read_config(path, f"{flag} {folder}: {path.name}"))
            if path.parent != folder:
                # A training run tests the model that it exports. The model of a validation is not exported.
                model = str(folder.parent / "model") if folder.name == "test" else ""
                is_fid = "true" if "max_passage_length" in entries else "false"
                entries |= {"model_name_or_path": Entry(flag, model), "qa_is_fid": Entry(flag, is_fid)}
            return _without_unset({name: entry for name, entry in entries.items() if name in names}, names)
    raise InputError(f"{flag} {folder}: expected config.json in it or in its parent folder, got none")


# Recipes


def run_main(main: Callable[[], int | None]) -> None:
    """Run a recipe's `main` and exit with its status; print an InputError in one line and exit with status 2.

    The standard output has only `write_result`; everything that libraries print goes to the standard error.
    """
    with results_on_stdout():
        _quiet_libraries()
        try:
            status = main()
        except InputError as error:
            _print_error(error)
            sys.exit(2)
        except FloatingPointError as error:  # of the training loop, on all ranks
            _print_error(error)
            status = 1
        except KeyboardInterrupt:
            sys.exit(130)  # the status that shells use for SIGINT
        if accelerator := sys.modules.get("rqa.distributed.accelerator"):  # imported only if the recipe used it
            accelerator.leave_group()
        sys.exit(status)


def _print_error(error: Exception) -> None:
    sys.stderr.write(f"error: {printable(str(error))}\n")


def _quiet_libraries() -> None:
    """Log to the standard error: on rank 0 with INFO, on others errors alone; of libraries fewer lines."""
    is_main = os.environ.get("RANK", "0") == "0"  # there is no accelerator yet
    logging.basicConfig(format="%(message)s", level=logging.INFO if is_main else logging.ERROR, stream=sys.stderr)
    for chatty in ("absl", "accelerate", "faiss", "httpx", "httpx2", "sentence_transformers"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    # Accelerate warns at every checkpoint that it saves tied weights once.
    logging.getLogger("accelerate.utils.other").setLevel(logging.ERROR)
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # transformers has none then, either
