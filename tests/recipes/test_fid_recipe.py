"""The fusion-in-decoder recipe: one process, two, DeepSpeed, FSDP2, resume, evaluation, the plain class."""

import json
import sys

import pytest
from safetensors.torch import load_file
from sharded_runs import assert_same_run, fsdp_launcher, outcome, run_until, zero_config
from sharded_runs import flags_of as decoder_flags
from tiny_seq2seq import save_seq2seq
from transformers import AutoModelForSeq2SeqLM
from world import DEEPSPEED_ON_CPU, launch, read_jsonl, torchrun

pytestmark = pytest.mark.usefixtures("deepspeed_on_cpu")
RECIPE = "fid_flan_t5.py"


@pytest.fixture(scope="module")
def seq2seq(world):
    return save_seq2seq(world.folder / "seq2seq")


def flags_of(world, seq2seq, out, **more):
    return decoder_flags(world, out, **{"model_name_or_path": seq2seq} | more)


@pytest.fixture(scope="module")
def one(world, seq2seq):
    """A run of one process."""
    out = world.folder / "one"
    printed = launch(RECIPE, flags_of(world, seq2seq, out, gradient_accumulation_steps="4"))
    assert "question: When was the lamp of" in printed
    return out


def test_two_processes_equal_one(world, seq2seq, one, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    launch(RECIPE, flags_of(world, seq2seq, tmp_path / "two"), by=torchrun(2))
    assert_same_run(tmp_path / "two", one)


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "encoder_batch_size"), [(2, None), (3, 1), (3, None)])
def test_deepspeed_equals_one_process(world, seq2seq, one, tmp_path, stage, encoder_batch_size):
    """Under ZeRO-3 both ranks make the same number of encoder calls, with different numbers of passages."""
    more = {"deepspeed": str(zero_config(tmp_path, stage))}
    if encoder_batch_size:
        more["encoder_batch_size"] = str(encoder_batch_size)
    launch(RECIPE, flags_of(world, seq2seq, tmp_path / "run", **more), by=(*torchrun(2), DEEPSPEED_ON_CPU))
    assert_same_run(tmp_path / "run", one)


@pytest.mark.slow
@pytest.mark.parametrize("encoder_batch_size", ["1", "100"])
def test_fsdp2_equals_one_process(world, seq2seq, one, tmp_path, encoder_batch_size):
    flags = flags_of(world, seq2seq, tmp_path / "run", encoder_batch_size=encoder_batch_size)
    launch(RECIPE, flags, by=fsdp_launcher(tmp_path, "T5Block"))
    assert_same_run(tmp_path / "run", one)


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.3, 0.8])
def test_fid_resume_is_byte_identical_after_a_kill(world, seq2seq, tmp_path, share):
    """With T5's own dropout."""
    model = json.loads((world.folder / "seq2seq/config.json").read_text()) | {"dropout_rate": 0.3}
    with_dropout = tmp_path / "with_dropout"
    with_dropout.mkdir()
    for path in (world.folder / "seq2seq").iterdir():
        (with_dropout / path.name).write_bytes(path.read_bytes())
    (with_dropout / "config.json").write_text(json.dumps(model))
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    touches = run_until(RECIPE, flags_of(world, str(with_dropout), unbroken), (sys.executable,))
    flags = flags_of(world, str(with_dropout), broken)
    run_until(RECIPE, flags, (sys.executable,), int(share * touches))
    assert not (broken / "test").exists()
    launch(RECIPE, flags | {"--resume_from_checkpoint": "latest"})
    assert outcome(broken) == outcome(unbroken)


def test_the_plain_class_loads_the_trained_model(one, seq2seq):
    model, loading = AutoModelForSeq2SeqLM.from_pretrained(one / "model", output_loading_info=True)
    assert type(model).__name__ == "T5ForConditionalGeneration"
    assert not loading["missing_keys"]
    before, after = (load_file(f"{folder}/model.safetensors") for folder in (seq2seq, one / "model"))
    assert before.keys() == after.keys()
    assert not [name for name, tensor in before.items() if tensor.ndim == 2 and tensor.equal(after[name])]


@pytest.mark.parametrize(
    "more", [{}, pytest.param({"--encoder_batch_size": "2"}, marks=pytest.mark.slow)], ids=["", "encoder_batch_size"]
)
def test_evaluation_of_the_saved_model_equals_the_test_of_the_run(world, one, tmp_path, more):
    flags = {
        "--qa_model_name_or_path": str(one / "model"),
        "--qa_is_fid": "true",
        "--embedding_model_name_or_path": world.encoder,
        "--embedding_max_num_to_retrieve": "2",
        "--document_path": world.corpus,
        "--index_path": str(world.folder / "index"),
        "--eval_data_path": world.test,
        "--batch_size": "3",
        "--max_new_tokens": "6",
        "--bf16": "false",
        "--output_dir": str(tmp_path / "out"),
    }
    launch("evaluate.py", flags | more)
    answers, expected = (
        [row["answer"] for row in read_jsonl(out / "predictions.jsonl")] for out in (tmp_path / "out", one / "test")
    )
    assert answers == expected
    assert len(set(answers)) > 1
    scores = [json.loads((out / "score.json").read_text())["metrics"] for out in (tmp_path / "out", one / "test")]
    assert scores[0] == pytest.approx(scores[1], rel=1e-5)


@pytest.mark.parametrize(
    ("recipe", "flags", "words"),
    [
        (RECIPE, {"--model_name_or_path": "{model}"}, ("encoder-decoder", "llama")),
        pytest.param(*(RECIPE, {"--max_passage_length": "20"}, ("history and question take",)), marks=pytest.mark.slow),
        pytest.param(*(RECIPE, {"--fp16": "true"}, ("fp16", "GPU")), marks=pytest.mark.slow),
        pytest.param(
            *("swr_starling.py", {"--max_passage_length": None}, ("decoder", "encoder-decoder")),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_invalid_input_is_an_error_before_loading(world, seq2seq, tmp_path, recipe, flags, words):
    """The encoder of the command does not exist: loading it would be another error."""
    base = flags_of(world, seq2seq, tmp_path / "never", embedding_model="no/such/encoder")
    if recipe != RECIPE:
        base |= {"--user_prefix": "User", "--assistant_prefix": "Assistant"}
    if "--fp16" in flags:
        del base["--bf16"]
    flags = base | {name: value.format(model=world.model) for name, value in flags.items() if value}
    printed = launch(recipe, flags, expect=2)
    error = printed.partition("error: ")[2]
    assert all(word in error for word in words)
    assert "Traceback" not in printed


def test_flags_of_the_other_model_kind_are_refused(one, world, tmp_path):
    flags = {
        "--eval_data_path": world.test,
        "--output_dir": str(tmp_path),
        "--qa_model_name_or_path": str(one / "model"),
    }
    printed = launch("evaluate.py", {**flags, "--qa_is_fid": "true", "--max_prompt_length": "9"}, expect=2)
    assert "--qa_is_fid true" in printed
    assert "--max_prompt_length" in printed
    printed = launch("evaluate.py", {**flags, "--max_passage_length": "9"}, expect=2)
    assert "--qa_is_fid false" in printed
    assert "--max_passage_length" in printed
