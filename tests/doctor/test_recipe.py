"""The recipe doctor.py: exit status, output, and rows as in training."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import tiny_models
from lamps import lamp, row
from tiny_seq2seq import closing_tokenizer, save_seq2seq
from world import ROOT, files, write_jsonl

from rqa.cli import parser
from rqa.data.records import load_examples
from rqa.doctor.findings import KINDS
from rqa.errors import InputError
from rqa.prompts.decoder_prompt import PromptBuilder
from rqa.prompts.fid_prompt import PassagePromptBuilder


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with all input files, and models without weights."""
    monkeypatch.chdir(tmp_path)
    write_jsonl(Path("train.jsonl"), [row(i) for i in range(12)])
    write_jsonl(Path("test.jsonl"), [row(i) for i in range(20, 24)])
    write_jsonl(Path("leak.jsonl"), [row(i) for i in (21, 5, 11)])
    write_jsonl(Path("corpus.jsonl"), [lamp(i) for i in range(30)])
    tiny_models.save_decoder(Path("model"))
    save_seq2seq(Path("t5"))
    for name in ("model", "t5"):
        Path(name, "model.safetensors").unlink()
    return tmp_path


@pytest.fixture
def doctor(here, monkeypatch, capsys):
    def run(*argv, **flags):
        words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
        monkeypatch.setattr(sys, "argv", ["doctor.py", *argv, *words])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(ROOT / "recipes/doctor.py"), run_name="__main__")
        return end.value.code, capsys.readouterr()

    return run


DATA = {
    "train_file": "train.jsonl",
    "test_file": "test.jsonl",
    "full_dataset_file_path": "corpus.jsonl",
    "learning_rate": "1e-3",
}
LEAK = DATA | {"test_file": "leak.jsonl"}


def test_data_without_problems_has_status_0_and_nothing_is_written(doctor, here):
    before = files(here)
    status, printed = doctor(**DATA, model_name_or_path="model", embedding_model="none/such")
    assert (status, files(here)) == (0, before)
    assert not any(line.startswith(("problem", "warning")) for line in printed.out.splitlines())
    assert "long_answer" in printed.out.split("no findings:")[1]


def test_without_a_model_no_tokens_are_counted(doctor):
    status, printed = doctor(**DATA)
    assert status == 0
    assert "question_in_eval" not in printed.out  # without --eval_file
    assert "--model_name_or_path" in printed.out
    assert "long_answer" not in printed.out


@pytest.mark.parametrize(
    ("flags", "status"),
    [
        ({}, 1),
        ({"fail_on": "never"}, 0),
        ({"accept": "question_in_train"}, 0),
        ({"accept": "gold_in_train, question_in_train", "fail_on": "warning"}, 0),
        ({"accept": "long_answer"}, 1),
        ({"test_file": "test.jsonl"}, 0),
        ({"test_file": "twice.jsonl"}, 0),
        ({"test_file": "twice.jsonl", "fail_on": "warning"}, 1),
    ],
)
def test_the_status_depends_on_fail_on_and_accept(doctor, flags, status):
    write_jsonl(Path("twice.jsonl"), [row(20), row(20)])
    assert doctor(**LEAK | flags)[0] == status


def test_it_reads_past_bad_rows_and_lists_them_with_the_other_findings(doctor):
    rows = [row(1), row(2, question=""), row(1), row(3, chat_histroy=[1], id="\x1b[2Jq"), row(4, id="\x1b[2Jq")]
    write_jsonl(Path("bad.jsonl"), rows)
    flags = DATA | {"train_file": "bad.jsonl", "model_name_or_path": "model"}
    status, printed = doctor(**flags, output="findings.json")
    written = json.loads(Path("findings.json").read_text())
    found = {finding["name"]: finding for finding in written["findings"] if finding["count"]}
    assert status == 1
    assert [place.split(": ")[0] for place in found["bad_row"]["places"]] == ["bad.jsonl:2", "bad.jsonl:5"]
    assert found["duplicate_question"]["places"] == ["bad.jsonl:3 (as bad.jsonl:1)"]
    assert "chat_histroy" in found["misnamed_field"]["places"][0]
    assert written["tokens"]["train"]["rows"] == 3
    assert "\x1b" not in printed.out
    status, _ = doctor(**flags, max_bad_rows=2)
    assert status == 0
    status, _ = doctor(**flags, max_bad_rows=2, fail_on="warning")
    assert status == 1
    accepted = "bad_row duplicate_question misnamed_field"
    assert doctor(**flags, max_bad_rows=2, fail_on="warning", accept=accepted)[0] == 0


