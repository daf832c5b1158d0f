"""Check the data of a training run and estimate its steps and memory, without a GPU.

    python recipes/doctor.py --method swr --config path/to/save/dir/config.json --output path/to/findings.json

It accepts every flag of the training recipe that --method selects. It reads files, tokenizer and config.json, embeds
nothing and loads no weights; random passages stand in for retrieved ones. Exit status 1: problems, see --fail_on.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from rqa import cli, doctor, models, training
from rqa.errors import InputError
from rqa.terminal import write_result

PROMPT_SIZES = (
    "max_prompt_length",
    "max_passage_length",
    "max_answer_length",
    "generation_limit",
    "encoder_batch_size",
)
UNUSED_FOLDER = "unused"  # for flags of folders that a training recipe requires and writes to
DEFAULTS = {  # micro-batch, learning rate, epochs, steps between evaluations and checkpoints
    "swr": (2, 5e-6, 2, 50),
    "sft": (4, 5e-6, 2, 50),
    "fid": (4, 1e-5, 7, 100),
}


@dataclass(frozen=True)
class DoctorArgs:
    """The checks and their output."""

    method: Literal["swr", "sft", "fid"] = cli.flag("swr", "training recipe whose flags these are")
    accelerate_config: str = cli.flag("", "file of `accelerate launch`: processes, DeepSpeed, FSDP", is_path=True)
    num_processes: int | None = cli.flag(None, "devices of the run; default: those of --accelerate_config, or 1")
    sample: int = cli.flag(1000, "examples of each file, at most, that are tokenized; drawn at random")
    fail_on: Literal["problem", "warning", "never"] = cli.flag("problem", "least severity with exit status 1")
    accept: str = cli.flag("", "names of findings that do not affect the exit status, separated by commas")
    output: str = cli.flag("", "JSON file for all findings, with every place", is_path=True)

    def check(self) -> None:
        """Raise InputError for values that are not allowed."""
        cli.at_least(self, 1, "num_processes", "sample")


@dataclass(frozen=True)
class OptionalModelArgs(cli.ModelArgs):
    """The generator to train, or none."""

    def check(self) -> None:
        """Allow an empty name."""


@dataclass(frozen=True)
class AnyPromptArgs(cli.PromptArgs, cli.FidPromptArgs):
    """The prompts of a decoder or of fusion-in-decoder."""


def defaults_of(method: str) -> tuple[Any, ...]:
    """Return the defaults of a training recipe, and all flags of the other two."""
    batch, rate, epochs, every = DEFAULTS[method]
    return (
        DoctorArgs(),
        OptionalModelArgs(),
        cli.DataArgs(),
        cli.RetrievalArgs(full_dataset_index_path=UNUSED_FOLDER, embedding_max_num_to_retrieve=3),
        cli.PassageArgs(),
        AnyPromptArgs(),
        cli.OptimizationArgs(
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=8 // batch,
            learning_rate=rate,
            num_train_epochs=epochs,
        ),
        cli.RunArgs(output_dir=UNUSED_FOLDER, per_device_eval_batch_size=batch, eval_steps=every, save_steps=every),
    )


def check_foreign_flags(method: str, args: Sequence[Any]) -> None:
    """Raise InputError for flags that the recipe of `method` does not have."""
    decoder, fid = {*vars(cli.PromptArgs())}, {*vars(cli.FidPromptArgs())}
    foreign = {"swr": fid - decoder, "sft": fid - decoder | {*vars(cli.PassageArgs())}, "fid": decoder - fid}[method]
    values, defaults = cli.flat(args), cli.flat(defaults_of(method))
    if changed := sorted(name for name in foreign if values[name] != defaults[name]):
        raise InputError(f"--method {method}: expected flags of its recipe, got --{', --'.join(changed)}")


def main() -> int:
    """Check, print, write; return the exit status."""
    [first, *_] = cli.parse_args(*defaults_of("swr"))
    args = cli.parse_args(*defaults_of(first.method))
    check_foreign_flags(first.method, args)
    options, lm, files, search, mix, prompt, optim, run = args
    lm.check_beside(optim.optim, "DEEPSPEED" if optim.deepspeed else "NO")
    output = cli.check_output(options.output)
    accepted = {*options.accept.replace(",", " ").split()}
    if unknown := sorted(accepted - doctor.KINDS.keys()):
        raise InputError(f"--accept: expected names of findings, got {', '.join(unknown)}")
    launch = cli.options(options, "num_processes", "accelerate_config")
    processes, sharding = doctor.planned_sharding(**optim.accelerator_options, **launch)

    # Records
    is_sft, layout = options.method == "sft", optim.layout(processes, 0)
    retriever = replace(search, embedding_model=search.embedding_model or search.full_dataset_file_path)
    splits, findings = doctor.read_splits(*files.paths, **cli.row_options(files, retriever, prompt, is_sft=is_sft))
    corpus, corpus_findings = doctor.read_corpus(**search.corpus_options)
    sources = doctor.sources_of(options.method, splits, corpus, has_retriever=search.has_retriever)
    k = search.embedding_max_num_to_retrieve
    findings += [*corpus_findings, *doctor.record_findings(splits, sources, corpus, k)]
    num_steps = optim.num_steps(training.steps_per_epoch(len(splits["train"]), layout))
    findings.append(doctor.update_finding(num_steps, optim.loop_options(num_steps)["learning_rate"]))

    # Rows
    report: dict[str, Any] = {}
    if lm.model_name_or_path:
        texts = cli.GeneratorArgs(**vars(prompt), qa_is_fid=options.method == "fid")
        collator = models.load_collator(lm.model_name_or_path, needs_weights=False, **texts.collator_options)
        limits = (prompt.generation_limit, mix.refusal_answer, mix.gold_dropout)
        findings.append(doctor.control_token_finding(collator.builder))
        rows = {}
        for split, examples in splits.items():
            lengths = doctor.length_findings(split, examples, collator, *limits)
            sample = doctor.sample_for_rows(split, examples, lengths, options.sample, optim.seed)
            inputs = doctor.sample_inputs(split, sample, sources[split], k=k, seed=optim.seed, **mix.selection_options)
            rows[split] = collator.encode(inputs)
            findings += [*lengths, doctor.truncation_finding(split, inputs, rows[split])]
        report["tokens"] = {split: doctor.token_lengths(rows[split]) for split in splits if rows[split]}
        if rows["train"]:
            report |= doctor.estimate_training(
                rows,
                len(splits["train"]),
                models.load_config(lm.model_name_or_path, "generator"),
                layout,
                num_steps=optim.num_steps,
                **sharding,
                **cli.options(run, "per_device_eval_batch_size"),
                gradient_checkpointing=lm.gradient_checkpointing,
                lora=models.planned_adapter(lm.model_name_or_path, lm.lora),
                load_in_4bit=lm.load_in_4bit,
                **cli.options(optim, "optim", "group_by_length", "seed"),
                **cli.options(prompt, *PROMPT_SIZES),
            )

    if output:
        doctor.write_findings(output, findings, report)
    doctor.print_findings(findings, accepted)
    if report:
        doctor.print_training(report, options.sample)
    else:
        write_result("no tokens counted: --model_name_or_path is empty")
    return doctor.exit_status(findings, options.fail_on, accepted)


if __name__ == "__main__":
    cli.run_main(main)
