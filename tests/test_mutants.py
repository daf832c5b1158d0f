"""The table of promises matches the code and the tests."""

import ast
import re

import pytest
from mutants import TABLE, table
from mutation import ROOT
from promises import PROMISES


def named(tree, names):
    """Return the definition at a path of names, None if there is none."""
    for name in names:
        tree = next((node for node in tree.body if getattr(node, "name", None) == name), None)
        if tree is None:
            return None
    return tree


@pytest.mark.parametrize("promise", PROMISES, ids=lambda promise: promise.text)
def test_the_test_of_a_promise_exists(promise):
    file, *names = promise.test.split("::")
    assert named(ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8")), names)


@pytest.mark.parametrize("promise", PROMISES, ids=lambda promise: promise.text)
def test_each_protection_occurs_once_and_can_be_removed(promise):
    names = [without.protection for without in promise.protections]
    assert len(set(names)) == len(names)
    for without in promise.protections:
        source = (ROOT / without.path).read_text(encoding="utf-8")
        mutated = without.applied(source)
        if without.path.suffix == ".py":
            compile(mutated, str(without.path), "exec")
            assert mutated != ast.unparse(ast.parse(source))


def test_the_table_lists_the_promises():
    written = re.sub(r"\| \d+ \|", "| 0 |", TABLE.read_text(encoding="utf-8"))
    assert written == table({promise.text: 0 for promise in PROMISES})
