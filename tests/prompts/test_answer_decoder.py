"""answer_decoder: reasoning is split off where the model opened it, and nowhere else."""

import pytest
from seq2seq_tokenizers import t5
from tiny_tokenizers import CHATML, MISTRAL, STARLING, channels, chatml, hybrid, mistral, starling

from rqa.prompts.answer_decoder import open_reasoning, unknown_control_tokens
from rqa.prompts.decoder_prompt import ChatFormat, PromptBuilder
from rqa.prompts.fid_prompt import PassagePromptBuilder

OPENS = CHATML.replace("assistant\n{% endif", "assistant\n<think>\n{% endif")
TOKENS = PromptBuilder(hybrid())  # <think> is a token
TEXT = PromptBuilder(chatml())  # <think> is ordinary text
OPEN_TOKENS = PromptBuilder(hybrid(OPENS))
CHANNELS = PromptBuilder(channels())
FLAGS = PromptBuilder(mistral(), MISTRAL)


def generated(builder, text):
    """Return ids as a model generates them: control tokens in the text are tokens."""
    return builder.tokenizer(text, add_special_tokens=False)["input_ids"]


def with_template(template):
    tokenizer = chatml()
    tokenizer.chat_template = template
    return PromptBuilder(tokenizer)


REASONED = {
    "token": (TOKENS, "<think>\nOne, two.\n</think>\n\nYes.<|im_end|>", "Yes.", "One, two."),
    "token after white space": (TOKENS, "\n <think>One</think>Yes.", "Yes.", "One"),
    "empty": (TOKENS, "<think>\n\n</think>\n\nYes.", "Yes.", ""),
    "cut in its reasoning": (TOKENS, "<think>\nOne, tw", "", "One, tw"),
    "ended in its reasoning": (TOKENS, "<think>\nOne<|im_end|>", "", "One"),
    "closed twice": (TOKENS, "<think>a</think>b</think>c", "b</think>c", "a"),
    "text": (TEXT, "<think>\nOne\n</think>\nYes.<|im_end|>", "Yes.", "One"),
    "text, cut": (TEXT, " <think>One", "", "One"),
    "text, with flags": (FLAGS, "<think>One</think>Yes.</s>", "Yes.", "One"),
    "text, ended in its reasoning": (with_template(OPENS), "One<|im_end|>", "", "One"),
    "opened by the prompt": (OPEN_TOKENS, "One</think>\n\nYes.", "Yes.", "One"),
    "opened by the prompt, cut": (OPEN_TOKENS, "One, two", "", "One, two"),
    "opened by the prompt, text": (with_template(OPENS), "One</think>Yes.", "Yes.", "One"),
    "channels": (
        CHANNELS,
        "<|channel|>analysis<|message|>One.<|end|><|start|>assistant<|channel|>commentary<|message|>Two.<|end|>"
        "<|start|>assistant<|channel|>final<|message|>Yes.<|return|>",
        "Yes.",
        "One.\nTwo.",
    ),
    "channels, cut": (CHANNELS, "<|channel|>analysis<|message|>One", "", "One"),
    "final channel": (CHANNELS, "<|channel|>final<|message|>Yes.<|return|>", "Yes.", ""),
}
ORDINARY = [
    "Yes.",
    "Close it with </think>.",
    "a <think>b</think> c",
    "</think> ends it.",
    "It is <thinking>.",
    "<thin",
]


@pytest.mark.parametrize(("builder", "text", "answer", "reasoning"), REASONED.values(), ids=REASONED)
def test_reasoning_is_split_off(builder, text, answer, reasoning):
    assert builder.read(generated(builder, text)) == (answer, reasoning)


@pytest.mark.parametrize("builder", [TOKENS, TEXT, CHANNELS, FLAGS], ids=["token", "text", "channels", "flags"])
@pytest.mark.parametrize("text", ORDINARY)
def test_an_answer_that_mentions_a_mark_of_reasoning_keeps_all_text(builder, text):
    assert builder.read(generated(builder, text)) == (text, "")
    assert builder.read(builder.answer(text)) == (text, "")


@pytest.mark.parametrize(
    ("builder", "text"), [(TOKENS, "<think> opens it."), (OPEN_TOKENS, "<think>"), (CHANNELS, "<|channel|>final x")]
)
def test_a_mark_at_the_start_of_an_answer_is_text_if_the_mark_is_a_token(builder, text):
    assert builder.read(builder.answer(text)) == (text, "")


@pytest.mark.parametrize("text", ["<think>", "<think> opens it."])
def test_a_mark_of_ordinary_text_that_an_answer_does_not_close_is_text_if_the_answer_ended(text):
    for builder in (TEXT, FLAGS):
        ids = builder.answer(text)
        assert builder.read(ids) == (text, "")
        assert builder.read(builder._without_end(ids)) == ("", text.removeprefix("<think>").strip())


def test_open_reasoning_is_the_last_that_is_not_closed():
    assert open_reasoning("a<think>b</think>c<think>\n") == "<think>"
    assert open_reasoning("<|start|>assistant<|channel|>analysis<|message|>") == "<|channel|>"
    for closed in ("", "</think>", "<think>a</think>", "<|channel|>final<|message|>"):
        assert open_reasoning(closed) is None


# Strings that look like control tokens


def test_control_tokens_of_another_tokenizer_are_found_in_prefixes_and_separators():
    chat = ChatFormat("<|user|>", "[INST] <bot>", "<｜User｜>", "<|end_of_turn|></s>")
    builder = PromptBuilder(chatml(), chat)
    assert unknown_control_tokens(builder) == ["<|user|>", "<｜User｜>", "[INST]", "<bot>", "<|end_of_turn|>", "</s>"]
    assert unknown_control_tokens(PassagePromptBuilder(t5(), speakers=("<|user|>", "bot"))) == ["<|user|>"]


def test_tokens_text_and_strings_of_the_chat_template_are_not_unknown_control_tokens():
    plain = ChatFormat("GPT4 User [1]", "a < b > c", "<>", "<|im_end|>\n")
    assert unknown_control_tokens(PromptBuilder(chatml(), plain)) == []
    assert unknown_control_tokens(PromptBuilder(starling(), STARLING)) == []
    assert unknown_control_tokens(FLAGS) == []  # [INST] stands in the template
