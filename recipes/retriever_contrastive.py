"""Train the retriever: a sentence encoder, on questions and their gold passages, or on the evidence of its reader.

    accelerate launch recipes/retriever_contrastive.py --embedding_model checkpoint/to/retriever/model \\
        --train_file path/to/train_negatives.jsonl --hard_negatives 1 --test_file path/to/test_w_qa.jsonl \\
        --full_dataset_file_path path/to/document.pkl --full_dataset_index_path path/to/index --output_dir path/to/run

The loss is InfoNCE over the passages of the batch. Negatives are local to a process, and gradients are averaged over
processes. Large batches are better: --mini_batch_size bounds their memory. With --teacher path/to/evaluation, that of
--train_file by evaluate.py with --attribution, the reader's evidence of the passages that it read is the target, and
gold_docs are not needed (Izacard and Grave 2021). The trained encoder is path/to/run/model, for --embedding_model, and
its index path/to/run/index. before/ and after/ have Recall@k of both:
`python recipes/compare.py path/to/run/before path/to/run/after`.
"""

from collections.abc import Sequence
from functools import partial

from rqa import cli, data, distributed, evaluation, retrieval, training


def main() -> int:
    """Train, export, test; return the exit status."""
    args = cli.parse_args(
        cli.ContrastiveArgs(),
        cli.OptimizationArgs(
            learning_rate=2e-5,
            num_train_epochs=1,
            per_device_train_batch_size=64,
            gradient_accumulation_steps=1,
            group_by_length=False,
        ),
        cli.LoopRunArgs(),
    )
    search, optim, output = args
    search.check_beside(optim)

    # Records: errors in the files are raised before anything is loaded.
    required = {"gold_required": (not search.teacher, True), "max_bad_rows": search.max_bad_rows}
    train, tests = data.load_splits(search.train_file, search.test_file, **required)
    passages = data.open_passages(**search.corpus_options) if tests else None
    teacher = None
    if search.teacher:
        teacher = training.read_teacher(search.teacher, train, passages=passages, **search.teacher_options)
    accelerator = distributed.make_accelerator(**optim.accelerator_options)
    training.check_replicated(accelerator)
    encoder = retrieval.Encoder(search.embedding_model, device=accelerator.device, **search.encoder_options)
    options = {"history_turns": search.query_history}
    collator = training.ContrastiveCollator(encoder, hard_negatives=search.hard_negatives, **options)
    if teacher:
        collator = training.DistillationCollator(encoder, teacher, **options)
    train = collator.usable(train)
    folder = training.new_folder(accelerator, **output.folder_options)
    evaluator = evaluation.Evaluator(accelerator, None, None, k=max(retrieval.KS), batch_size=1, max_new_tokens=1)

    def evaluate(passages: data.PassageStore, model: str, index: str) -> evaluation.Scores:
        options = {"embedding_model": model, "index_path": index, **search.retriever_options}
        opened = partial(retrieval.open_retriever, passages, device=accelerator.device, **options)
        k, turns = max(retrieval.KS), search.query_history
        [hits] = retrieval.retrieve_splits(accelerator, opened, passages, [tests], k, history_turns=turns)
        return evaluator(tests, hits)

    def encode(epoch: int, positions: Sequence[int]) -> list[training.ContrastiveRow]:
        return collator.encode(epoch, [train[i] for i in positions])

    # The frozen encoder
    before = evaluate(passages, search.embedding_model, search.full_dataset_index_path) if passages else None

    # Model
    model = training.ContrastiveEncoder(encoder, **search.loss_options)
    optimizer = training.make_optimizer(model, optim.optim, weight_decay=optim.weight_decay)
    model, optimizer = accelerator.prepare(model, optimizer)

    # State: of a new run, or of a checkpoint
    layout = optim.layout(accelerator.num_processes, accelerator.process_index)
    num_steps = optim.num_steps(training.steps_per_epoch(len(train), layout))
    loop = optim.loop_options(num_steps)
    locked_flags = cli.flags_locked_on_resume(config := cli.flat(args))
    locked_flags |= {"the lessons of --teacher": teacher.fingerprint} if teacher else {}
    first_rows = encode(0, range(min(len(train), 256)))
    fingerprint = training.run_fingerprint(accelerator, model, locked_flags, [train, [], tests], first_rows, None)
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
            if is_stopped or step.number % output.save_steps == 0 or step.number == num_steps:
                run.checkpoints.save(step.number)
            if is_stopped:
                training.log_resume_command(accelerator, folder, step.number)
                return int(not run.checkpoints.wait())

    # The trained encoder: export and test
    is_saved = run.checkpoints.wait()
    training.export_encoder(accelerator, model, encoder, folder / "model")
    if passages and before:
        run.log.evaluation("before", before)
        run.log.evaluation("after", evaluate(passages, str(folder / "model"), str(folder / "index")))
    return int(not is_saved)


if __name__ == "__main__":
    cli.run_main(main)
