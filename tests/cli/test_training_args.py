"""What a training recipe can be told: values that cannot be, and what is derived."""

from pathlib import Path

import pytest
import yaml

from rqa.cli import data_args as inputs
from rqa.cli import training_args as config
from rqa.cli.parser import parse_configs
from rqa.errors import InputError

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("path", ["quickstart.yaml"])
def test_shipped_training_configs_fit(path):
    values = yaml.safe_load((ROOT / "recipes/configs" / path).read_text())
    configs = parse_configs(
        config.Model(),
        inputs.Retriever(),
        inputs.Retrieval(),
        inputs.Index(),
        inputs.Data(),
        inputs.Passages(),
        inputs.Prompt(),
        config.Optimization(),
        config.Run(),
        argv=["--config", str(ROOT / "recipes/configs" / path)],
    )
    resolved = {name: value for part in configs for name, value in vars(part).items()}
    assert {name: resolved[name] for name in values} == values


@pytest.mark.parametrize(
    ("concern", "argv", "message"),
    [
        (config.Model(), [], "--model_name_or_path is required"),
        (inputs.Data(), [], "--train_file is required"),
        (inputs.Passages(), ["--gold_dropout", "1.5"], "--gold_dropout: expected a share"),
        (inputs.Prompt(), ["--user_prefix", "Q"], "go together"),
        (inputs.Prompt(), ["--sep_user", "|"], "found them alone"),
        (inputs.Prompt(), ["--sep_sys", "|"], "found them alone"),
        (config.Optimization(), ["--max_steps", "0"], "--max_steps"),
        (config.Optimization(), ["--per_device_train_batch_size", "0"], "--per_device_train_batch_size"),
        (config.Optimization(), ["--max_grad_norm", "0"], "--max_grad_norm"),
        (config.Run(), [], "--output_dir is required"),
    ],
)
def test_impossible_values_name_the_flag(concern, argv, message):
    with pytest.raises(InputError, match=message):
        parse_configs(concern, argv=argv)


@pytest.mark.parametrize(("epochs", "max_steps", "expected"), [(2, -1, 20), (1.5, -1, 15), (2, 7, 7), (1, 70, 70)])
def test_number_of_updates(epochs, max_steps, expected):
    assert config.Optimization(num_train_epochs=epochs, max_steps=max_steps).num_steps(10) == expected