def test_examples_without_an_answer_or_gold_do_not_stop_it(doctor):
    write_jsonl(
        Path("odd.jsonl"), [row(1), {"question": "Who?", "answers": []}, {"question": "Why?", "answers": "So."}]
    )
    flags = {"train_file": "odd.jsonl", "test_file": "odd.jsonl", "model_name_or_path": "model", "output": "f.json"}
    status, _ = doctor(**DATA | flags)
    written = json.loads(Path("f.json").read_text())
    found = {(f["name"], f["split"]): (f["severity"], f["count"]) for f in written["findings"] if f["count"]}
    assert status == 1
    assert found["no_answer", "train"] == ("problem", 1)
    assert found["no_answer", "test"] == ("note", 1)
    assert not any(name == "bad_row" for name, _ in found)  # the corpus stands for a retriever
    assert [written["tokens"][split]["rows"] for split in ("train", "test")] == [2, 3]
    _, _ = doctor(**DATA | flags, method="sft")
    written = json.loads(Path("f.json").read_text())
    bad = {f["split"]: f["count"] for f in written["findings"] if f["name"] == "bad_row" and f["count"]}
    assert bad == {"train": 2}  # SFT trains on gold


def test_few_steps_at_a_small_rate_are_a_warning(doctor):
    for rate, warns in (("5e-6", True), ("1e-3", False)):
        _, printed = doctor(**DATA | {"learning_rate": rate})
        assert ("warning  small_updates" in printed.out) == warns


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"max_bad_rows": "-1"}, ["--max_bad_rows", "-1"]),
        ({"accept": "nothing_such"}, ["--accept", "nothing_such"]),
        ({"train_file": "none.jsonl"}, ["none.jsonl"]),
        ({"method": "sft", "gold_dropout": "0.1"}, ["--method sft", "--gold_dropout"]),
        ({"method": "sft", "encoder_batch_size": "2"}, ["--method sft", "--encoder_batch_size"]),
        ({"method": "fid", "instruction": "x"}, ["--method fid", "--instruction"]),
        ({"method": "swr", "max_passage_length": "9"}, ["--method swr", "--max_passage_length"]),
        ({"model_name_or_path": "t5"}, ["t5", "encoder-decoder"]),
        ({"model_name_or_path": "model", "max_prompt_length": "4096"}, ["--max_prompt_length"]),
        ({"deepspeed": "none.json"}, ["none.json"]),
        ({"embedding_model": "x", "full_dataset_file_path": ""}, ["--full_dataset_file_path"]),
        ({"num_processes": "0"}, ["--num_processes"]),
    ],
)
def test_invalid_input_has_status_2(doctor, flags, words):
    status, printed = doctor(**DATA | flags)
    assert (status, printed.out) == (2, "")
    assert all(word in printed.err for word in words)


def test_the_output_has_every_place(doctor):
    write_jsonl(Path("many.jsonl"), [row(i) for i in (3, 4, 25, 5, 6, 7)])
    status, printed = doctor(**DATA | {"test_file": "many.jsonl"}, output="findings.json")
    written = json.loads(Path("findings.json").read_text())
    assert (next(iter(written)), written["format"]) == ("format", 2)
    [leak] = [f for f in written["findings"] if f["name"] == "question_in_train" and f["count"]]
    assert status == 1
    assert leak["places"] == [
        f"many.jsonl:{a} (as train.jsonl:{b})" for a, b in ((1, 4), (2, 5), (4, 6), (5, 7), (6, 8))
    ]
    assert (leak["split"], leak["severity"], leak["total"]) == ("test", "problem", 6)
    assert (leak["meaning"], leak["advice"]) == KINDS["question_in_train"]
    assert "problem  question_in_train" in printed.out.splitlines()[0]
    assert "(as train.jsonl:6)" in printed.out
    assert "(as train.jsonl:7)" not in printed.out  # at most three are printed


