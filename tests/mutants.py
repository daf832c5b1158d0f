"""What each promise of training rests on: without it the promise's test must be red.

    python tests/mutants.py [WORD …]

One protection after the other is taken out of a copy of the project, and the promise's test is run there. Words choose
the promises and the protections that contain one of them; without any all are tried, in about an hour. The seconds of
those that were kept go to tests/README.md.
"""

import ctypes
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "tests" / "README.md"
PR_SET_CHILD_SUBREAPER = 36  # of Linux' prctl


@dataclass(frozen=True)
class Without:
    """A protection, and how it is taken out: `old`, which stands once in the file, becomes `new`."""

    what: str
    file: str
    old: str
    new: str = ""


class Promise:
    """What a user can rely on, the test of it, and what it rests on."""

    def __init__(self, text: str, test: str, *protections: Without) -> None:
        self.text, self.test, self.protections = text, test, protections


TRAIN, CHECKPOINT, BATCHING, RUN = (
    "rqa/training/loop.py",
    "rqa/training/checkpoint.py",
    "rqa/training/batching.py",
    "rqa/training/run_log.py",
)
FID, FID_PROMPTS = "rqa/models/fid.py", "rqa/prompts/fid_prompt.py"
STATISTICS = "rqa/evaluation/significance.py"
COUNTED = Without(
    "the count of all target tokens: the mean of each micro-batch",
    TRAIN,
    "accelerator.backward(nll.sum() * accelerator.num_processes * len(micro_batches) / tokens)",
    "accelerator.backward(nll.sum() / (batch['labels'] != IGNORE_INDEX).sum().clamp(min=1))",
)
SKIPPED = Without(
    "the skip",
    TRAIN,
    "if not (accelerator.sync_gradients and skipped) or accelerator.scaler is not None:",
    "if True:",
)
SEEDED = Without("a seed for each update", TRAIN, "        torch.manual_seed((", "        bool((")
RESTORED = Without(
    "the state restored", CHECKPOINT, "self.accelerator.load_state(str(path))\n        self.sel", "self.sel"
)
LOGS_BACK = Without("logs put back", CHECKPOINT, 'self._restore_logs(path, manifest["step"])', "pass")
CLIPPED = Without(
    "the clipping asked for", "rqa/distributed/deepspeed_config.py", "0.0 if norm == math.inf else norm", "0.0"
)
SEALED = """        _flush(partial / MANIFEST)
        _flush(partial)
        if final.exists():
            shutil.rmtree(final)  # what the run that is repeated here left
        partial.replace(final)
"""
GATHERED = "a generation that gathers the weights"

