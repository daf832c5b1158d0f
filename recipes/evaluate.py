"""Evaluate a trained generator, or a retriever alone: Recall@k; BLEU, ROUGE, EM, F1, GPT-4's verdicts; runtime.

    accelerate launch recipes/evaluate.py --qa_model_name_or_path path/to/save/dir/model \\
        --embedding_model_name_or_path checkpoint/to/retriever/model \\
        --document_path path/to/document.pkl --index_path path/to/index/dir/of/document \\
        --eval_data_path path/to/test_w_qa.jsonl --output_dir path/to/evaluation

Without --qa_model_name_or_path the retriever alone is scored; without --embedding_model_name_or_path the generator
reads the passages that the questions bring ("ctxs"), or where none does the gold passages. Writes score.json,
predictions.jsonl, config.json and report.html; with --context_report contexts.json, with --gen_gpt4eval judge.jsonl.
"""

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from rqa.cli import data_args as inputs
from rqa.cli.parser import at_least, cli, flag, parse_configs, require, write_config
from rqa.data.passage_selection import REFUSAL_ANSWER
from rqa.errors import InputError


@dataclass(frozen=True)
class Evaluation:
    """What is evaluated, on what."""

    embedding_model_name_or_path: str = flag("", "checkpoint folder or hub name of the sentence encoder")
    document_path: str = flag("", "the corpus of passages: .jsonl, .jsonl.gz or LocalRQA's document.pkl")
    index_path: str = flag("", "folder of the corpus' index; built there when it does not exist")
    eval_data_path: str = flag("", "examples: .jsonl, .jsonl.gz or .json")
    output_dir: str = flag("", "new folder for the scores and the predictions")
    refusal_answer: str = flag(REFUSAL_ANSWER, "the reference of examples that are unanswerable or have no answer")
    batch_size: int = flag(8, "questions answered at a time on one device")
    context_report: bool = flag(
        False, "answer from gold, retrieved, distracting and no passages as well, and tell what each context does"
    )
    gen_gpt4eval: bool = flag(False, "judge the answers, as the flags --judge_... say, by GPT-4 or any other model")
    attribution: Literal["none", "cross_attention", "leave_one_out", "both"] = flag(
        "none",
        "what each answer rests on, passage by passage: the attention of fusion-in-decoder, or its loss without one",
    )

    def check(self) -> None:
        """Raise InputError for values that cannot be."""
        require(self, "eval_data_path", "output_dir")
        at_least(self, 1, "batch_size")
        if self.embedding_model_name_or_path:
            require(self, "document_path", "index_path")