@pytest.mark.parametrize(("method", "model"), [("swr", "model"), ("sft", "model"), ("fid", "t5")])
def test_rows_and_steps_are_those_of_training(doctor, method, model):
    sizes = {"num_train_epochs": "3", "per_device_train_batch_size": "2", "gradient_accumulation_steps": "1"}
    status, printed = doctor(
        **LEAK, **sizes, method=method, model_name_or_path=model, num_processes=2, output="findings.json"
    )
    written = json.loads(Path("findings.json").read_text())
    assert status == 1
    assert (written["epoch"]["steps"], written["steps"]) == (3, 9)
    train, test = (load_examples(name) for name in ("train.jsonl", "leak.jsonl"))
    tokenizer = closing_tokenizer() if method == "fid" else tiny_models.tokenizer()
    builder = PassagePromptBuilder(tokenizer) if method == "fid" else PromptBuilder(tokenizer)
    answers = sorted(len(builder.answer(example.answers[0])) for example in train)
    assert written["tokens"]["train"]["answer"] == [answers[6], answers[-1], answers[-1]]
    assert written["epoch"]["targets"] == sum(answers)
    rows = {split: lengths["rows"] for split, lengths in written["tokens"].items()}
    assert rows == {"train": len(train), "test": len(test)}
    passages = {"swr": 4, "sft": 1, "fid": 4}[method]  # gold and retrieved
    sources = [lamp(i)["page_content"] for i in range(30)]
    longest = max(len(text) for text in sources)
    most = written["tokens"]["train"]["prompt"][2]
    assert passages * min(map(len, sources)) < most < passages * (longest + 100)
    assert written["bytes"].keys() == {"weights", "gradients", "optimizer", "communication", "activations"}
    assert f"{written['parameters']} parameters" in printed.out


def test_a_sample_of_many_examples_is_tokenized(doctor):
    write_jsonl(Path("more.jsonl"), [row(i, question=f"{i}?") for i in range(100)] + [row(1, question="x" * 9000)])
    flags = DATA | {"train_file": "more.jsonl", "full_dataset_file_path": "", "test_file": ""}
    _, printed = doctor(**flags, method="sft", model_name_or_path="model", sample=10, output="findings.json")
    written = json.loads(Path("findings.json").read_text())
    assert written["tokens"]["train"]["rows"] == 10
    assert written["epoch"]["steps"] == 13  # of all 101
    assert written["micro_batch"].startswith("at most 4 rows")  # SFT's default
    assert "more.jsonl:101" in printed.out.split("long_prompt")[1].split("no findings")[0]


def defaults_of(recipe, monkeypatch):
    """Return the defaults of a training recipe."""
    defaults = []

    def stop(*args):
        defaults.extend(args)
        raise InputError("stop here")

    with monkeypatch.context() as patch:
        patch.setattr(parser, "parse_args", stop)
        with pytest.raises(SystemExit):
            runpy.run_path(str(ROOT / f"recipes/{recipe}.py"), run_name="__main__")
    return parser.flat(defaults)


@pytest.mark.parametrize(
    ("method", "recipe", "model"),
    [("swr", "swr_starling", "model"), ("sft", "sft_mistral", "model"), ("fid", "fid_flan_t5", "t5")],
)
def test_it_accepts_the_flags_of_each_recipe_with_its_defaults(doctor, monkeypatch, method, recipe, model):
    """Except a model, an encoder and output folders, which need not exist."""
    theirs = defaults_of(recipe, monkeypatch)
    ours = parser.flat(runpy.run_path(str(ROOT / "recipes/doctor.py"))["defaults_of"](method))
    free = {"model_name_or_path", "embedding_model", "output_dir", "full_dataset_index_path"}
    assert {name: ours[name] for name in theirs.keys() - free} == {name: theirs[name] for name in theirs.keys() - free}
    paths = {"output_dir": "out", "full_dataset_index_path": "index", "model_name_or_path": model}
    Path("config.json").write_text(json.dumps(theirs | DATA | paths))
    status, printed = doctor(method=method, config="config.json")
    assert (status, "activations" in printed.out) == (0, True), printed.err
