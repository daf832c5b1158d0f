"""What a user can rely on: for each promise its test, and the protections without which the test fails."""

from mutation import Promise, Without

CHECKPOINT = "rqa.retrieval.encoder_checkpoint"
DATA_FILE = "rqa.data.data_file"
CONFIG_FILE = "rqa.cli.config_file"
STEPS = "rqa.training.loop.train_steps"
CHECKPOINTS = "rqa.training.checkpoint.Checkpoints"
VERIFIED = "rqa.training.checkpoint._verified"
PUBLISH = "rqa.atomic_files.publish_folder"
QUANTIZATION = "rqa.models.quantization"
ADAMW_BF16 = "rqa.training.adamw_bf16"
ENCODE = "rqa.models.fid.FusionInDecoder.encode"
ZERO = "rqa.distributed.deepspeed_config"
SIGNIFICANCE = "rqa.evaluation.significance"
ANSWER_STORE = "rqa.generation.answers.AnswerStore"
SHARING = "rqa.retrieval.query_sharing"
SPLITTER = "rqa.documents.splitter.Splitter"
WRITER = "rqa.documents.writer"
COLLATOR = "rqa.prompts.collators.Collator"
CARD = "rqa.sharing.card"
HUB = "rqa.sharing.hub"
SERVER = "rqa.generation.endpoint_generator.EndpointGenerator"
SUPPORT = "rqa.judge.citation_support"
SAMPLER = "rqa.questions.sampling.PassageSampler"
BY_ANSWER = "rqa.questions.rules._broken_by_answer"
REVIEWER = "rqa.questions.review.Reviewer"
READ_TEACHER = "rqa.training.distillation.read_teacher"
MINE = "rqa.retrieval.negatives.mine_negatives"
LOOKUP = "rqa.models.prompt_lookup"
VERDICTS = "rqa.judge.verdicts.summarize"
COUNTED = Without(
    "the loss is divided by all target tokens, not by those of a micro-batch",
    STEPS,
    "accelerator.backward(nll.sum() * accelerator.num_processes * len(micro_batches) / divisor)",
    "accelerator.backward(nll.sum() / (batch['labels'] != IGNORE_INDEX).sum().clamp(min=1))",
)
REDUCED = Without(
    "the tokens of the other ranks are counted", STEPS, "accelerator.reduce(counts, 'sum').tolist()", "counts.tolist()"
)
SKIPPED = Without(
    "the step is skipped",
    STEPS,
    "not (accelerator.sync_gradients and skipped) or accelerator.scaler is not None",
    "True",
)
SEEDED = Without("a seed for each step", STEPS, "torch.manual_seed(...)")
RESTORED = Without("the state is restored", f"{CHECKPOINTS}.resume", "self._load(path)")
LOGS_BACK = Without("the logs are restored", f"{CHECKPOINTS}.resume", "self._restore_logs(..., ..., ...)")
CLIPPED = Without("the gradient is clipped", ZERO, "0.0 if norm == math.inf else norm", "0.0")
GATHERED = "generation gathers the weights"
SHARED_OUT = Without(
    "each rank has its own batches",
    "rqa.generation.batches.map_batches",
    "zip(turn[rank], function([rows[i] for i in turn[rank]]), strict=True)",
    "zip(turn[0], function([rows[i] for i in turn[0]]), strict=True)",
)
REPEATED = Without(
    "a rank without a batch repeats the last one",
    "rqa.generation.batches.map_batches",
    "function([rows[i] for i in turn[-1]])",
)

