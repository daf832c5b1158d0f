"""Two pages that `mkdocs build` writes from the code: reference/flags.md and reference/api.md.

A hook of MkDocs. The flags are those that each recipe passes to its parser; the names are those of the package faces.
"""

import ast
import importlib.util
import linecache
import re
import sys
from argparse import SUPPRESS
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from inspect import get_annotations
from pathlib import Path
from typing import Any, Literal, get_args, get_origin
from unittest.mock import patch

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT)]

from rqa.cli.values import Flag, flags_of  # noqa: E402

KINDS = {str: "text", int: "whole number", float: "number", bool: "true, false"}
HEAD = "| flag | values | default | meaning |\n|---|---|---|---|\n"
FLAGS_INTRODUCTION = """# Flags

Each recipe has the flags of its groups. A group of several recipes has one table, under [Groups](#groups). Names may
have `-` for `_`. `--config FILE` reads flags from YAML or JSON, and the command line overrides it. `--help` prints the
flags of a recipe with its own defaults. This page is written from the code.
"""
API_INTRODUCTION = """# Python API

The public names of each package: `from rqa.data import load_examples`. Importing a package is fast: a name loads its
module when it is first used. Other names may change without notice. This page is written from the code.
"""


def on_files(files: Any, config: Any) -> Any:
    """Add the pages to those of MkDocs."""
    from mkdocs.structure.files import File

    for name, content in (("flags", flags_page()), ("api", api_page())):
        files.append(File.generated(config, f"reference/{name}.md", content=content))
    return files


# Flags


@dataclass(frozen=True)
class Group:
    """The flags that one dataclass defines, without those of its bases, and their defaults."""

    args: type
    flags: tuple[Flag, ...]

    @property
    def title(self) -> str:
        """The first sentence of the docstring."""
        return " ".join((self.args.__doc__ or "").split("\n\n")[0].split()).rstrip(".")

    @property
    def anchor(self) -> str:
        """The target of a link to the table."""
        return f"group-{self.args.__module__}-{self.args.__name__}".lower().replace(".", "-").replace("_", "")

    def default(self, name: str) -> Any:
        """Return the default of a flag."""
        return self.args.__dataclass_fields__[name].default  # type: ignore[attr-defined]

    def table(self) -> str:
        """Return the table of the flags."""
        return HEAD + "".join(
            row(flag.names, values_of(flag), self.default(flag.name), flag.metadata["help"]) for flag in self.flags
        )


@dataclass(frozen=True)
class Recipe:
    """A recipe: the dataclasses that it passes to `parse_args`, or the actions of its own parser."""

    path: Path
    doc: str
    args: tuple[Any, ...] = ()
    actions: tuple[Any, ...] = ()

    @property
    def groups(self) -> list[Group]:
        """The groups of its flags, in the order of `--help`."""
        flags: dict[type, list[Flag]] = {}
        for args in self.args:
            for flag in flags_of(args):
                owner = next(base for base in type(args).__mro__ if flag.name in get_annotations(base))
                flags.setdefault(owner, []).append(flag)
        return [Group(owner, tuple(own)) for owner, own in flags.items()]

    def own_defaults(self) -> Iterator[tuple[str, Any]]:
        """Yield the flags, with their defaults, whose default is not that of their group."""
        defaults = {flag.name: group.default(flag.name) for group in self.groups for flag in group.flags}
        for args in self.args:
            yield from ((name, value) for name, value in vars(args).items() if value != defaults[name])


class _ParsedError(Exception):
    """Ends a recipe at its command line."""


