"""The recipes on tiny models, launched as from a shell."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from world import ACCELERATE_LAUNCH, files, launch, read_jsonl, torchrun, write_jsonl

from rqa.data.corpus import open_passages
from rqa.data.records import load_splits
from rqa.retrieval.opening import open_retriever
from rqa.retrieval.retrieve import KS, retrieve_splits

EXACT = {"--bf16": "false", "--max_new_tokens": "12"}
MODEL_FILES = {"README.md", "config.json", "generation_config.json", "model.safetensors"}
TOKENIZER_FILES = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
EVALUATION_FILES = {"score.json", "predictions.jsonl"}


@pytest.fixture(scope="module")
def swr(world):
    """The folder and output of a run with every feature, by `accelerate launch`."""
    out = world.folder / "swr"
    flags = {
        "--model_name_or_path": world.model,
        "--embedding_model": world.encoder,
        "--embedding_max_num_to_retrieve": "2",
        "--passage_order": "random",
        "--gold_dropout": "0.2",
        "--num_train_epochs": "2",
        "--learning_rate": "1e-3",
        "--logging_steps": "1",
        "--eval_steps": "3",
        "--gradient_checkpointing": "true",
        "--output_dir": str(out),
        **world.data,
        **EXACT,
    }
    printed = launch("swr_starling.py", flags, by=ACCELERATE_LAUNCH)
    return out, printed


def test_a_run_writes_exactly_its_files(swr):
    out, _ = swr
    model = {f"model/{name}" for name in MODEL_FILES | TOKENIZER_FILES}
    evaluations = {f"{name}/{file}" for name in ("eval-000003", "eval-000004", "test") for file in EVALUATION_FILES}
    state = {"manifest.json", "model.safetensors", "optimizer.bin", "random_states_0.pkl"}
    checkpoint = {f"checkpoints/step-00000004/{name}" for name in state | {"metrics.jsonl", "timings.jsonl"}}
    logs = {"card.json", "config.json", "metrics.jsonl", "timings.jsonl", "report.html"}
    assert files(out) == logs | model | evaluations | checkpoint


def test_a_run_logs_its_steps_and_evaluations(swr):
    out, printed = swr
    assert "⟦</s>⟧" in printed
    for step in range(1, 5):
        assert f"step {step}/4  loss " in printed
    metrics = read_jsonl(out / "metrics.jsonl")
    steps = [row for row in metrics if "step" in row]
    assert [row["step"] for row in steps] == [1, 2, 3, 4]
    assert sum(row["examples"] for row in steps) == 2 * 13
    assert [row["evaluation"] for row in metrics if "evaluation" in row] == ["eval-000003", "eval-000004", "test"]
    assert metrics[-1] == {"evaluation": "test"} | json.loads((out / "test/score.json").read_text())["metrics"]


def test_training_changed_every_matrix(swr, world):
    before, after = (load_file(Path(folder) / "model.safetensors") for folder in (world.model, swr[0] / "model"))
    assert before.keys() == after.keys()
    assert not [name for name, tensor in before.items() if tensor.ndim == 2 and tensor.equal(after[name])]


def test_the_optimizer_holds_the_generator_and_not_the_retriever(swr, world):
    [checkpoint] = (swr[0] / "checkpoints").iterdir()
    moments = torch.load(checkpoint / "optimizer.bin")["state"].values()
    weights = load_file(swr[0] / "model/model.safetensors").values()
    assert sorted(state["exp_avg"].shape for state in moments) == sorted(tensor.shape for tensor in weights)


def test_the_plain_class_loads_the_exported_model(swr):
    model, loading = AutoModelForCausalLM.from_pretrained(swr[0] / "model", output_loading_info=True)
    assert type(model).__name__ == "LlamaForCausalLM"
    assert not any(loading.values())
    assert AutoTokenizer.from_pretrained(swr[0] / "model").chat_template


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_evaluation_of_the_saved_model_equals_the_test_of_the_run(swr, world, monkeypatch, processes):
    out = world.folder / f"evaluated-by-{processes}"
    flags = {
        "--qa_model_name_or_path": str(swr[0] / "model"),
        "--embedding_model_name_or_path": world.encoder,
        "--embedding_max_num_to_retrieve": "2",
        "--document_path": world.corpus,
        "--index_path": str(world.folder / "index"),
        "--eval_data_path": world.test,
        "--batch_size": "3",
        "--output_dir": str(out),
        "--context_report": "true",
        **EXACT,
    }
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    launch("evaluate.py", flags, by=torchrun(processes))
    assert files(out) == EVALUATION_FILES | {"config.json", "report.html", "contexts.json"}
    scores = [json.loads((folder / "score.json").read_text()) for folder in (out, swr[0] / "test")]
    ours, theirs = (score["metrics"] for score in scores)
    assert ours == pytest.approx(theirs, rel=1e-6)
    for score in scores:
        assert score["runtime"]["stages"].keys() == {"embed", "search", "prompt", "prefill", "decode"}
    contexts = json.loads((out / "contexts.json").read_text())
    retrieved = contexts["conditions"]["retrieved"]["scores"]
    assert {name: retrieved[name] for name in ("em", "f1", "bleu")} == pytest.approx(
        {name: ours[name] for name in ("em", "f1", "bleu")}
    )
    for a, b in zip(read_jsonl(out / "predictions.jsonl"), read_jsonl(swr[0] / "test/predictions.jsonl"), strict=True):
        assert (a["answer"], a["id"]) == (b["answer"], b["id"])
        assert a["passages"] == b["passages"]
    printed = launch("compare.py", {str(out): str(swr[0] / "test")})
    assert f"{theirs['rougeL']:.2f}" in printed


@pytest.mark.slow
def test_a_run_repeats_from_its_config_with_a_pickled_corpus(swr, world):
    out = world.folder / "again"
    launch(
        "swr_starling.py",
        {
            "--config": str(swr[0] / "config.json"),
            "--output_dir": str(out),
            "--full_dataset_file_path": world.pickle,
            "--full_dataset_index_path": str(world.folder / "index-of-pickle"),
        },
        by=ACCELERATE_LAUNCH,  # the number of threads changes rounding
    )
    for name in ("metrics.jsonl", "test/predictions.jsonl", "eval-000003/predictions.jsonl"):
        assert (out / name).read_text() == (swr[0] / name).read_text()
    assert (out / "model/model.safetensors").read_bytes() == (swr[0] / "model/model.safetensors").read_bytes()


def test_sft_without_a_retriever_reads_gold_passages(world):
    out = world.folder / "sft"
    flags = {
        "--model_name_or_path": world.model,
        "--eval_embedding_model": "",
        "--train_file": world.train,
        "--test_file": world.test,
        "--max_steps": "1",
        "--output_dir": str(out),
        **EXACT,
    }
    printed = launch("sft_mistral.py", flags)
    assert "[1] Lamp" in printed
    assert "[2]" not in printed
    score = json.loads((out / "test/score.json").read_text())
    assert score["passages_read"] == "gold"
    assert not [name for name in score["metrics"] if "@" in name]


@pytest.fixture(scope="module")
def with_contexts(swr, world):
    """Flags of the same data as Fusion-in-Decoder files: each question brings its retrieved passages ("ctxs")."""
    paths = (world.train, world.eval, world.test)
    passages = open_passages(world.corpus)
    retrievals = retrieve_splits(
        Accelerator(cpu=True),
        partial(open_retriever, passages, world.encoder, world.folder / "index", device=torch.device("cpu")),
        passages,
        load_splits(*paths),
        2 + 10,
    )
    flags = dict.fromkeys(("--embedding_model", "--full_dataset_file_path", "--full_dataset_index_path"), "")
    for path, retrieval in zip(map(Path, paths), retrievals, strict=True):
        examples = read_jsonl(path)
        for i, row in enumerate(examples):
            ctxs = [{"title": p.title, "text": p.text, "id": p.sources[0]} for p in retrieval.passages(i)]
            row.update({"id": f"{path.stem}:{i + 1}", "answers": [row.pop("gold_answer")], "ctxs": ctxs})
        file = world.folder / f"fid-{path.stem}.json"
        file.write_text(json.dumps(examples, indent=4))
        flags[f"--{path.stem}_file"] = str(file)
    return flags


def without_scores(path: Path) -> list[dict]:
    """Return the predictions with None as the score of each passage."""
    predictions = read_jsonl(path)
    for row in predictions:
        for passage in row["passages"]:
            passage["score"] = None
    return predictions


@pytest.mark.slow
def test_training_on_contexts_of_the_file_equals_training_on_retrieved_passages(swr, world, with_contexts):
    out = world.folder / "with_contexts"
    flags = {"--config": str(swr[0] / "config.json"), **with_contexts, "--output_dir": str(out)}
    printed = launch("swr_starling.py", flags, by=ACCELERATE_LAUNCH)
    assert printed.count("no retrieval") == 1
    assert (out / "metrics.jsonl").read_text() == (swr[0] / "metrics.jsonl").read_text()
    assert (out / "model/model.safetensors").read_bytes() == (swr[0] / "model/model.safetensors").read_bytes()
    assert read_jsonl(out / "test/predictions.jsonl") == without_scores(swr[0] / "test/predictions.jsonl")


def test_evaluation_reads_the_contexts_of_the_file(swr, world, with_contexts):
    out = world.folder / "with_contexts-evaluated"
    flags = {
        "--qa_model_name_or_path": str(swr[0] / "model"),
        "--embedding_max_num_to_retrieve": "2",
        "--eval_data_path": with_contexts["--test_file"],
        "--output_dir": str(out),
        **EXACT,
    }
    launch("evaluate.py", flags)
    ours, theirs = (json.loads((folder / "score.json").read_text()) for folder in (out, swr[0] / "test"))
    assert ours["metrics"] == pytest.approx(theirs["metrics"], rel=1e-6)
    assert (ours["passages_read"], theirs["passages_read"]) == (
        "the first 2 given with the questions",
        "the first 2 retrieved",
    )
    assert theirs["retrieval"].keys() - ours["retrieval"].keys() == {"seconds_per_question"}


@pytest.mark.slow
def test_sft_is_tested_on_the_contexts_of_the_file(world, with_contexts):
    out = world.folder / "sft-with_contexts"
    flags = {
        "--model_name_or_path": world.model,
        "--eval_embedding_model": "",
        "--train_file": world.train,
        "--test_file": with_contexts["--test_file"],
        "--max_steps": "1",
        "--output_dir": str(out),
        **EXACT,
    }
    launch("sft_mistral.py", flags)
    assert json.loads((out / "test/score.json").read_text())["passages_read"] == "the first 3 given with the questions"
    read, expected = (
        read_jsonl(out / "test/predictions.jsonl"),
        json.loads(Path(with_contexts["--test_file"]).read_text()),
    )
    assert [[p["text"] for p in row["passages"]] for row in read] == [
        [ctx["text"] for ctx in row["ctxs"][:10]] for row in expected
    ]


@pytest.mark.parametrize(
    ("recipe", "file", "flag"),
    [
        ("swr_starling.py", "--train_file", "--embedding_model"),
        ("sft_mistral.py", "--test_file", "--eval_embedding_model"),
        ("evaluate.py", "--eval_data_path", "--embedding_model_name_or_path"),
    ],
)
def test_a_question_without_contexts_is_an_error_without_a_retriever(
    world, with_contexts, tmp_path, recipe, file, flag
):
    path = tmp_path / "some.json"
    examples = json.loads(Path(with_contexts["--test_file"]).read_text())
    examples[2]["ctxs"] = []
    path.write_text(json.dumps(examples))
    base = {"--model_name_or_path": "no/such/model", "--train_file": world.train}
    if recipe == "evaluate.py":
        base = {"--qa_model_name_or_path": "no/such/model"}
    printed = launch(recipe, {**base, flag: "", file: str(path), "--output_dir": str(tmp_path / "never")}, expect=2)
    error = printed.splitlines()[-1]
    for part in (f"{path}[2]", '"ctxs"', "--embedding_model"):
        assert part in error
    assert not files(tmp_path / "never")


@pytest.mark.slow
def test_an_index_is_built_once_and_refused_for_another_corpus(world, tmp_path):
    flags = {"--embedding_model": world.encoder, "--document_path": world.corpus, "--index_path": str(tmp_path / "i")}
    first, second = (launch("build_index.py", flags) for _ in range(2))
    assert "building" in first
    assert "building" not in second
    other = write_jsonl(tmp_path / "other.jsonl", read_jsonl(Path(world.corpus))[1:])
    refused = launch("build_index.py", {**flags, "--document_path": other}, expect=2)
    assert "corpus" in refused
    assert "Traceback" not in refused


@pytest.mark.slow
@pytest.mark.parametrize("split", ["eval", "test"])
def test_a_question_too_long_for_the_prompt_is_an_error_before_training(world, tmp_path, split):
    long = {**read_jsonl(Path(world.test))[0], "question": "Why? " * 3000}
    path = write_jsonl(tmp_path / "long.jsonl", [*read_jsonl(Path(world.test)), long])
    flags = {"--model_name_or_path": world.model, "--embedding_model": "no/such/encoder", **world.data}
    out = {"--output_dir": str(tmp_path / "never")}
    trained = launch("swr_starling.py", {**flags, f"--{split}_file": path, **out}, expect=2)
    evaluated = {"--qa_model_name_or_path": world.model, "--eval_data_path": path}
    for printed in (trained, launch("evaluate.py", {**evaluated, **out}, expect=2)):
        assert f"long.jsonl:{len(read_jsonl(Path(path)))}: instruction, history and question take" in printed
    assert not files(tmp_path / "never")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        pytest.param({"--use_flash_attention": "true"}, ("--use_flash_attention", "CUDA"), marks=pytest.mark.slow),
        pytest.param({"--train_file": "no/such.jsonl"}, ("no/such.jsonl",), marks=pytest.mark.slow),
        ({"--max_answer_length": "2"}, ("train.jsonl:1", "answer")),
        pytest.param({"--max_prompt_length": "20"}, ("--max_prompt_length", "20"), marks=pytest.mark.slow),
        ({"--model_name_or_path": "no/such/model"}, ("no/such/model",)),
        pytest.param({"--output_dir": "{model}"}, ("new folder",), marks=pytest.mark.slow),
        pytest.param({"--embedding_model": ""}, ("--embedding_model", "ctxs"), marks=pytest.mark.slow),
        pytest.param({"--full_dataset_file_path": ""}, ("--full_dataset_file_path",), marks=pytest.mark.slow),
    ],
)
def test_invalid_input_is_an_error_before_loading(world, flags, words):
    """The encoder of the command does not exist: loading it would be another error."""
    flags = {name: value.format(model=world.model) for name, value in flags.items()}
    out = {"--output_dir": str(world.folder / "never")}
    base = {"--model_name_or_path": world.model, "--embedding_model": "no/such/encoder"}
    printed = launch("swr_starling.py", {**base, **world.data, **out, **flags}, expect=2)
    error = printed.partition("error: ")[2]
    assert all(word in error for word in words)
    assert "Traceback" not in printed


@pytest.mark.slow
def test_a_run_without_an_encoder_reads_the_passages_of_bm25(world, tmp_path):
    run = {"--max_steps": "1", "--output_dir": str(tmp_path / "run"), "--query_history": "0"}
    flags = {"--model_name_or_path": world.model, "--retriever": "bm25", "--embedding_max_num_to_retrieve": "2"}
    launch("swr_starling.py", flags | run | world.data | EXACT)
    corpus = open_passages(world.corpus)
    retriever = open_retriever(corpus, "", tmp_path / "index", device=torch.device("cpu"), retriever="bm25")
    for row in read_jsonl(tmp_path / "run/test/predictions.jsonl"):
        [hits] = retriever.retrieve([row["question"]], max(KS))
        assert [each["id"] for each in row["passages"]] == [hit.passage.id for hit in hits]
