"""fid_prompt: golden texts; data is text; the question is never cut, a passage only at its end."""

import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_seq2seq import closing_tokenizer
from tokenizers import Tokenizer, models
from transformers import BartTokenizer, BertTokenizer, PreTrainedTokenizerFast, T5Tokenizer

from rqa.data.passage_selection import GeneratorInput
from rqa.data.records import Example, Passage, Turn
from rqa.errors import InputError
from rqa.prompts.fid_prompt import PassagePromptBuilder

CHARACTERS = string.ascii_letters + string.digits + ".,:?'</>_-[]"
WORDS = "question title context user assistant the lamp was lit in".split()


def t5() -> PreTrainedTokenizerFast:
    """Pieces of a Unigram model, among them, as in T5's own, the control tokens; nothing opens a text."""
    special = ["<pad>", "</s>", "<unk>"]
    pieces = [(token, 0.0) for token in special] + [("▁", -3.0)] + [(character, -8.0) for character in CHARACTERS]
    pieces += [(f"▁{word}", -4.0) for word in WORDS] + [("<extra_id_1>", 0.0), ("<extra_id_0>", 0.0)]
    return T5Tokenizer(vocab=pieces, extra_ids=2)


def bart() -> PreTrainedTokenizerFast:
    """Bytes, between <s> and </s>."""
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    return BartTokenizer(vocab={token: id for id, token in enumerate([*special, *CHARACTERS, "Ġ"])}, merges=[])


def bert() -> PreTrainedTokenizerFast:
    """Small letters, between [CLS] and [SEP]; no eos."""
    letters = [*string.ascii_lowercase, *string.digits]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *".,:?'</>_-[]", *(f"##{c}" for c in letters)]
    return BertTokenizer(vocab={token: id for id, token in enumerate(vocabulary)})


TOKENIZERS = {make.__name__: make for make in (t5, bart, bert, closing_tokenizer)}
HISTORY = (Turn("user", "Hi."), Turn("assistant", "Ask."))
PASSAGES = (Passage("It was lit in 19.", "Lamp"), Passage("No title."))
CONTROL = ["</s>", "<s>", "<pad>", "<extra_id_0>", "[SEP]", "[CLS]", "[MASK]", "<mask>"]


@pytest.fixture(params=TOKENIZERS, scope="module")
def tokenizer(request):
    return TOKENIZERS[request.param]()


def reading(passages=PASSAGES, question="Who lit it?", history=(), answer="The cat."):
    return GeneratorInput.from_ranked(Example("1", question, (answer,), chat_history=tuple(history)), passages)


def tokens(tokenizer, ids):
    return " ".join(tokenizer.convert_ids_to_tokens(ids))


def test_golden_texts_of_t5():
    made = t5()
    asked = "▁question : ▁ W h o ▁lit ▁ i t ?"
    first, second = PassagePromptBuilder(made).prompt(reading()).ids
    assert tokens(made, first) == f"{asked} ▁title : ▁ L a m p ▁context : ▁ I t ▁was ▁lit ▁in ▁ 1 9 . </s>"
    assert tokens(made, second) == f"{asked} ▁context : ▁ N o ▁title . </s>"
    [alone] = PassagePromptBuilder(made, speakers=("user", "lamp")).prompt(reading((), history=HISTORY)).ids
    assert tokens(made, alone) == f"▁user : ▁ H i . ▁lamp : ▁ A s k . {asked} </s>"


def test_texts_are_those_of_the_tokenizer_itself(tokenizer):
    asked = "user: Hi. assistant: Ask. question: Who lit it?"
    texts = [f"{asked} title: Lamp context: It was lit in 19.", f"{asked} context: No title."]
    built = PassagePromptBuilder(tokenizer)
    assert built.prompt(reading(history=HISTORY)) == (tokenizer(texts)["input_ids"], 0)
    assert built.prompt(reading((), history=HISTORY)) == (tokenizer([asked])["input_ids"], 0)


ANSWERS = {
    "t5": "▁ T h e ▁ c a t . </s>",
    "bart": "<s> T h e Ġ c a t . </s>",  # BART was trained to begin by itself with <s>
    "bert": "[CLS] t ##h ##e c ##a ##t . [SEP]",
    "closing_tokenizer": "T h e Ġ c a t . </s>",
}


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_is_a_text_that_ends_in_one_eos(name):
    made = TOKENIZERS[name]()
    built = PassagePromptBuilder(made)
    ids = built.answer("The cat.")
    assert tokens(made, ids) == ANSWERS[name]
    assert built.stop_ids == [built.eos_id] == ids[-1:]
    assert ids.count(built.eos_id) == 1
    assert built.answer_text([*ids, *ids]).replace(" .", ".").lower() == "the cat."


@settings(max_examples=25, deadline=None)
@given(parts=st.lists(st.sampled_from([*CONTROL, "the ", "Cats", ". ", "[2] "]), min_size=1).map("".join))
def test_data_is_never_a_control_token(tokenizer, parts):
    built = PassagePromptBuilder(tokenizer)
    control = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    closed = len(tokenizer("a")["input_ids"]) - len(tokenizer("a", add_special_tokens=False)["input_ids"])
    passage = Passage(f"x{parts}", f"x{parts}")
    made = built.prompt(reading([passage], f"x{parts}", [Turn("user", parts)])).ids
    for ids in (*made, built.answer(f"x{parts}")):
        assert sum(id in control for id in ids) == closed
    if tokenizer.eos_token_id is not None:  # a BERT puts spaces between letters
        assert built.answer_text(built.answer(f"x{parts}x")) == f"x{parts}x".replace("  ", " ")


@pytest.mark.parametrize("budget", [13, 20, 33, 48])
def test_only_passages_are_cut_each_at_its_end(tokenizer, budget):
    whole = PassagePromptBuilder(tokenizer).prompt(reading()).ids
    [asked] = PassagePromptBuilder(tokenizer).prompt(reading(())).ids
    closing = tokenizer("a", return_special_tokens_mask=True)["special_tokens_mask"][-1]
    budget = len(asked) + budget - 13
    found, cut = PassagePromptBuilder(tokenizer, budget).prompt(reading())
    for ids, row in zip(whole, found, strict=True):
        kept = min(len(ids), budget)
        assert row == ids[: kept - closing] + ids[len(ids) - closing :]
        assert row[: len(asked) - closing] == asked[: len(asked) - closing]
    assert cut == sum(max(0, len(ids) - budget) for ids in whole)


def test_a_question_that_does_not_fit_is_refused(tokenizer):
    [asked] = PassagePromptBuilder(tokenizer).prompt(reading((), history=HISTORY)).ids
    PassagePromptBuilder(tokenizer, len(asked)).prompt(reading(history=HISTORY))
    for passages in ((), PASSAGES):
        with pytest.raises(InputError, match=f"take {len(asked)} tokens, --max_passage_length is {len(asked) - 1}$"):
            PassagePromptBuilder(tokenizer, len(asked) - 1).prompt(reading(passages, history=HISTORY))


def test_a_tokenizer_without_an_end_is_refused():
    words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0})))
    with pytest.raises(InputError, match="no end-of-sequence token"):
        PassagePromptBuilder(words)


def test_vocabulary_that_was_added_is_no_control_token():
    """T5 has neither braces nor line breaks: this is how it gets them."""
    made = t5()
    made.add_tokens(["{", "}"])
    built = PassagePromptBuilder(made)
    assert built.answer("a {b}") == made("a {b}")["input_ids"]
    assert made.unk_token_id not in built.answer("a {b}")
