"""Evaluate a generator, or a retriever alone: Recall@k; BLEU, ROUGE, EM, F1, verdicts of a judge; runtime.

    accelerate launch recipes/evaluate.py --model_name_or_path path/to/run/model \\
        --embedding_model checkpoint/to/retriever/model \\
        --full_dataset_file_path path/to/document.pkl --full_dataset_index_path path/to/index \\
        --test_file path/to/test_w_qa.jsonl --output_dir path/to/evaluation

Without --model_name_or_path the retriever alone is scored. With --qa_endpoint a server answers. Without
--embedding_model the generator reads the passages of the questions ("ctxs"), or the gold passages if there are none.
Writes score.json, predictions.jsonl, config.json and report.html; also contexts.json with --context_report, judge.jsonl
with --gen_gpt4eval. The same command resumes.
"""

import logging
from functools import partial
from pathlib import Path

from rqa import cli, data, distributed, evaluation, generation, judge, models, report, retrieval, training
from rqa.atomic_files import write_json
from rqa.errors import InputError
from rqa.terminal import write_result

log = logging.getLogger("rqa")


def main() -> None:
    """Retrieve, answer, score, write."""
    defaults = (cli.EvaluationArgs(), cli.GeneratorArgs(), cli.RetrievalArgs(), cli.JudgeArgs(), cli.EndpointArgs())
    args = flags, generator, search, judging, server = cli.parse_args(*defaults)
    flags.check_beside(generator, search, judging, server)
    name, k = generator.model_name_or_path, search.embedding_max_num_to_retrieve

    # Records and prompts: errors in the files are raised before anything is loaded.
    [rows] = data.load_splits(flags.test_file, **cli.row_options(flags, search, generator))
    splits = [examples] = [rows[: flags.max_examples]]
    if flags.gen_gpt4eval:
        if not (generator.citations or any(example.answers or example.unanswerable for example in examples)):
            raise InputError(f"--gen_gpt4eval true: expected references in {flags.test_file}, got none to judge by")
        client = judge.Judge(**judging.client_options, cache_path=Path(flags.output_dir, judge.RESPONSES_FILE))
        if judging.judge_labels:
            judge.read_labels(judging.judge_labels, examples)
    is_gold = retrieval.uses_only_gold(search.has_retriever, splits)
    if is_gold and flags.context_report:
        raise InputError("--context_report true: expected --embedding_model, or ctxs in the questions, got only gold")
    if is_gold:
        log.info("passages: the gold passages of the questions; no retrieval")
    passages = None if is_gold else retrieval.open_corpus(search.has_retriever, splits, **search.corpus_options)
    accelerator = distributed.make_accelerator(bf16=generator.bf16, deepspeed=None)
    folder = training.new_folder(accelerator, flags.output_dir, break_lock=flags.break_lock)
    model = collator = endpoint = None
    if server.qa_endpoint:
        endpoint = generation.EndpointGenerator.load(accelerator, folder, **server.load_options(generator))
        endpoint.check(examples)
    elif name:
        collator = models.load_collator(name, **generator.collator_options)
        collator.check(examples, num_passages=k, refusal_answer=flags.refusal_answer)
        attention = models.attention_for(accelerator, name, **generator.attention_options)

    # Passages: never from a cache, because the time of retrieval is a result
    hits = contexts = None
    retriever_options = {"device": accelerator.device, **search.retriever_options}
    open_retriever = None if passages is None else partial(retrieval.open_retriever, passages, **retriever_options)
    if not is_gold:
        depth, turns = k + max(retrieval.KS), search.query_history
        [hits] = retrieval.retrieve_splits(accelerator, open_retriever, passages, splits, depth, history_turns=turns)
    if hits and flags.context_report:
        contexts = evaluation.build_contexts(examples, hits.retrieved, k=k)

    # Scores
    if collator:
        model = models.load_generator(accelerator, name, attention=attention, **generator.load_options)
    limits = {"batch_size": flags.per_device_eval_batch_size, "max_new_tokens": generator.generation_limit}
    limits |= {"prompt_lookup_tokens": flags.prompt_lookup_tokens}
    refusal = flags.refusal_answer
    options = {**limits, "refusal_answer": refusal, "attributions": flags.attributions, "endpoint": endpoint}
    evaluator = evaluation.Evaluator(accelerator, model, collator, k=k, **options)
    scores = evaluator(examples, hits, folder, left_out=len(rows) - len(examples))
    log.info("%s: %s", folder, scores.summary)
    if contexts:
        generate = evaluator.generate.resumable(folder)
        options = {"refusal_answer": refusal, "citations": generator.citations, "accelerator": accelerator}
        summary = evaluation.compare_contexts(contexts, generate, **options)
    if accelerator.is_main_process:
        if contexts:
            evaluation.write_record(folder / "contexts.json", summary)
        write_json(folder / "config.json", {**cli.flat(args), "break_lock": False})
        scores.write(folder)  # last: until then the command resumes
        log.info("report: %s", report.write_report(folder))
        if flags.gen_gpt4eval:
            log.info("judging; to resume: python recipes/judge.py --evaluation %s", folder)
            judge.judge_answers(folder, client, **judging.evaluation_options)
            report.write_report(folder)
        if contexts:
            write_result(evaluation.context_table(summary))


if __name__ == "__main__":
    cli.run_main(main)
