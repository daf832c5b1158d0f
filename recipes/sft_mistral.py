"""SFT: train a decoder on gold passages; test it on retrieved passages, those of the questions ("ctxs"), or gold.

    accelerate launch recipes/sft_mistral.py --bf16 true --use_flash_attention true \\
        --user_prefix "<s>[INST]" --assistant_prefix "[/INST]" --sep_user " " --sep_sys "</s>" \\
        --train_file path/to/train_w_qa.jsonl --eval_file path/to/eval_w_qa.jsonl --test_file path/to/test_w_qa.jsonl \\
        --full_dataset_file_path path/to/document.pkl --full_dataset_index_path path/to/index --output_dir path/to/run
Any decoder works, with the chat flags or its own chat template.
"""

from collections.abc import Sequence
from functools import partial

from rqa import cli, data, distributed, evaluation, models, prompts, retrieval, sharing, training


def main() -> int:
    """Train, export, test; return the exit status."""
    args = cli.parse_args(
        cli.ModelArgs(model_name_or_path="mistralai/Mistral-7B-Instruct-v0.2"),
        cli.DataArgs(),
        cli.RetrievalArgs(embedding_model="intfloat/e5-base-v2", embedding_max_num_to_retrieve=3),
        cli.PromptArgs(),
        cli.OptimizationArgs(
            per_device_train_batch_size=4, gradient_accumulation_steps=2, learning_rate=5e-6, num_train_epochs=2
        ),
        cli.RunArgs(per_device_eval_batch_size=4, logging_steps=10, eval_steps=50, save_steps=50),
    )
    lm, files, search, prompt, optim, output = args
    name, k = lm.model_name_or_path, search.embedding_max_num_to_retrieve

    # Records and prompts: errors in the files are raised before anything is loaded.
    splits = train, evals, tests = data.load_splits(*files.paths, **cli.row_options(files, search, prompt, is_sft=True))
    data.warn_without_gold(train)
    is_gold = retrieval.uses_only_gold(search.has_retriever, unseen := splits[1:])
    passages = None if is_gold else retrieval.open_corpus(search.has_retriever, unseen, **search.corpus_options)
    collator = models.load_collator(name, **prompt.collator_options)
    collator.check(train, answers=True)
    collator.check([*evals, *tests], num_passages=k)
    accelerator = distributed.make_accelerator(**optim.accelerator_options)
    attention = models.attention_for(accelerator, name, use_flash_attention=lm.use_flash_attention)
    load_options = lm.load_options(accelerator, optim.optim)
    weights = {"dtype": models.export_dtype(name, output.save_dtype), "merge_adapter": lm.merge_adapter}
    folder = training.new_folder(accelerator, **output.folder_options)

    # Passages: gold in training; in evaluation those that the retriever or the questions provide
    retriever_options = {"device": accelerator.device, **search.retriever_options}
    open_retriever = None if passages is None else partial(retrieval.open_retriever, passages, **retriever_options)
    eval_hits = test_hits = None
    if not is_gold:
        eval_hits, test_hits = retrieval.retrieve_splits(
            accelerator, open_retriever, passages, unseen, k + max(retrieval.KS), **search.search_options
        )

    def encode(epoch: int, positions: Sequence[int]) -> list[prompts.EncodedExample]:
        return collator.encode(data.select_passages(train[i], (), k=0, seed=optim.seed, epoch=epoch) for i in positions)

    first_rows = encode(0, range(min(len(train), 256)))
    training.log_rows(first_rows, collator.builder.tokenizer)

    # Model
    model = models.AnswerLM.from_pretrained(name, attention=attention, **load_options)
    optimizer = training.make_optimizer(model, optim.optim, weight_decay=optim.weight_decay)
    model, optimizer = accelerator.prepare(model, optimizer)
    limits = {"batch_size": output.per_device_eval_batch_size, "max_new_tokens": prompt.generation_limit}
    evaluator = evaluation.Evaluator(accelerator, model, collator, k=k, **limits)

    # State: of a new run, or of a checkpoint
    layout = optim.layout(accelerator.num_processes, accelerator.process_index)
    num_steps = optim.num_steps(training.steps_per_epoch(len(train), layout))
    loop = optim.loop_options(num_steps)
    locked_flags = cli.flags_locked_on_resume(config := cli.flat(args))
    fingerprint = training.run_fingerprint(accelerator, model, locked_flags, splits, first_rows, eval_hits)
    state = {"config": config, "fingerprint": fingerprint, "num_steps": num_steps, "example_ids": [e.id for e in train]}
    run = training.start_run(accelerator, folder, **state, **output.run_options)

    # Loop
    batches = training.training_batches(
        len(train), layout, encode, collator.collate, distributed.exchange_lists, run.first_step, **optim.order_options
    )
    steps = training.train_steps(accelerator, model, optimizer, batches, first_step=run.first_step, **loop)
    with training.StopSignals(accelerator, output.further_signals) as signals:
        for step in run.remaining(steps):
            run.log.step(step)
            is_stopped = signals.stop_requested()
            is_due = is_stopped or step.number % output.save_steps == 0 or step.number == num_steps
            if is_due:
                run.checkpoints.save(step.number)  # before the evaluation, which may be killed
            if evals and not is_stopped and (step.number % output.eval_steps == 0 or step.number == num_steps):
                scores = evaluator(evals, eval_hits, folder / (part := f"eval-{step.number:06d}"))
                run.log.evaluation(part, scores)
                run.early_stopping.add(step.number, scores.metrics)
                is_stopped = signals.stop_requested()
                if is_due or is_stopped or step.number == run.early_stopping.best or run.early_stopping.should_stop:
                    run.checkpoints.save(step.number)  # of a saved step only the evaluation
            if is_stopped:
                training.log_resume_command(accelerator, folder, step.number)
                return int(not run.checkpoints.wait())

    # The best or the last model: export and test
    run.checkpoints.load_best()
    training.export(accelerator, model, collator.builder.tokenizer, folder / "model", **weights)
    if accelerator.is_main_process:
        sharing.record_run(folder, splits, **cli.card_facts(config))
    if tests:
        run.log.evaluation("test", evaluator(tests, test_hits, folder / "test"))
    return sharing.finish_run(accelerator, folder, **output.sharing_options)


if __name__ == "__main__":
    cli.run_main(main)
