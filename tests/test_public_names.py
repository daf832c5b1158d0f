"""The public names of each package: the faces equal this list, resolve, and load nothing heavy."""

import ast
import importlib
import subprocess
import sys

import pytest
from world import ROOT, launch_environment

PUBLIC_NAMES: dict[str, str] = {
    "cli": (
        "at_least BuildArgs card_facts check_output ContrastiveArgs DataArgs EndpointArgs EvaluationArgs FidPromptArgs "
        "flag flags_locked_on_resume flat GeneratorArgs IndexArgs JudgeArgs LoopRunArgs MiningArgs ModelArgs "
        "OptimizationArgs options parse_args Parser PassageArgs PromptArgs QuestionArgs require RetrievalArgs "
        "row_options run_main RunArgs SearchArgs ServeArgs SharingArgs WriterArgs"
    ),
    "conversion": "Conversion convert Format FORMATS recognized Source",
    "data": (
        "DataError Example GeneratorInput load_examples load_splits open_passages Passage PassageStore "
        "REFUSAL_ANSWER select_passages Turn warn_without_gold"
    ),
    "distributed": (
        "attention_kernel AttentionKernel bf16_is_fast default_device exchange_lists is_sharded leave_group "
        "make_accelerator peak_memory_gib"
    ),
    "doctor": (
        "control_token_finding estimate_training exit_status Finding KINDS length_findings planned_sharding "
        "print_findings print_training read_corpus read_splits record_findings sample_for_rows sample_inputs "
        "sources_of token_lengths training_memory truncation_finding update_finding write_findings"
    ),
    "documents": (
        "CorpusReport Document list_files Listing previous_passages read_document Section Splitter write_corpus"
    ),
    "endpoint": "Endpoint endpoint_of Reply",
    "evaluation": (
        "answer_scores AnswerLoss ATTRIBUTIONS build_contexts check_same_questions compare compare_contexts "
        "context_table Contexts corpus_bleu CrossAttention differences differing_questions Evaluation "
        "EvaluationRecord Evaluator format_scores interval leave_one_out LEVEL Metric METRICS paired_predictions "
        "paired_test PairedResult PassageRecord PredictionRecord question_scores read_evaluation read_record "
        "read_results RESAMPLES Results retrieval_scores score_intervals ScoreRecord Scores "
        "share_on_gold StepRecord TimingRecord write_record"
    ),
    "generation": (
        "Answer ANSWERS_FILE AnswerStore AnswerStreamer Chat ChatQuestion EndpointGenerator Generator "
        "GeneratorEndpoint Listener map_batches"
    ),
    "judge": (
        "Agreement build_requests build_support_requests cohens_kappa Cost Judge judge_answers JudgeRequest "
        "read_labels RESPONSES_FILE summarize SupportRequest Verdict"
    ),
    "models": (
        "AnswerLM attention_for check_context_length export_dtype FusionInDecoder load_collator load_config "
        "load_generator load_model Lora max_positions planned_adapter"
    ),
    "prompts": (
        "ChatFormat Collator ConcatenatedCollator EncodedExample IGNORE_INDEX INSTRUCTION load_tokenizer "
        "ParallelCollator PassagePromptBuilder PassagePrompts Prompt PromptBuilder TEMPLATE_DATE unknown_control_tokens"
    ),
    "questions": ("estimate_questions PassageSampler Plan Question RESPONSES_FILE Rules Task write_questions Writer"),
    "report": "write_report",
    "retrieval": (
        "BM25Retriever build_query CorpusRetriever DamagedIndexError DenseRetriever Encoder FaissIndex HybridRetriever "
        "KS open_corpus open_retriever Reranker RerankingRetriever Retrieval retrieve_splits Retrieved Retriever "
        "mine_negatives StaleIndexError uses_only_gold write_negatives"
    ),
    "sharing": "check_push config_of files_to_upload finish_run push RECORD record_run write_cards",
    "serving": "Access Batcher Feedback make_app serve",
    "training": (
        "BatchLayout check_replicated Checkpoints ContrastiveCollator ContrastiveEncoder ContrastiveRow "
        "DamagedCheckpointError DistillationCollator EarlyStopping export export_encoder learning_rate_at Lesson "
        "log_resume_command log_rows make_optimizer max_weight_change new_folder OptimizerKind OPTIMIZERS read_teacher "
        "Run run_fingerprint RunLog start_run Step steps_per_epoch StopSignals Teacher Tracker train_steps "
        "training_batches"
    ),
}
PACKAGES = sorted(path.parent.name for path in (ROOT / "rqa").glob("*/__init__.py"))


def origins(package: str) -> dict[str, str]:
    """Return the module that defines each name of a face."""
    stub = ast.parse((ROOT / "rqa" / package / "__init__.pyi").read_text(encoding="utf-8"))
    imports = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    return {alias.asname: f"rqa.{package}.{node.module}" for node in imports for alias in node.names}


def test_every_package_has_a_list():
    assert sorted(PUBLIC_NAMES) == PACKAGES


@pytest.mark.parametrize("package", PACKAGES)
def test_the_face_has_the_listed_names(package):
    expected = PUBLIC_NAMES[package].split()
    assert sorted(importlib.import_module(f"rqa.{package}").__all__) == sorted(expected)
    stub = ast.parse((ROOT / "rqa" / package / "__init__.pyi").read_text(encoding="utf-8"))
    assert sorted(origins(package)) == sorted(expected)
    assert sorted(ast.literal_eval(stub.body[-1].value)) == sorted(expected)


@pytest.mark.parametrize("package", PACKAGES)
def test_every_name_is_the_object_of_its_module(package):
    """Also after the modules were imported: a module would hide a function of the same name."""
    face = importlib.import_module(f"rqa.{package}")
    for name, module in origins(package).items():
        assert getattr(face, name) is getattr(importlib.import_module(module), name), name


def test_importing_a_package_loads_no_torch():
    """rqa.data loads no numpy either."""
    code = """
import importlib, sys
import rqa.data
print("numpy" in sys.modules)
for package in sys.argv[1:]:
    importlib.import_module(f"rqa.{package}")
print("torch" in sys.modules)
"""
    command = [sys.executable, "-c", code, *PACKAGES]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60, env=launch_environment())
    assert done.stdout.split() == ["False", "False"]
