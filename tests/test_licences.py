"""The list of licences is that of the requirements; none of them restricts a work under Apache-2.0."""

import pytest
from licences import ROOT, page, requirements

# GPL and AGPL would bind whoever distributes rqa with them. MPL binds changes of its own files alone.
RESTRICTIVE = ("AGPL", "GPL", "General Public", "Proprietary", "NonCommercial", "|  |\n")


def columns(text: str) -> list[list[str]]:
    """Return package and extras of each row. Licences are left out: a new version may write the same in other words."""
    return [[cell.strip() for cell in line.split("|")[1:3]] for line in text.splitlines() if line.startswith("| ")]


def test_the_page_lists_the_requirements():
    listed = columns((ROOT / "docs/licences.md").read_text(encoding="utf-8"))
    assert listed == columns(page())
    assert len(listed) == 1 + len(requirements())


@pytest.mark.parametrize("word", RESTRICTIVE)
def test_no_licence_restricts_the_project(word):
    assert word not in page()
