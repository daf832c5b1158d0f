"""Runs of a training recipe by one or two processes, plain or sharded, and the comparison of two runs."""

import json
import re

import pytest
import torch
import yaml
from safetensors.torch import load_file
from world import ACCELERATE_LAUNCH, CRASH, FSDP_ON_CPU, ROOT, launch, read_jsonl

FSDP_CONFIG = yaml.safe_load((ROOT / "recipes/configs/accelerate_fsdp2.yaml").read_text())


def flags_of(world, out, **more):
    """Return the flags of a short run with evaluations and checkpoints, with `more` flags by name."""
    flags = {
        "--model_name_or_path": world.model,
        "--embedding_model": world.encoder,
        "--embedding_max_num_to_retrieve": "2",
        "--per_device_train_batch_size": "1",
        "--gradient_accumulation_steps": "2",
        "--num_train_epochs": "2",
        "--learning_rate": "1e-3",
        "--max_grad_norm": "0.3",
        "--eval_steps": "3",
        "--save_steps": "3",
        "--bf16": "false",
        "--max_new_tokens": "6",
        "--output_dir": str(out),
        **world.data,
    }
    return flags | {f"--{name}": value for name, value in more.items()}


def zero_config(folder, stage, **more):
    """Write a DeepSpeed file for a ZeRO stage and return its path."""
    path = folder / f"zero{stage}.json"
    zero = {"stage": stage, "reduce_bucket_size": "auto"} | more
    path.write_text(json.dumps({"zero_optimization": zero, "gradient_clipping": "auto", "bf16": {"enabled": "auto"}}))
    return path


def fsdp_launcher(folder, layer):
    """Return the command that launches two FSDP2 processes by the shipped configuration, in float32."""
    config = FSDP_CONFIG | {"num_processes": 2, "mixed_precision": "no"}
    config["fsdp_config"] = config["fsdp_config"] | {"fsdp_transformer_layer_cls_to_wrap": layer}
    path = folder / "accelerate.yaml"
    path.write_text(yaml.safe_dump(config))
    return *ACCELERATE_LAUNCH, "--config_file", str(path), FSDP_ON_CPU


def run_until(recipe, flags, by, touches=0):
    """Run a recipe and kill it at a touch of its output folder, 0: never; return the number of touches if it ended."""
    by = (*by, CRASH, flags["--output_dir"], str(touches))
    printed = launch(recipe, flags, by=by, expect=None if touches else 0)
    return 0 if touches else len(re.search(r"touched: (.*)", printed)[1].split())


def outcome(out):
    """Return the files that two runs with the same flags have in common, byte for byte."""
    return {path.name: path.read_bytes() for path in (out / "metrics.jsonl", weights_file(out))}


def weights_file(out):
    """Return the exported weights of a run, those of a model or of an adapter."""
    [path] = (out / "model").glob("*.safetensors")
    return path


def assert_same_run(out, expected):
    """Assert that losses, rates, scores, retrieved passages, answers and weights are equal up to rounding."""
    for row, expected_row in zip(*(read_jsonl(o / "metrics.jsonl") for o in (out, expected)), strict=True):
        assert row.pop("evaluation", "") == expected_row.pop("evaluation", "")
        assert row == pytest.approx(expected_row, rel=3e-4)
    for row, expected_row in zip(*(read_jsonl(o / "test/predictions.jsonl") for o in (out, expected)), strict=True):
        assert (row["answer"], row["passages"]) == (expected_row["answer"], expected_row["passages"])
    trained, expected_weights = (load_file(weights_file(o)) for o in (out, expected))
    assert trained.keys() == expected_weights.keys()
    for name, tensor in expected_weights.items():
        if ".lora_" in name:  # Adam changes a weight whose gradient is near zero by its rounding, scaled to the rate
            assert (trained[name] - tensor).norm() <= 3e-3 * tensor.norm(), name
        else:
            torch.testing.assert_close(trained[name], tensor, rtol=3e-3, atol=3e-4)
