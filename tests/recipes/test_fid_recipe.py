"""The recipe of fusion-in-decoder, launched: one process and two, DeepSpeed and FSDP2, killed, evaluated, loaded."""

import json
import re
import sys

import pytest
import test_deepspeed
import yaml
from safetensors.torch import load_file
from test_deepspeed import ON_CPU, _on_the_cpu, assert_same_run, config_of, outcome, rows  # noqa: F401
from test_fsdp import CONFIG
from tiny_seq2seq import save_seq2seq
from transformers import AutoModelForSeq2SeqLM
from world import ACCELERATE_LAUNCH, ROOT, World, launch, torchrun

RECIPE = "fid_flan_t5.py"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World.make(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def seq2seq(world):
    return save_seq2seq(world.folder / "seq2seq")


def flags_of(world, seq2seq, out, **more):
    return test_deepspeed.flags_of(world, out, **{"model_name_or_path": seq2seq} | more)


@pytest.fixture(scope="module")
def one(world, seq2seq):
    """A run of one process."""
    out = world.folder / "one"
    printed = launch(RECIPE, flags_of(world, seq2seq, out, gradient_accumulation_steps="4"))
    assert "question: When was the lamp of" in printed
    return out


def test_two_processes_do_what_one_does(world, seq2seq, one, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    launch(RECIPE, flags_of(world, seq2seq, tmp_path / "two"), by=torchrun(2))
    assert_same_run(tmp_path / "two", one)


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "encoder_batch_size"), [(2, None), (3, 1), (3, None)])
def test_a_run_under_deepspeed_is_the_run_without(world, seq2seq, one, tmp_path, stage, encoder_batch_size):
    """Under ZeRO-3 both processes make as many encoder calls, though they have not as many passages."""
    more = {"deepspeed": str(config_of(tmp_path, stage))}
    if encoder_batch_size:
        more["encoder_batch_size"] = str(encoder_batch_size)
    launch(RECIPE, flags_of(world, seq2seq, tmp_path / "run", **more), by=(*torchrun(2), ON_CPU))
    assert_same_run(tmp_path / "run", one)


@pytest.mark.slow
@pytest.mark.parametrize("encoder_batch_size", ["1", "100"])
def test_a_run_under_fsdp2_is_the_run_without(world, seq2seq, one, tmp_path, encoder_batch_size):
    config = CONFIG | {"num_processes": 2, "mixed_precision": "no"}
    config["fsdp_config"] |= {"fsdp_transformer_layer_cls_to_wrap": "T5Block"}
    (tmp_path / "accelerate.yaml").write_text(yaml.safe_dump(config))
    by = (*ACCELERATE_LAUNCH, "--config_file", str(tmp_path / "accelerate.yaml"), str(ROOT / "tests/fsdp_on_cpu.py"))
    flags = flags_of(world, seq2seq, tmp_path / "run", encoder_batch_size=encoder_batch_size)
    launch(RECIPE, flags, by=by)
    assert_same_run(tmp_path / "run", one)


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.3, 0.8])
def test_a_run_that_is_killed_goes_on_as_if_it_had_not_been(world, seq2seq, tmp_path, share):
    """With dropout, which T5 has of its own."""
    model = json.loads((world.folder / "seq2seq/config.json").read_text()) | {"dropout_rate": 0.3}
    dropping = tmp_path / "dropping"
    dropping.mkdir()
    for path in (world.folder / "seq2seq").iterdir():
        (dropping / path.name).write_bytes(path.read_bytes())
    (dropping / "config.json").write_text(json.dumps(model))

    def run(out, at, **more):
        by = (sys.executable, str(ROOT / "tests/crash.py"), str(out), str(at))
        return launch(RECIPE, flags_of(world, str(dropping), out, **more), by=by, expect=None if at else 0)

    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    touches = int(re.search(r"touched (\d+) times", run(unbroken, 0))[1])
    run(broken, int(share * touches))
    assert not (broken / "test").exists()
    launch(RECIPE, flags_of(world, str(dropping), broken, resume_from_checkpoint="latest"))
    assert outcome(broken) == outcome(unbroken)


def test_the_plain_class_loads_what_was_trained(one, seq2seq):
    model, loading = AutoModelForSeq2SeqLM.from_pretrained(one / "model", output_loading_info=True)
    assert type(model).__name__ == "T5ForConditionalGeneration"
    assert not loading["missing_keys"]
    before, after = (load_file(f"{folder}/model.safetensors") for folder in (seq2seq, one / "model"))
    assert before.keys() == after.keys()
    assert not [name for name, tensor in before.items() if tensor.ndim == 2 and tensor.equal(after[name])]


@pytest.mark.parametrize(
    "more", [{}, pytest.param({"--encoder_batch_size": "2"}, marks=pytest.mark.slow)], ids=["", "encoder_batch_size"]
)
def test_evaluating_the_saved_model_gives_the_predictions_of_the_run(world, one, tmp_path, more):
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
    found, expected = (rows(out / "predictions.jsonl") for out in (tmp_path / "out", one / "test"))
    assert [row["answer"] for row in found] == [row["answer"] for row in expected]
    assert len({row["answer"] for row in found}) > 1
    scores = [json.loads((out / "score.json").read_text())["metrics"] for out in (tmp_path / "out", one / "test")]
    assert scores[0] == pytest.approx(scores[1], rel=1e-5)


@pytest.mark.parametrize(
    ("recipe", "flags", "message"),
    [
        (RECIPE, {"--model_name_or_path": "{model}"}, "needs an encoder-decoder (T5, BART), found a llama"),
        (RECIPE, {"--max_passage_length": "20"}, "history and question alone take"),
        (RECIPE, {"--fp16": "true"}, "fp16 needs a GPU"),
        ("swr_starling.py", {"--max_passage_length": None}, "expected a decoder, found an encoder-decoder"),
    ],
)
def test_what_is_wrong_is_told_before_a_model_is_loaded(world, seq2seq, tmp_path, recipe, flags, message):
    """The encoder of this command does not exist either: nothing gets as far as that."""
    base = flags_of(world, seq2seq, tmp_path / "never", embedding_model="no/such/encoder")
    if recipe != RECIPE:
        base |= {"--user_prefix": "User", "--assistant_prefix": "Assistant"}
    if "--fp16" in flags:
        del base["--bf16"]
    flags = base | {name: value.format(model=world.model) for name, value in flags.items() if value}
    printed = launch(recipe, flags, expect=2)
    assert message in printed
    assert "Traceback" not in printed


def test_flags_of_the_other_kind_are_refused_in_evaluation(one, world, tmp_path):
    flags = {
        "--eval_data_path": world.test,
        "--output_dir": str(tmp_path),
        "--qa_model_name_or_path": str(one / "model"),
    }
    printed = launch("evaluate.py", {**flags, "--qa_is_fid": "true", "--max_prompt_length": "9"}, expect=2)
    assert "--qa_is_fid true: --max_prompt_length would do nothing" in printed
    printed = launch("evaluate.py", {**flags, "--max_passage_length": "9"}, expect=2)
    assert "--qa_is_fid false: --max_passage_length would do nothing" in printed
