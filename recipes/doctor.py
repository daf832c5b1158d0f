"""Look at the data of a run before an hour of a GPU is spent on it: what is wrong, what is cut, what it will take.

    python recipes/doctor.py --method swr --config path/to/save/dir/config.json --output path/to/findings.json

It takes every flag of the training recipe that --method names, and reads the files, the tokenizer and the model's
config.json: nothing is embedded, no weights are loaded, and random passages of the corpus stand in for retrieved ones.
Without --model_name_or_path nothing is counted in tokens. The exit status is 1 where there are problems: --fail_on.
"""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any, Literal

from rqa.cli import data_args as inputs
from rqa.cli import training_args as config
from rqa.cli.parser import at_least, cli, flag, flat, parse_configs, require
from rqa.distributed.deepspeed_config import precision_of, read_ds_config, reconciled
from rqa.errors import InputError
from rqa.terminal import printable

if TYPE_CHECKING:
    from rqa.doctor.checks import Finding
    from rqa.prompts.collators import EncodedExample

SEVERITIES = ("problem", "warning", "note")
SHOWN = 3  # places of a finding that are printed
NOWHERE = "nowhere"  # where the doctor writes what training would write


@dataclass(frozen=True)
class Doctor:
    """What is looked at, and what becomes of it."""

    method: Literal["swr", "sft", "fid"] = flag("swr", "the training recipe whose flags these are")
    num_processes: int = flag(1, "devices that training will run on; the estimate shards by --deepspeed alone")
    sample: int = flag(1000, "examples of each file, at most, whose rows are made and counted, drawn at random")
    fail_on: Literal["problem", "warning", "never"] = flag("problem", "the least severe that makes the exit status 1")
    accept: str = flag("", "names of findings that are known and fail nothing, with commas between them")
    output: str = flag("", "a JSON file to write all of this to, with every place")

    def check(self) -> None:
        """Raise InputError for values that cannot be."""
        at_least(self, 1, "num_processes", "sample")


@dataclass(frozen=True)
class Model(config.Model):
    """The generator, if there is one yet."""

    def check(self) -> None:
        """Take none, too."""


@dataclass(frozen=True)
class Texts(inputs.Prompt, inputs.PassagePrompt):
    """How texts are written, for a decoder or for fusion-in-decoder."""


def defaults_of(method: str) -> tuple[Any, ...]:
    """Return the defaults of a training recipe, with room for the flags of the others."""
    batch, rate, epochs, every = {"swr": (2, 5e-6, 2, 50), "sft": (4, 5e-6, 2, 50), "fid": (4, 1e-5, 7, 100)}[method]
    return (
        Doctor(),
        Model(),
        inputs.Retriever(),
        inputs.EvalRetriever(),
        inputs.Retrieval(embedding_max_num_to_retrieve=3),
        inputs.Index(),
        inputs.Data(full_dataset_index_path=NOWHERE),
        inputs.Passages(),
        Texts(),
        config.Optimization(
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=8 // batch,
            learning_rate=rate,
            num_train_epochs=epochs,
        ),
        config.Run(
            output_dir=NOWHERE, per_device_eval_batch_size=batch, logging_steps=10, eval_steps=every, save_steps=every
        ),
    )


def check_foreign(method: str, configs: Sequence[Any]) -> None:
    """Raise InputError for flags that the recipe of `method` does not have."""
    of_decoders, of_fid = ({*vars(texts)} for texts in (inputs.Prompt(), inputs.PassagePrompt()))
    of_swr, of_sft = {*vars(inputs.Retriever()), *vars(inputs.Passages())}, {*vars(inputs.EvalRetriever())}
    foreign = {
        "swr": of_sft | (of_fid - of_decoders),
        "sft": of_swr | (of_fid - of_decoders),
        "fid": of_sft | (of_decoders - of_fid),
    }[method]
    given, defaults = flat(configs), flat(defaults_of(method))
    if meant := sorted(name for name in foreign if given[name] != defaults[name]):
        raise InputError(f"--method {method}: its recipe has no --{', --'.join(meant)}")


def sharding_of(opt: config.Optimization, processes: int) -> tuple[str, Mapping[str, Any] | None]:
    """Return the precision, bfloat16 where nobody speaks of it, and how DeepSpeed spreads the run, None without it."""
    asked = "fp16" if opt.fp16 else {True: "bf16", False: "no", None: None}[opt.bf16]
    if not opt.deepspeed:
        return asked or "bf16", None
    given, where = read_ds_config(opt.deepspeed), f"--deepspeed {opt.deepspeed}"
    precision = asked or precision_of(given) or "bf16"
    flags = {"gradient_accumulation_steps": opt.gradient_accumulation_steps, **opt.launch["flags"]}
    return precision, reconciled(given, where, flags, processes=processes, precision=precision)["zero_optimization"]


