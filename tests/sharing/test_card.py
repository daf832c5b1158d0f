"""The card of a model: its front matter, its numbers, its command, and texts of users that stay text."""

import ast
import json
import re
from itertools import pairwise

import pytest
import yaml
from huggingface_hub import ModelCard, constants
from hypothesis import given
from hypothesis import strategies as st
from shared_runs import MARKDOWN, command_in, make_run, tokens_in, write_card
from tiny_evaluations import change_score

from rqa.errors import InputError
from rqa.evaluation.metrics import LABELS
from rqa.sharing.card import code, config_of, write_cards

HOSTILE = "a`b``c ```\n---\nlicense: mit\n# title\n| x | <script>1</script> [l](http://evil.example) ![i](x) \u202e\x1b"


def headings_in(text):
    tokens = list(tokens_in(text))
    return [after.content for token, after in pairwise(tokens) if token.type == "heading_open"]


def test_the_front_matter_is_that_of_the_hub(tmp_path):
    text = write_card(make_run(tmp_path))
    assert ModelCard(text).data.to_dict() == {
        "base_model": "org/base",
        "base_model_relation": "finetune",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["rqa", "retrieval-augmented-generation", "swr"],
    }
    assert "License: that of the base model, which was not found" in text


def test_texts_of_users_stay_text(tmp_path):
    run = make_run(tmp_path, f"/home/{HOSTILE}", train_file=f"/data/{HOSTILE}", instruction=HOSTILE)
    change_score(run / "test", labels={"f1": HOSTILE, "own": HOSTILE}, metrics={"f1": 1.0, "own": 2.0}, intervals={})
    text = write_card(run)
    plain = write_card(make_run(tmp_path / "plain", "/home/base"))
    metadata, expected = (yaml.safe_load(each.split("---\n", 2)[1]) for each in (text, plain))
    assert metadata == expected
    kinds = [{token.type for token in tokens_in(each)} for each in (text, plain)]
    assert kinds[0] == kinds[1]
    assert not kinds[0] & {"html_block", "html_inline", "link_open", "image"}
    assert headings_in(text) == headings_in(plain)
    assert text.replace("\n", "").isprintable()
    words = command_in(text)
    assert words[words.index("--instruction") + 1] == HOSTILE


@given(
    st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\\"), max_size=30)
    | st.text(alphabet="` |<&*\n\x1ba", max_size=9)
)
def test_a_code_span_is_one_span_with_all_visible_characters(text):
    span = code(text)
    [paragraph] = [token for token in MARKDOWN.parse(f"x {span} y") if token.type == "inline"]
    assert [token.type for token in paragraph.children] == ["text", "code_inline", "text"]
    shown = paragraph.children[1].content
    assert shown.isprintable()
    assert "|" not in shown
    unescaped = re.sub(r"\\(?:n|u....|U.{8})", lambda match: ast.literal_eval(f"'{match[0]}'"), shown)
    assert unescaped == (text or " ")


def test_a_card_has_no_path_of_this_machine(tmp_path):
    (tmp_path / "base").mkdir()
    text = write_card(make_run(tmp_path / "run", str(tmp_path / "base"), embedding_model=str(tmp_path / "base")))
    assert "/" + "/".join(tmp_path.parts[1:3]) not in text + (tmp_path / "run/card.json").read_text()
    assert "Base model: `base`, a local folder of the author" in text
    assert "base_model:" not in text
    assert "`train.jsonl`" in text


def test_the_scores_are_those_of_the_test(tmp_path):
    text = write_card(make_run(tmp_path))
    score = json.loads((tmp_path / "test/score.json").read_text())
    rows = dict(re.findall(r"^\| ([^|]+) \| ([^|]+ \| [^|]*) \|$", text, re.MULTILINE))
    expected = {
        label.strip(): f"{value:.{digits}f} | {' to '.join(f'{end:.{digits}f}' for end in score['intervals'][name])}"
        for name, label in LABELS.items()
        if (value := score["metrics"].get(name)) is not None and (digits := 3 if name == "loss" else 1)
    }
    assert {name: row for name, row in rows.items() if name in expected} == expected
    assert len(expected) > 5
    assert "bootstrap over 12 questions" in text


def test_a_card_has_no_scores_until_the_test_has_run(tmp_path):
    assert "The test has not run." in write_card(make_run(tmp_path / "a", is_tested=False))
    run = make_run(tmp_path / "b", test_file="")  # the folder is left over from another attempt
    assert "No test file was set." in write_card(run)


def test_times_and_attempts_change_no_byte(tmp_path):
    run = make_run(tmp_path)
    first = write_card(run)
    runtime = json.loads((run / "test/score.json").read_text())["runtime"]
    change_score(run / "test", runtime=runtime | {"timed_answers": 0, "processes": 9})
    assert write_card(run) == first


