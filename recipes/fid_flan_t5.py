"""FiD: train an encoder-decoder that reads gold and retrieved passages in parallel: fusion-in-decoder.

    accelerate launch recipes/fid_flan_t5.py --bf16 true \\
        --embedding_model checkpoint/to/retriever/model --embedding_max_num_to_retrieve 3 \\
        --train_file path/to/train_w_qa.jsonl --eval_file path/to/eval_w_qa.jsonl --test_file path/to/test_w_qa.jsonl \\
        --full_dataset_file_path path/to/document.pkl --full_dataset_index_path path/to/index/dir/of/document \\
        --output_dir path/to/save/dir

T5, mT5, UMT5, BART and T5Gemma do, and what was made of two BERTs, on disk or of the hub. Where all questions bring
their passages ("ctxs"), --embedding_model and the --full_dataset flags can be left out.
"""

from collections.abc import Sequence
from functools import partial

from rqa.cli import data_args as inputs
from rqa.cli import training_args as config
from rqa.cli.parser import cli, parse_configs, require


def main() -> int:
    """Train, export, test; return the exit status."""
    configs = parse_configs(
        config.Model(model_name_or_path="google/flan-t5-xl"),
        inputs.Retriever(),
        inputs.Retrieval(embedding_max_num_to_retrieve=3),
        inputs.Index(),
        inputs.Data(),
        inputs.Passages(),
        inputs.PassagePrompt(),
        config.Optimization(
            per_device_train_batch_size=4, gradient_accumulation_steps=2, learning_rate=1e-5, num_train_epochs=7
        ),
        config.Run(per_device_eval_batch_size=4, logging_steps=10, eval_steps=100, save_steps=100),
    )
    seq2seq, retriever, retrieval, index, data, mix, prompt, opt, run = configs

    # What takes seconds to import: --help and a misspelt flag need not wait for it.
    from rqa.data.passage_selection import select_passages
    from rqa.data.records import load_splits
    from rqa.distributed.accelerator import is_sharded, make_accelerator
    from rqa.evaluation.evaluate import AnswerLoss, evaluate
    from rqa.generation.generator import Generator
    from rqa.models.decoder import max_positions
    from rqa.models.fid import FusionInDecoder, attention_of, check_model
    from rqa.prompts.collators import EncodedExample, ParallelCollator
    from rqa.prompts.decoder_prompt import load_tokenizer
    from rqa.prompts.fid_prompt import PassagePromptBuilder
    from rqa.report.html import write_report
    from rqa.retrieval.retrieve import KS, open_corpus, retrieve_splits
    from rqa.timing import environment
    from rqa.training.batching import steps_per_epoch, training_batches
    from rqa.training.checkpoint import Checkpoints, export
    from rqa.training.loop import train_steps
    from rqa.training.optim import make_optimizer
    from rqa.training.run_log import RunLog, log, log_rows, new_folder, run_fingerprint
    from rqa.training.signals import StopSignals, resume_command

    if retriever.embedding_model:
        require(data, "full_dataset_file_path")

    # Records: whatever is wrong with the files is told before anything is loaded.
    train, evals, tests = load_splits(data.train_file, data.eval_file, data.test_file, **prompt.speakers)
    passages = open_corpus(retriever.embedding_model, data.full_dataset_file_path, (train, evals, tests))

    # Texts
    model_config = check_model(seq2seq.model_name_or_path, prompt.max_passage_length, prompt.longest_answer)
    tokenizer = load_tokenizer(seq2seq.model_name_or_path)
    builder = PassagePromptBuilder(tokenizer, prompt.max_passage_length, prompt.names)
    collator = ParallelCollator(builder, prompt.max_answer_length, max_positions(model_config))
    collator.check(train, answers=True, gold_dropout=mix.gold_dropout, refusal_answer=mix.refusal_answer)
    collator.check([*evals, *tests], refusal_answer=mix.refusal_answer)
    accelerator = make_accelerator(**opt.launch)
    attention = attention_of(model_config, accelerator, use_flash_attention=seq2seq.use_flash_attention)
    folder = new_folder(accelerator, run.output_dir, resume=bool(run.resume_from_checkpoint))

    # Passages: the retriever is frozen, so it works once, and its memory is free again before training.
    k = retrieval.embedding_max_num_to_retrieve
    found, eval_found, test_found = retrieve_splits(
        accelerator,
        passages,
        retriever.embedding_model,
        data.full_dataset_index_path,
        (train, evals, tests),
        k + max(KS),
        history_turns=retrieval.query_history,
        **vars(index),
    )

    def encode(epoch: int, positions: Sequence[int]) -> list[EncodedExample]:
        return collator.encode(
            select_passages(train[i], found.passages(i), k=k, seed=opt.seed, epoch=epoch, **vars(mix))
            for i in positions
        )

    first_rows = encode(0, range(min(len(train), 1000)))
    log_rows(first_rows, tokenizer)

    # Model
    model = FusionInDecoder.from_pretrained(
        seq2seq.model_name_or_path,
        encoder_batch_size=prompt.encoder_batch_size,
        sync_encoder_calls=is_sharded(accelerator),
        attention=attention,
        gradient_checkpointing=seq2seq.gradient_checkpointing,
    )
    optimizer = make_optimizer(model, opt.optim, weight_decay=opt.weight_decay)
    model, optimizer = accelerator.prepare(model, optimizer)
    score = partial(
        evaluate,
        generate=Generator(accelerator, model, collator, run.per_device_eval_batch_size, prompt.generation_limit),
        loss=AnswerLoss(accelerator, model, collator, run.per_device_eval_batch_size),
        k=k,
        refusal_answer=mix.refusal_answer,
        environment=environment(accelerator, run.per_device_eval_batch_size),
    )

    # State: that of a checkpoint, or a new run's.
    layout = opt.layout(accelerator.num_processes, accelerator.process_index)
    num_steps = opt.num_steps(steps_per_epoch(len(train), layout))
    identity = run_fingerprint(accelerator, model, configs, (train, evals, tests), first_rows, found)
    selection = run.selection
    checkpoints = Checkpoints(accelerator, folder, identity, selection, keep=run.save_total_limit)
    first_step = checkpoints.resume(run.resume_from_checkpoint) if run.resume_from_checkpoint else 0
    run_log = RunLog(
        accelerator,
        folder,
        configs,
        num_steps,
        run.logging_steps,
        first_step=first_step,
        ids=[example.id for example in train],
        tracker=run.tracker,
        run_group=run.run_group,
    )

    # Loop
    updates = training_batches(len(train), layout, encode, collator.collate, opt.seed, opt.group_by_length, first_step)
    steps = train_steps(
        accelerator,
        model,
        optimizer,
        updates,
        learning_rate=opt.rate(num_steps),
        num_steps=num_steps,
        max_grad_norm=opt.max_grad_norm,
        seed=opt.seed,
        first_step=first_step,
    )
    with StopSignals(accelerator) as signals:
        for step in () if selection.should_stop else steps:
            run_log.step(step)
            if evals and (step.number % run.eval_steps == 0 or step.number == num_steps):
                scores = score(evals, retrieval=eval_found)
                run_log.evaluation(f"eval-{step.number:06d}", scores)
                selection.add(step.number, scores.metrics)
            stop = signals.stop_requested()
            is_due = step.number % run.save_steps == 0 or step.number in (num_steps, selection.best)
            saved = (is_due or stop or selection.should_stop) and checkpoints.save(step.number)
            if stop:
                log.info("stopped after update %d; go on with:\n%s", step.number, resume_command(accelerator, folder))
                return int(not saved)
            if selection.should_stop:
                break

    # The plain model, and its test
    if selection.best:
        checkpoints.load(selection.best)
    export(accelerator, model, tokenizer, folder / "model")
    if tests:
        run_log.evaluation("test", score(tests, retrieval=test_found))
    if accelerator.is_main_process:
        log.info("report: %s", write_report(folder))
    return 0


if __name__ == "__main__":
    cli(main)
