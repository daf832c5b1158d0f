"""The flags of a training run that the card of its model shows."""

from collections.abc import Mapping
from typing import Any

from rqa.cli.data_args import FidPromptArgs, GeneratorArgs, PassageArgs, PromptArgs
from rqa.cli.parser import flat
from rqa.cli.retrieval_args import RetrievalArgs
from rqa.cli.training_args import ModelArgs, OptimizationArgs, RunArgs
from rqa.cli.values import flags_of

OF_THE_MODEL = ("metric_for_best_model", "early_stopping_patience", "save_dtype")  # of the flags of a run
OF_A_MACHINE = ("bf16", "use_flash_attention", "device_map", "encoder_batch_size", "embedding_batch_size")


def card_facts(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return keyword arguments of `record_run`: a run's `config`, and those of its flags that are not the defaults.

    `flags` shaped the model. `usage_flags` shape prompts and retrieval, for ask.py and evaluate.py. Neither has a path.
    """
    training = (ModelArgs(), RetrievalArgs(), PassageArgs(), PromptArgs(), FidPromptArgs(), OptimizationArgs())
    of_run = [name for name in vars(RunArgs()) if name not in OF_THE_MODEL]
    is_fid = {"qa_is_fid": True} if "max_passage_length" in config else {}
    return {
        "config": config,
        "flags": _changed(config, *training, RunArgs(), without=of_run),
        "usage_flags": is_fid | _changed(config, GeneratorArgs(), RetrievalArgs(), without=OF_A_MACHINE),
    }


def _changed(config: Mapping[str, Any], *groups: Any, without: tuple[str, ...] | list[str]) -> dict[str, Any]:
    """Return the flags of `groups` in a config that differ from their defaults, without paths."""
    paths = {flag.name for group in groups for flag in flags_of(group) if flag.metadata.get("is_path")}
    defaults = {name: value for name, value in flat(groups).items() if name not in paths and name not in without}
    return {name: config[name] for name in defaults if config.get(name) not in (None, defaults[name])}