def test_the_flags_are_those_that_differ_and_no_path(tmp_path):
    run = make_run(
        tmp_path, learning_rate=3.0, lora_rank=2, deepspeed="/data/ds.json", max_new_tokens=7, user_prefix="Q:",
        assistant_prefix="A:", run_group="secret", save_dtype="float16", bf16=True,
    )  # fmt: skip
    text = write_card(run)
    shown = re.findall(r"^  - `--(\w+) ([^`]*)`$", text, re.MULTILINE)
    assert dict(shown) == {
        "assistant_prefix": "A:", "bf16": "true", "learning_rate": "3.0", "lora_rank": "2", "max_new_tokens": "7",
        "save_dtype": "float16", "user_prefix": "Q:",
    }  # fmt: skip
    words = command_in(text)
    flags = dict(zip(words[2::2], words[3::2], strict=True))
    assert words[:2] == ["python", "recipes/ask.py"]
    assert {name: flags[name] for name in ("--user_prefix", "--assistant_prefix", "--max_new_tokens")} == {
        "--user_prefix": "Q:", "--assistant_prefix": "A:", "--max_new_tokens": "7",
    }  # fmt: skip
    assert not {"--bf16", "--learning_rate"} & flags.keys()


def test_the_numbers_of_questions(tmp_path):
    run = make_run(tmp_path)
    assert "- Training file: `train.jsonl`, 2 questions" in write_card(run, ("ab", "", "c"))
    older = write_card(run, None)  # a run of an earlier version
    assert "- Training file: `train.jsonl`, number of questions not recorded" in older
    assert "- Test file: `test.jsonl`, 12 questions" in older
    assert json.loads((run / "test/score.json").read_text())["versions"]["torch"] in older


@pytest.mark.parametrize(
    ("front_matter", "expected"),
    [
        ("license: apache-2.0", {"license": "apache-2.0"}),
        (
            "license: other\nlicense_name: x\nlicense_link: LICENSE\nlibrary_name: evil",
            {"license": "other", "license_name": "x", "license_link": "LICENSE"},
        ),
        ("license: [a]", {}),
        ("license: 'mit\n\n  x: y'", {}),
        ("license: <b>", {}),
        ("a: [", {}),
        ("a: 2026-99-99", {}),
        ("", {}),
    ],
)
def test_the_license_is_that_of_the_base(tmp_path, monkeypatch, front_matter, expected):
    """The base is a folder, or a model in the hub's cache."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    cached = tmp_path / "cache/models--org--base"
    for folder in (tmp_path / "base", cached / "snapshots/a1"):
        folder.mkdir(parents=True)
        (folder / "README.md").write_text(f"---\n{front_matter}\n---\ntext")
    (cached / "refs").mkdir()
    (cached / "refs/main").write_text("a1")
    for number, base in enumerate((str(tmp_path / "base"), "org/base")):
        data = ModelCard(write_card(make_run(tmp_path / f"run{number}", base))).data.to_dict()
        assert {name: value for name, value in data.items() if "license" in name} == expected


def test_an_adapter_and_its_merged_model_have_cards_of_their_own(tmp_path):
    run = make_run(tmp_path, lora_rank=2, load_in_4bit=True)
    (run / "model").rename(run / "merged")
    (run / "model").mkdir()
    (run / "model/adapter_config.json").write_text('{"base_model_name_or_path": "org/first"}')
    adapter = write_card(run)
    merged = (run / "merged/README.md").read_text()
    keys = ("base_model", "base_model_relation", "library_name")
    data = [ModelCard(text).data.to_dict() for text in (adapter, merged)]
    assert [data[0][key] for key in keys] == ["org/first", "adapter", "peft"]
    assert [data[1][key] for key in keys] == ["org/first", "finetune", "transformers"]
    assert "--load_in_4bit" in command_in(adapter)
    assert "--load_in_4bit" not in command_in(merged)  # its weights are those of 4 bits


def test_without_a_retriever_the_command_evaluates(tmp_path):
    words = command_in(write_card(make_run(tmp_path, embedding_model="")))
    assert words[1] == "recipes/evaluate.py"
    assert "--test_file" in words


def test_another_folder_is_an_error(tmp_path):
    with pytest.raises(InputError, match="expected the folder of a training run"):
        config_of(tmp_path)
    make_run(tmp_path)
    write_card(tmp_path)
    (tmp_path / "card.json").write_text('{"format": 1}')
    with pytest.raises(InputError, match=r"card\.json"):
        write_cards(tmp_path)