def read_recipe(path: Path) -> Recipe:
    """Run a recipe up to its command line, and return its flags."""
    import rqa.cli

    def take_args(*defaults: Any, **_: Any) -> None:
        raise _ParsedError(defaults, ())

    def take_parser(parser: rqa.cli.Parser) -> None:
        raise _ParsedError((), tuple(parser._actions))

    with patch.object(rqa.cli, "parse_args", take_args), patch.object(rqa.cli.Parser, "parse_args", take_parser):
        spec = importlib.util.spec_from_file_location(f"recipes.{path.stem}", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # dataclasses look up their module
        spec.loader.exec_module(module)
        try:
            module.main()
        except _ParsedError as parsed:
            args, actions = parsed.args
            return Recipe(path, module.__doc__ or "", args, actions)
    raise AssertionError(f"{path}: expected a command line, got none")


def recipes() -> list[Recipe]:
    """Return all recipes by name."""
    return [read_recipe(path) for path in sorted((ROOT / "recipes").glob("*.py"))]


def flags_page() -> str:
    """Return the page of all flags."""
    every = recipes()
    uses = Counter(group.args for recipe in every for group in recipe.groups)
    shared = {group.args: group for recipe in every for group in recipe.groups if uses[group.args] > 1}
    parts = [FLAGS_INTRODUCTION, "## Recipes", *(_recipe_section(recipe, shared) for recipe in every), "## Groups"]
    parts += [f"### {group.title} {{ #{group.anchor} }}\n\n{group.table()}" for group in shared.values()]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _recipe_section(recipe: Recipe, shared: Mapping[type, Group]) -> str:
    """Return the flags of a recipe: links to shared groups, defaults of its own, tables of its own groups."""
    parts = [f"### {recipe.path.name} {{ #{recipe.path.stem} }}", _escaped(recipe.doc.strip().splitlines()[0])]
    if links := [f"[{group.title}](#{group.anchor})" for group in recipe.groups if group.args in shared]:
        parts.append("Groups:\n\n" + "\n".join(f"- {link}" for link in links))
    if own := [f"| `--{name}` | {_code(value)} |" for name, value in recipe.own_defaults()]:
        parts.append("Other defaults than those of the groups:\n\n| flag | default |\n|---|---|\n" + "\n".join(own))
    parts += [f"{group.title}:\n\n{group.table()}" for group in recipe.groups if group.args not in shared]
    if rows := list(_rows_of(recipe.actions)):
        parts.append(HEAD + "".join(rows))
    return "\n\n".join(parts)


def _rows_of(actions: Iterable[Any]) -> Iterator[str]:
    """Yield a row for each argument of a recipe with a parser of its own."""
    for action in actions:
        if action.dest == "help":
            continue
        names = [name.removeprefix("--") for name in action.option_strings]
        kind = "path" if action.type is Path else KINDS.get(action.type, "text")
        default = None if action.default == SUPPRESS else action.default
        help = (action.help or "") % {"default": default}
        yield row(names or [action.dest], kind, default, help, dashes="--" if names else "")


def row(names: Iterable[str], values: str, default: Any, help: str, dashes: str = "--") -> str:
    """Return a row of a table of flags; the first of `names` is that of config.json."""
    first, *others = (f"`{dashes}{name}`" for name in names)
    also = f"<br>also {', '.join(others)}" if others else ""
    return f"| {first}{also} | {values} | {_code(default)} | {_escaped(help)} |\n"


def values_of(flag: Flag) -> str:
    """Return the values that a flag accepts, in words."""
    if get_origin(flag.kind) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(flag.kind))
    if flag.metadata.get("is_json"):
        return "JSON object"
    kind = "path" if flag.metadata.get("is_path") else KINDS[flag.kind]
    return kind + ", or `inf`" * bool(flag.metadata.get("may_be_infinite"))


def _code(default: Any) -> str:
    """Return a default as `--help` shows it, as code; "" for none."""
    if default is None or default == "":
        return ""
    text = str(default).lower() if isinstance(default, bool) else str(default)
    return f"`{text}`" if text.strip() == text else f'`"{text}"`'


def _escaped(text: str) -> str:
    """Return text for a cell of a table, with the names of flags as code."""
    text = re.sub(r"(?<!`)--\w+", r"`\g<0>`", text)
    return text.replace("|", "\\|").replace("<", "&lt;").replace("[", "\\[")


# Names


def origins(package: Path) -> dict[str, str]:
    """Return the module that defines each public name of a package, sorted by name."""
    face = ast.parse((package / "__init__.pyi").read_text(encoding="utf-8"))
    imports = [node for node in face.body if isinstance(node, ast.ImportFrom)]
    names = {alias.name: f"rqa.{package.name}.{node.module}" for node in imports for alias in node.names}
    return dict(sorted(names.items(), key=lambda item: item[0].lower()))


def api_page() -> str:
    """Return the page of all public names: directives of mkdocstrings."""
    parts = [API_INTRODUCTION, "## rqa.errors { #rqa.errors }", _directive("rqa.errors", "InputError")]
    for face in sorted((ROOT / "rqa").glob("*/__init__.pyi")):
        package = face.parent
        doc = ast.get_docstring(ast.parse((package / "__init__.py").read_text(encoding="utf-8"))) or ""
        parts += [f"## rqa.{package.name} {{ #rqa.{package.name} }}", doc]
        # The default of a flag is a call: the page of flags has its value.
        flags = [name for name in origins(package) if package.name == "cli" and name.endswith("Args")]
        parts += ["The fields of the classes whose names end with Args are [flags](flags.md)."] if flags else []
        for name, module in origins(package).items():
            parts.append(_directive(module, name, **({"show_signature": "false"} if name in flags else {})))
    return "\n\n".join(parts) + "\n"


def _directive(module: str, name: str, **options: str) -> str:
    """Return a directive of mkdocstrings for a name."""
    options = {"heading": name, "toc_label": name, **options}
    return "\n".join([f"::: {module}.{name}", "    options:", *(f"      {key}: {options[key]}" for key in options)])


def comment_of(path: str, first: int, last: int) -> str:
    """Return the comment at the end of the lines `first` to `last`, or directly above them; "" for none."""
    lines = linecache.getlines(path)
    for number in (last, first):
        if found := re.search(r"  # (?!noqa|type:)(.*)", lines[number - 1]):
            return _sentence(found[1])
    above: list[str] = []
    for line in reversed(lines[: first - 1]):
        if not line.lstrip().startswith("# "):
            break
        above.insert(0, line.strip().removeprefix("# "))
    return _sentence(" ".join(above))


def _sentence(text: str) -> str:
    text = text.strip()
    return text[:1].upper() + text[1:] + "." * (bool(text) and text[-1] not in ".:?")
