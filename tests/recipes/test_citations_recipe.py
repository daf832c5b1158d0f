"""Training and evaluation with --citations, launched as from a shell."""

import json
from dataclasses import replace

import pytest
from world import launch, read_jsonl, write_jsonl

EXACT = {"--bf16": "false", "--max_new_tokens": "24"}
SCORES = {"citation_precision", "citation_recall", "cited_answers"}


@pytest.fixture(scope="module")
def citing(world):
    """The input files with a citation of gold_docs in each answer."""
    paths = {}
    for split in ("train", "eval", "test"):
        rows = read_jsonl(world.folder / f"{split}.jsonl")
        cited = [{**row, "gold_answer": f"{row['gold_answer']} [1]"} for row in rows]
        paths[split] = write_jsonl(world.folder / f"citing_{split}.jsonl", cited)
    return replace(world, **paths)


@pytest.mark.slow
def test_training_and_evaluation_with_citations(citing):
    """The test of the run equals the evaluation of its model. The flag must not change on resume."""
    out = citing.folder / "citing"
    common = {
        "--embedding_model": citing.encoder,
        "--embedding_max_num_to_retrieve": "2",
        "--citations": "true",
        **EXACT,
    }
    train = {
        "--model_name_or_path": citing.model,
        "--max_steps": "6",
        "--eval_steps": "1000",
        "--save_steps": "1000",
        "--passage_order": "random",
        "--output_dir": str(out),
        **citing.data,
        **common,
    }
    printed = launch("swr_starling.py", train)
    assert "[1]" in printed or "[2]" in printed  # the first row that is logged
    score = json.loads((out / "test/score.json").read_text())
    assert (
        SCORES & score["metrics"].keys() == SCORES & score["intervals"].keys() >= {"cited_answers", "citation_recall"}
    )
    for row in read_jsonl(out / "test/predictions.jsonl"):
        assert row["citation_scores"].keys() >= {"cited_answers"}
        assert {*row.get("cited_ids", ())} <= {passage["id"] for passage in row["passages"][:2]}
    files = {
        name: citing.data[name] for name in ("--full_dataset_file_path", "--full_dataset_index_path", "--test_file")
    }
    again = citing.folder / "citing_again"
    launch("evaluate.py", {"--model_name_or_path": str(out / "model"), "--output_dir": str(again), **files, **common})
    metrics = json.loads((again / "score.json").read_text())["metrics"]
    assert metrics == pytest.approx(score["metrics"])
    refused = launch(
        "swr_starling.py", {**train, "--citations": "false", "--resume_from_checkpoint": "latest"}, expect=2
    )
    assert "--citations" in refused