def main() -> None:
    """Retrieve, answer, score, write."""
    configs = parse_configs(Evaluation(), inputs.Reader(), inputs.Retrieval(), inputs.Index(), inputs.Judge())
    flags, reader, retrieval, index, judging = configs
    if not (reader.qa_model_name_or_path or flags.embedding_model_name_or_path):
        raise InputError("give --qa_model_name_or_path, --embedding_model_name_or_path, or both")
    for name in ("attribution", "context_report", "gen_gpt4eval"):
        if (value := getattr(flags, name)) not in ("none", False) and not reader.qa_model_name_or_path:
            raise InputError(f"--{name} {str(value).lower()}: without --qa_model_name_or_path there are no answers")
    if not flags.gen_gpt4eval and judging != (default := inputs.Judge()):
        unused = ", ".join(f"--{name}" for name, value in vars(judging).items() if value != getattr(default, name))
        raise InputError(f"without --gen_gpt4eval true there is no judge: {unused} would do nothing")
    if flags.attribution in ("cross_attention", "both") and not reader.qa_is_fid:
        raise InputError(f"--attribution {flags.attribution}: a decoder has no cross-attention: give leave_one_out")

    # What takes seconds to import: --help and a misspelt flag need not wait for it.
    from rqa.data.records import load_examples
    from rqa.distributed.accelerator import make_accelerator
    from rqa.evaluation.attribution import Attribution, CrossAttention, leave_one_out
    from rqa.evaluation.context_report import build_contexts, context_report, context_table
    from rqa.evaluation.evaluate import AnswerLoss, evaluate
    from rqa.generation.generator import Generator
    from rqa.judge.client import Judge
    from rqa.judge.judge_evaluation import STORE, judge_folder, read_labels
    from rqa.models.auto import attention_for, collator_for, load_generator
    from rqa.report.html import write_report
    from rqa.retrieval.retrieve import KS, open_corpus, retrieve_splits, uses_only_gold
    from rqa.timing import environment
    from rqa.training.run_log import format_scores, log, new_folder

    examples = load_examples(flags.eval_data_path, **reader.speakers)
    if flags.gen_gpt4eval:
        judge = Judge(**judging.endpoint, store=Path(flags.output_dir) / STORE)
        if judging.judge_labels:
            read_labels(judging.judge_labels, [example.id for example in examples])
    encoder, passages = flags.embedding_model_name_or_path, None
    if not (is_gold := uses_only_gold(encoder, [examples])):
        passages = open_corpus(encoder, flags.document_path, [examples], flag="--embedding_model_name_or_path")
    elif flags.context_report:
        raise InputError("--context_report true: gold is all there is to read: give --embedding_model_name_or_path")
    accelerator = make_accelerator(bf16=reader.bf16, deepspeed=None)
    folder = new_folder(accelerator, flags.output_dir)
    if reader.qa_model_name_or_path:
        collator = collator_for(reader.qa_model_name_or_path, **reader.reading)
        collator.check(examples, refusal_answer=flags.refusal_answer)
        kind = {"is_fid": reader.qa_is_fid, "use_flash_attention": reader.use_flash_attention}
        attention = attention_for(accelerator, reader.qa_model_name_or_path, **kind)

    k, found = retrieval.embedding_max_num_to_retrieve, None
    if not is_gold:
        [found] = retrieve_splits(
            accelerator,
            passages,
            encoder,
            flags.index_path,
            (examples,),
            k + max(KS),
            history_turns=retrieval.query_history,
            cached=False,  # its time is a result
            **vars(index),
        )

    contexts = build_contexts(examples, found.found, k=k) if found and flags.context_report else None

    generate = loss = None
    attributions: dict[str, Attribution] = {}
    if reader.qa_model_name_or_path:
        model = load_generator(
            accelerator,
            reader.qa_model_name_or_path,
            is_fid=reader.qa_is_fid,
            attention=attention,
            encoder_batch_size=reader.encoder_batch_size,
        )
        generate = Generator(accelerator, model, collator, flags.batch_size, reader.generation_limit)
        loss = AnswerLoss(accelerator, model, collator, flags.batch_size)
        if flags.attribution in ("cross_attention", "both"):
            attributions["cross_attention"] = CrossAttention(accelerator, model, collator, flags.batch_size)
        if flags.attribution in ("leave_one_out", "both"):
            attributions["leave_one_out"] = partial(leave_one_out, loss)
    scores = evaluate(
        examples,
        retrieval=found,
        generate=generate,
        loss=loss,
        attributions=attributions,
        k=k,
        refusal_answer=flags.refusal_answer,
        environment=environment(accelerator, flags.batch_size),
    )
    is_main = accelerator.is_main_process
    if is_main:
        scores.write(folder)
        write_config(folder / "config.json", configs)
        log.info("%s: %s", folder, format_scores(scores.metrics))
    if contexts and generate:
        report = context_report(contexts, generate, refusal_answer=flags.refusal_answer)
        if is_main:
            text = json.dumps(report, indent=1, ensure_ascii=False)
            (folder / "contexts.json").write_text(f"{text}\n", encoding="utf-8")
            print(context_table(report))
    if is_main:
        log.info("report: %s", write_report(folder))
    if is_main and flags.gen_gpt4eval:
        log.info("judging; where that is cut short, go on with: python recipes/judge.py --evaluation %s", folder)
        judge_folder(folder, judge, **judging.task)
        write_report(folder)


if __name__ == "__main__":
    cli(main)
