"""The table of promises: it is of this code and of these tests."""

import re

import pytest
from mutants import PROMISES, ROOT, TABLE, table


@pytest.mark.parametrize("promise", PROMISES, ids=lambda promise: promise.text)
def test_what_a_promise_rests_on_is_there(promise):
    file, _, name = promise.test.partition("::")
    assert f"def {name}" in (ROOT / "tests" / file).read_text(encoding="utf-8")
    for protection in promise.protections:
        assert (ROOT / protection.file).read_text(encoding="utf-8").count(protection.old) == 1, protection.what
        assert protection.old != protection.new


def test_the_table_is_of_these_promises():
    written = TABLE.read_text(encoding="utf-8")
    without_seconds = re.sub(r"\| \d+ \|", "| 0 |", written)
    assert without_seconds == table({promise.text: 0 for promise in PROMISES})
