"""The training steps of recipes/retriever_contrastive.py on two processes, and of one process that accumulates."""

import json
import shutil
from pathlib import Path

import pytest
from world import launch, read_jsonl, torchrun

BY_TWO = ("env", "ACCELERATE_USE_CPU=true", *torchrun(2))


def assert_two_processes_equal_two_micro_batches(encoder: str, flags: dict[str, str], folder: Path) -> list[dict]:
    """Train both ways with batches of 3, without dropout, and return the steps of the one process."""
    own = {**flags, "--embedding_model": without_dropout(encoder, folder), "--per_device_train_batch_size": "3"}
    launch("retriever_contrastive.py", {**own, "--output_dir": str(folder / "two")}, by=BY_TWO)
    accumulated = {"--output_dir": str(folder / "one"), "--gradient_accumulation_steps": "2"}
    launch("retriever_contrastive.py", {**own, **accumulated})
    two, one = (read_jsonl(folder / name / "metrics.jsonl") for name in ("two", "one"))
    assert len(two) == len(one) > 1
    for a, b in zip(two, one, strict=True):
        assert (a["loss"], a["gradient_norm"]) == pytest.approx((b["loss"], b["gradient_norm"]), rel=1e-4)
    return one


def without_dropout(checkpoint: str, folder: Path) -> str:
    """Return a copy of an encoder that draws no random numbers."""
    shutil.copytree(checkpoint, folder / "encoder")
    config = folder / "encoder/config.json"
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config.write_text(json.dumps(json.loads(config.read_text()) | off))
    return str(folder / "encoder")
