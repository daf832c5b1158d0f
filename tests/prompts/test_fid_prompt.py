"""fid_prompt: golden prompts; control tokens in data are text; only passages are truncated, at their ends."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from seq2seq_tokenizers import TOKENIZERS, t5
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from rqa.data.passage_selection import GeneratorInput
from rqa.data.records import Example, Passage, Turn
from rqa.errors import InputError
from rqa.prompts.fid_prompt import PassagePromptBuilder

HISTORY = (Turn("user", "Hi."), Turn("assistant", "Ask."))
PASSAGES = (Passage("It was lit in 19.", "Lamp"), Passage("No title."))
CONTROL = ["</s>", "<s>", "<pad>", "<extra_id_0>", "[SEP]", "[CLS]", "[MASK]", "<mask>"]


@pytest.fixture(params=TOKENIZERS, scope="module")
def tokenizer(request):
    return TOKENIZERS[request.param]()


def item(passages=PASSAGES, question="Who lit it?", history=(), answer="The cat."):
    return GeneratorInput.from_ranked(Example("1", question, (answer,), chat_history=tuple(history)), passages)


def tokens(tokenizer, ids):
    return " ".join(tokenizer.convert_ids_to_tokens(ids))


def test_golden_prompts_of_t5():
    made = t5()
    asked = "▁question : ▁ W h o ▁lit ▁ i t ?"
    first, second = PassagePromptBuilder(made).prompt(item()).ids
    assert tokens(made, first) == f"{asked} ▁title : ▁ L a m p ▁context : ▁ I t ▁was ▁lit ▁in ▁ 1 9 . </s>"
    assert tokens(made, second) == f"{asked} ▁context : ▁ N o ▁title . </s>"
    [alone] = PassagePromptBuilder(made, speakers=("user", "lamp")).prompt(item((), history=HISTORY)).ids
    assert tokens(made, alone) == f"▁user : ▁ H i . ▁lamp : ▁ A s k . {asked} </s>"


def test_prompts_are_texts_as_the_tokenizer_encodes_them(tokenizer):
    asked = "user: Hi. assistant: Ask. question: Who lit it?"
    texts = [f"{asked} title: Lamp context: It was lit in 19.", f"{asked} context: No title."]
    built = PassagePromptBuilder(tokenizer)
    assert built.prompt(item(history=HISTORY))[:3] == (tokenizer(texts)["input_ids"], 0, 2)
    assert built.prompt(item((), history=HISTORY))[:3] == (tokenizer([asked])["input_ids"], 0, 0)


ANSWERS = {
    "t5": "▁ T h e ▁ c a t . </s>",
    "bart": "<s> T h e Ġ c a t . </s>",  # BART itself begins answers with <s>
    "bert": "[CLS] t ##h ##e c ##a ##t . [SEP]",
    "closing_tokenizer": "T h e Ġ c a t . </s>",
}


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_ends_with_one_eos(name):
    made = TOKENIZERS[name]()
    built = PassagePromptBuilder(made)
    ids = built.answer("The cat.")
    assert tokens(made, ids) == ANSWERS[name]
    assert built.stop_ids == [built.eos_id] == ids[-1:]
    assert ids.count(built.eos_id) == 1
    assert built.answer_text([*ids, *ids]).replace(" .", ".").lower() == "the cat."


@settings(max_examples=25)
@given(parts=st.lists(st.sampled_from([*CONTROL, "the ", "Cats", ". ", "[2] "]), min_size=1).map("".join))
def test_data_is_never_a_control_token(tokenizer, parts):
    built = PassagePromptBuilder(tokenizer)
    control = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    closed = len(tokenizer("a")["input_ids"]) - len(tokenizer("a", add_special_tokens=False)["input_ids"])
    passage = Passage(f"x{parts}", f"x{parts}")
    made = built.prompt(item([passage], f"x{parts}", [Turn("user", parts)])).ids
    for ids in (*made, built.answer(f"x{parts}")):
        assert sum(id in control for id in ids) == closed
    if tokenizer.eos_token_id is not None:  # BERT adds spaces between letters
        assert built.answer_text(built.answer(f"x{parts}x")) == f"x{parts}x".replace("  ", " ")


@pytest.mark.parametrize("room", [0, 1, 7, 20, 35])
def test_only_passages_are_truncated_at_their_ends(tokenizer, room):
    whole = PassagePromptBuilder(tokenizer).prompt(item()).ids
    [question] = PassagePromptBuilder(tokenizer).prompt(item(())).ids
    closing = tokenizer("a", return_special_tokens_mask=True)["special_tokens_mask"][-1]
    budget = len(question) + room
    prompts, truncated, num_passages, numbers = PassagePromptBuilder(tokenizer, budget).prompt(item())
    for ids, prompt in zip(whole, prompts, strict=True):
        kept = min(len(ids), budget)
        assert prompt == ids[: kept - closing] + ids[len(ids) - closing :]
        assert prompt[: len(question) - closing] == question[: len(question) - closing]
    assert truncated == sum(max(0, len(ids) - budget) for ids in whole)
    assert num_passages == len(numbers) == (2 if room else 0)


def test_a_question_that_does_not_fit_is_an_error(tokenizer):
    [question] = PassagePromptBuilder(tokenizer).prompt(item((), history=HISTORY)).ids
    PassagePromptBuilder(tokenizer, len(question)).prompt(item(history=HISTORY))
    for passages in ((), PASSAGES):
        with pytest.raises(
            InputError, match=f"take {len(question)} tokens, --max_passage_length is {len(question) - 1}$"
        ):
            PassagePromptBuilder(tokenizer, len(question) - 1).prompt(item(passages, history=HISTORY))


def test_a_tokenizer_without_eos_is_an_error():
    words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0})))
    with pytest.raises(InputError, match="no end-of-sequence token"):
        PassagePromptBuilder(words)


def test_added_vocabulary_is_not_a_control_token():
    """T5 has neither braces nor line breaks, and users add them this way."""
    made = t5()
    made.add_tokens(["{", "}"])
    built = PassagePromptBuilder(made)
    assert built.answer("a {b}") == made("a {b}")["input_ids"]
    assert made.unk_token_id not in built.answer("a {b}")
