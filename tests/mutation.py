"""Promises, and the removal of the code that they rest on."""

import ast
import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Without:
    """A protection and its removal: `old`, which occurs once in `where`, becomes `new`.

    `where` is the qualified name of a function, class or module: "rqa.training.loop.train_steps". `old` and `new` are
    expressions or statements, compared as syntax trees; `name = value` is also a keyword argument. In `old`, `...`
    stands for any expression or body, and `...` in `new` is the same one. An empty `new` removes `old`. For a file that
    is not Python `where` is its path, and `old` and `new` are text.
    """

    protection: str
    where: str
    old: str
    new: str = ""

    @property
    def path(self) -> Path:
        """The file, relative to the project."""
        if "/" in self.where:
            return Path(self.where)
        return self._split()[0]

    def _split(self) -> tuple[Path, list[str]]:
        parts = self.where.split(".")
        for end in range(len(parts), 0, -1):
            path = Path(*parts[:end]).with_suffix(".py")
            if (ROOT / path).is_file():
                return path, parts[end:]
        raise LookupError(f"{self.where}: no such module")

    def applied(self, source: str) -> str:
        """Return the source without the protection. Raises LookupError unless `old` occurs exactly once."""
        if self.path.suffix != ".py":
            if (count := source.count(self.old)) != 1:
                raise LookupError(f"{self.where}: expected {self.old!r} once, got {count}")
            return source.replace(self.old, self.new)
        tree = ast.parse(source)
        scope: ast.AST = tree
        for name in self._split()[1]:
            named = [node for node in getattr(scope, "body", []) if getattr(node, "name", None) == name]
            if len(named) != 1:
                raise LookupError(f"{self.where}: expected one definition of {name}, got {len(named)}")
            [scope] = named
        places = list(_places(scope, _pattern(self.old)))
        if len(places) != 1:
            raise LookupError(f"{self.where}: expected {self.old!r} once, got {len(places)}")
        [(replace_by, wildcards)] = places
        replace_by(_filled(_pattern(self.new), wildcards))
        return ast.unparse(ast.fix_missing_locations(tree))


def _pattern(text: str) -> Any:
    """Return an expression, or a list of statements."""
    statements = ast.parse(text).body
    if len(statements) == 1 and isinstance(statements[0], ast.Expr):
        return statements[0].value
    return statements


def _places(scope: ast.AST, pattern: Any) -> Iterator[tuple[Callable[[Any], None], list[Any]]]:
    """Yield a function that replaces it, and the wildcards, for each occurrence of a pattern."""
    statements = pattern if isinstance(pattern, list) else [ast.Expr(pattern)]
    for parent in ast.walk(scope):
        for field, value in ast.iter_fields(parent):
            nodes = value if isinstance(value, list) else [value]
            for index, node in enumerate(nodes):
                wildcards: list[Any] = []
                if isinstance(node, ast.stmt) and _equal(statements, nodes[index : index + len(statements)], wildcards):
                    yield partial(_replace_statements, nodes, index, len(statements)), wildcards
                wildcards = []
                if isinstance(node, ast.expr) and not isinstance(parent, ast.Expr) and _equal(pattern, node, wildcards):
                    yield partial(_replace_expression, parent, field, index), wildcards
                wildcards = []
                if isinstance(node, ast.keyword) and _equal(_keyword(pattern), node, wildcards):
                    yield partial(_replace_keyword, nodes, index), wildcards


def _keyword(pattern: Any) -> Any:
    """Return the keyword argument that is written as the assignment `pattern`, or None if it is none."""
    match pattern:
        case [ast.Assign(targets=[ast.Name(id=name)], value=value)]:
            return ast.keyword(name, value)
    return None


def _replace_statements(statements: list[ast.stmt], index: int, length: int, new: Any) -> None:
    new = new if isinstance(new, list) else [ast.Expr(new)]
    statements[index : index + length] = new or [ast.Pass()]


def _replace_expression(parent: ast.AST, field: str, index: int, new: Any) -> None:
    if not isinstance(new, ast.expr):
        raise LookupError("an expression can only be replaced by an expression")
    value = getattr(parent, field)
    if isinstance(value, list):
        value[index] = new
    else:
        setattr(parent, field, new)


def _replace_keyword(keywords: list[ast.keyword], index: int, new: Any) -> None:
    keywords[index : index + 1] = [_keyword(new)] if new else []


def _equal(pattern: Any, node: Any, wildcards: list[Any]) -> bool:
    if isinstance(pattern, ast.Constant) and pattern.value is ... and isinstance(node, ast.expr):
        wildcards.append(node)
        return True
    if isinstance(pattern, list):
        if _is_any_body(pattern) and isinstance(node, list) and node and isinstance(node[0], ast.stmt):
            wildcards.append(node)
            return True
        return (
            isinstance(node, list)
            and len(pattern) == len(node)
            and all(_equal(part, other, wildcards) for part, other in zip(pattern, node, strict=True))
        )
    if isinstance(pattern, ast.AST):
        return type(pattern) is type(node) and all(
            _equal(getattr(pattern, field, None), getattr(node, field, None), wildcards)
            for field in pattern._fields
            if field not in ("ctx", "kind", "type_comment")
        )
    return bool(pattern == node)


def _is_any_body(statements: Any) -> bool:
    return (
        isinstance(statements, list)
        and len(statements) == 1
        and isinstance(statements[0], ast.Expr)
        and isinstance(statements[0].value, ast.Constant)
        and statements[0].value.value is ...
    )


def _filled(pattern: Any, wildcards: Sequence[Any]) -> Any:
    """Return a copy of `new` with its wildcards replaced, in order."""
    remaining = iter(copy.deepcopy(list(wildcards)))

    def fill(node: Any) -> Any:
        if _is_any_body(node):
            return next(remaining)
        if isinstance(node, list):
            return [fill(part) for part in node]
        if isinstance(node, ast.Constant) and node.value is ...:
            return next(remaining)
        if isinstance(node, ast.AST):
            for field, value in ast.iter_fields(node):
                setattr(node, field, fill(value))
        return node

    return fill(pattern)


class Promise:
    """A behaviour that a user can rely on, its test, and the protections that it rests on."""

    def __init__(self, text: str, test: str, *protections: Without) -> None:
        self.text, self.test, self.protections = text, test, protections