PROMISES = (
    # Layouts of a global batch
    Promise(
        "Every gradient accumulation equals a plain loop: loss, norm, rate, weights",
        "training/test_loop.py::test_one_rank_equals_a_plain_loop",
        COUNTED,
        Without("`accumulate`", STEPS, "accelerator.accumulate(model)", "__import__('contextlib').nullcontext()"),
    ),
    Promise(
        "2 and 3 processes equal a plain loop: odd rows, a short last step, slots without rows",
        "training/test_loop.py::test_more_ranks_equal_a_plain_loop",
        COUNTED,
        REDUCED,
        Without(
            "one rate per step: a prepared scheduler steps once for each process",
            STEPS,
            "learning_rate(step)",
            "learning_rate(step * accelerator.num_processes)",
        ),
    ),
    Promise(
        "Dropout differs between steps, ranks and seeds",
        "training/test_loop.py::test_dropout_differs_between_steps_ranks_and_seeds",
        Without(
            "the rank in the seed",
            STEPS,
            "(seed * 1_000_003 + step) * 4096 + accelerator.process_index",
            "(seed * 1_000_003 + step) * 4096",
        ),
        Without("the step in the seed", STEPS, "seed * 1_000_003 + step", "seed * 1_000_003"),
    ),
    Promise(
        "Code between two steps has no effect on training",
        "training/test_loop.py::test_code_between_two_steps_has_no_effect",
        SEEDED,
    ),
    Promise(
        "Every epoch has every example once, with equally many micro-batches on each rank",
        "training/test_batching.py::test_an_epoch_has_every_example_once_and_equally_many_micro_batches_on_each_rank",
        Without(
            "the short last step",
            "rqa.training.batching.plan_steps",
            "range(0, len(rows), size)",
            "range(0, len(rows) - size + 1, size)",
        ),
    ),
    Promise(
        "The order of examples is a pure function of the seed",
        "training/test_batching.py::test_steps_are_a_pure_function_of_the_seed",
        Without(
            "its own random generator for steps",
            "rqa.training.batching.plan_steps",
            "random.Random(seed).shuffle(global_batches)",
            "random.shuffle(global_batches)",
        ),
        Without(
            "its own random generator for each epoch",
            "rqa.training.batching.epoch_order",
            "random.Random(f'{seed}/{epoch}/order').shuffle(order)",
            "random.shuffle(order)",
        ),
    ),
    Promise(
        "Ranks that encode a share of the rows have the batches of ranks that encode all",
        "training/test_batching.py::test_ranks_that_encode_a_share_have_the_batches_of_ranks_that_encode_everything",
        Without(
            "each rank encodes its share",
            "rqa.training.batching.training_batches",
            "slice(layout.rank, None, layout.processes)",
            "slice(0, None, layout.processes)",
        ),
        Without(
            "lengths are in the order of the window",
            "rqa.training.batching._in_order",
            "values[rank :: len(shares)]",
            "values[rank * len(share) : (rank + 1) * len(share)]",
        ),
    ),
    Promise(
        "Each rank receives what every rank sent to it",
        "distributed/test_exchange.py::test_each_rank_receives_what_every_rank_sent_to_it",
        Without(
            "the sizes of the others",
            "rqa.distributed.accelerator.exchange_lists",
            "received_sizes.tolist()",
            "sizes.tolist()",
        ),
    ),
    Promise(
        "The next rows are encoded while the model trains",
        "training/test_batching.py::test_the_next_window_is_encoded_while_this_one_is_consumed",
        Without(
            "a thread",
            "rqa.training.batching.training_batches",
            "pool.submit(encode, window.epoch, window.positions[share])",
            "__import__('types').SimpleNamespace(result=lambda: encode(window.epoch, window.positions[share]))",
        ),
    ),
    Promise(
        "A length that surely fits is not tokenized, and no problem is missed",
        "prompts/test_collators.py::test_a_bound_of_the_length_finds_the_problems_of_exact_lengths",
        Without(
            "the normalized text",
            "rqa.prompts.text_tokenizer.TextTokenizer.max_tokens",
            "self._tokens_per_byte * len(text.encode()) + 2",
            "len(text) // 2",
        ),
    ),
    Promise(
        "8 ranks: mean work over most work ≥ 0.97, positions per token ≤ 1.03",
        "training/test_batching.py::test_ranks_have_equal_work_and_little_padding",
        Without(
            "the longest micro-batch goes to the least loaded rank",
            "rqa.training.batching._plan_step",
            "sorted(range(layout.processes), key=loads.__getitem__)",
            "range(layout.processes)",
        ),
        Without(
            "rows are sorted by length", "rqa.training.batching.plan_steps", "rows.sort(key=lambda row: -lengths[row])"
        ),
    ),
    Promise(
        "Answers are byte-identical on 1, 2 and 3 processes",
        "generation/test_generator.py::test_answers_are_byte_identical_on_more_ranks",
        SHARED_OUT,
        REPEATED,
    ),
    Promise(
        "Prompt lookup generates the same answers as decoding token by token, in 20 families of decoders",
        "models/test_prompt_lookup.py::test_every_family_generates_the_same_with_candidates_that_are_partly_right",
        Without(
            "rejected candidates are excluded from attention",
            f"{LOOKUP}.generate_with_lookup",
            "torch.arange(most, device=mask.device) < counts[:, None]",
            "1",
        ),
        Without(
            "positions of each row",
            f"{LOOKUP}._pass_inputs",
            "first + torch.arange(longest + 1, device=device)",
            "first.max() + torch.arange(longest + 1, device=device)",
        ),
        Without(
            "a candidate is compared with the choice of the model",
            f"{LOOKUP}._Row.accept",
            "candidates[num_right] == choices[num_right]",
            "True",
        ),
    ),
    Promise(
        "Models with a window, or without positions as an argument, decode token by token",
        "models/test_prompt_lookup.py::test_models_with_a_window_or_without_positions_generate_token_by_token",
        Without(
            "the check of the cache",
            f"{LOOKUP}.can_look_up",
            "all(type(layer) is DynamicLayer for layer in DynamicCache(config=model.config).layers)",
            "True",
        ),
    ),
    Promise(
        "The loss of an evaluation is the same on 1, 2 and 3 processes",
        "evaluation/test_evaluate.py::test_the_loss_is_the_same_on_more_processes",
        SHARED_OUT,
    ),
    Promise(
        "Processes that do not see each other are refused with the right command",
        "distributed/test_accelerator.py::test_processes_that_do_not_communicate_are_an_error_with_the_right_command",
        Without(
            "the comparison",
            "rqa.distributed.accelerator.make_accelerator",
            "launched_processes != accelerator.num_processes",
            "False",
        ),
    ),
    Promise(
        "2 processes equal one if weights get no gradient (a vision tower, an expert), also after a resume",
        "training/test_loop.py::test_two_ranks_equal_one_if_some_weights_get_no_gradient",
        Without(
            "DDP searches for weights that a step does not use",
            "rqa.distributed.accelerator._Accelerator.prepare_model",
            "find_unused_parameters=not is_full",
            "find_unused_parameters=False",
        ),
    ),
    Promise(
        "Models whose weights all get a gradient are prepared as by Accelerate",
        "distributed/test_accelerator.py::test_a_model_whose_weights_all_get_a_gradient_is_prepared_as_by_accelerate",
        Without(
            "their list",
            "rqa.distributed.accelerator._Accelerator.prepare_model",
            "find_unused_parameters=not is_full",
            "find_unused_parameters=True",
        ),
    ),
    # DeepSpeed, FSDP
    Promise(
        "ZeRO-1, 2 and 3 equal a plain loop, and skip a gradient that is not finite",
        "recipes/test_deepspeed.py::test_two_processes_equal_a_plain_loop",
        CLIPPED,
        Without(
            "the shapes of sharded matrices",
            "rqa.training.optim.make_optimizer",
            "getattr(parameter, 'ds_shape', parameter.shape)",
            "parameter.shape",
        ),
    ),
    Promise(
        "ZeRO-2 with a file like LocalRQA's equals DDP",
        "recipes/test_deepspeed.py::test_zero_2_equals_ddp",
        Without(
            "the optimizer of the file is removed",
            ZERO,
            "config.pop('optimizer', None)",
            "config.get('optimizer')",
        ),
        Without(
            "the schedule of the file is removed",
            ZERO,
            "config.pop('scheduler', None)",
            "config.get('scheduler')",
        ),
        CLIPPED,
    ),
    Promise(
        "ZeRO-1 and 3 equal DDP, and leave the retriever whole and unchanged",
        "recipes/test_deepspeed.py::test_other_zero_stages_equal_ddp",
        Without(
            "the retriever is loaded whole", "rqa.retrieval.encoder_checkpoint", "deepspeed.unset_hf_deepspeed_config()"
        ),
        REPEATED,
    ),
    Promise(
        "Answers are byte-identical under ZeRO-3",
        "generation/test_generator.py::test_answers_are_byte_identical_under_zero_3",
        Without(
            "a rank generates until the longest answer of all ranks ends",
            "rqa.distributed.accelerator.is_sharded",
            "bool(zero and zero.zero_stage == 3)",
            "False",
        ),
        REPEATED,
    ),
    Promise(
        "A file and a flag that disagree are an error that names both",
        "distributed/test_deepspeed_config.py::test_a_contradiction_is_an_error_that_names_both_sides",
        Without("the comparison", f"{ZERO}._fill_in", "value not in ('auto', expected)", "False"),
        Without(
            "the product of processes, accumulation and micro-batch",
            f"{ZERO}.resolve_config",
            "(value := config.get('train_batch_size', 'auto')) not in ('auto', total)",
            "False",
        ),
        Without(
            "the requirements of the loop",
            f"{ZERO}._require",
            "config[block].get(key, 'auto') not in ('auto', True)",
            "False",
        ),
    ),
    Promise(
        "Resume under ZeRO-2 is byte-identical after a kill",
        "recipes/test_deepspeed.py::test_zero_2_resume_is_byte_identical_after_a_kill",
        RESTORED,
    ),
    Promise(
        "FSDP2 with the shipped configuration equals DDP",
        "recipes/test_fsdp.py::test_fsdp2_equals_ddp",
        Without(
            GATHERED,
            "rqa.generation.generator.Generator.__post_init__",
            "self.accelerator.distributed_type == DistributedType.FSDP",
            "False",
        ),
    ),
    Promise(
        "Resume under FSDP2 is byte-identical after a kill",
        "recipes/test_fsdp.py::test_fsdp2_resume_is_byte_identical_after_a_kill",
        RESTORED,
    ),
    Promise(
        "Every shipped configuration is valid for accelerate",
        "distributed/test_accelerator.py::test_the_shipped_configurations_are_valid",
        Without(
            "a key of two machines",
            "recipes/configs/accelerate_two_machines.yaml",
            "main_process_ip:",
            "main_process_ipp:",
        ),
        Without("a key of FSDP2", "recipes/configs/accelerate_fsdp2.yaml", "fsdp_state_dict_type:", "fsdp_state_type:"),
    ),
    Promise(
        "Shipped configurations for DeepSpeed name a DeepSpeed file",
        "distributed/test_accelerator.py::test_the_shipped_configurations_name_their_deepspeed_file",
        Without("a key", "recipes/configs/accelerate_zero3.yaml", "deepspeed_config_file:", "deepspeed_config_fle:"),
    ),
    Promise(
        "A split model has the answers, losses and evidence of the whole, byte for byte",
        "models/test_device_map.py::test_a_split_model_has_the_answers_losses_and_evidence_of_the_whole",
        Without(
            "it is split",
            "rqa.cli.data_args.GeneratorArgs.load_options",
            "None if self.device_map == 'none' else self.device_map",
            "None",
        ),
    ),
    Promise(
        "States of a split decoder return to the device of the masks",
        "models/test_device_map.py::test_states_of_a_decoder_return_to_the_device_of_the_masks",
        Without("the hook", "rqa.models.loading._split", "inner.register_forward_hook(..., with_kwargs=True)"),
    ),
    Promise(
        "States of a split encoder return to the device of the masks",
        "models/test_device_map.py::test_states_of_an_encoder_return_to_the_device_of_the_masks",
        Without("the hook", "rqa.models.loading._split", "inner.register_forward_hook(..., with_kwargs=True)"),
    ),
    Promise(
        "An adapter of weights that are not on a device is refused",
        "models/test_device_map.py::test_an_adapter_of_weights_on_disk_is_an_error",
        Without("its weights would be empty", "rqa.models.loading._split", "'.lora_' in name", "False"),
    ),
    Promise(
        "A damaged weight on disk is found before the first answer",
        "models/test_device_map.py::test_a_weight_on_disk_that_is_not_finite_is_an_error",
        Without(
            "it is read",
            "rqa.models.loading._check_finite",
            "align_module_device(module)",
            "__import__('contextlib').nullcontext()",
        ),
    ),
    Promise(
        "The memory of an evaluation is estimated as allocated",
        "doctor/test_memory.py::test_memory_of_an_evaluation_is_as_allocated",
        Without(
            "the cache of new tokens",
            "rqa.doctor.memory.evaluation_memory",
            "_generation_peak(model, rows, max_new_tokens, encoder_batch_size)",
            "(peak, cache)",
        ),
    ),
    Promise(
        "Tied weights stay tied under FSDP2",
        "recipes/test_fsdp.py::test_tied_weights_stay_tied_under_fsdp2",
        Without("weights are tied again", "rqa.models.decoder.AnswerLM.tie_weights", "self.model.tie_weights()"),
    ),
    Promise(
        "Tied weights are exported once",
        "training/test_checkpoint.py::test_tied_weights_are_exported_once_also_from_copies",
        Without("copies are left out", "rqa.training.checkpoint._plain_state", "state.pop(tied, None)"),
    ),
    Promise(
        "The documented commands run",
        "test_docs.py::test_documented_commands_run",
        Without(
            "a flag",
            "rqa.cli.training_args",
            "gradient_accumulation_steps: int = ...",
            "accumulation_steps: int = ...",
        ),
    ),
    # Checkpoints
    Promise(
        "A checkpoint is renamed after every byte is on the disk; older ones are deleted after that",
        "training/test_checkpoint.py::test_a_checkpoint_is_renamed_after_every_byte_is_flushed",
        Without(
            "files are flushed before the rename",
            PUBLISH,
            "for entry in (*partial.rglob('*'), partial): ...\nif path.exists(): ...\npartial.replace(path)",
            "if path.exists(): shutil.rmtree(path)\npartial.replace(path)\n"
            "for entry in (*path.rglob('*'), path): flush(entry)",
        ),
        Without("files are flushed", PUBLISH, "(*partial.rglob('*'), partial)", "(partial,)"),
        Without("the list of names is flushed", PUBLISH, "(*partial.rglob('*'), partial)", "(*partial.rglob('*'),)"),
        Without("the rename is flushed before older checkpoints are deleted", PUBLISH, "flush(path.parent)"),
        Without(
            "older checkpoints are deleted last",
            f"{CHECKPOINTS}._complete",
            "publish_folder(partial, _folder(self.folder, step))\nfor old in ...: ...",
            "for old in ...: ...\npublish_folder(partial, _folder(self.folder, step))",
        ),
    ),
    Promise(
        "Training continues while a checkpoint is hashed and flushed, and does not change it",
        "training/test_checkpoint.py::test_training_continues_while_a_checkpoint_is_published",
        Without(
            "a thread publishes",
            f"{CHECKPOINTS}.save",
            "self._publication = self._thread.submit(self._publish, step, evaluations)",
            "self._publish(step, evaluations)",
        ),
        Without(
            "the logs are those of the save",
            f"{CHECKPOINTS}._complete",
            "files = ...",
            "[shutil.copyfile(self.folder / name, partial / name) for name in LOGS if (partial / name).exists()]\n"
            "files = [path for path in sorted(partial.rglob('*')) if path.is_file()]",
        ),
        Without("the next save waits", f"{CHECKPOINTS}.save", "is_saved = self.wait(step)", "is_saved = True"),
    ),
    Promise(
        "A checkpoint that fails while training continues is not the best, nor is a step that was not better",
        "training/test_checkpoint.py::test_a_checkpoint_that_fails_while_training_continues_is_not_the_best",
        Without(
            "steps that were compared with it",
            f"{CHECKPOINTS}.wait",
            "self._forget(self.last_step, next_step, problem)",
            "self._forget(self.last_step, self.last_step + 1, problem)",
        ),
        Without(
            "the evaluation of the next step",
            f"{CHECKPOINTS}.wait",
            "self._forget(self.last_step, next_step, problem)",
            "self._forget(self.last_step, math.inf, problem)",
        ),
        Without("its files are deleted", f"{CHECKPOINTS}._publish", "shutil.rmtree(partial, ignore_errors=True)"),
    ),
    Promise(
        "All threads hash a large file",
        "test_atomic_files.py::test_the_checksum_of_a_file_is_that_of_its_pieces",
        Without("the start of a piece", "rqa.atomic_files._sha256_of_piece", "file.seek(start)"),
        Without("the end of a piece", "rqa.atomic_files._sha256_of_piece", "file.read(PIECE)", "file.read()"),
    ),
    Promise(
        "A damaged checkpoint is named, and the one before it is used",
        "training/test_checkpoint.py::test_a_damaged_checkpoint_is_named_and_the_earlier_one_is_used",
        Without("the hash of each file", VERIFIED, "actual != digest", "False"),
        Without("the size of each file", VERIFIED, "actual != size", "False"),
        Without(
            "the manifest's own checksum",
            "rqa.atomic_files.read_manifest",
            "manifest.pop('checksum') != _checksum(manifest)",
            "not manifest.pop('checksum')",
        ),
    ),
    Promise(
        "The best checkpoint is kept and loaded",
        "training/test_checkpoint.py::test_the_best_checkpoint_is_kept_and_loaded",
        Without(
            "the best is not deleted",
            f"{CHECKPOINTS}._complete",
            "old != evaluations.best",
            "True",
        ),
        Without(
            "the scores in the checkpoint",
            f"{CHECKPOINTS}.resume",
            "self.early_stopping.values = dict(manifest['evaluations'])",
        ),
    ),
    Promise(
        "Best checkpoint and patience respect the direction of every score",
        "training/test_early_stopping.py",
        Without(
            "the direction of the loss",
            "rqa.training.early_stopping.EarlyStopping.best",
            "1.0 if ... else -1.0",
            "1.0",
        ),
        Without(
            "the count of patience",
            "rqa.training.early_stopping.EarlyStopping.should_stop",
            "sum(... for step in self.values) >= self.patience",
            "sum(... for step in self.values) > self.patience",
        ),
    ),
    Promise(
        "A checkpoint of another run is refused, naming what differs",
        "training/test_checkpoint.py::test_a_checkpoint_of_another_run_is_refused_naming_the_differences",
        Without("the comparison", f"{CHECKPOINTS}.resume", "_check_fingerprint(..., ..., ..., ...)"),
    ),
    Promise(
        "A run resumes from moved files, and not from changed ones",
        "training/test_run_log.py::test_the_fingerprint_depends_on_content_not_on_file_names",
        Without(
            "the location is not part of the fingerprint",
            "rqa.training.run_log.run_fingerprint",
            "replace(example, where='')",
            "example",
        ),
        Without(
            "the retriever is part of the fingerprint",
            "rqa.training.run_log.run_fingerprint",
            "retrieval.fingerprint if retrieval else 'none'",
            "'any' if retrieval else 'none'",
        ),
    ),
    Promise(
        "The plain class loads the exported model in a fresh process, with equal logits",
        "training/test_checkpoint.py::test_the_plain_class_loads_the_exported_model",
        Without(
            "the names of the plain model",
            "rqa.training.checkpoint._plain_state",
            "_WRAPPERS.sub('', name).removeprefix('model.')",
            "_WRAPPERS.sub('', name)",
        ),
    ),
    # Resume
    Promise(
        "Resume is byte-identical after a kill",
        "recipes/test_resume.py::test_resume_is_byte_identical_after_a_kill",
        LOGS_BACK,
        Without(
            "a checkpoint is written beside its final name",
            f"{CHECKPOINTS}._write",
            "_folder(self.folder, step, '.partial')",
            "_folder(self.folder, step)",
        ),
        Without(
            "training starts at the first missing step",
            "rqa.training.batching._windows",
            "divmod(first_step, per_epoch)",
            "divmod(0, per_epoch)",
        ),
        SEEDED,
    ),
    Promise(
        "Resume of two processes is byte-identical after a kill",
        "recipes/test_resume.py::test_resume_of_two_processes_is_byte_identical_after_a_kill",
        SEEDED,
    ),
    Promise(
        "Resume is byte-identical after 50 random kills, also of resumed runs",
        "recipes/test_resume.py::test_resume_is_byte_identical_after_fifty_random_kills",
        LOGS_BACK,
    ),
    Promise(
        "A run that is killed in an evaluation resumes after that step, byte-identical",
        "recipes/test_resume.py::test_resume_is_byte_identical_after_a_kill_in_an_evaluation",
        Without(
            "the checkpoint comes before the evaluation",
            "recipes.swr_starling.main",
            "if is_due: ...",
            "pass",
        ),
        Without(
            "the step of the checkpoint is evaluated",
            "rqa.training.run_log.start_run",
            "call_on_main(accelerator, lambda: _last_step(folder)) if first_step else ()",
            "()",
        ),
    ),
    Promise(
        "An evaluation is added to its checkpoint, whose other files stay",
        "training/test_checkpoint.py::test_an_evaluation_is_added_to_a_saved_step_and_changes_only_the_manifest",
        Without(
            "the lines of the evaluation",
            f"{CHECKPOINTS}.resume",
            "manifest.get('added_to_metrics', '')",
            "''",
        ),
    ),
    Promise(
        "Flags that change no step may differ on resume, with a warning",
        "training/test_checkpoint.py::test_flags_of_evaluation_may_change_with_a_warning",
        Without(
            "they are free",
            "rqa.training.checkpoint._check_fingerprint",
            "FREE_ON_RESUME - ({'--eval_file'} if selects_the_best else set())",
            "set()",
        ),
        Without(
            "the warning", "rqa.training.checkpoint._check_fingerprint", "log.warning(..., ..., ..., ..., ...)", "pass"
        ),
    ),
    Promise(
        "The validation file that selects the model is locked on resume",
        "training/test_checkpoint.py::test_the_validation_file_is_locked_if_it_selects_the_model",
        Without(
            "it is locked",
            "rqa.training.checkpoint._check_fingerprint",
            "{'--eval_file'} if selects_the_best else set()",
            "set()",
        ),
    ),
    Promise(
        "Every flag of training is locked on resume, free, or free with a warning",
        "cli/test_training_args.py::test_every_flag_of_training_is_locked_free_or_free_with_a_warning",
        Without(
            "a flag in its list",
            "rqa.training.checkpoint",
            "'--eval_file --test_file --eval_steps --per_device_eval_batch_size --max_new_tokens --max_answer_length "
            "--embedding_batch_size --early_stopping_patience --gradient_checkpointing'.split()",
            "'--eval_file --test_file'.split()",
        ),
    ),
    Promise(
        "More steps on resume are refused, with the way to train further",
        "training/test_checkpoint.py::test_more_steps_on_resume_are_refused_with_the_way_to_train_further",
        Without(
            "the way",
            "rqa.training.checkpoint._check_fingerprint",
            "[NO_MORE_STEPS] if LENGTHS & {*changed} else []",
            "[]",
        ),
    ),
    Promise(
        "A run that selects the best model resumes only with the checkpoint of the best",
        "training/test_checkpoint.py::test_a_run_that_selects_the_best_model_resumes_only_with_its_checkpoint",
        Without(
            "the check",
            f"{CHECKPOINTS}.resume",
            "(best := self.early_stopping.best) and not (best_path := _folder(self.folder, best)).is_dir()",
            "False",
        ),
        Without(
            "its bytes are verified",
            f"{CHECKPOINTS}.load_best",
            "_verified(_folder(self.folder, step))",
            "(_folder(self.folder, step), {})",
        ),
    ),
    Promise(
        "The folder of a run resumes from its newest whole checkpoint",
        "training/test_checkpoint.py::test_the_folder_of_a_run_is_its_newest_whole_checkpoint",
        Without(
            "the folder of a run",
            "rqa.training.checkpoint._find",
            "path in (run, run / 'checkpoints') and _saved_steps(run)",
            "False",
        ),
    ),
    # The lock of a folder
    Promise(
        "A run is resumed only after the last process of a killed launcher has ended",
        "recipes/test_resume.py::test_a_run_is_resumed_only_after_the_last_process_of_a_killed_launcher",
        Without("the lock", "rqa.training.run_log.new_folder", "lock_folder(folder, break_lock=break_lock)", "pass"),
    ),
    Promise(
        "An evaluation locks its folder too",
        "recipes/test_resume.py::test_an_evaluation_is_refused_in_a_folder_that_is_in_use",
        Without(
            "the lock",
            "recipes.evaluate.main",
            "training.new_folder(accelerator, flags.output_dir, break_lock=flags.break_lock)",
            "Path(flags.output_dir)",
        ),
    ),
    Promise(
        "Every process of a run holds its folder",
        "training/test_run_log.py::test_other_ranks_write_only_their_lock_and_refuse_no_folder",
        Without("each process joins", "rqa.training.run_log.new_folder", "join_lock(folder)"),
    ),
    Promise(
        "The lock of a living process is never broken, and that of an ended one holds nothing",
        "training/test_folder_lock.py::test_a_living_process_holds_the_folder_until_its_end_however_it_ends",
        Without("a living process", "rqa.training.folder_lock._check_other", "is_here and is_locked", "False"),
        Without(
            "an ended process",
            "rqa.training.folder_lock._check_other",
            "is_here and is_locked is False",
            "False",
        ),
        Without(
            "the kernel's lock",
            "rqa.training.folder_lock.join_lock",
            "fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)",
            "None",
        ),
    ),
    Promise(
        "The lock of another machine is broken only by --break_lock",
        "training/test_folder_lock.py::test_the_lock_of_another_machine_is_broken_only_by_the_flag",
        Without(
            "the machine", "rqa.training.folder_lock._check_other", "is_here = holder.boot == _boot()", "is_here = True"
        ),
        Without("the flag", "rqa.training.folder_lock._check_other", "not break_lock", "False"),
    ),
    # Export
    Promise(
        "A compiled model is exported under the names of the plain model",
        "training/test_checkpoint.py::test_a_compiled_model_is_exported_under_the_names_of_the_plain_model",
        Without(
            "the compiler's prefix",
            "rqa.training.checkpoint._plain_state",
            "_WRAPPERS.sub('', name).removeprefix('model.')",
            "name.removeprefix('model.')",
        ),
    ),
    Promise(
        "Weights whose names the plain class cannot load are not exported",
        "training/test_checkpoint.py::test_names_that_the_plain_class_cannot_load_are_not_exported",
        Without(
            "the check", "rqa.training.checkpoint._plain_state", "lacking | (state.keys() - weights - buffers)", "set()"
        ),
    ),
    Promise(
        "The test scores are those of the exported weights, in the dtype of the checkpoint",
        "recipes/test_resume.py::test_the_test_scores_are_those_of_the_exported_weights_in_the_dtype_of_the_checkpoint",
        Without(
            "the weights are rounded", "rqa.training.checkpoint.export", "_round_weights(accelerator, model, dtype)"
        ),
        Without(
            "the dtype of the checkpoint",
            "rqa.models.auto.export_dtype",
            "stored_dtype(name_or_path) if save_dtype == 'auto' else names[save_dtype]",
            "names.get(save_dtype)",
        ),
    ),
    Promise(
        "Weights that overflow the dtype of the export are an error",
        "training/test_checkpoint.py::test_weights_that_overflow_the_dtype_are_not_exported",
        Without(
            "the count",
            "rqa.training.checkpoint._round_weights",
            "(count := int(accelerator.reduce(overflows, 'sum').item()))",
            "False",
        ),
    ),
    # Faults
    Promise(
        "A step whose gradient is not finite is skipped, and its examples are named",
        "training/test_loop.py::test_a_step_with_a_gradient_that_is_not_finite_is_skipped_and_names_its_examples",
        SKIPPED,
        Without(
            "only those examples",
            "rqa.training.loop._non_finite",
            "not finite or all(... for _, ok in everywhere)",
            "True",
        ),
    ),
    Promise(
        "A gradient that is not finite on one rank is skipped on all",
        "training/test_loop.py::test_a_gradient_that_is_not_finite_on_one_rank_is_skipped_on_all",
        Without("the norm is global", STEPS, "not math.isfinite(norm)", "not math.isfinite(nll.sum())"),
        Without(
            "the examples of the other rank",
            "rqa.training.loop._non_finite",
            "gather_object(is_finite)",
            "is_finite",
        ),
    ),
    Promise(
        "Three skipped steps in a row are an error",
        "training/test_loop.py::test_three_skipped_steps_in_a_row_are_an_error",
        Without("the number", "rqa.training.loop", "MAX_SKIPPED_IN_A_ROW = 3", "MAX_SKIPPED_IN_A_ROW = 4"),
        Without("in a row", STEPS, "skipped_in_a_row + 1 if is_fault else 0", "skipped_in_a_row + is_fault"),
    ),
    Promise(
        "On a full disk training continues until three checkpoints fail in a row",
        "recipes/test_resume.py::test_on_a_full_disk_training_continues_until_three_checkpoints_fail",
        Without(
            "every error of a full disk",
            "rqa.training.checkpoint",
            "WRITE_ERRORS = ...",
            "WRITE_ERRORS = (OSError,)",
        ),
        Without("the partial checkpoint is deleted", f"{CHECKPOINTS}._write", "shutil.rmtree(..., ignore_errors=True)"),
    ),
    Promise(
        "If one rank cannot write a checkpoint, it fails on all ranks",
        "training/test_checkpoint.py::test_a_failure_on_one_rank_is_a_failure_on_all",
        Without(
            "the other ranks are informed",
            f"{CHECKPOINTS}._attempt",
            "self.accelerator.reduce(failed, 'sum').item()",
            "problem",
        ),
        Without("the failure of the thread", f"{CHECKPOINTS}.wait", "publication and publication.result()", "None"),
        Without(
            "the thread ends its work if an exception ends the run",
            "rqa.atomic_files.checksums",
            "with ThreadPool(HASH_THREADS) as pool: ...",
            "with __import__('concurrent.futures').futures.ThreadPoolExecutor(HASH_THREADS) as pool:\n"
            "    return list(pool.map(sha256_of, paths))",
        ),
    ),
    Promise(
        "A folder that is not writable is refused before anything is loaded",
        "training/test_run_log.py::test_a_folder_that_is_not_writable_is_refused",
        Without("a trial file", "rqa.training.run_log.new_folder", "with TemporaryFile(dir=folder): ...", "pass"),
    ),
    Promise(
        "A signal stops all ranks after the same step, with a checkpoint",
        "recipes/test_resume.py::test_a_signal_stops_all_ranks_after_the_same_step",
        Without(
            "the other ranks are asked",
            "rqa.training.signals.StopSignals.stop_requested",
            "self.accelerator.reduce(received, 'sum').item()",
            "received.item()",
        ),
        Without(
            "the end of the launcher is a request",
            "rqa.training.signals.StopSignals.__enter__",
            "by_launcher and sys.platform == 'linux'",
            "False",
        ),
        Without(
            "--stop_signals",
            "rqa.training.signals.StopSignals.__init__",
            "{*WARNING_SIGNALS, *further}",
            "{*WARNING_SIGNALS}",
        ),
        Without(
            "SIGXCPU, the warning of a time limit",
            "rqa.training.signals.StopSignals.__init__",
            "{*WARNING_SIGNALS, *further}",
            "{*further}",
        ),
        Without(
            "a warning that the launcher ignores",
            "rqa.training.signals.StopSignals.__enter__",
            "number in self.warnings or signal.getsignal(number) != signal.SIG_IGN",
            "signal.getsignal(number) != signal.SIG_IGN",
        ),
    ),
    Promise(
        "One thread set by the user is kept under `accelerate launch`; its default of one is replaced",
        "distributed/test_accelerator.py::test_a_single_thread_is_replaced_if_it_is_not_a_setting_of_the_user",
        Without(
            "the user's setting",
            "rqa.distributed.accelerator._one_thread_by_launcher",
            "any(word.startswith(settings) for word in words.split(b'\\0'))",
            "False",
        ),
        Without(
            "the launcher",
            "rqa.distributed.accelerator._one_thread_by_launcher",
            "'ACCELERATE_MIXED_PRECISION' not in os.environ or os.environ.get('OMP_NUM_THREADS') != '1'",
            "True",
        ),
    ),
    Promise(
        "bfloat16 on a CPU that emulates it is a warning with the factor",
        "distributed/test_accelerator.py::test_emulated_bfloat16_is_a_warning_with_the_factor",
        Without(
            "the check",
            "rqa.distributed.accelerator.make_accelerator",
            "accelerator.mixed_precision == 'bf16' and not bf16_is_fast(accelerator.device)",
            "False",
        ),
    ),
    Promise(
        "A run that hardly changes the weights is a warning before its first step",
        "training/test_schedule.py::test_a_run_that_hardly_changes_the_weights_is_a_warning",
        Without("the check", STEPS, "warn_without_change(learning_rate, num_steps)"),
    ),
    Promise(
        "The same signal again stops at once",
        "recipes/test_resume.py::test_the_same_signal_again_stops_at_once",
        Without("the second signal", "rqa.training.signals.StopSignals._receive", "number in self.received", "False"),
    ),
    Promise(
        "The printed command resumes the run",
        "recipes/test_resume.py::test_the_printed_command_resumes_the_run",
        Without("the flag", "rqa.training.signals.log_resume_command", "'latest'", "''"),
    ),
    # Trackers
    Promise(
        "A tracker that fails never stops a run",
        "training/test_trackers.py::test_a_failing_tracker_is_logged_once_and_does_not_stop_the_run",
        Without("any exception", "rqa.training.trackers.Tracker._attempt", "Exception", "ZeroDivisionError"),
        Without("once", "rqa.training.trackers.Tracker._attempt", "self._send = None"),
    ),
    Promise(
        "A resumed run is the same run in Weights & Biases",
        "training/test_trackers.py::test_a_resumed_run_is_the_same_wandb_run_and_sends_only_config_and_numbers",
        Without("the run's id is kept", "rqa.training.trackers._run_id", "not path.exists()", "True"),
    ),
    Promise(
        "TensorBoard shows each step once after a resume",
        "training/test_trackers.py::test_tensorboard_shows_each_step_once_after_a_resume",
        Without(
            "later steps are purged",
            "rqa.training.trackers.Tracker._start_tensorboard",
            "purge_step = first_step + 1",
        ),
    ),
    Promise(
        "A missing package is an error with the command to install it",
        "training/test_trackers.py::test_a_missing_package_is_an_error_that_names_it",
        Without("the check", "rqa.training.trackers.check_tracker", "importlib.util.find_spec(name) is None", "False"),
    ),
    # Fusion-in-decoder
    Promise(
        "FiD with one passage equals the plain model: logits and loss",
        "models/test_fid.py::test_one_passage_gives_the_loss_of_the_plain_model",
        Without("the answer is shifted", "rqa.models.fid.FusionInDecoder.logits", "labels[:, :-1]", "labels[:, 1:]"),
    ),
    Promise(
        "FiD with one passage equals the plain model: gradients",
        "models/test_fid.py::test_one_passage_gives_the_gradients_of_the_plain_model",
        Without("the gradient of the encoder", ENCODE, "hidden[mask]", "hidden[mask].detach()"),
    ),
    Promise(
        "FiD with one passage equals the plain model: greedy, sampled and beam answers",
        "models/test_fid.py::test_one_passage_gives_the_answers_of_the_plain_model",
        Without(
            "the model's own start token",
            "rqa.models.fid.FusionInDecoder.generate",
            "decoder_start_token_id = self.start_id",
            "decoder_start_token_id = 3",
        ),
    ),
    Promise(
        "FiD with many passages equals the published formulation",
        "models/test_fid.py::test_losses_are_those_of_the_published_formulation",
        Without("the example of each passage", ENCODE, "chosen // num_passages", "chosen % num_rows"),
    ),
    Promise(
        "The gradients of FiD equal those of the published formulation",
        "models/test_fid.py::test_gradients_are_those_of_the_published_formulation",
        Without(
            "the gradient of the memory",
            ENCODE,
            "empty.index_put(..., values)",
            "empty.index_put(..., values.detach())",
        ),
    ),
    Promise(
        "A masked passage has no effect",
        "models/test_fid.py::test_masked_passages_do_not_matter",
        Without("the mask", ENCODE, "attention_mask.bool().clone()", "torch.ones_like(attention_mask).bool()"),
    ),
    Promise(
        "Padding, other examples of the batch and passage order have no effect",
        "models/test_fid.py::test_padding_other_rows_and_passage_order_do_not_matter",
        Without("the mask of the encoder", ENCODE, "mask.long()", "mask.long() | 1"),
        Without(
            "the mask of the memory",
            ENCODE,
            "torch.arange(most, device=ids.device) < lengths[:, None]",
            "(torch.arange(most, device=ids.device) < most).expand(num_rows, -1)",
        ),
    ),
    Promise(
        "The number of encoder calls has no effect",
        "models/test_fid.py::test_the_number_of_encoder_calls_does_not_matter",
        Without("the longest passage first", "rqa.models.fid.FusionInDecoder._calls", "-widths[i]", "widths[i]"),
    ),
    Promise(
        "The number of encoder calls is the one with the least work",
        "models/test_fid.py::test_calls_compute_the_fewest_positions_with_those_that_a_call_costs",
        Without("the cost of a call", "rqa.models.fid.encoder_calls", "CALL_POSITIONS * calls", "0"),
    ),
    Promise(
        "The encoder batch size has no effect, also with dropout",
        "models/test_fid.py::test_a_small_encoder_batch_changes_nothing_even_with_dropout",
        Without(
            "random numbers are drawn again",
            "rqa.models.fid.FusionInDecoder._encoded",
            "checkpoint(encoder, ids, mask, use_reentrant=False)",
            "checkpoint(encoder, ids, mask, use_reentrant=False, preserve_rng_state=False)",
        ),
        Without(
            "activations are computed again",
            "rqa.models.fid.FusionInDecoder._encoded",
            "checkpoint(encoder, ids, mask, use_reentrant=False)",
            "encoder(ids, mask)",
        ),
    ),
    Promise(
        "An example without passages does not disturb the others",
        "models/test_fid.py::test_an_example_without_passages_does_not_change_other_rows",
        Without("one position to attend to", ENCODE, "real[:, 0, 0] |= ..."),
    ),
    Promise(
        "A checkpoint is the plain class's, both ways",
        "models/test_fid.py::test_checkpoints_are_loaded_and_saved_as_the_plain_class",
        Without(
            "float32",
            "rqa.models.loading.load_model",
            "torch.bfloat16 if precision == 'bf16' else torch.float32",
            "torch.bfloat16",
        ),
    ),
    Promise(
        "Two processes train FiD as one does",
        "recipes/test_fid_recipe.py::test_two_processes_equal_one",
        REDUCED,
    ),
    Promise(
        "FiD under DeepSpeed equals one process: under ZeRO-3 ranks make equally many encoder calls",
        "recipes/test_fid_recipe.py::test_deepspeed_equals_one_process",
        Without(
            "ranks agree on the number of calls",
            "rqa.models.decoder.most_of_ranks",
            "torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX)",
        ),
        Without("unused calls are part of the backward pass", ENCODE, "memory = memory + torch.stack(unused).sum()"),
    ),
    Promise(
        "FiD under FSDP2 equals one process",
        "recipes/test_fid_recipe.py::test_fsdp2_equals_one_process",
        Without("weights are tied again", "rqa.models.fid.FusionInDecoder.tie_weights", "self.model.tie_weights()"),
    ),
    Promise(
        "Text of a passage is never a control token",
        "prompts/test_fid_prompt.py::test_data_is_never_a_control_token",
        Without(
            "special tokens are split",
            "rqa.prompts.text_tokenizer.TextTokenizer.encode",
            "backend.encode_special_tokens = True",
            "backend.encode_special_tokens = False",
        ),
        Without(
            "control tokens that are pieces of a vocabulary are split",
            "rqa.prompts.text_tokenizer._text_backend",
            "isinstance(backend.model, Unigram)",
            "False",
        ),
    ),
    Promise(
        "Only passages are truncated, each at its end",
        "prompts/test_fid_prompt.py::test_only_passages_are_truncated_at_their_ends",
        Without(
            "the closing token",
            "rqa.prompts.fid_prompt.PassagePromptBuilder.prompt",
            "[*self._opening, *(id for id, _ in tokens[:room]), *self._closing]",
            "[*self._opening, *(id for id, _ in tokens[:room])]",
        ),
    ),
    Promise(
        "FiD targets are the answer and one eos",
        "prompts/test_collators.py::test_targets_of_fusion_in_decoder_are_the_answer_and_one_eos",
        Without(
            "labels of padding are ignored",
            "rqa.prompts.collators.ParallelCollator.collate",
            "_padded([row.answer for row in rows], IGNORE_INDEX)",
            "_padded([row.answer for row in rows], 0)",
        ),
    ),
    Promise(
        "Cross-attention on passages equals the published formula",
        "evaluation/test_attribution.py::test_cross_attention_is_that_of_the_formula",
        Without(
            "the mean over tokens",
            "rqa.evaluation.attribution.cross_attention",
            "sums / lengths.clamp(min=1)",
            "sums",
        ),
        Without(
            "scores before the softmax",
            "rqa.evaluation.attribution",
            "_scores.append(scores)",
            "_scores.append(softmax(scores, -1))",
        ),
    ),
    Promise(
        "Leave-one-out is the difference of two losses",
        "evaluation/test_attribution.py::test_leaving_one_out_is_the_difference_of_two_losses",
        Without(
            "the passage is left out",
            "rqa.evaluation.attribution",
            "values[:position] + values[position + 1 :]",
            "values[1:]",
        ),
    ),
    # Evaluation
    Promise(
        "Every score with a value for each question has its interval",
        "evaluation/test_evaluate.py::test_every_score_that_has_rows_has_the_interval_of_its_rows",
        Without(
            "the loss of each question",
            "rqa.evaluation.evaluate._score_losses",
            "{'reference_nll': nll, 'reference_tokens': tokens}",
            "{'reference_tokens': tokens}",
        ),
    ),
    Promise(
        "95 % intervals contain the true value in 95 of 100 data sets",
        "evaluation/test_significance.py::test_an_interval_of_95_percent_covers_the_truth_in_95_of_100_data_sets",
        Without(
            "both tails",
            f"{SIGNIFICANCE}._quantiles",
            "[(1 - level) / 2, (1 + level) / 2]",
            "[1 - level, level]",
        ),
        Without(
            "both systems are resampled by the same questions",
            f"{SIGNIFICANCE}._compare",
            "totals_a, totals_b = totals",
            "totals_a, totals_b = totals[0], totals[1][::-1]",
        ),
    ),
    Promise(
        "p-values are uniform if nothing differs",
        "evaluation/test_significance.py::test_p_values_are_uniform_where_nothing_differs",
        Without(
            "both sides",
            f"{SIGNIFICANCE}._p_value",
            "np.abs(score(sum_b - moved) - score(sum_a + moved))",
            "score(sum_b - moved) - score(sum_a + moved)",
        ),
    ),
    Promise(
        "The first token ends the prefill",
        "test_timing.py::test_the_first_token_ends_the_prefill_of_a_decoder",
        Without("the first token only", "rqa.generation.generator._FirstToken.__call__", "not self.is_seen", "True"),
    ),
    Promise(
        "Unfinished work of a device counts for the stage that requested it",
        "test_timing.py::test_queued_work_of_the_device_is_attributed_to_its_stage",
        Without("the device is synchronized", "rqa.timing", "torch.accelerator.synchronize()"),
    ),
    # Citations
    Promise(
        "In every epoch, order, dropout and cut, a cited number is that of its gold passage in the prompt",
        "prompts/test_citing.py::test_in_every_epoch_order_dropout_and_cut_a_number_means_its_gold_passage",
        Without("renumbering", COLLATOR + "._encode", "renumber(answer, ...)", "answer"),
        Without(
            "the passages that were dropped",
            "rqa.prompts.decoder_prompt.PromptBuilder.prompt",
            "fitted = tuple(passage for passage, _ in kept)",
            "fitted = item.passages",
        ),
        Without(
            "the numbers in the texts of fusion-in-decoder",
            "rqa.prompts.fid_prompt.PassagePromptBuilder.prompt",
            "enumerate(item.passages, 1)",
            "enumerate(item.passages)",
        ),
    ),
    Promise(
        "Two orders of the passages differ by the same permutation in the target",
        "prompts/test_citing.py::test_two_orders_of_passages_differ_by_the_permutation_of_their_numbers",
        Without("the place in the prompt", "rqa.data.citations.new_numbers", "numbers.get(id)", "old"),
    ),
    Promise(
        "In fusion-in-decoder, a passage that is cut whole is not cited",
        "prompts/test_citing.py::test_a_passage_that_is_cut_whole_is_not_cited_in_fusion_in_decoder",
        Without(
            "the passages that fitted",
            "rqa.prompts.fid_prompt.PassagePromptBuilder.prompt",
            "{id: n for id, n in numbers.items() if id not in unread}",
            "numbers",
        ),
    ),
    Promise(
        "Without --citations numbers are text",
        "prompts/test_citing.py::test_without_the_flag_numbers_are_text",
        Without("the flag, in answers", COLLATOR + "._encode", "self.citations", "True"),
        Without("the flag, in the history", COLLATOR + "._asked", "self.citations", "True"),
    ),
    Promise(
        "A generated answer cites its prompt, also if a passage is left out",
        "prompts/test_citing.py::test_a_generated_answer_cites_its_prompt_also_without_one_of_the_passages",
        Without("other numbers stay", "rqa.data.citations._renumbered", "numbers.get(old, old)", "numbers.get(old)"),
        Without(
            "the passages of the prompt",
            "rqa.data.passage_selection.GeneratorInput.from_ranked",
            "cls(example, passages, answer, ranks, _ids(passages))",
            "cls(example, passages, answer, ranks, _ids(example.gold_passages))",
        ),
    ),
    Promise(
        "A citation of no gold passage is an error with its line",
        "prompts/test_citing.py::test_a_citation_of_no_gold_passage_is_an_error_with_file_and_line",
        Without("[0]", "rqa.data.citations.citation_problems", "1 <= number <= num_gold", "number <= num_gold"),
        Without("the refusal", COLLATOR + ".check", "cited_numbers(refusal_answer)", "False"),
    ),
    Promise(
        "An answer must fit with the longest number that it can have",
        "prompts/test_citing.py::test_an_answer_must_fit_with_the_longest_number",
        Without("the longest number", COLLATOR + "._longest", "with_number(answer, ...)", "answer"),
    ),
    Promise(
        "Precision and recall of citations equal those by hand",
        "evaluation/test_citation_scores.py::test_scores_by_hand",
        Without(
            "a number without a passage is wrong",
            "rqa.evaluation.citation_scores.citation_scores",
            "len(right) / len(numbers)",
            "len(right) / max(1, len(ids))",
        ),
        Without(
            "gold in the prompt alone",
            "rqa.evaluation.citation_scores.citation_scores",
            "gold.intersection(read_ids)",
            "gold",
        ),
    ),
    Promise(
        "Other scores, with their intervals, are those of texts without citations",
        "evaluation/test_citation_scores.py::test_other_scores_are_those_of_texts_without_citations",
        Without(
            "scores",
            "rqa.evaluation.evaluate.Evaluator._all_scored",
            "without_citations(text) if self.citations else text",
            "text",
        ),
        Without(
            "intervals",
            "rqa.evaluation.significance.resampled_scores",
            "(row.scored_answer, row.scored_references)",
            "(row.answer, row.references)",
        ),
    ),
    Promise(
        "Scores of citations are compared on the questions that both sides have",
        "evaluation/test_citation_scores.py::test_scores_are_read_and_compared_on_the_questions_that_both_have",
        Without(
            "the shared scores",
            "rqa.evaluation.significance._with_shared_scores",
            "replace(row, citation_scores=shared('citation_scores'), judge_scores=shared('judge_scores'))",
            "replace(row, judge_scores=shared('judge_scores'))",
        ),
    ),
    Promise(
        "--citations reaches the collator, and is locked on resume",
        "cli/test_training_args.py::test_the_flag_of_citations_reaches_the_collator_and_is_locked",
        Without(
            "the lock",
            "rqa.cli.training_args.flags_locked_on_resume",
            "name not in FLAGS_FREE_ON_RESUME",
            "name not in FLAGS_FREE_ON_RESUME | {'citations'}",
        ),
    ),
    # Endpoint
    Promise(
        "A server answers as the local model, by token ids and by messages, also where passages are truncated",
        "generation/test_endpoint_generator.py::test_answers_equal_those_of_the_local_generator",
        Without(
            "messages have the text that fitted",
            "rqa.prompts.decoder_prompt.chat_messages",
            "texts[ranks[-1]] = prompt.cut",
        ),
        Without("the limit", f"{SERVER}._body", "self.max_new_tokens", "3"),
    ),
    Promise(
        "Messages for a server have the text of the decoder's prompt",
        "generation/test_endpoint_generator.py::test_messages_have_the_text_of_the_prompt",
        Without("the history", "rqa.prompts.decoder_prompt.chat_messages", "[*history, ...]", "[...]"),
    ),
    Promise(
        "A missing answer of a server stops the evaluation, and no answered question is asked again",
        "generation/test_endpoint_generator.py::test_faults_are_retried_and_missing_answers_stop",
        Without("the error", f"{SERVER}._answers", "not reply.response", "False"),
        Without("the cache", "rqa.endpoint.client._Run.reply", "self.cache.append(key, response)"),
    ),
    # Judge
    Promise(
        "After a kill the judge repeats only calls that were running",
        "judge/test_client.py::test_killed_run_repeats_only_calls_in_flight",
        Without("the cache", "rqa.endpoint.client._Run.reply", "self.cache.append(key, response)"),
    ),
    Promise(
        "A response is on the disk before it counts",
        "judge/test_client.py::test_response_is_on_disk_before_it_counts",
        Without("the flush", "rqa.atomic_files.append_line", "os.fsync(descriptor)"),
    ),
    Promise(
        "Every transient fault is retried, and no response is paid for twice",
        "judge/test_client.py::test_transient_fault_is_retried",
        Without("retries", "rqa.endpoint.client._Run.reply", "calls <= self.endpoint.retries", "calls < 1"),
    ),
    Promise(
        "The key is in no file, log or error",
        "judge/test_client.py::test_key_is_in_no_file_log_or_error",
        Without(
            "the key is removed from texts of the server",
            "rqa.endpoint.client._Run.without_key",
            "without_key(text, ...)",
            "text",
        ),
    ),
    Promise(
        "A missing verdict widens the bounds and stays in the denominator",
        "judge/test_judge_evaluation.py::test_missing_verdicts_widen_the_bounds_and_stay_in_the_denominator",
        Without(
            "missing verdicts in the upper bound",
            VERDICTS,
            "100 * (right + len(verdicts) - judged)",
            "100 * right",
        ),
        Without(
            "the accuracy is of judged answers",
            VERDICTS,
            "{'judge_accuracy': 100 * right / judged}",
            "{'judge_accuracy': 100 * right / len(verdicts)}",
        ),
    ),
    # Reports
    Promise(
        "Differences between contexts are paired, and add up",
        "evaluation/test_context_report.py::test_differences_are_paired_and_add_up",
        Without(
            "the same distractors",
            "rqa.evaluation.context_report",
            "('gold_and_retrieved', 'gold')",
            "('distractors', 'gold')",
        ),
    ),
    Promise(
        "A report of an evaluation and a run has all curves of the run, in either order",
        "report/test_html.py::test_all_curves_of_the_only_run_of_two_sides",
        Without("colours of the curves", "rqa.report.plots.training_plots", "j if is_alone else i", "i + j"),
    ),
    Promise(
        "All text in a report is escaped, and the page loads nothing",
        "report/test_html.py::test_texts_are_escaped",
        Without(
            "escaping of text",
            "rqa.report.html",
            "autoescape = True",
            "autoescape = False",
        ),
        Without("escaping of the data", "rqa.report.html._json", "....replace('<', '\\\\u003c')", "..."),
    ),
    Promise(
        "Answer and passages in the terminal are those of an evaluation",
        "recipes/test_ask.py::test_answer_and_passages_are_those_of_an_evaluation",
        Without(
            "the flags of the evaluation",
            "rqa.cli.parser.parse_args",
            "_flags_of_results(..., ..., ...) | entries",
            "entries",
        ),
    ),
    Promise(
        "The streamed text is the generator's answer",
        "generation/test_chat.py::test_the_streamed_answer_is_that_of_a_batch",
        Without("incomplete characters are held back", "rqa.generation.generator", "....rstrip('\\ufffd')", "..."),
    ),
    # Serving
    Promise(
        "50 users at a time get the answers of one by one, in batches; SIGTERM finishes a running answer",
        "recipes/test_serve.py::test_50_users_at_a_time_get_the_answers_of_one_by_one_and_sigterm_finishes_them",
        Without(
            "waiting questions are one batch",
            "rqa.serving.batcher.Batcher._next_batch",
            "range(min(self.batch_size, len(self._waiting)))",
            "range(1)",
        ),
        Without(
            "a handler for the signal that the web server repeats",
            "rqa.serving.server.serve",
            "signal.signal(each, _ignore)",
            "signal.signal(each, signal.SIG_DFL)",
        ),
    ),
    Promise(
        "Each answer of a batch is streamed to its own listener, exactly",
        "generation/test_streaming.py::test_each_listener_receives_the_answer_of_its_own_question",
        Without(
            "each row has its own streamer",
            "rqa.generation.streaming.BatchStreamer.put",
            "self.streamers[row].put(...)",
            "self.streamers[0].put(...)",
        ),
    ),
    Promise(
        "The generation of a batch ends when all its clients have left",
        "generation/test_streaming.py::test_generation_ends_if_all_listeners_have_left",
        Without("clients that left", "rqa.generation.streaming.RowStopping.__call__", "listener.has_left()", "False"),
    ),
    Promise(
        "A client that leaves ends its answer, and the next is served",
        "serving/test_app.py::test_a_client_that_leaves_ends_its_answer_and_the_next_is_served",
        Without("the watch on the connection", "rqa.serving.app._watch", "job.leave()", "None"),
    ),
    Promise(
        "A full queue is status 503 with Retry-After",
        "serving/test_app.py::test_a_full_queue_is_status_503",
        Without(
            "the limit of the queue",
            "rqa.serving.batcher.Batcher.submit",
            "len(self._waiting) >= self.max_queue",
            "False",
        ),
    ),
    Promise(
        "After its deadline a question is status 504, and its generation ends",
        "serving/test_app.py::test_after_the_deadline_an_answer_is_an_error",
        Without(
            "the deadline",
            "rqa.serving.batcher.Job.next",
            "max(0.0, self.deadline - time.monotonic())",
            "None",
        ),
        Without("the generation ends", "rqa.serving.batcher.Job.is_over", "time.monotonic() > self.deadline", "False"),
    ),
    Promise(
        "A bad request is an error in the form of OpenAI's API",
        "serving/test_app.py::test_a_bad_request_is_an_error_in_the_form_of_openai",
        Without("the limit of a body", "rqa.serving.app.read_body", "len(body) > limit", "False"),
        Without(
            "options without effect",
            "rqa.serving.protocol.ChatRequest.parse",
            "values.get(name) not in allowed",
            "False",
        ),
    ),
    Promise(
        "Without its token the server answers nothing",
        "serving/test_app.py::test_a_token_is_required_if_there_is_one",
        Without("the comparison", "rqa.serving.access.Access.check_token", "expected and not (...)", "False"),
        Without(
            "the token is not in the text of the object",
            "rqa.serving.access.Access",
            "field(default='', repr=False)",
            "field(default='')",
        ),
    ),
    Promise(
        "An address of the network requires a token",
        "serving/test_app.py::test_an_address_of_the_network_requires_a_token",
        Without(
            "the check",
            "rqa.serving.access.Access.__post_init__",
            "not self.token and not is_loopback(self.host)",
            "False",
        ),
        Without(
            "the length of a token",
            "rqa.serving.access.Access.__post_init__",
            "len(self.token) < MIN_TOKEN_LENGTH",
            "False",
        ),
    ),
    Promise(
        "Another web site cannot use the server",
        "serving/test_app.py::test_another_site_is_refused",
        Without(
            "the name of the host", "rqa.serving.access.Access.check_site", "not self.token and ... not in ...", "False"
        ),
        Without("the origin", "rqa.serving.access.Access.check_site", "origin is not None and ... != ...", "False"),
    ),
    Promise(
        "Feedback is confirmed only if it is on the disk, and a failed row leaves no part",
        "serving/test_app.py::test_feedback_is_confirmed_only_if_it_is_on_the_disk",
        Without("the disk", "rqa.atomic_files.append_line", "os.fsync(descriptor)"),
        Without("a part is removed", "rqa.atomic_files.append_line", "os.ftruncate(descriptor, size)"),
    ),
    Promise(
        "Feedback describes the answer, once",
        "serving/test_app.py::test_feedback_is_a_row_that_describes_the_answer",
        Without("once", "rqa.serving.feedback.Feedback.add", "del self._answers[str(id)]"),
    ),
    Promise(
        "Answers that users rate as correct become gold answers, which cite their gold passages",
        "serving/test_app.py::test_feedback_becomes_questions_whose_gold_passages_are_the_cited_ones",
        Without("the rating", "rqa.conversion.feedback.feedback_questions", "row.flag('correct')", "True"),
        Without("the cited passages", "rqa.conversion.feedback._question", "[passages[...] for number in cited]", "[]"),
        Without(
            "the numbers", "rqa.conversion.feedback._question", "{old: new for new, old in enumerate(cited, 1)}", "{}"
        ),
    ),
    Promise(
        "--judge_labels reads feedback on the answers of the evaluation",
        "serving/test_app.py::test_feedback_is_the_verdict_on_an_equal_answer_of_the_evaluation",
        Without("equal answers", "rqa.judge.judge_evaluation._matched", "isinstance(each, PredictionRecord)", "False"),
        Without(
            "equal conversations",
            "rqa.judge.judge_evaluation._history",
            "row.objects('chat_history', optional=True)",
            "[]",
        ),
    ),
    Promise(
        "The page shows answers and passages as text, marks cited ones, and loads nothing",
        "serving/test_page.py::test_ask_read_the_sources_and_rate_the_answer",
        Without(
            "texts are text", "rqa/serving/templates/chat.js", "made.textContent = text;", "made.innerHTML = text;"
        ),
        Without("cited passages are marked", "rqa.serving.protocol.sources", "passage['number'] in cited", "False"),
    ),
    Promise(
        "The policy of the page allows no other script, and its name of the model stays text",
        "serving/test_page.py::test_the_name_of_a_model_stays_text",
        Without("escaping", "rqa.serving.page.render_page", "autoescape = True", "autoescape = False"),
    ),
    Promise(
        "A pair of encoders of DPR: each embeds its side as in the original",
        "retrieval/test_encoder_checkpoint.py::test_a_dpr_pair_is_embedded_as_in_the_original",
        Without("the separator", "rqa.retrieval.encoder.Encoder._content", "self.is_dpr and title", "False"),
        Without("the weights of BERT", CHECKPOINT, '{r"^(question|ctx)_encoder\\.bert_model\\.": ""}', "{}"),
    ),
    Promise(
        "Retrieval with another encoder of queries is not taken from the cache of the first",
        "retrieval/test_dense.py::test_queries_of_another_encoder_search_the_same_index",
        Without(
            "the encoder in the fingerprint",
            "rqa.retrieval.dense.DenseRetriever.fingerprint",
            "self.encoder.fingerprint()",
            "str(self.index.provenance['encoder'])",
        ),
    ),
    # Caches, start-up
    Promise(
        "Cached passages are not retrieved again",
        "retrieval/test_retrieve.py::test_cached_results_are_not_retrieved_again",
        Without("the cache is read", "rqa.retrieval.retrieve._retrieve", "path.exists()", "False"),
    ),
    Promise(
        "A change of retriever, corpus, k or queries retrieves again",
        "retrieval/test_retrieve.py::test_other_inputs_are_retrieved_again",
        Without(
            "the retriever in the key",
            "rqa.retrieval.retrieve._retrieve",
            "[FORMAT, retriever.fingerprint(), passages.fingerprint, k, queries]",
            "[FORMAT, passages.fingerprint, k, queries]",
        ),
        Without(
            "the queries in the key",
            "rqa.retrieval.retrieve._retrieve",
            "[FORMAT, retriever.fingerprint(), passages.fingerprint, k, queries]",
            "[FORMAT, retriever.fingerprint(), passages.fingerprint, k, len(queries)]",
        ),
    ),
    Promise(
        "One process retrieves, and every rank has the result",
        "retrieval/test_retrieve.py::test_every_rank_gets_the_results_of_the_main_process",
        Without(
            "one process",
            "rqa.retrieval.retrieve.retrieve_splits",
            "accelerator.is_main_process",
            "True",
        ),
    ),
    Promise(
        "Two processes embed a share of the queries each, and retrieve the bytes of one",
        "retrieval/test_query_sharing.py::test_two_processes_retrieve_the_bytes_of_one",
        Without("a share", f"{SHARING}._embed", "blocks[rank::num_ranks]", "blocks"),
        Without(
            "blocks of a fixed size",
            f"{SHARING}.query_blocks",
            "[order[start:start + BLOCK] for start in range(0, len(order), BLOCK)]",
            "np.array_split(order, int(__import__('os').environ['WORLD_SIZE']))",
        ),
        Without(
            "the spans of all", f"{SHARING}._embed", "[span for share in shares for span in share.spans]", "own.spans"
        ),
    ),
    Promise(
        "Queries that are embedded in blocks keep their order",
        "retrieval/test_query_sharing.py::test_blocks_hold_all_queries_once_the_longest_first",
        Without(
            "the order of the queries",
            f"{SHARING}.join_blocks",
            "vectors[np.concatenate(blocks)] = joined",
            "vectors = joined",
        ),
    ),
    Promise(
        "The main process raises the error of each process that embeds queries",
        "retrieval/test_query_sharing.py::test_the_main_process_raises_the_error_of_each_process_and_goes_on",
        Without("the error is a part of the share", f"{SHARING}._own_share", "share.error = error", "raise"),
        Without("the errors of the others", f"{SHARING}._embed", "raise share.error", "raise shares[0].error"),
    ),
    Promise(
        "A build into a folder of --store that is killed in a write embeds only the missing passages",
        "retrieval/test_milvus_processes.py::test_a_build_killed_in_a_write_embeds_only_the_missing_passages",
        Without(
            "stored passages",
            "rqa.retrieval.milvus._complete",
            "index.stored_rows() if index else ...",
            "np.zeros(0, np.int64)",
        ),
    ),
    Promise(
        "Of two runs that need an index, one builds it",
        "retrieval/test_dense.py::test_two_processes_build_one_index",
        Without(
            "the lock",
            "rqa.retrieval.dense.open_dense_retriever",
            "folder_lock(index_path, 'the index', OTHER_PATH)",
            "__import__('contextlib').nullcontext()",
        ),
    ),
    Promise(
        "BM25 scores are those of the formula, and ties are in the order of the corpus",
        "retrieval/test_bm25.py::test_bm25_equals_its_formula",
        Without("the weight of the length", "rqa.retrieval.bm25._build", "BM25(k1=K1, b=B)", "BM25(k1=K1, b=0.5)"),
        Without(
            "the order of ties",
            "rqa.retrieval.bm25.best",
            "np.argsort(-scores[rows], kind='stable')",
            "np.lexsort((-rows, -scores[rows]))",
        ),
    ),
    Promise(
        "A BM25 index of other inputs is never opened, and a damaged one is built again",
        "retrieval/test_bm25.py",
        Without("the corpus", "rqa.retrieval.bm25.open_bm25_retriever", "passages.fingerprint", "''"),
        Without(
            "the stemmer",
            "rqa.retrieval.bm25.open_bm25_retriever",
            "[FORMAT, bm25s.__version__, passages.fingerprint, stemmer, K1, B]",
            "[FORMAT, bm25s.__version__, passages.fingerprint, K1, B]",
        ),
        Without(
            "the comparison",
            "rqa.retrieval.bm25._is_sound",
            "checksums([folder / name for name in files]) == [*files.values()]",
            "files",
        ),
    ),
    Promise(
        "Hybrid retrieval adds the reciprocal ranks of both lists",
        "retrieval/test_hybrid.py",
        Without("the offset", "rqa.retrieval.hybrid.fuse", "RANK_OFFSET + rank", "rank"),
        Without(
            "the second list",
            "rqa.retrieval.hybrid.HybridRetriever.search",
            "[lists[i] for lists in ranked]",
            "[ranked[0][i]]",
        ),
    ),
    Promise(
        "Reranked passages are in the order of the cross-encoder's scores",
        "retrieval/test_rerank.py",
        Without("the order", "rqa.retrieval.rerank.RerankingRetriever.search", "-own_scores", "own_scores"),
        Without("the raw score", "rqa.retrieval.rerank.Reranker.scores", "torch.nn.Identity()", "torch.nn.Sigmoid()"),
        Without(
            "the one score",
            "rqa.retrieval.encoder_checkpoint._check_reranker",
            "not architecture.endswith('ForSequenceClassification') or labels != 1",
            "not architecture.endswith('ForSequenceClassification')",
        ),
    ),
    Promise(
        "A mined negative is no gold passage or near copy, contains no answer, and has a score below that of gold",
        "retrieval/test_negatives.py::test_negatives_are_those_of_a_loop_over_the_lists",
        Without("gold left out", MINE, "hit.passage.id in golds", "False"),
        Without(
            "answers left out",
            MINE,
            "any(contains_words(hit.passage.content, answer) for answer in answers)",
            "False",
        ),
        Without("near copies", MINE, "_overlap(..., own) >= max_gold_overlap", "False"),
        Without("the score", MINE, "limit is not None and hit.score >= limit", "False"),
        Without("the first rank", MINE, "first_rank - 1", "0"),
    ),
    Promise(
        "The loss of a retriever is that of the gold passage among the others of its batch",
        "training/test_contrastive.py::test_the_loss_is_that_of_the_reference",
        Without(
            "other gold passages are no negatives",
            "rqa.training.contrastive.ContrastiveEncoder.forward",
            "logits.masked_fill(~candidates, -torch.inf)",
            "logits",
        ),
        Without(
            "unit vectors",
            "rqa.training.contrastive.ContrastiveEncoder._embed",
            "normalize(vectors, dim=1) if self.is_normalized else vectors",
            "vectors",
        ),
        Without(
            "the prompt of passages",
            "rqa.training.contrastive.ContrastiveCollator._row",
            "self._tokens([passage.content for passage in passages], self.encoder.passage_prefix)",
            "self._tokens([passage.content for passage in passages], self.encoder.query_prefix)",
        ),
    ),
    Promise(
        "A question without a negative in its batch has no part in the loss of a retriever",
        "training/test_contrastive.py::test_a_question_without_a_negative_has_no_label",
        Without("no label", "rqa.training.contrastive.ContrastiveCollator.collate", "candidates[i].sum() > 1", "True"),
    ),
    Promise(
        "A step without a target has the loss 0, on all ranks",
        "training/test_contrastive.py::test_two_processes_compute_the_steps_of_two_micro_batches",
        Without("no division by 0", STEPS, "max(1, tokens)", "tokens"),
    ),
    Promise(
        "A retriever learns the softmax of its reader's evidence over the passages that the reader read",
        "training/test_distillation.py::test_the_loss_is_that_of_numpy",
        Without(
            "the passages of the other questions",
            "rqa.training.distillation.DistillationCollator.collate",
            "torch.full(shape, not rows)",
            "torch.full(shape, True)",
        ),
        Without(
            "the teacher's temperature",
            "rqa.training.distillation._shares",
            "(scores / temperature).softmax(0)",
            "scores.softmax(0)",
        ),
        Without("shares are logarithms", "rqa.training.distillation._shares", "scores = scores.log()"),
        Without(
            "the divergence",
            "rqa.training.contrastive.ContrastiveEncoder.forward",
            "kl_div(log_shares, targets, reduction='none').sum(1)",
            "-(log_shares * targets).sum(1)",
        ),
    ),
    Promise(
        "The cache of gradients changes none of a distillation, and a batch has the gradients of its questions",
        "training/test_distillation.py::test_the_cache_changes_no_gradient_and_a_batch_is_its_questions",
        Without(
            "the passages of the other questions",
            "rqa.training.distillation.DistillationCollator.collate",
            "torch.full(shape, not rows)",
            "torch.full(shape, True)",
        ),
    ),
    Promise(
        "A passage that did not fit into the prompt, and evidence that is not finite, teach nothing",
        "training/test_distillation.py::test_only_what_the_reader_read_and_can_compare_is_taught",
        Without(
            "read passages",
            "rqa.training.distillation._values",
            "prediction.passages[: prediction.num_passages_read]",
            "prediction.passages",
        ),
        Without(
            "finite",
            READ_TEACHER,
            "not all(map(math.isfinite, (shares := ...)))",
            "not all(map(math.isfinite, (shares := ...))) and False",
        ),
        Without("two passages", READ_TEACHER, "len(values := _values(path, prediction, name)) < 2", "False"),
    ),
    Promise(
        "Predictions of other questions or texts, or with several attributions, teach no retriever",
        "training/test_distillation.py::test_invalid_predictions_name_the_problem",
        Without("ids", "rqa.training.distillation._check_questions", "each not in questions", "False"),
        Without("questions", "rqa.training.distillation._check_questions", "row.question != questions[each]", "False"),
        Without("texts", "rqa.training.distillation._values", "passage.id != number", "False"),
        Without("one of two", "rqa.training.distillation._chosen_scores", "wanted is None and len(names) > 1", "False"),
    ),
    Promise(
        "Passages that the corpus lacks teach no retriever",
        "training/test_distillation.py::test_a_missing_file_and_another_corpus_are_refused",
        Without("the corpus", READ_TEACHER, "passages is not None", "False"),
    ),
    Promise(
        "Another teacher is another run: its lessons have another fingerprint",
        "training/test_distillation.py::test_the_one_attribution_is_the_default_and_the_fingerprint_is_that_of_the_lessons",
        Without(
            "the teacher's content",
            "rqa.training.distillation.Teacher.fingerprint",
            "repr(sorted(self.lessons.items()))",
            "''",
        ),
    ),
    Promise(
        "The attribution of the reference is that of its loss without each passage",
        "evaluation/test_evaluate.py::test_the_reference_is_attributed_in_place_of_the_answer",
        Without(
            "the references",
            "rqa.evaluation.evaluate.Evaluator._results",
            "leave_one_out(self.loss, scored)",
            "leave_one_out(self.loss, [item for item, own in zip(answered, references) if own])",
        ),
    ),
    Promise(
        "No generator input is tokenized twice",
        "prompts/test_collators.py::test_an_equal_input_is_encoded_once",
        Without("the cache", "rqa.prompts.collators.Collator.encode", "self._cache[item] = row"),
    ),
    Promise(
        "--help and a misspelt flag load nothing heavy",
        "test_layers.py::test_help_and_a_misspelt_flag_load_nothing_heavy",
        Without(
            "light flags",
            "rqa.cli.training_args",
            "from rqa.errors import InputError",
            "import torch\nfrom rqa.errors import InputError",
        ),
    ),
    # Files, terminal
    Promise(
        "A file that is being written is whole after a kill: the old content or the new",
        "test_atomic_files.py::test_a_kill_in_the_middle_of_a_write_leaves_the_old_file",
        Without(
            "the new content is written beside the file",
            "rqa.atomic_files.atomic_file",
            "path.with_name(f'.{path.name}.partial')",
            "path",
        ),
    ),
    Promise(
        "A full disk leaves the old file, and no partial file",
        "test_atomic_files.py::test_a_full_disk_leaves_the_old_file_and_no_partial_file",
        Without("the partial file is deleted", "rqa.atomic_files.atomic_file", "partial.unlink(missing_ok=True)"),
    ),
    Promise(
        "A file is on the disk before it has its name",
        "test_atomic_files.py::test_content_is_flushed_before_the_rename_and_the_name_after",
        Without("the flush of the content", "rqa.atomic_files.atomic_file", "os.fsync(file.fileno())"),
        Without("the flush of the name", "rqa.atomic_files.atomic_file", "flush(path.parent)"),
    ),
    Promise(
        "Long work logs a line at an interval, on rank 0 only, and leaves no thread",
        "test_terminal.py",
        Without("rank 0 only", "rqa.terminal.Progress.__init__", "os.environ.get('RANK', '0') == '0'", "True"),
        Without("the thread ends", "rqa.terminal.Progress.__exit__", "self._ended.set()\nif self._thread: ...", "pass"),
    ),
    # Command line, terminal, hub
    Promise(
        "A value in a config file is the text that was written",
        "cli/test_config_file.py",
        Without("no types of YAML 1.1", f"{CONFIG_FILE}._scalar", "str(node.value)", "str(yaml.safe_load(node.value))"),
        Without("numbers of JSON", f"{CONFIG_FILE}._json_entries", "parse_float=str"),
        Without("~ in paths", "rqa.cli.values.path_of", "os.path.expanduser(text)", "text"),
    ),
    Promise(
        "config.json repeats every accepted value of every flag",
        "cli/test_config_file.py",
        Without("infinity", "rqa.cli.parser.flat", "str(value) if value in (math.inf, -math.inf) else value", "value"),
        Without(
            "paths that are not UTF-8",
            f"{CONFIG_FILE}._json_entries",
            "lone_surrogates = True",
            "lone_surrogates = False",
        ),
        Without(
            "no NaN",
            "rqa.cli.values._number",
            "math.isnan(number) or (math.isinf(number) and not may_be_infinite)",
            "math.isinf(number) and not may_be_infinite",
        ),
    ),
    Promise(
        "A key or a field of a config file stands once",
        "cli/test_config_file.py",
        Without("keys of a file", "rqa.cli.parser._flags_of_file", "keys.get(flag.name)", "''"),
        Without("fields inside a value", f"{CONFIG_FILE}._json_value", "name in values", "False"),
    ),
    Promise(
        "Two names of one flag have one value",
        "cli/test_parser.py",
        Without(
            "the comparison", "rqa.cli.parser._collected", "option != first_option and text != first_text", "False"
        ),
    ),
    Promise(
        "A config file of a few bytes needs little memory",
        "cli/test_config_file.py::test_another_file_is_one_line",
        Without("aliases", f"{CONFIG_FILE}._json_value", "id(node) in seen", "False"),
    ),
    Promise(
        "The standard output has results alone",
        "cli/test_run_main.py",
        Without("the descriptor", "rqa.terminal.results_on_stdout", "os.dup2(2, 1)"),
        Without("at exit", "rqa.terminal.results_on_stdout", "atexit.register(os.dup2, 2, 1)"),
        Without("JSON on /dev/stdout", "rqa.cli.parser.check_output", "stdout_as_file()", "path"),
    ),
    Promise(
        "Control characters reach a terminal from no recipe",
        "cli/test_run_main.py",
        Without("results", "rqa.terminal.write_result", "printable(str(value))", "str(value)"),
        Without("log records", "rqa.terminal.results_on_stdout", "logging.setLogRecordFactory(_PrintableRecord)"),
        Without("tracebacks", "rqa.terminal.results_on_stdout", "sys.excepthook = _print_exception"),
        Without("errors", "rqa.cli.parser._print_error", "printable(str(error))", "str(error)"),
        Without("JSON", "rqa.atomic_files.json_text", r"'[\x7f-\x9f\ud800-\udfff]'", r"'[\ud800-\udfff]'"),
    ),
    Promise(
        "A closed pipe or stream ends a recipe quietly",
        "cli/test_run_main.py",
        Without("streams closed at the start", "rqa.terminal.results_on_stdout", "_open_closed_streams()"),
        Without(
            "the pipe at its end",
            "rqa.terminal.results_on_stdout",
            "suppress(OSError)",
            "__import__('contextlib').nullcontext()",
        ),
        Without("the pipe", "rqa.terminal.write_result", "sys.exit(CLOSED_PIPE_STATUS)", "raise"),
    ),
    Promise(
        "Without a network a hub name is one error at once",
        "distributed/test_hub.py",
        Without(
            "offline from then on",
            "rqa.distributed.hub.check_checkpoint_name",
            "constants.HF_HUB_OFFLINE = True",
        ),
        Without("paths", "rqa.distributed.hub.check_checkpoint_name", "validate_repo_id(name_or_path)"),
    ),
    # Checkpoints of other people
    Promise(
        "Every family of transformers is exact or refused",
        "models/test_architectures.py::test_every_family_is_exact_or_refused",
        Without("prompts without padding", "rqa.models.families", "'deepseek_v4'", "'x'"),
    ),
    Promise(
        "The loss, the answers and the export of a family equal the plain computation",
        "models/test_architectures.py::test_a_family_equals_the_plain_computation",
        Without(
            "outputs of a router",
            "rqa.models.fid.FusionInDecoder.logits",
            "MoEModelOutput(last_hidden_state=memory)",
            "__import__('transformers').modeling_outputs.BaseModelOutput(last_hidden_state=memory)",
        ),
    ),
    Promise(
        "An unsupported family is refused with its reason",
        "models/test_loading.py::test_an_unsupported_family_is_an_error_with_the_reason",
        Without("the table", "rqa.models.families.check_family", "UNSUPPORTED_MODELS.get(config.model_type)", "''"),
    ),
    Promise(
        "Prompts of different lengths have the answers of each alone, on equally many calls of every rank",
        "models/test_decoder.py::test_a_family_whose_answers_change_with_padding_generates_by_length",
        Without(
            "equally many calls",
            "rqa.models.decoder.AnswerLM._generate_by_length",
            "calls = most_of_ranks(calls, input_ids.device)",
        ),
    ),
    Promise(
        "A damaged weights file is one error, before anything is embedded",
        "models/test_loading.py::test_a_cut_weights_file_is_an_error_that_names_it",
        Without("the file is named", "rqa.models.loading._damaged_file", "return f'{path.name}: '", "return ''"),
    ),
    Promise(
        "Missing weights are an error before any weight is read",
        "models/test_loading.py::test_missing_weights_are_an_error_before_any_weight_is_read",
        Without(
            "the check of a decoder",
            "rqa.models.auto.load_collator",
            "num_embeddings(AutoModelForCausalLM, ..., ..., needs_weights=...)",
            "10**9",
        ),
    ),
    Promise(
        "The check of a checkpoint reads no weight",
        "models/test_loading.py::test_the_check_reads_no_weight",
        Without(
            "tensors without content", "rqa.models.loading.num_embeddings", "device_map = 'meta'", "device_map = None"
        ),
    ),
    Promise(
        "A value of config.json that transformers rejects is one line",
        "models/test_loading.py::test_a_value_that_transformers_rejects_is_an_error",
        Without("the error of a wrong type", "rqa.models.loading", "StrictDataclassError", "OSError"),
    ),
    Promise(
        "A quantized checkpoint is refused in one line",
        "models/test_loading.py::test_a_quantized_checkpoint_is_an_error",
        Without("the check", "rqa.models.loading.load_config", "quantization is not None", "False"),
    ),
    Promise(
        "An encoder is not a decoder",
        "models/test_loading.py::test_an_encoder_is_not_a_decoder",
        Without("the check", "rqa.models.families._kind", "getattr(config, 'is_decoder', None) is not False", "True"),
    ),
    Promise(
        "A checkpoint runs no code",
        "distributed/test_untrusted.py",
        Without("keys inside objects", "rqa.distributed.untrusted.keys_in", "parts.append((f'{place}{key}.', value))"),
        Without(
            "keys inside lists",
            "rqa.distributed.untrusted.keys_in",
            "parts += [(f'{place}{i}.', item) for i, item in enumerate(part)]",
        ),
        Without(
            "classes of other packages",
            "rqa.distributed.untrusted._names_foreign_class",
            "text.startswith(LIBRARY_CLASSES)",
            "True",
        ),
    ),
    Promise(
        "A generator's settings run no code",
        "models/test_loading.py::test_a_key_that_runs_code_is_an_error",
        Without("the check", "rqa.models.loading._check_settings", "check_untrusted_keys(settings, path)"),
    ),
    Promise(
        "Attention and expert kernels are our own choice",
        "models/test_loading.py::test_the_attention_of_config_json_is_ignored",
        Without(
            "the names in config.json",
            "rqa.models.loading.load_config",
            "config._attn_implementation = config._experts_implementation = None",
        ),
    ),
    Promise(
        "A padding token without an embedding is replaced",
        "models/test_loading.py::test_a_padding_token_without_an_embedding_is_replaced",
        Without("the comparison", "rqa.models.auto.checked_pad_id", "pad_id >= num_tokens", "False"),
    ),
    Promise(
        "A token of prompts without an embedding is an error",
        "models/test_loading.py::test_a_token_of_prompts_without_an_embedding_is_an_error",
        Without(
            "tokens of prompts",
            "rqa.models.auto.checked_pad_id",
            "{*builder.text_tokenizer.control.values()} - used",
            "{*builder.text_tokenizer.control.values()}",
        ),
    ),
    # Low-rank adapters
    Promise(
        "Loss and gradients of an adapter are those of W + (alpha / rank) · B·A",
        "models/test_lora.py::test_loss_and_gradients_are_those_of_a_dense_reference",
        Without("alpha", "rqa.models.lora.add_adapter", "lora.alpha", "8.0"),
        Without("float32", "rqa.models.lora._check_layers", "parameter.data.float()", "parameter.data.bfloat16()"),
    ),
    Promise(
        "A saved adapter is that of peft, and is read again exactly",
        "models/test_lora.py::test_a_saved_adapter_is_that_of_peft",
        Without("float32 before the copy", "rqa.models.lora.load_adapter", "_check_layers(model)"),
        Without("the names", "rqa.models.lora.save_adapter", "name.replace(f'.{_NAME}.', '.')", "name"),
    ),
    Promise(
        "The merged weights are W + (alpha / rank) · B·A",
        "models/test_lora.py::test_the_merged_state_is_that_of_peft",
        Without("the scale", "rqa.models.lora.merged_state", "layer.scaling[_NAME] * (b @ a)", "b @ a"),
        Without(
            "the transposed matrix of GPT-2",
            "rqa.models.lora.merged_state",
            "change.T if layer.fan_in_fan_out else change",
            "change.T if change.shape[0] == change.shape[1] else change",
        ),
    ),
    Promise(
        "An adapter that does not fit is one line",
        "models/test_lora.py::test_an_adapter_that_does_not_fit_is_one_line",
        Without("missing weights", "rqa.models.lora.load_adapter", "missing or loaded.unexpected_keys", "False"),
        Without(
            "other settings",
            "rqa.models.lora.adapter_options",
            "(kind := settings.get('peft_type')) != 'LORA' or changed",
            "False",
        ),
    ),
    Promise(
        "A run with adapters writes the adapter and the merged model, and changes no other weight",
        "recipes/test_lora_recipe.py::test_a_run_writes_an_adapter_and_the_merged_model_and_changes_no_base",
        Without("the merged model", "rqa.training.checkpoint.export", "is_adapted and merge_adapter", "False"),
    ),
    Promise(
        "A checkpoint of an adapter holds the adapter and its optimizer alone",
        "recipes/test_lora_recipe.py::test_a_checkpoint_holds_the_adapter_and_its_optimizer_alone",
        Without("frozen weights are left out", "rqa.training.checkpoint._leave_out_frozen", "state.pop(name, None)"),
    ),
    Promise(
        "An adapter resumes byte-identically after a kill",
        "recipes/test_lora_recipe.py::test_resume_is_byte_identical_after_a_kill",
        RESTORED,
    ),
    Promise(
        "An adapter is resumed only with the same frozen weights",
        "recipes/test_lora_recipe.py::test_another_base_of_the_same_size_is_refused_on_resume",
        Without("the checksum", "rqa.distributed.weights.weights_checksum", "int(total.item())", "0"),
    ),
    Promise(
        "The evaluation of an adapter, and of the merged model, is the test of its run",
        "recipes/test_lora_recipe.py::test_evaluation_of_the_export_equals_the_test_of_the_run",
        Without("the adapter is loaded", "rqa.models.loading.load_model", "load_adapter(model, Path(name_or_path))"),
    ),
    # Weights in 4 bits, states in 8 bits, weights in bfloat16
    Promise(
        "Loss and gradients of an adapter on 4 bits are those of the dequantized weights",
        "models/test_quantization.py::test_loss_and_gradients_are_those_of_the_dequantized_weights",
        Without("every linear layer", f"{QUANTIZATION}.quantized_layers", "layer is not output", "'gate' not in name"),
    ),
    Promise(
        "Weights in 4 bits are the nearest NF4 values of their block",
        "models/test_quantization.py::test_weights_are_the_nearest_values_of_the_paper_by_blocks",
        Without(
            "NF4",
            f"{QUANTIZATION}.quantize",
            "layer_classes.Params4bit(layer.weight.data, quant_type='nf4', module=quantized)",
            "layer_classes.Params4bit(layer.weight.data, quant_type='fp4', module=quantized)",
        ),
    ),
    Promise(
        "Training and evaluation on 4 bits change no bit of the base",
        "models/test_quantization.py::test_training_and_evaluation_change_no_weight_of_the_base",
        Without("no packing in evaluation", f"{QUANTIZATION}.quantize", "quantized.support_avx512bf16_for_cpu = False"),
    ),
    Promise(
        "An adapter on 4 bits is merged into the values that it was trained with",
        "models/test_quantization.py::test_the_merged_state_computes_what_the_model_in_4_bits_computes",
        Without(
            "the values",
            f"{QUANTIZATION}.dequantized",
            "import_module('bitsandbytes.functional').dequantize_4bit(parameter.data, statistics)",
            "parameter.data",
        ),
    ),
    Promise(
        "A base in 4 bits with another scale is another base",
        "training/test_run_log.py::test_a_base_in_4_bits_with_another_scale_is_another_base",
        Without(
            "the statistics",
            "rqa.distributed.weights.weights_checksum",
            "(*local_parts(parameter), *quantization_tensors(parameter))",
            "(*local_parts(parameter),)",
        ),
    ),
    Promise(
        "A run on 4 bits with states in 8 bits resumes byte-identically after a kill",
        "recipes/test_qlora_recipe.py::test_a_run_on_4_bits_resumes_byte_identically_after_a_kill",
        RESTORED,
    ),
    Promise(
        "The evaluation in 4 bits of an adapter, and of the merged model, is the test of its run",
        "recipes/test_qlora_recipe.py::test_evaluation_in_4_bits_and_of_the_merged_model_equals_the_test_of_the_run",
        Without(
            "the flag",
            "rqa.models.auto.load_generator",
            "{'device_map': device_map, 'load_in_4bit': load_in_4bit}",
            "{}",
        ),
    ),
    Promise(
        "AdamW in bfloat16 is AdamW in float32, rounded to a neighbour",
        "training/test_adamw_bf16.py::test_each_step_is_that_of_torch_in_float32_rounded_to_a_neighbour",
        Without("the correction of the mean", f"{ADAMW_BF16}._change", "1 - beta1 ** step", "1.0"),
        Without("weight decay", f"{ADAMW_BF16}._change", "1 - group['lr'] * group['weight_decay']", "1.0"),
    ),
    Promise(
        "Small steps add up in bfloat16",
        "training/test_adamw_bf16.py::test_small_steps_add_up",
        Without("random rounding", f"{ADAMW_BF16}._change", "stochastic_round(value, generator)", "value"),
    ),
    Promise(
        "AdamW in bfloat16 has the same random numbers on all ranks and after a resume",
        "training/test_adamw_bf16.py::test_steps_are_the_same_after_a_resume_and_for_any_state_of_the_random_numbers",
        Without(
            "a seed of its own",
            f"{ADAMW_BF16}.AdamWBf16.step",
            "torch.Generator(parameter.device).manual_seed(seed)",
            "torch.default_generator",
        ),
    ),
    Promise(
        "Weights that are not finite are an error",
        "models/test_loading.py::test_a_weight_that_is_not_finite_is_an_error",
        Without("the check", "rqa.models.loading.load_model", "_check_finite(name_or_path, model)"),
        Without(
            "the exact count if the sum overflows",
            "rqa.models.loading._check_finite",
            "(count := int((~parameter.isfinite()).sum()))",
            "(count := 1)",
        ),
    ),
    Promise(
        "Texts are never longer than the positions of the encoder",
        "retrieval/test_encoder_checkpoint.py::test_texts_longer_than_the_positions_of_the_encoder_are_refused",
        Without("the check", "rqa.retrieval.encoder_checkpoint.load_encoder", "_check_positions(name, module)"),
    ),
    Promise(
        "A decoder with more layers than its encoder answers as without a cache",
        "models/test_fid.py::test_answers_of_a_deeper_decoder_are_those_without_a_cache",
        Without(
            "a cache of its own",
            "rqa.models.fid.FusionInDecoder.generate",
            "is_deeper and options.get('use_cache', True)",
            "False",
        ),
    ),
    Promise(
        "A long file without a good row is not read to its end",
        "data/test_file_report.py::test_a_long_file_without_a_good_row_is_not_read_to_its_end",
        Without(
            "the limit",
            "rqa.data.file_report.FileReport.add_bad_row",
            "self.num_bad_rows == self.num_rows == _MAX_FIRST_BAD_ROWS",
            "False",
        ),
    ),
    Promise(
        "Adapters, pickled weights and folders without config.json are one line",
        "models/test_loading.py",
        Without("adapters", "rqa.models.loading._check_folder", "ADAPTER_CONFIG in names", "False"),
        Without("no config.json", "rqa.models.loading._check_folder", "'config.json' not in names", "False"),
    ),
    Promise(
        "Flash attention asks for the GPU before the package",
        "distributed/test_device.py::test_flash_attention_requires_its_package_and_a_cuda_device",
        Without("the GPU", "rqa.distributed.device.attention_kernel", "not torch.cuda.is_available()", "False"),
    ),
    # Files of examples
    Promise(
        "Missing fields are one line, with the fields that the row has and those that are likely meant",
        "data/test_fields.py",
        Without(
            "the likely meant fields",
            "rqa.data.fields.Fields._missing_problem",
            "nearest_field(name, frozenset(self._missing))",
            "''",
        ),
        Without("one problem for an object", "rqa.data.fields.Fields._report_missing", "earlier is None", "True"),
    ),
    Promise(
        "A field that is not read is named, with the known one that it resembles, also in nested objects",
        "data/test_fields.py",
        Without("nested objects", "rqa.data.fields.Fields.unread", "fields += child.unread()", "pass"),
        Without(
            "only if the known field is missing or empty",
            "rqa.data.fields.Fields.unread",
            "self._values.get(n) or self._values.get(_ALTERNATIVES.get(n, n))",
            "None",
        ),
    ),
    Promise(
        "Bad rows are an error, or left out and named, up to --max_bad_rows; misnamed fields are logged",
        "data/test_file_report.py",
        Without("the error", "rqa.data.file_report.FileReport.check", "self.is_refused(max_bad_rows)", "False"),
        Without(
            "broken syntax is always an error",
            "rqa.data.file_report.FileReport.is_refused",
            "self.num_bad_rows > max_bad_rows or self.is_cut or 0 < self.num_bad_rows == self.num_rows",
            "self.num_bad_rows > max_bad_rows or 0 < self.num_bad_rows == self.num_rows",
        ),
        Without(
            "a file without a good row is an error",
            "rqa.data.file_report.FileReport.is_refused",
            "0 < self.num_bad_rows == self.num_rows",
            "False",
        ),
        Without("the rows are named", "rqa.data.file_report.FileReport.check", "if self.num_bad_rows: ...", "pass"),
        Without("a bad row is no example", "rqa.data.records.read_examples", "not row.problems", "True"),
    ),
    Promise(
        "A file of another format is one message",
        "data/test_foreign_files.py",
        Without(
            "an array in lines",
            "rqa.data.foreign_files.check_json_lines",
            "first == b'[' and (not _is_json(line) or not start[len(line):].strip())",
            "False",
        ),
        Without(
            "an object over several lines", "rqa.data.foreign_files.check_json_lines", "_last_line_of_value(start)", "0"
        ),
        Without(
            "a byte order mark between two files",
            "rqa.data.jsonl._broken",
            "text.startswith('\\ufeff', position)",
            "False",
        ),
    ),
    Promise(
        "No mutated file of examples gives anything but examples or an InputError with printable lines",
        "data/test_fuzz.py::test_mutated_files_give_examples_or_an_input_error",
        Without("values in messages are escaped", "rqa.data.fields.quoted", "char.isprintable()", "True"),
        Without(
            "halves of surrogate pairs",
            "rqa.data.jsonl._parse",
            "json.dumps(value, ensure_ascii=False).encode()",
            "pass",
        ),
    ),
    Promise(
        "Messages of OpenAI are read; a system message is an error, not a turn",
        "data/test_records.py",
        Without("a system message is an error", "rqa.data.records._message", "is_openai and name in _NO_TURN", "False"),
        Without(
            "a message is of one form",
            "rqa.data.records._message",
            "is_openai and (turn.has('speaker') or turn.has('message'))",
            "False",
        ),
    ),
    Promise(
        "ctxs are sorted by score as in Fusion-in-Decoder; empty ones are counted; answers may be hidden in tests",
        "recipes/test_fid_json.py",
        Without("the order", "rqa.data.records._contexts", "passages = [passages[i] for i in ranking]"),
        Without(
            "the warning about some scores",
            "rqa.data.records._contexts",
            "any(passage.has('score') for passage in passages)",
            "False",
        ),
        Without("the count of empty passages", "rqa.data.records._with_text", "row.note(...)"),
        Without(
            "an answer to train on",
            "rqa.prompts.collators.Collator.check",
            "answers and (not (example.answers or example.unanswerable))",
            "False",
        ),
    ),
    Promise(
        "Every format that can be converted is recognized, and its sample is read back whole",
        "conversion/test_formats.py::test_a_sample_is_recognized_and_read_back",
        Without(
            "unanswerable questions of SQuAD",
            "rqa.conversion.reading_comprehension._squad_row",
            "unanswerable = is_impossible",
        ),
        Without(
            "supporting facts of HotpotQA",
            "rqa.conversion.reading_comprehension.hotpotqa_passages",
            "each['metadata'].get('title', '') in supporting",
            "True",
        ),
        Without(
            "hard negatives of DPR", "rqa.conversion.open_domain", "DPR_KINDS = ...", "DPR_KINDS = ('positive',) * 2"
        ),
        Without(
            "a negative that is gold is none",
            "rqa.conversion.rows.question_row",
            "_distinct(row, negatives, ..., known)",
            "_distinct(row, negatives, ..., set())",
        ),
        Without("judgments of BEIR", "rqa.conversion.beir._judgments", "int(score) > 0", "True"),
        Without("the document as source", "rqa.conversion.rows.passage", "source or title", "source"),
    ),
    Promise(
        "Content that fits no format, or several, is an error with its fields",
        "conversion/test_formats.py",
        Without("one format alone", "rqa.conversion.formats.recognized", "len(names) == 1", "names"),
        Without("the folder of BEIR", "rqa.conversion.formats.Format.fits_source", "beir.is_beir(source)", "True"),
        Without("one of several qrels", "rqa.conversion.beir._qrels_path", "len(names) > 1", "False"),
        Without("the loaders name the recipe", "rqa.data.fields.is_convertible", "not present & _OWN_FIELDS", "True"),
    ),
    Promise(
        "A conversion names each problem with its place, counts what it leaves out, and writes whole files or none",
        "conversion/test_conversion.py",
        Without("the error", "rqa.conversion.writer.convert", "source.check(max_bad_rows)"),
        Without("a wrong row is not written", "rqa.conversion.writer._checked", "not fields.problems", "True"),
        Without("repeated ids", "rqa.conversion.writer._checked", "id in places", "False"),
        Without("long lines", "rqa.conversion.writer._checked_line", "len(line) > MAX_LINE_BYTES", "False"),
        Without("empty passages are counted", "rqa.conversion.rows.is_left_out", "row.note(...)"),
        Without(
            "relevant passages that are missing", "rqa.conversion.beir.beir_questions", "each not in passages", "False"
        ),
        Without("atomic files", "rqa.conversion.writer._opened", "atomic_file(Path(path))", "open(path, 'wb')"),
        Without("the input is not overwritten", "rqa.conversion.writer._check_paths", "path.samefile(source)", "False"),
    ),
    # The doctor
    Promise(
        "Answers to other questions are warnings; answers in other words are notes",
        "doctor/test_answers.py",
        Without(
            "the gold of other examples",
            "rqa.doctor.answers.support_findings",
            "is_by_chance and is_by_chance(example)",
            "True",
        ),
        Without(
            "rare words count more",
            "rqa.doctor.answers._chance",
            "math.log((len(sample) + 1) / (counts[word] + 0.5))",
            "1.0",
        ),
        Without(
            "sources",
            "rqa.doctor.answers.unsupported_number",
            "texts += [passage.content, *passage.sources]",
            "texts += [passage.content]",
        ),
    ),
    Promise(
        "The doctor reads past bad rows and lists them",
        "doctor/test_files.py",
        Without(
            "its severity is that of training",
            "rqa.doctor.files._file_findings",
            "'problem' if report.is_refused(max_bad_rows) else 'warning'",
            "'problem'",
        ),
        Without(
            "a corpus without a good row is an error", "rqa.doctor.files.read_corpus", "if not corpus: ...", "pass"
        ),
    ),
    Promise(
        "The doctor warns of steps that cannot change a weight in bfloat16, and of control tokens of another tokenizer",
        "doctor/test_checks.py",
        Without("the comparison", "rqa.doctor.checks.update_finding", "change < MIN_WEIGHT_CHANGE", "False"),
        Without("the tokens", "rqa.doctor.checks.control_token_finding", "unknown_control_tokens(builder)", "[]"),
    ),
    # The judge
    Promise(
        "Precision and recall of supported citations equal those by hand",
        "judge/test_citation_support.py::test_scores_equal_those_by_hand",
        Without(
            "a number that is cited twice counts once",
            f"{SUPPORT}.support_scores",
            "{*each.cited}",
            "each.cited",
        ),
        Without(
            "sentences without citations count",
            f"{SUPPORT}.support_scores",
            "100 * sum(each.is_supported for each in judged) / len(judged)",
            "100 * sum(each.is_supported for each in judged) / len([each for each in judged if each.cited])",
        ),
    ),
    Promise(
        "Missing verdicts on citations widen the bounds, and are paid for once",
        "judge/test_citation_support.py::test_missing_verdicts_widen_the_bounds_and_are_paid_for_later",
        Without("the upper bound", f"{SUPPORT}.summarize_support", "_full(row)", "{}"),
    ),
    Promise(
        "A verdict on citations is complete and does not contradict itself",
        "judge/test_citation_support.py::test_malformed_reply_is_no_verdict",
        Without("each sentence once", "rqa.judge.verdicts._support", "len(support) < len(items)", "False"),
        Without("each cited sentence", "rqa.judge.verdicts._support", "not cited.keys() <= support.keys()", "False"),
        Without("support by a passage", "rqa.judge.verdicts._support", "own if is_consistent else None", "own"),
    ),
    Promise(
        "A response of the judge is read to 1 MiB, uncompressed, and not requested again",
        "judge/test_client.py::test_body_without_end_is_read_to_a_limit_and_not_paid_again",
        Without("the limit", "rqa.endpoint.client._Run.read", "len(data) > _MAX_RESPONSE_BYTES", "False"),
        Without(
            "compressed bodies are refused",
            "rqa.endpoint.client._Run.read",
            "response.headers.get('Content-Encoding', 'identity')",
            "'identity'",
        ),
        Without("no retry", "rqa.endpoint.client._Run.call", "_CallError(..., None)", "_CallError(..., 0.0)"),
    ),
    Promise(
        "A negative or impossible count of tokens does not raise the judge's budget",
        "judge/test_client.py::test_negative_token_count_does_not_raise_the_budget",
        Without(
            "the range of a count",
            "rqa.endpoint.responses._token_count",
            "type(count) is int and 0 <= count <= _MAX_TOKENS_PER_CALL",
            "type(count) is int",
        ),
    ),
    Promise(
        "The key is removed from texts of the server in every nesting of escapes",
        "judge/test_client.py::test_key_is_replaced_in_every_nesting_of_escapes",
        Without(
            "escapes are decoded",
            "rqa.endpoint.redaction.without_key",
            "(decoded, starts, ends) = _decode(decoded, starts, ends)",
            "break",
        ),
    ),
    Promise(
        "The key is removed from base64, and so is its beginning",
        "judge/test_client.py::test_key_is_replaced_in_place",
        Without("base64", "rqa.endpoint.redaction.without_key", "[key, *_in_base64(key)]", "[key]"),
        Without("the beginning", "rqa.endpoint.redaction._occurrences", "secret[:MIN_SECRET_LENGTH]", "secret"),
    ),
    Promise(
        "A quoted verdict, or one in a draft, never replaces the judge's decision",
        "judge/test_client.py::test_ambiguous_content_has_no_verdict",
        Without("drafts are left out", "rqa.judge.verdicts._read", "without_draft(content)", "content"),
        Without(
            "the last object decides, if it alone has its lines",
            "rqa.judge.verdicts._decision_in",
            "is_clear and alone[-1] is spans[-1][2]",
            "bool(alone)",
        ),
    ),
    Promise(
        "Mutated responses end in a verdict or an InputError",
        "judge/test_client.py::test_mutated_responses_end_in_a_verdict_or_an_input_error",
        Without(
            "numbers of any size",
            "rqa.endpoint.responses.json_object",
            "(ValueError, RecursionError)",
            "RecursionError",
        ),
    ),
    Promise(
        "Control characters of the judge's server reach no message",
        "judge/test_client.py::test_control_characters_of_the_server_reach_no_message",
        Without("printable", "rqa.endpoint.responses.excerpt", "printable(...)", "..."),
    ),
    Promise(
        "Examples without references are answered, counted, and left out of the scores",
        "evaluation/test_evaluate.py::test_examples_without_references_are_answered_counted_and_left_out_of_the_scores",
        Without(
            "a refusal is the reference of unanswerable ones only",
            "rqa.evaluation.evaluate._references",
            "example.unanswerable",
            "example.unanswerable or not example.answers",
        ),
        Without(
            "BLEU is that of answers with references",
            "rqa.evaluation.significance.resampled_scores",
            "{i: text for i, text in texts.items() if text[1]}",
            "texts",
        ),
    ),
    Promise(
        "Cut answers stand beside the scores; many are a warning",
        "evaluation/test_evaluate.py::test_cut_answers_are_counted_and_many_are_a_warning",
        Without("the count", "rqa.evaluation.significance.question_scores", "not row.finished", "row.finished"),
        Without(
            "the warning", "rqa.evaluation.evaluate", "_warn_of_cut_answers(cut, len(answers), self.max_new_tokens)"
        ),
    ),
    Promise(
        "A prompt and its answer are the chat template's ids for the whole conversation",
        "prompts/test_decoder_prompt.py::test_prompt_and_answer_equal_the_rendered_chat_template",
        Without(
            "text before an answer",
            "rqa.prompts.decoder_prompt._around_answer",
            "written.removeprefix(opening) if written.startswith(opening) else ''",
            "''",
        ),
        Without(
            "text before an answer is tokenized behind the prompt",
            "rqa.prompts.decoder_prompt.PromptBuilder._ids_behind",
            "(text, '\\n', '')",
            "('',)",
        ),
        Without(
            "no automatic BOS",
            "rqa.prompts.decoder_prompt.PromptBuilder.__init__",
            "chat is not None and bos is not None and tokenizer('a')['input_ids'][0] == bos",
            "bos is not None and tokenizer('a')['input_ids'][0] == bos",
        ),
        Without(
            "no space after a control token",
            "rqa.prompts.text_tokenizer.TextTokenizer.__init__",
            "self._inner = _inner_backend(self._first)",
            "self._inner = self._first",
        ),
    ),
    Promise(
        "An answer closes the reasoning that its prompt opens",
        "prompts/test_decoder_prompt.py::test_an_answer_closes_the_reasoning_that_its_prompt_opens",
        Without(
            "the closing mark",
            "rqa.prompts.decoder_prompt._around_answer",
            "header += f'\\n{REASONING[reasoning]}\\n\\n'",
        ),
    ),
    Promise(
        "The end-of-sequence tokens of the checkpoint end an answer",
        "prompts/test_decoder_prompt.py::test_control_tokens_of_the_checkpoint_end_answers",
        Without("the list", "rqa.prompts.decoder_prompt.PromptBuilder.__init__", "{*ends, *stop_ids}", "{*ends}"),
    ),
    Promise(
        "Thinking is off if the chat template has a switch for it",
        "prompts/test_chat_template.py::test_thinking_is_off_where_the_template_has_a_switch_for_it",
        Without(
            "the switch",
            "rqa.prompts.chat_template.ChatTemplate.__init__",
            "{name: False for name in THINKING_SWITCHES if name in names}",
            "{}",
        ),
    ),
    Promise(
        "A variable that the chat template does not refer to is an error",
        "prompts/test_chat_template.py::test_a_variable_that_the_template_does_not_refer_to_is_an_error",
        Without("the check", "rqa.prompts.chat_template._checked_kwargs", "sorted(kwargs.keys() - names)", "[]"),
    ),
    Promise(
        "Prompts are the same on every day",
        "prompts/test_chat_template.py::test_prompts_are_the_same_on_every_day",
        Without(
            "the date",
            "rqa.prompts.chat_template.ChatTemplate.__init__",
            "{**..., **..., **..., 'strftime_now': day.strftime}",
            "{**..., **..., **...}",
        ),
    ),
    Promise(
        "A chat template that requires more than messages of text is an error that names it",
        "prompts/test_chat_template.py::test_a_template_that_requires_more_than_messages_of_text_is_an_error_that_names_it",
        Without(
            "other inputs",
            "rqa.prompts.chat_template.ChatTemplate._need",
            "re.findall(pattern, text) == [message['content'] for message in messages]",
            "False",
        ),
    ),
    Promise(
        "An error in a chat template is an InputError",
        "prompts/test_chat_template.py::test_an_error_in_a_template_is_an_input_error",
        Without("long texts", "rqa.prompts.chat_template.ChatTemplate._render", "len(text) > MAX_CHARACTERS", "False"),
    ),
    Promise(
        "A chat template without an end is an InputError",
        "prompts/test_chat_template.py::test_a_template_that_does_not_end_is_an_input_error",
        Without("the steps", "rqa.prompts.chat_template._limited_lines", "next(lines) > MAX_LINES", "next(lines) < 0"),
        Without(
            "products",
            "rqa.prompts.chat_template._product",
            "sizes[0] * sizes[1] > MAX_CHARACTERS",
            "sizes[0] * sizes[1] > 10**12",
        ),
        Without("the trace function is restored", "rqa.prompts.chat_template._limited_lines", "sys.settrace(outer)"),
    ),
    Promise(
        "Added tokens of a chat template are text in data although they are not special",
        "prompts/test_text_tokenizer.py::test_an_added_token_of_the_template_is_text_although_it_is_not_special",
        Without(
            "they are split as special tokens",
            "rqa.prompts.text_tokenizer._text_backend",
            "backend.add_special_tokens(not_special)",
        ),
    ),
    Promise(
        "Added tokens of the form <|name|> are text in data",
        "prompts/test_text_tokenizer.py::test_an_added_token_of_the_form_of_a_control_token_is_text",
        Without(
            "the form",
            "rqa.prompts.text_tokenizer.TextTokenizer.__init__",
            "token.special or text in names or form.fullmatch(text)",
            "token.special or text in names",
        ),
    ),
    Promise(
        "Text of a passage is never a control token, for unigram tokenizers too",
        "prompts/test_text_tokenizer.py::test_control_tokens_that_are_pieces_of_a_unigram_model_are_text",
        Without(
            "pieces are removed",
            "rqa.prompts.text_tokenizer._text_backend",
            "isinstance(backend.model, Unigram)",
            "False",
        ),
    ),
    Promise(
        "Reasoning is split off an answer",
        "prompts/test_answer_decoder.py::test_reasoning_is_split_off",
        Without(
            "reasoning that the prompt opens",
            "rqa.prompts.answer_decoder.AnswerDecoder.read",
            "opening == self.open_mark or (before != symbols and (not self._decode(ids[:len(before)])))",
            "before != symbols and (not self._decode(ids[:len(before)]))",
        ),
        Without(
            "a cut answer that opens reasoning in ordinary text",
            "rqa.prompts.answer_decoder.AnswerDecoder.read",
            "self.open_mark or close or is_cut",
            "self.open_mark or close",
        ),
    ),
    Promise(
        "An answer that mentions a mark of reasoning keeps all text",
        "prompts/test_answer_decoder.py",
        Without(
            "marks at the beginning only",
            "rqa.prompts.answer_decoder.AnswerDecoder.read",
            "before != symbols and (not self._decode(ids[:len(before)]))",
            "before != symbols",
        ),
        Without(
            "a mark that ended without its end",
            "rqa.prompts.answer_decoder.AnswerDecoder.read",
            "not (self.open_mark or close or is_cut)",
            "False",
        ),
    ),
    Promise(
        "Reasoning is no part of a streamed answer",
        "generation/test_generator.py::test_reasoning_is_no_part_of_an_answer_or_of_its_stream",
        Without(
            "reasoning is split off",
            "rqa.generation.generator.Generator._answers",
            "text, reasoning = builder.read(ids)",
            "text, reasoning = builder._decode(builder._without_end(ids)), ''",
        ),
        Without(
            "it is not streamed",
            "rqa.generation.generator.AnswerStreamer.put",
            "self.builder.settled_text(settled)",
            "self.builder._decode(settled)",
        ),
    ),
    Promise(
        "Text of the template before an answer is not streamed",
        "generation/test_chat.py::test_text_of_the_template_before_an_answer_is_not_shown",
        Without(
            "it is held back",
            "rqa.prompts.answer_decoder.AnswerDecoder.settled_text",
            "may_open or self._header[:len(ids)] == ids",
            "may_open",
        ),
    ),
    Promise(
        "Reasoning is kept in predictions and counted",
        "evaluation/test_evaluate.py::test_reasoning_is_kept_and_counted_and_has_no_effect_on_the_scores",
        Without("predictions", "rqa.evaluation.evaluate", "answer.reasoning or None", "None"),
        Without("the count", "rqa.evaluation.evaluate", "sum((bool(answer.reasoning) for answer in answers))", "0"),
    ),
    Promise(
        "Strings that look like control tokens and are none are a warning in training",
        "prompts/test_collators.py::test_strings_that_look_like_control_tokens_are_one_warning_in_training",
        Without(
            "the warning",
            "rqa.prompts.collators.Collator.check",
            "answers and (unknown := unknown_control_tokens(self.builder))",
            "False",
        ),
    ),
    Promise(
        "Passages are truncated from the last ranked on, each at its end",
        "prompts/test_decoder_prompt.py::test_passages_are_truncated_from_the_last_ranked_on_at_their_ends",
        Without(
            "no passage is dropped that fits",
            "rqa.prompts.decoder_prompt.PromptBuilder.prompt",
            "rest -= sizes[rank] + _MAX_LABEL_TOKENS",
            "rest -= sizes[rank]",
        ),
    ),
    # Encoders
    Promise(
        "An encoder that lacks weights is refused before anything is embedded",
        "retrieval/test_encoder_checkpoint.py::test_a_checkpoint_that_lacks_weights_is_refused",
        Without(
            "the missing weights are counted",
            f"{CHECKPOINT}.load_encoder",
            "_check_loaded(name, part, loading, reads_pooler=_reads_pooler(model))",
        ),
        Without(
            "weights of another size are missing",
            f"{CHECKPOINT}._check_loaded",
            "{*loading['missing_keys'], *(key for key, *_ in loading['mismatched_keys'])}",
            "{*loading['missing_keys']}",
        ),
    ),
    Promise(
        "A damaged weights file of an encoder is refused when it is opened",
        "retrieval/test_encoder_checkpoint.py::test_a_damaged_weights_file_is_refused_when_the_encoder_is_opened",
        Without("the headers are read", f"{CHECKPOINT}.checkpoint_folder", "_check_weight_files(files)"),
    ),
    Promise(
        "A padding token that is missing, or has no embedding, changes no vector",
        "retrieval/test_encoder_checkpoint.py::test_padding_without_a_padding_token_changes_nothing",
        Without("another token pads", f"{CHECKPOINT}._check_tokenizer", "tokenizer.pad_token = usable[0]"),
        Without(
            "a padding token beyond the embeddings",
            f"{CHECKPOINT}._check_tokenizer",
            "tokenizer.pad_token is None or tokenizer.pad_token in beyond",
            "tokenizer.pad_token is None",
        ),
    ),
    Promise(
        "A decoder, an encoder-decoder, a cross-encoder or half of DPR given as encoder is refused when it is opened",
        "retrieval/test_encoder_checkpoint.py::test_a_model_of_another_kind_is_refused_when_the_encoder_is_opened",
        Without(
            "the architecture is read",
            f"{CHECKPOINT}.checkpoint_folder",
            "_check_architecture(name_or_path, folder / 'config.json', side)",
        ),
        Without(
            "decoders without a head",
            f"{CHECKPOINT}._check_architecture",
            "not kind and _is_decoder(config.get('model_type'))",
            "False",
        ),
        Without(
            "encoder-decoders without a head",
            f"{CHECKPOINT}._check_architecture",
            "config.get('is_encoder_decoder') and not architecture.endswith(('Encoder', 'EncoderModel'))",
            "False",
        ),
    ),
    Promise(
        "An encoder's settings run no code",
        "retrieval/test_encoder_checkpoint.py::test_a_config_that_cannot_be_loaded_or_runs_code_is_refused",
        Without("the settings are checked", f"{CHECKPOINT}.checkpoint_folder", "check_untrusted_folder(folder)"),
    ),
    Promise(
        "The attention that an encoder's files choose is replaced",
        "retrieval/test_encoder_checkpoint.py::test_the_attention_of_the_checkpoint_is_replaced",
        Without(
            "our own choice",
            f"{CHECKPOINT}.load_encoder",
            "{'modules': _dpr_modules(folder)} if is_dpr(folder) else _LOAD_OPTIONS",
            "{'trust_remote_code': False, 'local_files_only': True, 'model_kwargs': {'dtype': torch.float32}}",
        ),
    ),
    Promise(
        "Queries and passages go through their own side of an asymmetric encoder",
        "retrieval/test_encoder_checkpoint.py::test_queries_and_passages_go_through_their_own_side",
        Without(
            "the side of the queries",
            "rqa.retrieval.encoder.Encoder._encode",
            "self.model.encode_query if task == 'query' else self.model.encode_document",
            "self.model.encode_document",
        ),
        Without(
            "the side of the passages",
            "rqa.retrieval.encoder.Encoder._encode",
            "self.model.encode_query if task == 'query' else self.model.encode_document",
            "self.model.encode_query",
        ),
    ),
    Promise(
        "An index of another corpus, encoder, prefix, dimension, similarity or factory is refused",
        "retrieval/test_dense.py::test_an_index_of_other_inputs_is_refused",
        Without("the dimensions", "rqa.retrieval.encoder.Encoder.provenance", "self.truncate_dim", "None"),
        Without("the similarity", "rqa.retrieval.encoder.Encoder.provenance", "self.similarity", "''"),
    ),
    # Files
    Promise(
        "Pipes, devices, sockets and folders are refused at once",
        "data/test_data_file.py::test_other_files_are_refused_at_once",
        Without("opening does not wait", f"{DATA_FILE}._open", "flags | os.O_NONBLOCK", "flags"),
        Without("regular files only", f"{DATA_FILE}._open", "not stat.S_ISREG(mode)", "False"),
    ),
    Promise(
        "A corpus that is changed during a run is an error, never another text",
        "data/test_corpus.py::test_a_file_that_was_changed_is_an_error_and_no_other_text",
        Without(
            "size and time after each access", f"{DATA_FILE}.DataFile.__getitem__", "state != self._opened", "False"
        ),
        Without(
            "a checksum of each row",
            "rqa.data.corpus.PassageStore._read",
            "zlib.crc32(line) != self._table.checksums[row]",
            "False",
        ),
    ),
    Promise(
        "The quick scan of a corpus equals one row at a time, in blocks of any size, also cached",
        "data/test_corpus_cache.py::test_any_reading_equals_one_row_at_a_time",
        Without(
            "white space in texts with escapes",
            "rqa.data.passage_rows._quick_row",
            "has_escapes or has_double_space or not text.isascii() or text[0] == ' ' or text[-1] == ' '",
            "False",
        ),
        Without(
            "the sources of duplicates",
            "rqa.data.corpus_table.Table.later_sources_of",
            "json.loads(self.later_sources[start:end].tobytes())",
            "[]",
        ),
    ),
    Promise(
        "Any number of processes reads the same corpus",
        "data/test_corpus_cache.py::test_any_number_of_processes_reads_the_same",
        Without(
            "blocks in their order",
            "rqa.data.scan_workers.scan_blocks",
            "pending.popleft()",
            "pending.pop()",
        ),
    ),
    Promise(
        "A damaged cache of a corpus is built again",
        "data/test_corpus_cache.py::test_a_damaged_cache_is_built_again",
        Without(
            "checksums of the arrays",
            "rqa.data.corpus_cache.CorpusCache.load",
            "_checksums(Table.paths(self.folder)) != manifest['arrays']",
            "False",
        ),
    ),
    Promise(
        "A change that the samples miss is an error at access, and then read again",
        "data/test_corpus_cache.py::test_a_change_between_the_samples_is_found_at_access_and_by_verify",
        Without("the cache is discarded", "rqa.data.corpus.PassageStore._read", "self._discard()"),
        Without(
            "all is compared if the time differs",
            "rqa.data.corpus_cache.CorpusCache._is_unchanged",
            "is_copy or verify",
            "verify",
        ),
    ),
    Promise(
        "A corpus that is changed while it is opened is an error",
        "data/test_corpus.py::test_a_file_that_changes_while_it_is_opened_is_an_error",
        Without(
            "size and time after each block", f"{DATA_FILE}.DataFile.__getitem__", "state != self._opened", "False"
        ),
    ),
    Promise(
        "Processes that opened different corpora stop",
        "retrieval/test_retrieve.py::test_processes_with_other_passages_are_refused",
        Without(
            "the fingerprints are compared",
            "rqa.retrieval.retrieve.retrieve_splits",
            "corpus != passages.fingerprint",
            "False",
        ),
    ),
    Promise(
        "A gzip bomb is refused in little memory",
        "data/test_data_file.py::test_a_gzip_bomb_is_refused_in_little_memory",
        Without(
            "the limit",
            f"{DATA_FILE}.spooled",
            "(size := size + len(block)) > limit",
            "(size := size + len(block)) < 0",
        ),
    ),
    Promise(
        "The memory of a corpus does not grow with its text, also packed",
        "data/test_data_file.py::test_memory_does_not_grow_with_the_text",
        Without(
            "decompressed into a file",
            f"{DATA_FILE}.unpacked",
            "spooled(packed.path, len(packed), _decompressed(packed), target)",
            "b''.join(_decompressed(packed))",
        ),
    ),
    Promise(
        "A line without an end is refused in little memory",
        "data/test_data_file.py::test_a_line_without_end_is_refused_in_little_memory",
        Without("the longest line", "rqa.data.jsonl.line_blocks", "len(rest) > MAX_LINE_BYTES", "len(rest) > 2**28"),
    ),
    Promise(
        "A pickle needs little more memory than its bytes",
        "data/test_localrqa.py::test_memory_is_bounded_by_the_size_of_the_file",
        Without(
            "objects are counted",
            "rqa.data.localrqa._scan",
            "num_objects * _MIN_BYTES_PER_OBJECT > len(data) + _ALWAYS_ALLOWED",
            "False",
        ),
        Without("the memo and frames are bounded", "rqa.data.localrqa._scan", "value > limit", "False"),
    ),
    # The index
    Promise(
        "After a kill the blocks that are missing are embedded, no others, and the index has the same bytes",
        "retrieval/test_vectors.py::test_after_a_kill_the_missing_blocks_alone_are_embedded",
        Without(
            "stored vectors are found", "rqa.retrieval.dense._embed", "opened[0].missing", "np.arange(len(passages))"
        ),
        Without(
            "blocks of the size that the corpus has",
            "rqa.retrieval.dense._embed",
            "block_size(len(passages))",
            "block_size(4 * len(missing))",
        ),
    ),
    Promise(
        "New passages, and those with another title, are embedded alone",
        "retrieval/test_vectors.py::test_new_passages_cost_themselves_alone",
        Without("the key has the title", "rqa.retrieval.vectors.keys_of", "passage.content", "passage.text"),
        Without(
            "stored vectors are found", "rqa.retrieval.dense._embed", "opened[0].missing", "np.arange(len(passages))"
        ),
    ),
    Promise(
        "Damaged vectors are embedded again",
        "retrieval/test_vectors.py::test_a_damaged_shard_is_deleted_and_its_passages_are_missing",
        Without("the hash", "rqa.retrieval.vectors.VectorShards.open", "sha256_of(path) == path.stem", "True"),
    ),
    Promise(
        "The recall of an index that is not exact is measured, and its search effort raised to 0.95",
        "retrieval/test_index.py::test_recall_is_measured_and_raised",
        Without(
            "the effort is raised",
            "rqa.retrieval.index.FaissIndex.raise_recall",
            "self.recall >= MIN_RECALL or effort is None or effort[1] >= effort[2]",
            "True",
        ),
    ),
    Promise(
        "An index of many rows is trained on a sample",
        "retrieval/test_index.py::test_a_sample_trains_the_index_of_many_rows",
        Without("the sample", "rqa.retrieval.index._training_rows", "num_rows <= size", "True"),
    ),
    Promise(
        "Results of a damaged index are neither cached nor used",
        "retrieval/test_retrieve.py::test_results_of_a_damaged_index_are_neither_cached_nor_returned",
        Without("results wait for the verification", "rqa.retrieval.retrieve._search_verified", "retriever.verify()"),
    ),
    Promise(
        "A search fails once damage of the index was found",
        "retrieval/test_index.py::test_a_search_fails_after_damage_was_found_and_not_before",
        Without("each search looks", "rqa.retrieval.index.FaissIndex.search", "_check(self._verification)"),
    ),
    Promise(
        "Lists and graphs of an index are verified before FAISS reads them",
        "retrieval/test_index.py::test_lists_and_graphs_are_verified_before_faiss_reads_them",
        Without(
            "the wait",
            "rqa.retrieval.index.FaissIndex.load",
            "wait=verify or manifest['factory'] != 'Flat'",
            "wait=verify",
        ),
    ),
    Promise(
        "No question is answered from a damaged index",
        "recipes/test_ask.py::test_no_question_is_answered_from_a_damaged_index",
        Without("the first question waits for the verification", "recipes.ask.open_chat", "retriever.verify()"),
    ),
    Promise(
        "The background verification ends with its index",
        "retrieval/test_index.py::test_the_verification_of_a_released_index_ends",
        Without(
            "the thread is stopped",
            "rqa.retrieval.index.FaissIndex.load",
            "weakref.finalize(loaded, verification.stop)",
        ),
    ),
    Promise(
        "A pickle that is not LocalRQA's list of documents is refused, without a traceback",
        "data/test_localrqa.py::test_refuses_anything_but_a_list_of_documents",
        Without(
            "every error of the unpickler",
            "rqa.data.localrqa.read_documents",
            "(pickle.UnpicklingError, ValueError, TypeError, AttributeError, LookupError, EOFError)",
            "(pickle.UnpicklingError, ValueError, TypeError, AttributeError)",
        ),
    ),
    Promise(
        "A killed evaluation resumes: its predictions are byte-identical",
        "recipes/test_killed_evaluation.py::test_predictions_are_byte_identical_after_a_kill",
        Without("answers are stored", ANSWER_STORE + ".append", "append_line(file.fileno(), line.encode())"),
        Without(
            "a part of a line is removed", ANSWER_STORE + "._complete_lines", "os.truncate(self.path, len(complete))"
        ),
    ),
    Promise(
        "Stored answers are used only with equal weights, settings and prompts",
        "generation/test_answer_store.py",
        Without("the settings", ANSWER_STORE + "._stored", "row['settings'] == self.settings", "True"),
        Without(
            "the weights",
            "rqa.generation.generator.Generator.resumable",
            "weights_checksum(self.accelerator, model)",
            "0",
        ),
        Without(
            "the prompts",
            "rqa.generation.answers._key",
            "[(row.prompts, row.truncated, row.num_passages) for row in batch]",
            "[len(row.prompts[0]) for row in batch]",
        ),
        Without(
            "the checksum of a line", ANSWER_STORE + "._stored", "row.pop('checksum', None) != _checksum(row)", "0"
        ),
    ),
    Promise(
        "Two ranks resume an evaluation, and its metrics are computed once",
        "recipes/test_killed_evaluation.py::test_two_ranks_resume_and_score_once",
        Without(
            "the main process alone scores",
            "rqa.evaluation.evaluate.Evaluator.__call__",
            "call_on_main(self.accelerator, lambda: self._scores(inputs, retrieval, results, left_out))",
            "self._scores(inputs, retrieval, results, left_out)",
        ),
        Without("one process writes", ANSWER_STORE + ".append", "not self.accelerator.is_main_process", "False"),
    ),
    Promise(
        "A hostile pickle of weights is an error and runs nothing",
        "models/test_loading.py::test_a_hostile_pickle_is_an_error_and_runs_nothing",
        Without(
            "only weights are read",
            "rqa.distributed.pickled_weights.read_pickled",
            "torch.load(path, map_location='meta', weights_only=True)",
            "torch.load(path, map_location='meta', weights_only=False)",
        ),
    ),
    Promise(
        "An interrupted build of a database embeds only the missing passages, and retrieves as FAISS does",
        "retrieval/test_milvus.py::test_a_build_that_is_interrupted_continues_where_it_was",
        Without("the ids that are there", "rqa.retrieval.milvus._complete", "index.stored_rows()", "np.zeros(0, int)"),
    ),
    Promise(
        "Ties of a database are in order of the corpus",
        "retrieval/test_milvus.py::test_ties_past_the_last_hit_are_in_order_of_the_corpus",
        Without(
            "the row",
            "rqa.retrieval.milvus.MilvusIndex.search",
            "np.lexsort((hit_rows, -hit_scores))",
            "np.argsort(hit_rows * 0)[::-1]",
        ),
    ),
    # Questions written by a model
    Promise(
        "No document, and so no gold passage, is in two files of written questions",
        "questions/test_question_sampling.py::test_no_document_is_in_two_splits",
        Without(
            "all sources of a passage", SAMPLER + ".__init__", "documents.join(names)", "documents.join(names[:1])"
        ),
        Without("documents that are joined later", SAMPLER + ".__init__", "documents.find(name)", "name"),
        Without(
            "a document for each split",
            "rqa.questions.sampling._deal",
            "sizes[name] <= room and len(chosen) < len(rest) - num_left",
            "sizes[name] <= room",
        ),
    ),
    Promise(
        "An answer that its passage does not support is rejected, and so is a question that mentions the passage",
        "questions/test_question_rules.py::test_each_rule",
        Without("the quotation", BY_ANSWER, "not _contains(passage.text, question.evidence)", "False"),
        Without("numbers", BY_ANSWER, "unsupported_numbers(question.answer, texts)", "[]"),
        Without("words", BY_ANSWER, "(share := support(question.answer, [passage.content])) < MIN_SUPPORT", "False"),
        Without("mentions", "rqa.questions.rules._broken_rules", "_MENTION.search(text)", "None"),
    ),
    Promise(
        "Similar questions are found as by a comparison with all of them",
        "questions/test_question_rules.py::test_near_duplicates_equal_a_comparison_with_all",
        Without(
            "enough first words",
            "rqa.questions.rules._QuestionIndex.add",
            "len(own) - math.ceil(NEAR_DUPLICATE * len(own)) + 1",
            "len(own) - math.ceil(NEAR_DUPLICATE * len(own))",
        ),
    ),
    Promise(
        "A written question that the judge refuses, or that its model can answer without the passage, is rejected",
        "questions/test_write_questions.py::test_the_judge_rejects_questions",
        Without(
            "the verdict with the passage", REVIEWER + ".__call__", "self._by_passage(questions)", "list(questions)"
        ),
        Without(
            "the answer without the passage",
            REVIEWER + ".__call__",
            "self._without_passage([reviewed[i] for i in answered])",
            "[reviewed[i] for i in answered]",
        ),
    ),
    Promise(
        "Written questions continue after a budget, equal to a run without one, and no call is made twice",
        "questions/test_write_questions.py::test_a_budget_ends_the_calls_and_the_same_command_continues",
        Without("the cache", "rqa.endpoint.client._Run.reply", "self.cache.append(key, response)"),
    ),
    # A corpus from documents
    Promise(
        "Passages of a document lose no character of its text, and none is longer than the limit",
        "documents/test_splitter.py::test_nothing_is_lost_and_every_passage_is_within_the_limit",
        Without(
            "the title is counted",
            SPLITTER + "._ranges",
            "self.count_tokens(f'{title}\\n{part}') <= self.max_tokens",
            "self.count_tokens(part) <= self.max_tokens",
        ),
        Without(
            "the last block",
            "rqa.documents.sections.sections_of",
            "[0, *(starts[mark.line] for mark in ordered[1:]), len(text)]",
            "[0, *(starts[mark.line] for mark in ordered[1:])]",
        ),
        Without(
            "line ends of prose are counted again",
            "rqa.documents.splitter.cut",
            "is_prose and not fits(_trimmed_part(text, *range_))",
            "False",
        ),
        Without("long titles are shortened", SPLITTER + "._title", "not self._is_short(title)", "False"),
    ),
    Promise(
        "A code block or table that fits is in one passage",
        "documents/test_splitter.py::test_code_and_tables_that_fit_are_whole",
        Without(
            "blocks",
            SPLITTER + "._ranges",
            "[piece for block in section.blocks for piece in self._pieces(text, block, fits)]",
            "[*cut(text, section.blocks[0].start, section.blocks[-1].end, fits, is_prose=False)]",
        ),
    ),
    Promise(
        "Code that is too long is cut at line ends",
        "documents/test_splitter.py::test_code_that_is_too_long_is_cut_at_line_ends",
        Without("its kind", SPLITTER + "._pieces", "is_prose=block.kind == 'prose'", "is_prose=True"),
    ),
    Promise(
        "The same folder gives the same corpus, byte for byte",
        "documents/test_writer.py::test_the_same_folder_gives_the_same_bytes",
        Without("files are sorted", "rqa.documents.files.list_files", "listing.paths.sort(key=shown)"),
    ),
    Promise(
        "Documents that cannot be converted are named, and the others are read",
        "documents/test_writer.py::test_bad_files_are_named_and_leave_the_others_unchanged",
        Without("errors of libraries", WRITER + "._passages", "Exception", "InputError"),
        Without("a password", "rqa.documents.pdf.pdf_pages", "reader.is_encrypted and not reader.decrypt('')", "False"),
        Without("a file without text", "rqa.documents.convert.read_document", "not document.text.strip()", "False"),
    ),
    Promise(
        "A stopped conversion leaves the old corpus",
        "documents/test_writer.py::test_a_stopped_run_leaves_the_old_file",
        Without("an atomic file", WRITER + "._output", "atomic_file(path)", "path.open('wb')"),
    ),
    Promise(
        "A folder without a document that can be read replaces no corpus",
        "documents/test_writer.py::test_a_folder_without_a_document_is_an_error_and_replaces_nothing",
        Without("the check", WRITER + ".write_corpus", "not sources", "False"),
    ),
    Promise(
        "Links in a folder of documents are not followed, and hidden files are not read",
        "documents/test_listing.py::test_documents_are_sorted_and_the_others_counted",
        Without("links", "rqa.documents.files._entries", "entry.is_symlink()", "False"),
        Without("hidden files", "rqa.documents.files._entries", "entry.name.startswith('.')", "False"),
        Without("pipes", "rqa.documents.files._add", "not stat.S_ISREG(status.st_mode)", "False"),
    ),
    Promise(
        "Scripts, styles and navigation of HTML are not text",
        "documents/test_document_formats.py::test_html_is_its_text_without_scripts_and_navigation",
        Without("they are removed", "rqa.documents.html.html_to_markdown", "tag.decompose()"),
    ),
    Promise(
        "Declarations of XHTML are not text",
        "documents/test_document_formats.py::test_declarations_of_xhtml_are_not_text",
        Without("they are removed", "rqa.documents.html.html_to_markdown", "declaration.extract()"),
    ),
    Promise(
        "A DOCX file that unpacks to too much is an error",
        "documents/test_document_formats.py::test_a_packed_bomb_is_an_error",
        Without("the size", "rqa.documents.html.docx_to_html", "size > MAX_UNPACKED_BYTES", "False"),
    ),
    Promise(
        "Tokens of a passage are counted as the encoder reads them",
        "retrieval/test_encoder.py::test_the_tokens_of_a_passage_are_those_that_the_model_reads",
        Without(
            "the prefix",
            "rqa.retrieval.encoder.Encoder.count_passage_tokens",
            "f'{self.passage_prefix}{content}'",
            "content",
        ),
    ),
    Promise(
        "A corpus of documents fits its encoder, and a change of the folder is reported",
        "recipes/test_make_corpus.py::test_a_folder_becomes_a_corpus_and_a_change_is_reported",
        Without(
            "the limit of the encoder",
            "recipes.make_corpus.main",
            "min(args.max_passage_tokens, encoder.max_passage_tokens - 1)",
            "args.max_passage_tokens",
        ),
        Without("the status", "recipes.make_corpus.main", "len(report.problems) > args.max_bad_files", "False"),
    ),
    # Sharing
    Promise(
        "In a card, texts of users stay text",
        "sharing/test_card.py::test_texts_of_users_stay_text",
        Without("characters that are not visible", f"{CARD}.code", "_escaped(text, '|')", "text"),
        Without(
            "more backticks than the text has",
            f"{CARD}.code",
            "1 + max(map(len, re.findall('`+', shown)), default=0)",
            "1",
        ),
        Without("quotes of the shell", f"{CARD}._usage", "_shell_word(_flag_text(value))", "_flag_text(value)"),
        Without("own labels", f"{CARD}._test", "code(label)", "label"),
    ),
    Promise(
        "A card has no path of this machine",
        "sharing/test_card.py::test_a_card_has_no_path_of_this_machine",
        Without("names of models", f"{CARD}.public_name", "Path(name_or_path).resolve().name", "name_or_path"),
        Without(
            "names of files",
            f"{CARD}.record_run",
            "Path(str(config[f'{split}_file'])).name",
            "str(config[f'{split}_file'])",
        ),
    ),
    Promise(
        "Times and attempts change no byte of a card",
        "sharing/test_card.py::test_times_and_attempts_change_no_byte",
        Without("the count of an attempt", f"{CARD}._test", "replace(score, runtime={})", "score"),
    ),
    Promise(
        "Checkpoints, predictions and data are never uploaded",
        "sharing/test_push.py::test_only_files_of_the_model_are_listed_and_others_are_named",
        Without(
            "the list of names",
            f"{HUB}.files_to_upload",
            "path in selected",
            "True",
        ),
    ),
    Promise(
        "A run is not uploaded to a public repository unless asked; its report only if asked",
        "sharing/test_push.py::test_the_report_is_uploaded_only_if_asked_and_a_public_repository_too",
        Without("the check", f"{HUB}._push", "private and not api.model_info(repo).private", "False"),
    ),
    Promise(
        "Uploaded settings of an adapter name no folder of this machine",
        "sharing/test_push.py::test_an_adapter_names_no_folder_of_this_machine",
        Without("the copy", f"{HUB}._content", "path.name == ADAPTER_CONFIG", "False"),
    ),
    Promise(
        "A failed upload leaves a complete run, a command that repeats it, and no token in the log",
        "sharing/test_push.py::test_a_failed_upload_is_one_warning_with_the_command_to_repeat_it",
        Without("the token", f"{HUB}._reason", "without_key(text, get_token() or '')", "text"),
        Without("signed addresses", f"{HUB}._reason", "re.sub(..., ..., ...)", "' '.join('; '.join(parts).split())"),
    ),
    Promise(
        "The main process alone uploads",
        "recipes/test_share_recipe.py::test_a_training_pushes_its_adapter_merged_model_and_report",
        Without("the check", f"{HUB}.finish_run", "not accelerator.is_main_process", "False"),
    ),
)