PROMISES = (
    # Layouts
    Promise(
        "any accumulation does what a plain loop does: loss, norm, rate, weights",
        "training/test_loop.py::test_one_process_does_what_a_plain_loop_does",
        COUNTED,
        Without("`accumulate`", TRAIN, "with accelerator.accumulate(model):", "if True:"),
    ),
    Promise(
        "2 and 3 processes too: odd rows, a short last update, slots without rows",
        "training/test_loop.py::test_more_processes_do_what_a_plain_loop_does",
        COUNTED,
        Without(
            "the tokens of the other processes", TRAIN, 'accelerator.reduce(counts, "sum").tolist()', "counts.tolist()"
        ),
        Without(
            "a rate of our own: a prepared scheduler steps once for each process",
            TRAIN,
            "rate = learning_rate(step)",
            "rate = learning_rate(step * accelerator.num_processes)",
        ),
    ),
    Promise(
        "dropout differs between updates, processes and seeds",
        "training/test_loop.py::test_dropout_differs_between_updates_processes_and_seeds",
        Without("the process in the seed", TRAIN, " * 4096 + accelerator.process_index)", " * 4096)"),
        Without("the update in the seed", TRAIN, "(seed * 1_000_003 + step) * 4096", "(seed * 1_000_003) * 4096"),
    ),
    Promise(
        "what runs between two updates changes nothing",
        "training/test_loop.py::test_what_runs_between_two_updates_changes_nothing",
        SEEDED,
    ),
    Promise(
        "every example once an epoch, as many micro-batches on each process",
        "training/test_batching.py::test_every_epoch_runs_every_example_once_and_all_processes_as_many_micro_batches",
        Without("the short last update", BATCHING, "range(0, len(rows), size)", "range(0, len(rows) - size + 1, size)"),
    ),
    Promise(
        "the order is a pure function of the seed",
        "training/test_batching.py::test_updates_are_a_pure_function_of_the_seed",
        Without(
            "a generator of its own", BATCHING, "random.Random(seed).shuffle(globals_)", "random.shuffle(globals_)"
        ),
        Without(
            "a generator of its own, of the epoch",
            BATCHING,
            'random.Random(f"{seed}/{epoch}/order").shuffle(order)',
            "random.shuffle(order)",
        ),
    ),
    Promise(
        "8 processes: mean over most work ≥ 0.97, positions per real one ≤ 1.03",
        "training/test_batching.py::test_no_process_waits_and_little_is_padded",
        Without(
            "the longest to the least loaded",
            BATCHING,
            "sorted(range(layout.processes), key=loads.__getitem__)",
            "range(layout.processes)",
        ),
        Without("the sort by length", BATCHING, "rows.sort(key=lambda row: -lengths[row])", "pass"),
    ),
    Promise(
        "answers are the same, byte for byte, on 2 and 3 processes",
        "generation/test_generator.py::test_more_processes_write_the_file_of_one_and_answer_everything_once",
        Without(
            "batches dealt once", "rqa/generation/generator.py", "mine = batches[here::processes]", "mine = batches"
        ),
        Without(
            "the last batch repeated where weights are sharded",
            "rqa/generation/generator.py",
            "(self.is_sharded or len(",
            "(len(",
        ),
    ),
    Promise(
        "the evaluation's loss too",
        "evaluation/test_evaluate.py::test_the_loss_is_the_same_on_more_processes",
        Without(
            "a share for each process",
            "rqa/evaluation/evaluate.py",
            "start + self.accelerator.process_index * self.batch_size",
            "start",
        ),
    ),
    Promise(
        "processes that do not see each other are refused with the right command",
        "distributed/test_accelerator.py::test_processes_that_do_not_see_each_other_are_refused_with_the_right_command",
        Without(
            "the comparison",
            "rqa/distributed/accelerator.py",
            "if launched_processes != accelerator.num_processes:",
            "if False:",
        ),
    ),
    # DeepSpeed, FSDP
    Promise(
        "ZeRO-1, 2 and 3 do what a plain loop does, and skip what is not finite",
        "recipes/test_deepspeed.py::test_two_processes_do_what_a_plain_loop_does",
        CLIPPED,
        Without(
            "the shapes of sharded matrices",
            TRAIN,
            'getattr(parameter, "ds_shape", parameter.shape)',
            "parameter.shape",
        ),
    ),
    Promise(
        "a run under ZeRO-2, by a file like LocalRQA's, is the run without",
        "recipes/test_deepspeed.py::test_a_run_under_zero_2_is_the_run_without",
        Without(
            "the file's optimizer taken out",
            "rqa/distributed/deepspeed_config.py",
            'config.pop("optimizer", None)',
            'config.get("optimizer")',
        ),
        Without(
            "the file's schedule taken out",
            "rqa/distributed/deepspeed_config.py",
            'config.pop("scheduler", None)',
            'config.get("scheduler")',
        ),
        CLIPPED,
    ),
    Promise(
        "under ZeRO-1 and 3 too; the retriever is whole and unchanged",
        "recipes/test_deepspeed.py::test_a_run_under_other_stages_is_the_run_without",
        Without("a retriever loaded whole", "rqa/retrieval/dense.py", "deepspeed.unset_hf_deepspeed_config()", "pass"),
        Without(GATHERED, "rqa/distributed/accelerator.py", "bool(zero and zero.zero_stage == 3)", "False"),
    ),
    Promise(
        "a file and a flag that disagree are an error that names both",
        "distributed/test_deepspeed_config.py::test_a_conflict_is_an_error_that_names_both_sides",
        Without(
            "the comparison", "rqa/distributed/deepspeed_config.py", 'if said not in ("auto", wanted):', "if False:"
        ),
        Without(
            "the product",
            "rqa/distributed/deepspeed_config.py",
            'if config.get("train_batch_size", "auto") not in ("auto", total):',
            "if False:",
        ),
        Without(
            "what the loop requires",
            "rqa/distributed/deepspeed_config.py",
            'if config[block].get(key, "auto") not in ("auto", True):',
            "if False:",
        ),
    ),
    Promise(
        "a run that is killed under ZeRO-2 goes on as if it had not been",
        "recipes/test_deepspeed.py::test_a_run_that_is_killed_under_zero_2_goes_on_as_if_it_had_not_been",
        RESTORED,
    ),
    Promise(
        "a run under FSDP2, by our configuration, is the run without",
        "recipes/test_fsdp.py::test_a_run_under_fsdp2_is_the_run_without",
        Without(
            GATHERED,
            "rqa/generation/generator.py",
            "if accelerator.distributed_type == DistributedType.FSDP:",
            "if False:",
        ),
    ),
    Promise(
        "a run that is killed under FSDP2 goes on as if it had not been",
        "recipes/test_fsdp.py::test_a_run_that_is_killed_under_fsdp2_goes_on_as_if_it_had_not_been",
        RESTORED,
    ),
    Promise(
        "every configuration that is shipped is one of accelerate's",
        "distributed/test_accelerator.py::test_our_configurations_are_accelerates",
        Without("a key", "recipes/configs/accelerate_two_machines.yaml", "main_process_ip:", "main_process_ipp:"),
        Without("a key", "recipes/configs/accelerate_fsdp2.yaml", "fsdp_state_dict_type:", "fsdp_state_type:"),
    ),
    Promise(
        "those of DeepSpeed name its file",
        "distributed/test_accelerator.py::test_deepspeed_by_accelerates_configuration_is_that_of_its_file",
        Without("a key", "recipes/configs/accelerate_zero3.yaml", "deepspeed_config_file:", "deepspeed_config_fle:"),
    ),
    Promise(
        "weights that are tied stay tied under FSDP2",
        "recipes/test_fsdp.py::test_tied_weights_stay_tied_under_fsdp2",
        Without("tying them again", "rqa/models/decoder.py", "        self.model.tie_weights()\n", "        pass\n"),
    ),
    Promise(
        "and are written once",
        "training/test_checkpoint.py::test_tied_weights_are_written_once_also_where_they_are_given_as_copies",
        Without("leaving the copies out", CHECKPOINT, "state.pop(tied, None)  #", "pass  #"),
    ),
    Promise(
        "the documented commands run as they stand",
        "test_readme.py::test_documented_commands_run",
        Without("a flag", "rqa/cli/training_args.py", "gradient_accumulation_steps: int", "accumulation_steps: int"),
    ),
    # Checkpoints
    Promise(
        "a checkpoint gets its name when every byte is on the disk; older ones go after that",
        "training/test_checkpoint.py::test_a_checkpoint_gets_its_name_when_every_byte_is_on_the_disk",
        Without("the flush of the manifest before the name", CHECKPOINT, "        _flush(partial / MANIFEST)\n", ""),
        Without(
            "the flush before the name: rename, then fsync",
            CHECKPOINT,
            SEALED,
            f"        partial.replace(final)\n{SEALED.replace('partial', 'final')}".replace(
                "        final.replace(final)\n", ""
            ),
        ),
        Without("the flush of files", CHECKPOINT, "            _flush(path)\n", ""),
        Without("the flush of names", CHECKPOINT, "        _flush(partial)\n", ""),
        Without(
            "the name before the older ones go",
            CHECKPOINT,
            "        partial.replace(final)\n        _flush(final.parent)\n",
            "        _flush(final.parent)\n        partial.replace(final)\n",
        ),
    ),
    Promise(
        "a damaged checkpoint is named and the one before is used",
        "training/test_checkpoint.py::test_a_damaged_checkpoint_is_named_and_the_one_before_is_used",
        Without("the hash of files", CHECKPOINT, "if _sha256(file) != digest:", "if False:"),
        Without("the size of files", CHECKPOINT, "if found != size:", "if False:"),
        Without(
            "the manifest's own hash",
            CHECKPOINT,
            'manifest.pop("checksum") == _checksum(manifest)',
            'manifest.pop("checksum")',
        ),
    ),
    Promise(
        "the best is kept and loaded",
        "training/test_checkpoint.py::test_the_best_is_kept_and_loaded",
        Without(
            "the best when old ones are deleted", CHECKPOINT, "if _step_of(old) != self.selection.best:", "if True:"
        ),
        Without("the scores in the checkpoint", CHECKPOINT, "self.selection.values = dict(", "dict("),
    ),
    Promise(
        "best and patience know the direction of every score",
        "training/test_early_stopping.py",
        Without("the direction of the loss", "rqa/training/early_stopping.py", '"loss": False', '"loss": True'),
        Without("the count of patience", "rqa/training/early_stopping.py", ">= self.patience", "> self.patience"),
    ),
    Promise(
        "a checkpoint of another run is refused with what differs",
        "training/test_checkpoint.py::test_a_checkpoint_of_another_run_is_refused_with_what_differs",
        Without("the comparison", CHECKPOINT, '_expect_same(path, manifest["identity"], self.identity)', "pass"),
    ),
    Promise(
        "files that moved are the same files, other files are not",
        "training/test_run_log.py::test_a_run_is_known_by_what_it_reads_not_by_its_names",
        Without("places left out", RUN, 'replace(example, where="")', "example"),
        Without("the retriever", RUN, "retrieval.fingerprint if retrieval", '"any" if retrieval'),
    ),
    Promise(
        "the exported model is the plain class's: a fresh process gives the same logits",
        "training/test_checkpoint.py::test_the_plain_class_loads_what_was_trained",
        Without("the names of the plain model", CHECKPOINT, 'name.removeprefix("model.")', "name"),
    ),
    # Resume
    Promise(
        "a run that is killed goes on as if it had never been: every file byte for byte",
        "recipes/test_resume.py::test_an_ended_run_goes_on_as_if_it_had_never_ended",
        LOGS_BACK,
        Without(
            "a copy beside",
            CHECKPOINT,
            '_folder(self.folder, step), _folder(self.folder, step, ".partial")',
            "(_folder(self.folder, step),) * 2",
        ),
        Without(
            "a start at the first update that is missing",
            "recipes/swr_starling.py",
            "opt.group_by_length, first_step)",
            "opt.group_by_length)",
        ),
        SEEDED,
    ),
    Promise(
        "two processes go on too",
        "recipes/test_resume.py::test_two_processes_go_on_too",
        SEEDED,
    ),
    Promise(
        "fifty ends at random, of runs that are ended again while they go on",
        "recipes/test_resume.py::test_soak",
        LOGS_BACK,
    ),
    # Faults
    Promise(
        "a gradient that is not finite is skipped, and its examples are named",
        "training/test_loop.py::test_an_update_whose_gradient_is_not_finite_is_skipped_and_names_its_examples",
        SKIPPED,
        Without("those examples alone", TRAIN, "if not finite or all(ok for _, ok in everywhere)", ""),
    ),
    Promise(
        "on one process it is skipped on all",
        "training/test_loop.py::test_a_gradient_that_is_not_finite_on_one_process_is_skipped_on_all",
        Without(
            "the norm of all", TRAIN, "skipped = not math.isfinite(norm)", "skipped = not math.isfinite(nll.sum())"
        ),
        Without("the examples of the other process", TRAIN, "everywhere = gather_object(named)", "everywhere = named"),
    ),
    Promise(
        "three in a row are an error",
        "training/test_loop.py::test_three_in_a_row_are_an_error_and_fewer_are_not",
        Without("the number", TRAIN, "MAX_SKIPPED_IN_A_ROW = 3", "MAX_SKIPPED_IN_A_ROW = 4"),
        Without("in a row", TRAIN, "skipped_in_a_row + 1 if is_fault else 0", "skipped_in_a_row + is_fault"),
    ),
    Promise(
        "where the disk is full training goes on, and stops after three checkpoints",
        "recipes/test_resume.py::test_where_the_disk_is_full_training_goes_on_for_a_while",
        Without("every error of a full disk", CHECKPOINT, "(OSError, RuntimeError, SafetensorError)", "(OSError,)"),
        Without(
            "the room that was taken", CHECKPOINT, "shutil.rmtree(partial, ignore_errors=True)  # makes", "pass  #"
        ),
    ),
    Promise(
        "a checkpoint that one process cannot write is one that failed on all",
        "training/test_checkpoint.py::test_a_failure_of_one_process_is_one_of_all",
        Without("telling the others", CHECKPOINT, 'if self.accelerator.reduce(failed, "sum").item():', "if problem:"),
    ),
    Promise(
        "a folder that cannot be written is refused before anything is loaded",
        "training/test_run_log.py::test_a_folder_that_cannot_be_written_is_refused",
        Without("the trial", RUN, "            with TemporaryFile(dir=folder):\n                pass\n"),
    ),
    Promise(
        "a signal stops all processes after the same update, saved",
        "recipes/test_resume.py::test_a_signal_stops_all_processes_after_the_same_update",
        Without(
            "asking the others",
            "rqa/training/signals.py",
            'self.accelerator.reduce(asked, "sum").item()',
            "asked.item()",
        ),
        Without("the launcher's end as a request", "rqa/training/signals.py", "if by_launcher and", "if False and"),
    ),
    Promise(
        "the same signal again stops at once",
        "recipes/test_resume.py::test_the_same_signal_again_stops_at_once",
        Without("the second", "rqa/training/signals.py", "if number in self.received:", "if False:"),
    ),
    Promise(
        "the command that is printed goes on",
        "recipes/test_resume.py::test_the_command_that_is_printed_goes_on",
        Without(
            "the flag",
            "rqa/training/signals.py",
            ', "--resume_from_checkpoint", "latest"]',
            ', "--resume_from_checkpoint", ""]',
        ),
    ),
    # Trackers
    Promise(
        "a tracker that fails never stops a run",
        "training/test_trackers.py::test_a_failing_tracker_is_told_once_and_stops_nothing",
        Without(
            "the protection",
            "rqa/training/trackers.py",
            "except Exception as error:",
            "except ZeroDivisionError as error:",
        ),
        Without("once", "rqa/training/trackers.py", "            self._send = None\n"),
    ),
    Promise(
        "a run that goes on is the tracker's same run",
        "training/test_trackers.py::test_wandb_goes_on_with_the_same_run_and_is_told_nothing_else",
        Without("the run's id", "rqa/training/trackers.py", "    if not path.exists():", "    if True:"),
    ),
    Promise(
        "TensorBoard shows each update once",
        "training/test_trackers.py::test_tensorboard_shows_each_update_once_after_a_resume",
        Without("taking back what came later", "rqa/training/trackers.py", ", purge_step=first_step + 1", ""),
    ),
    Promise(
        "a missing package is an error that says what to install",
        "training/test_trackers.py::test_a_missing_package_is_an_error_that_says_what_to_install",
        Without("the look", "rqa/training/trackers.py", "importlib.util.find_spec(name) is None", "False"),
    ),
    # Fusion-in-decoder
    Promise(
        "with one passage it is the plain model: logits, loss",
        "models/test_fid.py::test_with_one_passage_it_is_the_plain_model",
        Without("the shift of the answer", FID, "labels[:, :-1]], 1)  # (B, T)", "labels[:, 1:]], 1)"),
    ),
    Promise(
        "its gradients",
        "models/test_fid.py::test_with_one_passage_gradients_are_those_of_the_plain_model",
        Without(
            "the gradient of the encoder", FID, "states.append(hidden[mask])", "states.append(hidden[mask].detach())"
        ),
    ),
    Promise(
        "its answers, greedy, sampled and by beams",
        "models/test_fid.py::test_with_one_passage_it_generates_what_the_plain_model_does",
        Without("the model's own first token", FID, "decoder_start_token_id=self.start_id", "decoder_start_token_id=3"),
    ),
    Promise(
        "with many it is the published formulation",
        "models/test_fid.py::test_it_is_the_published_formulation",
        Without("the example of each passage", FID, "(chosen // num_passages)", "(chosen % num_rows)"),
    ),
    Promise(
        "its gradients too",
        "models/test_fid.py::test_gradients_are_those_of_the_published_formulation",
        Without("the order of the memory", FID, "torch.cat(slots)), values", "torch.cat(slots)), values.detach()"),
    ),
    Promise(
        "what a masked passage says does not matter",
        "models/test_fid.py::test_what_a_masked_passage_says_does_not_matter",
        Without(
            "the mask", FID, "real = attention_mask.bool().clone()", "real = torch.ones_like(attention_mask).bool()"
        ),
    ),
    Promise(
        "padding, batch mates and the order of passages do not matter",
        "models/test_fid.py::test_padding_mates_and_order_do_not_matter",
        Without("the mask of the encoder", FID, "mask.shape[1]], mask.long())", "mask.shape[1]], mask.long() | 1)"),
        Without("the mask of the memory", FID, "< lengths[:, None]).long()", "< most).expand(num_rows, -1).long()"),
    ),
    Promise(
        "the number of encoder calls does not matter",
        "models/test_fid.py::test_the_number_of_encoder_calls_does_not_matter",
        Without("the longest first", FID, "key=lambda i: -widths[i])", "key=lambda i: widths[i])"),
    ),
    Promise(
        "a small batch of the encoder changes nothing, with dropout neither",
        "models/test_fid.py::test_a_small_encoder_batch_changes_nothing_with_dropout_neither",
        Without(
            "the random numbers drawn again",
            FID,
            "use_reentrant=False",
            "use_reentrant=False, preserve_rng_state=False",
        ),
        Without("computing again", FID, "checkpoint(encoder, ids, mask, use_reentrant=False)", "encoder(ids, mask)"),
    ),
    Promise(
        "an example without passages disturbs none",
        "models/test_fid.py::test_an_example_without_passages_disturbs_none",
        Without("something to read", FID, "        real[:, 0, 0] |= ~real.any((1, 2))", "        bool(0)"),
    ),
    Promise(
        "a checkpoint is the plain class's, both ways",
        "models/test_fid.py::test_a_checkpoint_is_the_plain_class_s_both_ways",
        Without("float32", "rqa/models/loading.py", "dtype=torch.float32", "dtype=torch.bfloat16"),
    ),
    Promise(
        "two processes train it as one does",
        "recipes/test_fid_recipe.py::test_two_processes_do_what_one_does",
        Without(
            "the tokens of the other processes", TRAIN, 'accelerator.reduce(counts, "sum").tolist()', "counts.tolist()"
        ),
    ),
    Promise(
        "and under DeepSpeed: under ZeRO-3 both make as many encoder calls",
        "recipes/test_fid_recipe.py::test_a_run_under_deepspeed_is_the_run_without",
        Without("agreeing", FID, "calls = _most(calls, device)", "pass"),
        Without("a part in the backward pass", FID, "memory = memory + torch.stack(unread).sum()", "pass"),
    ),
    Promise(
        "and under FSDP2",
        "recipes/test_fid_recipe.py::test_a_run_under_fsdp2_is_the_run_without",
        Without("tying weights again", FID, "        self.model.tie_weights()\n", "        pass\n"),
    ),
    Promise(
        "a passage is text: no control token of it is one",
        "prompts/test_fid_prompt.py::test_data_is_never_a_control_token",
        Without("splitting them", FID_PROMPTS, "split_special_tokens=True", "split_special_tokens=False"),
        Without("splitting those that are pieces", FID_PROMPTS, "if id not in self._control:", "if True:"),
    ),
    Promise(
        "only passages are cut, each at its end",
        "prompts/test_fid_prompt.py::test_only_passages_are_cut_each_at_its_end",
        Without("the end of the text", FID_PROMPTS, "tokens[:room]), *self._closing]", "tokens[:room])]"),
    ),
    Promise(
        "the targets are the answer and one end",
        "prompts/test_collators.py::test_the_targets_of_fusion_in_decoder_are_the_answer_and_one_eos",
        Without(
            "labels ignored where there is no answer",
            "rqa/prompts/collators.py",
            "for row in rows], IGNORE_INDEX)}",
            "for row in rows], 0)}",
        ),
    ),
    Promise(
        "attention on a passage is that of the formula",
        "evaluation/test_attribution.py::test_cross_attention_is_that_of_the_formula",
        Without("the mean over tokens", "rqa/evaluation/attribution.py", "(sums / lengths.clamp(min=1))", "sums"),
        Without(
            "scores before the softmax",
            "rqa/evaluation/attribution.py",
            "_scores.append(scores)",
            "_scores.append(softmax(scores, -1))",
        ),
    ),
    Promise(
        "leaving one out is the difference of two losses",
        "evaluation/test_attribution.py::test_leaving_one_out_is_the_difference_of_two_losses",
        Without(
            "the passage left out",
            "rqa/evaluation/attribution.py",
            "values[:place] + values[place + 1 :]",
            "values[1:]",
        ),
    ),
    # Caches, start-up
    # Evaluation
    Promise(
        "every score that has rows has their interval",
        "evaluation/test_evaluate.py::test_every_score_that_has_rows_has_the_interval_of_its_rows",
        Without("the rows of the loss", "rqa/evaluation/evaluate.py", '"reference_nll": _finite(nll), ', ""),
    ),
    Promise(
        "a 95 % interval covers the truth in 95 of 100 data sets",
        "evaluation/test_significance.py::test_an_interval_of_95_percent_covers_the_truth_in_95_of_100_data_sets",
        Without("both tails", STATISTICS, "[(1 - level) / 2, (1 + level) / 2]", "[1 - level, level]"),
        Without(
            "the same questions on both sides",
            STATISTICS,
            "    of_a, of_b = totals\n",
            "    of_a, of_b = totals[0], totals[1][::-1]\n",
        ),
    ),
    Promise(
        "p-values are uniform where nothing differs",
        "evaluation/test_significance.py::test_p_values_are_uniform_where_nothing_differs",
        Without("both sides", STATISTICS, "null = np.abs(score(of_b - moved)", "null = (score(of_b - moved)"),
    ),
    Promise(
        "the first token ends the prefill",
        "test_timing.py::test_the_first_token_ends_the_prefill_of_a_decoder",
        Without("the first alone", "rqa/generation/generator.py", "if not self.should_stop:", "if True:"),
    ),
    Promise(
        "what a device has not done yet falls to the stage that asked for it",
        "test_timing.py::test_what_the_device_has_not_done_yet_falls_to_the_stage_that_asked_for_it",
        Without("waiting for it", "rqa/timing.py", "            torch.accelerator.synchronize()", "            pass"),
    ),
    Promise(
        "a killed run of a judge pays again for what was under way alone",
        "judge/test_client.py::test_a_killed_run_pays_again_for_what_was_under_way",
        Without("the store", "rqa/judge/client.py", "                self.store.append(key, response)\n"),
    ),
    Promise(
        "a response is on the disk before it counts",
        "judge/test_client.py::test_an_answer_is_on_the_disk_before_it_counts",
        Without("the flush", "rqa/judge/response_cache.py", "        os.fsync(self._file)\n"),
    ),
    Promise(
        "every fault that passes is tried again, and paid once",
        "judge/test_client.py::test_a_fault_that_passes_costs_a_call",
        Without("trying again", "rqa/judge/client.py", "while calls <= self.judge.retries:", "while calls < 1:"),
    ),
    Promise(
        "the key is in no file, log or error",
        "judge/test_client.py::test_the_key_is_in_no_file_log_or_error",
        Without(
            "taking it out of what a server says", "rqa/judge/client.py", 'text.replace(key, "[key]") if', "text if"
        ),
    ),
    Promise(
        "a verdict that is missing bounds the score and leaves no denominator",
        "judge/test_judge_evaluation.py::test_a_verdict_that_is_missing_bounds_the_score_and_leaves_no_denominator",
        Without(
            "the missing in the bounds",
            "rqa/judge/verdicts.py",
            "100 * (right + len(verdicts) - judged)",
            "100 * (right)",
        ),
        Without(
            "judged alone",
            "rqa/judge/verdicts.py",
            '{"judge_accuracy": 100 * right / judged}',
            '{"judge_accuracy": 100 * right / len(verdicts)}',
        ),
    ),
    Promise(
        "differences between contexts are paired, and add up",
        "evaluation/test_context_report.py::test_differences_are_paired_and_add_up",
        Without(
            "the same distractors",
            "rqa/evaluation/context_report.py",
            '"distractor_cost": ("gold_and_retrieved", "gold")',
            '"distractor_cost": ("distractors", "gold")',
        ),
    ),
    Promise(
        "the text of a report is text, and it loads nothing",
        "report/test_html.py::test_all_text_is_text",
        Without("escaping", "rqa/report/html.py", "autoescape=True", "autoescape=False"),
        Without("escaping of the data", "rqa/report/html.py", '.replace("<", "\\\\u003c")'),
    ),
    Promise(
        "an answer in the terminal, and its passages, are those of an evaluation",
        "recipes/test_ask.py::test_an_answer_and_its_passages_are_those_of_an_evaluation",
        Without(
            "the evaluation's flags",
            "rqa/cli/parser.py",
            "for name, value in was.items() if name in known",
            "for name, value in ()",
        ),
    ),
    Promise(
        "what is streamed is the answer",
        "generation/test_chat.py::test_what_is_streamed_is_the_generators_answer",
        Without("holding back half characters", "rqa/generation/chat.py", '.rstrip("\\ufffd")'),
    ),
    Promise(
        "what was retrieved is not retrieved again",
        "retrieval/test_retrieve.py::test_what_was_retrieved_is_not_retrieved_again",
        Without("reading it", "rqa/retrieval/retrieve.py", "if path is not None and path.exists():", "if False:"),
    ),
    Promise(
        "what anything else would find is retrieved",
        "retrieval/test_retrieve.py::test_what_anything_else_would_find_is_retrieved",
        Without(
            "the retriever in the key",
            "rqa/retrieval/retrieve.py",
            "[FORMAT, retriever.fingerprint(), k, queries]",
            "[FORMAT, k, queries]",
        ),
        Without(
            "the queries in the key",
            "rqa/retrieval/retrieve.py",
            "retriever.fingerprint(), k, queries]",
            "retriever.fingerprint(), k, len(queries)]",
        ),
    ),
    Promise(
        "one process retrieves, and every process has what it found",
        "retrieval/test_retrieve.py::test_every_process_has_what_the_main_process_found",
        Without(
            "one process",
            "rqa/retrieval/retrieve.py",
            "    if accelerator.is_main_process:\n        device",
            "    if True:\n        device",
        ),
    ),
    Promise(
        "of two runs that need an index one builds it",
        "retrieval/test_dense.py::test_of_two_runs_that_need_an_index_one_builds_it",
        Without("the lock", "rqa/retrieval/dense.py", "with _folder_lock(index_path):", "if True:"),
    ),
    Promise(
        "no reading is tokenised twice",
        "prompts/test_collators.py::test_no_reading_is_encoded_twice_and_each_by_all_that_it_says",
        Without("keeping it", "rqa/prompts/collators.py", "            self._kept[reading] = row\n"),
    ),
    Promise(
        "--help and a misspelt flag wait for nothing heavy",
        "test_layers.py::test_help_and_a_misspelt_flag_wait_for_nothing_heavy",
        Without(
            "light configs",
            "rqa/cli/training_args.py",
            "from rqa.errors import InputError",
            "import torch\nfrom rqa.errors import InputError",
        ),
    ),
)


