"""Architectures: every family is exact or refused; see tests/helpers/architectures.py for the comparison."""

import subprocess
import sys

import pytest
import transformers
from architectures import TABLE, compare, families
from world import ROOT, launch_environment

from rqa.models.families import UNPADDED_MODELS, UNSUPPORTED_MODELS

CLASSES = {(name, is_fid): class_name for name, is_fid, class_name in families()}


@pytest.mark.parametrize(
    ("model_type", "is_fid"),
    [
        ("bloom", False),
        ("mamba", False),
        ("qwen3_next", False),
        ("deepseek_v3", False),
        ("deepseek_v4", False),
        ("rwkv", False),
        ("led", True),
        ("nllb-moe", True),
        ("switch_transformers", True),
    ],
)
def test_a_family_equals_the_plain_computation(model_type, is_fid):
    result = compare(model_type, is_fid, CLASSES[model_type, is_fid])
    assert (result.outcome, result.reason) == ("exact", "")


@pytest.mark.parametrize(("model_type", "is_fid"), [("xlnet", False), ("prophetnet", True)])
def test_an_unsupported_family_differs_from_the_plain_computation(model_type, is_fid):
    result = compare(model_type, is_fid, CLASSES[model_type, is_fid])
    assert result.outcome == "refused"
    assert result.reason.startswith(f"{UNSUPPORTED_MODELS[model_type]} (")
    assert "another loss" in result.reason


def test_the_tables_contain_only_families_of_transformers():
    assert {name for name, _ in CLASSES} >= {*UNSUPPORTED_MODELS, *UNPADDED_MODELS}


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_family_is_exact_or_refused(tmp_path):
    """The written table has the outcome of each family, if it was written with the installed transformers."""
    command = [sys.executable, ROOT / "tests" / "helpers" / "architectures.py", "--output", tmp_path / "table.md"]
    subprocess.run(command, check=True, timeout=3600, env=launch_environment())
    rows = outcomes((tmp_path / "table.md").read_text(encoding="utf-8"))
    assert rows.keys() == {(name, "FiD" if is_fid else "decoder") for name, is_fid in CLASSES}
    assert not [row for row, outcome in rows.items() if outcome == "different"]
    written = TABLE.read_text(encoding="utf-8")
    if f"transformers {transformers.__version__}," in written:
        assert rows == outcomes(written)


def outcomes(table: str) -> dict[tuple[str, str], str]:
    """Return the outcome by model type and use."""
    cells = [[cell.strip() for cell in line.split("|")] for line in table.splitlines() if line.startswith("| ")]
    return {(name, use): outcome for _, name, _, use, outcome, *_ in cells[2:]}