def lengths(rows: "Sequence[EncodedExample]") -> dict[str, Any]:
    """Return the tokens of prompts, answers and rows: median, 95th percentile and most; and the share that was cut."""
    import numpy as np

    columns = {
        "prompt": [row.num_prompt_tokens for row in rows],
        "answer": [len(row.answer) for row in rows],
        "row": [len(row) for row in rows],
    }
    quantiles = {name: np.quantile(of, [0.5, 0.95, 1], method="higher").tolist() for name, of in columns.items()}
    cut = sum(row.cut for row in rows)
    return {"rows": len(rows), **quantiles, "cut_share": cut / (cut + sum(columns["row"]))}


def training_of(
    rows: "Sequence[EncodedExample]",
    num_examples: int,
    configs: tuple[Doctor, Model, Texts, config.Optimization],
    precision: str,
    zero: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Return what an epoch is, and what memory it takes, by `rows` of some or all of the examples."""
    from rqa.doctor.memory import forecast, training_memory
    from rqa.models.loading import load_config

    doctor, lm, prompt, opt = configs
    is_fid = doctor.method == "fid"
    plan = forecast(
        rows,
        num_examples,
        opt.layout(doctor.num_processes, 0),
        group_by_length=opt.group_by_length,
        seed=opt.seed,
        is_fid=is_fid,
        encoder_batch_size=prompt.encoder_batch_size,
    )
    prompts = max(len(row.prompts) for row in rows) * prompt.max_passage_length if is_fid else prompt.max_prompt_length
    parameters, held = training_memory(
        load_config(lm.model_name_or_path, "generator"),
        plan.largest,
        optim=opt.optim,
        precision=precision,
        accumulation=opt.gradient_accumulation_steps,
        processes=doctor.num_processes,
        zero=zero,
        gradient_checkpointing=lm.gradient_checkpointing,
        encoder_batch_size=prompt.encoder_batch_size,
    )
    epoch = {name: value for name, value in vars(plan).items() if name != "largest"}
    return {
        "epoch": {**epoch, "padded": num_examples * (prompts + prompt.max_answer_length)},
        "updates": opt.num_steps(plan.updates),
        "micro_batch": f"at most {len(plan.largest)} rows of {sum(map(len, plan.largest))} tokens at a time",
        "precision": precision,
        "parameters": parameters,
        "bytes": held,
    }


def print_findings(findings: "Sequence[Finding]", kinds: Mapping[str, tuple[str, str]], accepted: set[str]) -> None:
    """Print what was found, the worst first, and what was looked for in vain."""
    for severity in SEVERITIES:
        for name, (what, advice) in kinds.items():
            found = [each for each in findings if (each.name, each.severity) == (name, severity) and each.count]
            if found:
                print(f"{severity:8} {name}{' (accepted)' if name in accepted else ''}: {what}; {advice}")
            for each in found:
                places = "".join(f"\n             {printable(place)}" for place in each.places[:SHOWN])
                print(f"         {each.split}: {each.count} of {each.of} ({each.count / each.of:.2%}){places}")
    in_vain = {each.name for each in findings} - {each.name for each in findings if each.count}
    print(fill(f"looked for in vain: {', '.join(name for name in kinds if name in in_vain)}", 100))


def print_training(report: Mapping[str, Any], sample: int) -> None:
    """Print how long rows are, what an epoch is, and what memory it takes."""
    print(f"\nrows of {sample} examples of a file at most; random passages of a corpus stand in for what is retrieved")
    print(f"{'tokens':26}{'rows':>7}{'median':>9}{'95 %':>9}{'most':>9}")
    for split, of in report["tokens"].items():
        for part in ("prompt", "answer", "row"):
            print(f"{split + ', ' + part:26}{of['rows']:>7}" + "".join(f"{number:>9}" for number in of[part]))
        print(f"{split + ', share cut':33}{of['cut_share']:>9.2%}")
    if "epoch" not in report:
        return
    epoch, tokens = report["epoch"], report["epoch"]["tokens"]
    print(f"\nan epoch: {epoch['updates']} updates, {tokens} tokens, {epoch['targets'] / tokens:.1%} of them targets")
    print(f"in all: {report['updates']} updates")
    print(f"positions computed for each token: {epoch['positions'] / tokens:.2f}")
    print(f"the same, if all rows were padded to the longest that the flags allow: {epoch['padded'] / tokens:.2f}")
    print("\nGiB on one device: {parameters} parameters, {precision}, {micro_batch}:".format(**report))
    for name, size in report["bytes"].items():
        print(f"  {name:14}{size / 2**30:8.2f}")
    rest = "some 10 % more or less" if "activations" in report["bytes"] else "and activations, which nobody can tell"
    print(f"  {'in all':14}{sum(report['bytes'].values()) / 2**30:8.2f}, {rest}, and what the device itself takes")


def main() -> int:
    """Read, check, print, write; return the exit status."""
    [first, *_] = parse_configs(*defaults_of("swr"))
    configs = parse_configs(*defaults_of(first.method))
    check_foreign(first.method, configs)
    doctor, lm, retriever, eval_retriever, retrieval, _, data, mix, prompt, opt, _ = configs
    if retriever.embedding_model or eval_retriever.eval_embedding_model:
        require(data, "full_dataset_file_path")
    sharding = sharding_of(opt, doctor.num_processes)

    # What takes seconds to import: --help and a misspelt flag need not wait for it.
    from rqa.data.corpus import open_passages
    from rqa.data.records import load_splits
    from rqa.doctor.checks import KINDS, cut_finding, length_findings, record_findings, source_of
    from rqa.doctor.memory import readings_of
    from rqa.models.auto import collator_for

    accepted = {*doctor.accept.replace(",", " ").split()}
    if unknown := sorted(accepted - KINDS.keys()):
        raise InputError(f"--accept: expected names of findings, found {', '.join(unknown)}")

    # Records
    files = (data.train_file, data.eval_file, data.test_file)
    splits = dict(zip(("train", "eval", "test"), load_splits(*files, **prompt.speakers), strict=True))
    corpus = open_passages(data.full_dataset_file_path) if data.full_dataset_file_path else None
    encoder = retriever.embedding_model or eval_retriever.eval_embedding_model
    is_given = any(example.contexts for examples in splits.values() for example in examples)
    searched = (
        None if is_given and not encoder else corpus
    )  # without an encoder a recipe reads what comes with questions
    sources = {split: source_of(doctor.method, split, splits, searched) for split in splits}
    k = retrieval.embedding_max_num_to_retrieve
    findings = record_findings(splits, sources, corpus, k)

    # Rows
    report: dict[str, Any] = {}
    if lm.model_name_or_path:
        reading = inputs.Reader(**vars(prompt), qa_is_fid=doctor.method == "fid").reading
        collator = collator_for(lm.model_name_or_path, **reading)
        limits = (prompt.generation_limit, mix.refusal_answer, mix.gold_dropout)
        rows_of = {}
        for split, examples in splits.items():
            found = length_findings(split, examples, collator, *limits)
            long = {place for each in found if each.name == "long_prompt" for place in each.places}
            fit = [example for example in examples if example.where not in long]
            chosen = sorted(random.Random(opt.seed).sample(range(len(fit)), min(doctor.sample, len(fit))))
            readings = readings_of(split, [fit[i] for i in chosen], sources[split], k=k, seed=opt.seed, **vars(mix))
            rows_of[split] = collator.encode(readings)
            findings += [*found, cut_finding(split, readings, rows_of[split])]
        report["tokens"] = {split: lengths(rows) for split, rows in rows_of.items() if rows}
        if rows_of["train"]:
            report |= training_of(rows_of["train"], len(splits["train"]), (doctor, lm, prompt, opt), *sharding)

    findings = [each for each in findings if each.of]
    print_findings(findings, KINDS, accepted)
    if report:
        print_training(report, doctor.sample)
    else:
        print("not looked for without --model_name_or_path: what is counted in tokens")
    if doctor.output:
        told = [asdict(each) | dict(zip(("what", "advice"), KINDS[each.name], strict=True)) for each in findings]
        text = json.dumps({"findings": told, **report}, indent=2, ensure_ascii=False)
        Path(doctor.output).parent.mkdir(parents=True, exist_ok=True)
        Path(doctor.output).write_text(text + "\n", encoding="utf-8")
    failing = SEVERITIES[: SEVERITIES.index(doctor.fail_on) + 1] if doctor.fail_on != "never" else ()
    return int(any(each.count and each.severity in failing and each.name not in accepted for each in findings))


if __name__ == "__main__":
    cli(main)