def run(copy: Path, test: str, most: float | None = None) -> tuple[bool, float]:
    """Run a test in a copy of the project; return whether it is green, within `most` seconds, and its seconds."""
    environment = {**os.environ, "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-m", "slow or not slow", f"tests/{test}"]
    start = time.perf_counter()
    try:
        done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, timeout=most)
    except subprocess.TimeoutExpired:  # what is broken may not end
        done = None
    seconds = time.perf_counter() - start
    for orphan in psutil.Process().children(recursive=True):  # processes that wait for one that is gone
        orphan.kill()
        orphan.wait()
    if done and done.returncode > 1:
        raise RuntimeError(f"{test}: pytest ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return bool(done) and done.returncode == 0, seconds


def table(seconds: Mapping[str, float]) -> str:
    """Return the table, of seconds by the texts of promises; -1 where a promise was not tried yet."""
    rows = [
        f"| {p.text} | `{p.test}` | {seconds.get(p.text, -1):.0f} | {'; '.join(w.what for w in p.protections)} |"
        for p in PROMISES
    ]
    return "\n".join([HEADER, *rows, ""])


HEADER = """# What is promised, and the test of it

Each test causes the fault. `python tests/mutants.py` takes each protection out of a copy of the project, sees the test
red, and writes this table; the seconds are those of the test alone, its start included, on two cores without a GPU.

| Promise | Test | Seconds | Red without |
| --- | --- | ---: | --- |"""


def main(words: list[str]) -> int:
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)  # orphans of a test that failed become our children
    wrong = []
    written = TABLE.read_text(encoding="utf-8") if TABLE.exists() else ""
    seconds = {text: float(took) for text, took in re.findall(r"^\| (.+?) \| `.+?` \| (\d+) \|", written, re.MULTILINE)}
    with TemporaryDirectory() as folder:
        copy = Path(folder) / "project"
        listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for name in listed.splitlines():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
        for promise in PROMISES:
            chosen = [
                protection
                for protection in promise.protections
                if not words or any(word in f"{promise.text} {promise.test} {protection.what}" for word in words)
            ]
            if not chosen:
                continue
            green, took = run(copy, promise.test)
            print(f"{'green' if green else 'RED'} {took:4.0f} s  {promise.text}", flush=True)
            if not green:
                wrong.append(promise.text)
                continue
            seconds[promise.text] = took
            for protection in chosen:
                path = copy / protection.file
                whole = path.read_text(encoding="utf-8")
                path.write_text(whole.replace(protection.old, protection.new), encoding="utf-8")
                green, took = run(copy, promise.test, 60 + 10 * seconds[promise.text])
                path.write_text(whole, encoding="utf-8")
                print(f"  {'GREEN' if green else 'red'} {took:4.0f} s  without {protection.what}", flush=True)
                if green:
                    wrong.append(f"{promise.text}: green without {protection.what}")
            TABLE.write_text(table(seconds), encoding="utf-8")
    print(*(wrong or ["every promise is kept, and its test red without what it rests on"]), sep="\n")
    return bool(wrong)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
