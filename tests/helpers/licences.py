"""Print docs/licences.md: the packages that rqa requires, and the licences in their metadata.

python tests/helpers/licences.py > docs/licences.md
"""

import configparser
import re
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NOT_ON_CPU = {"flash-attn": "BSD-3-Clause"}  # needs CUDA to install; the licence of its repository
HEAD = """# Licences

rqa is licensed under Apache-2.0. It contains no code of the packages below, but requires them. The table is written by
`python tests/helpers/licences.py` from the metadata of the versions in `constraints.txt`.

| package | extra | licence |
|---|---|---|
"""


def requirements() -> dict[str, list[str]]:
    """Return the required packages, and the extras that require each; no extra is the library itself."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    groups = {"": config["options"]["install_requires"], **config["options.extras_require"]}
    extras: dict[str, list[str]] = {}
    for extra, lines in groups.items():
        for line in lines.split():
            if found := re.match(r"[A-Za-z][\w.-]*", line):
                extras.setdefault(found[0], []).append(extra)
    return extras


def licence(package: str) -> str:
    """Return the licence of an installed package: its expression, else its classifiers, else its text."""
    if package in NOT_ON_CPU:
        return NOT_ON_CPU[package]
    facts = metadata.metadata(package)
    if expression := facts.get("License-Expression"):
        return expression
    classified = [line.split(" :: ")[-1] for line in facts.get_all("Classifier") or () if line.startswith("License ::")]
    named = [name for name in classified if "License" in name]
    return ", ".join(named) or (facts.get("License") or "").splitlines()[0]


def page() -> str:
    """Return the text of docs/licences.md."""
    rows = sorted(requirements().items(), key=lambda row: row[0].lower())
    return HEAD + "".join(
        f"| {name} | {', '.join(filter(None, extras))} | {licence(name)} |\n" for name, extras in rows
    )


if __name__ == "__main__":
    print(page(), end="")
