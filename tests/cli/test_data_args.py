"""data_args: the options of the reader of examples follow from the flags of the recipe."""

import pytest

from rqa.cli.data_args import DataArgs, PromptArgs, row_options
from rqa.cli.evaluation_args import EvaluationArgs
from rqa.cli.retrieval_args import RetrievalArgs
from rqa.errors import InputError

RETRIEVER = RetrievalArgs(embedding_model="e5", full_dataset_file_path="c.jsonl", full_dataset_index_path="i")


@pytest.mark.parametrize(
    ("search", "is_sft", "required"),
    [
        (RetrievalArgs(), False, True),
        (RETRIEVER, False, False),
        (RetrievalArgs(), True, (True, True, True)),
        (RETRIEVER, True, (True, False, False)),  # SFT trains on gold passages
    ],
)
def test_gold_passages_are_required_where_nothing_else_is_read(search, is_sft, required):
    prompt = PromptArgs(user_prefix="U", assistant_prefix="A")
    assert row_options(DataArgs(train_file="a", max_bad_rows=3), search, prompt, is_sft=is_sft) == {
        "gold_required": required,
        "max_bad_rows": 3,
        "user_prefix": "U",
        "assistant_prefix": "A",
    }


@pytest.mark.parametrize("make", [DataArgs, EvaluationArgs])
def test_a_negative_number_of_bad_rows_is_an_error(make):
    files = {"train_file": "a"} if make is DataArgs else {"test_file": "a", "output_dir": "b"}
    make(**files, max_bad_rows=0).check()
    with pytest.raises(InputError, match=r"--max_bad_rows.* got -1"):
        make(**files, max_bad_rows=-1).check()
