"""Flags, config file and help text, all from the fields of dataclasses; and the end of a command."""

import argparse
import dataclasses
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from transformers.hf_argparser import HfArgumentParser
from transformers.utils.logging import disable_progress_bar as disable_progress_bars

from rqa.data.jsonl import parse_object
from rqa.errors import InputError

T = TypeVar("T")


def flag(default: T, help: str) -> T:
    """Return a dataclass field with a default and a help text."""
    return dataclasses.field(default=default, metadata={"help": help})


def require(config: Any, *names: str) -> None:
    """Raise InputError where one of the fields is empty."""
    for name in names:
        if not getattr(config, name):
            help = type(config).__dataclass_fields__[name].metadata["help"]
            raise InputError(f"--{name} is required: {help}")


def at_least(config: Any, least: float, *names: str) -> None:
    """Raise InputError where one of the fields is smaller than `least`."""
    for name in names:
        if not getattr(config, name) >= least:
            raise InputError(f"--{name}: expected at least {least}, found {getattr(config, name)}")


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Print every default, and keep the line breaks of the recipe's docstring."""


def parse_configs(*defaults: Any, argv: Sequence[str] | None = None, base: str = "") -> tuple[Any, ...]:
    """Return `defaults`, dataclasses, with fields replaced by those of `--config FILE`, then by flags.

    FILE is YAML or JSON and names the same fields, flat: a run's own config.json is one. Where a folder of results is
    given as the field `base`, the flags that it came of are the defaults, those that are flags here. Raises InputError,
    or prints a usage error and exits with status 2.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    file_parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    file_parser.add_argument("--config", type=Path, help="YAML or JSON file that sets flags; those given here prevail")
    types: list[Any] = [type(config) for config in defaults]
    parser = HfArgumentParser(
        types,
        description=sys.modules["__main__"].__doc__,
        formatter_class=_HelpFormatter,
        parents=[file_parser],
        allow_abbrev=False,  # else a misspelt flag passes for another one
    )
    for config in defaults:
        parser.set_defaults(**vars(config))
    if path := file_parser.parse_known_args(argv)[0].config:
        argv = [*_flags_of(path, {name for config in defaults for name in vars(config)}), *argv]
    if base and (folder := getattr(parser.parse_known_args(argv)[0], base)):
        known = {name for config in defaults for name in vars(config)} - {base}
        was = _flags_of_results(Path(folder), f"--{base}")
        parser.set_defaults(**{name: value for name, value in was.items() if name in known})
    *configs, _, unknown = parser.parse_args_into_dataclasses(
        argv,
        return_remaining_strings=True,
        look_for_args_file=False,  # else a file RECIPE.args beside the recipe is read unasked
    )
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    for config in configs:
        if check := getattr(config, "check", None):
            check()
    return tuple(configs)


def _flags_of(path: Path, known: set[str]) -> list[str]:
    """Return the content of a config file as flags, so that both are parsed and refused alike."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}  # JSON is YAML too
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"--config {path}: {error}") from error
    if not isinstance(values, dict):
        raise InputError(f"--config {path}: expected lines of `flag: value`, found {type(values).__name__}")
    if unknown := sorted(map(str, values.keys() - known)):
        raise InputError(f"--config {path}: unknown: {', '.join(unknown)}")
    return [f"--{name}={value}" for name, value in values.items() if value is not None]


def _flags_of_results(folder: Path, flag: str) -> dict[str, Any]:
    """Return the config.json of a folder of results; an evaluation in a run came of the flags of the run."""
    if not (folder / "score.json").is_file():
        raise InputError(f"{flag} {folder}: expected the folder of an evaluation, found no score.json in it")
    for path in (folder / "config.json", folder.parent / "config.json"):
        if path.is_file():
            try:
                return parse_object(path.read_bytes())
            except ValueError as problem:
                raise InputError(f"{flag} {folder}: {path.name}: {problem}") from problem
    raise InputError(f"{flag} {folder}: expected the config.json of what was evaluated, found none")


def flat(configs: Sequence[Any]) -> dict[str, Any]:
    """Return the fields of all `configs` by name."""
    return {name: value for config in configs for name, value in vars(config).items()}


def write_config(path: Path, configs: Sequence[Any]) -> None:
    """Write resolved configs as one flat JSON file, which `--config` takes and which begins a run of its own."""
    values = flat(configs)
    values.pop("resume_from_checkpoint", None)
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def cli(main: Callable[[], int | None]) -> None:
    """Run a recipe's `main`, which returns the exit status. What the user can mend is printed; the status is then 2."""
    is_main = os.environ.get("RANK", "0") == "0"  # the accelerator, who knows better, is made later
    logging.basicConfig(format="%(message)s", level=logging.INFO if is_main else logging.ERROR, stream=sys.stderr)
    for chatty in ("absl", "accelerate", "faiss", "httpx", "sentence_transformers"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    # At every checkpoint it warns of weights that are tied, of which it saves one.
    logging.getLogger("accelerate.utils.other").setLevel(logging.ERROR)
    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        status = main()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)  # as a shell counts it
    if launch := sys.modules.get("rqa.distributed.accelerator"):  # heavy, and loaded by whoever needed it
        launch.leave_group()
    sys.exit(status)
