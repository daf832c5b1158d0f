"""Command line: dataclasses become flags, a config file and help; `run_main` runs a recipe."""

import argparse
import dataclasses
import errno
import logging
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, TypeVar

import yaml
from transformers.hf_argparser import HfArgumentParser
from transformers.utils.logging import disable_progress_bar as disable_progress_bars

from rqa.data.jsonl import parse_object
from rqa.errors import InputError
from rqa.evaluation.results import check_format, read_object

T = TypeVar("T")


def flag(default: T, help: str, *aliases: str) -> T:
    """Return a dataclass field with a default, a help text, and other names that the flag accepts."""
    spellings = dict.fromkeys(f"--{form}" for name in aliases for form in (name, name.replace("_", "-")))
    return dataclasses.field(default=default, metadata={"help": help, "aliases": list(spellings)})


def require(args: Any, *names: str) -> None:
    """Raise InputError if one of the fields is empty."""
    for name in names:
        if not getattr(args, name):
            raise InputError(f"--{name} is required: {type(args).__dataclass_fields__[name].metadata['help']}")


def at_least(args: Any, least: float, *names: str) -> None:
    """Raise InputError if one of the fields is smaller than `least`; None is allowed."""
    for name in names:
        if (value := getattr(args, name)) is not None and not value >= least:
            raise InputError(f"--{name}: expected at least {least}, got {value}")


def check_output(output: str | Path | None) -> None:
    """Raise InputError if no file can be written at the path of --output, if it is set; create its folder."""
    if not output:
        return
    path = Path(output)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        if path.is_file() or not path.exists():  # not a device or a pipe
            TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise InputError(f"--output {path}: expected a writable file, got {error.strerror}") from error


def options(args: Any, *names: str) -> dict[str, Any]:
    """Return the named fields of `args` by name: keyword arguments of a library function."""
    return {name: getattr(args, name) for name in names}


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Print every default, and keep the line breaks of the recipe's docstring."""


def parse_args(*defaults: Any, argv: Sequence[str] | None = None, base: str = "") -> tuple[Any, ...]:
    """Return `defaults`, dataclasses, with the values of `--config FILE`, and then of the flags, in place of theirs.

    FILE is YAML or JSON: one flat object with the names of the flags or their aliases. The config.json of a run is
    one. `base` names a field that holds the folder of an evaluation: the flags of that evaluation replace the defaults
    if this recipe has them. Raises InputError, or prints a usage error and exits with status 2.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    file_parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    file_parser.add_argument("--config", type=Path, help="YAML or JSON file of flags; the command line overrides it")
    types: list[Any] = [type(args) for args in defaults]
    parser = HfArgumentParser(
        types,
        description=sys.modules["__main__"].__doc__,
        formatter_class=_HelpFormatter,
        parents=[file_parser],
        allow_abbrev=False,  # an abbreviation could select a flag that was not meant
    )
    parser.set_defaults(**flat(defaults))
    names = {
        alias.removeprefix("--"): field.name
        for args in defaults
        for field in dataclasses.fields(args)
        for alias in (field.name, *field.metadata.get("aliases", ()))
    }
    if path := file_parser.parse_known_args(argv)[0].config:
        argv = [*_flags_of_file(path, names), *argv]
    if base and (folder := getattr(parser.parse_known_args(argv)[0], base)):
        values = _flags_of_results(Path(folder), f"--{base}")
        parser.set_defaults(**{names[name]: values[name] for name in values.keys() & (names.keys() - {base})})
    *parsed, _, unknown = parser.parse_args_into_dataclasses(
        argv,
        return_remaining_strings=True,
        look_for_args_file=False,  # else transformers reads RECIPE.args in the recipe's folder
    )
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    for args in parsed:
        if check := getattr(args, "check", None):
            check()
    return tuple(parsed)


def _flags_of_file(path: Path, names: dict[str, str]) -> list[str]:
    """Return the content of a config file as flags, so that one parser checks both."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}  # JSON is YAML too
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"--config {path}: {error}") from error
    if not isinstance(values, dict):
        raise InputError(f"--config {path}: expected lines of `flag: value`, got {type(values).__name__}")
    if unknown := sorted(map(str, values.keys() - names)):
        raise InputError(f"--config {path}: unknown flags: {', '.join(unknown)}")
    first_of: dict[str, str] = {}
    for name in values:
        if (first := first_of.setdefault(names[name], name)) != name:
            raise InputError(f"--config {path}: {first} and {name} are two names of one flag. Keep one of them")
    return [f"--{name}={value}" for name, value in values.items() if value is not None]


def _flags_of_results(folder: Path, flag: str) -> dict[str, Any]:
    """Return the flags of an evaluation; the evaluations of a training run share the config.json of the run."""
    if not (folder / "score.json").is_file():
        raise InputError(f"{flag} {folder}: expected the folder of an evaluation, got one without score.json")
    check_format(read_object(folder / "score.json"), str(folder / "score.json"))
    for path in (folder / "config.json", folder.parent / "config.json"):
        if path.is_file():
            try:
                values = parse_object(path.read_bytes())
            except ValueError as problem:
                raise InputError(f"{flag} {folder}: {path.name}: {problem}") from problem
            if path.parent != folder:
                # A training run tests the model that it exports. The model of a validation is not exported.
                values["model_name_or_path"] = str(folder.parent / "model") if folder.name == "test" else ""
                values["qa_is_fid"] = "max_passage_length" in values
            return values
    raise InputError(f"{flag} {folder}: expected config.json in it or in its parent folder, got none")


def flat(parsed: Sequence[Any]) -> dict[str, Any]:
    """Return the fields of all dataclasses by name: the content of config.json, where infinity is the text "inf"."""
    values = {name: value for args in parsed for name, value in vars(args).items()}
    return {name: str(value) if value in (math.inf, -math.inf) else value for name, value in values.items()}


def run_main(main: Callable[[], int | None]) -> None:
    """Run a recipe's `main` and exit with its status; print an InputError and exit with status 2."""
    is_main = os.environ.get("RANK", "0") == "0"  # there is no accelerator yet
    logging.basicConfig(format="%(message)s", level=logging.INFO if is_main else logging.ERROR, stream=sys.stderr)
    for chatty in ("absl", "accelerate", "faiss", "httpx", "sentence_transformers"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    # Accelerate warns at every checkpoint that it saves tied weights once.
    logging.getLogger("accelerate.utils.other").setLevel(logging.ERROR)
    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        status = main()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)  # the status that shells use for SIGINT
    if accelerator := sys.modules.get("rqa.distributed.accelerator"):  # imported only if the recipe used it
        accelerator.leave_group()
    sys.exit(status)
