"""decoder_prompt: golden prompts; ids of the chat template; control tokens in data are text; truncation."""

import json
from datetime import datetime
from string import ascii_lowercase

import pytest
import tiny_models
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tiny_tokenizers import CHATML, FORMATS, STARLING, TEMPLATES, builder, chatml, headers, hybrid, mistral
from transformers.utils import chat_template_utils

from rqa.data.passage_selection import GeneratorInput
from rqa.data.records import Example, Passage, Turn
from rqa.errors import InputError
from rqa.prompts.chat_template import TEMPLATE_DATE
from rqa.prompts.decoder_prompt import INSTRUCTION, ChatFormat, PromptBuilder, load_stop_ids, load_tokenizer

HISTORY = (Turn("user", "Cats and dogs?"), Turn("assistant", "Yes."))
PASSAGES = (Passage("Boil the water.", "Water"), Passage("Cats and dogs."))
TEXT = "Answer the question using only the passages below.\n\n[1] Water\nBoil the water.\n\n[2] Cats and dogs.\n\n"
CONTEXT = (  # TEXT in tokens: of SentencePiece
    "▁Answer ▁the ▁question ▁us ing ▁only ▁the ▁passages ▁below .\n\n [ 1 ] ▁ Water \n Boil ▁the ▁water .\n\n "
    "[ 2 ] ▁C a t s ▁and ▁dogs .\n\n"
)
IN_BYTES = CONTEXT.removeprefix("▁").replace("▁", "Ġ").replace("\n", "Ċ")
GOLDEN = {
    ("starling's flags", 0): (
        TEXT + "GPT4 Correct User: Who?<|end_of_turn|>GPT4 Correct Assistant:",
        f"<s> {CONTEXT} GPT4 ▁Correct ▁User : ▁ Who ? <|end_of_turn|> ▁ GPT4 ▁Correct ▁Assistant :",
    ),
    ("starling's flags", 2): (
        TEXT + "GPT4 Correct User: Cats and dogs?<|end_of_turn|>GPT4 Correct Assistant: Yes.<|end_of_turn|>"
        "GPT4 Correct User: Who?<|end_of_turn|>GPT4 Correct Assistant:",
        f"<s> {CONTEXT} GPT4 ▁Correct ▁User : ▁C a t s ▁and ▁dogs ? <|end_of_turn|> "
        "▁ GPT4 ▁Correct ▁Assistant : ▁ Yes . <|end_of_turn|> ▁ GPT4 ▁Correct ▁User : ▁ Who ? <|end_of_turn|> "
        "▁ GPT4 ▁Correct ▁Assistant :",
    ),
    ("mistral's flags", 0): (TEXT + "<s>[INST]: Who? [/INST]:", f"<s> {CONTEXT} ▁[ INST ] : ▁ Who ? ▁[ / INST ] :"),
    ("mistral's flags", 2): (
        TEXT + "<s>[INST]: Cats and dogs? [/INST]: Yes.</s><s>[INST]: Who? [/INST]:",
        f"<s> {CONTEXT} ▁[ INST ] : ▁C a t s ▁and ▁dogs ? ▁[ / INST ] : ▁ Yes . </s> ▁[ INST ] : ▁ Who ? ▁[ / INST ] :",
    ),
    ("chatml's template", 0): (
        f"<|im_start|>user\n{TEXT}Who?<|im_end|>\n<|im_start|>assistant\n",
        f"<|im_start|> user Ċ {IN_BYTES} Who ? <|im_end|> Ċ <|im_start|> assistant Ċ",
    ),
    ("chatml's template", 2): (
        "<|im_start|>user\nCats and dogs?<|im_end|>\n<|im_start|>assistant\nYes.<|im_end|>\n"
        f"<|im_start|>user\n{TEXT}Who?<|im_end|>\n<|im_start|>assistant\n",
        "<|im_start|> user Ċ Cat s Ġand Ġdogs ? <|im_end|> Ċ <|im_start|> assistant Ċ Yes . <|im_end|> Ċ "
        f"<|im_start|> user Ċ {IN_BYTES} Who ? <|im_end|> Ċ <|im_start|> assistant Ċ",
    ),
}
ANSWERS = {  # of "The cat.": " {answer}{sep_sys}" with the flags, and eos unless sep_sys is eos
    "starling's flags": "▁ T h e ▁cat . <|end_of_turn|> </s>",
    "mistral's flags": "▁ T h e ▁cat . </s>",
    "mistral's flags, older": "▁ T h e ▁cat . </s>",
    "flags that end in white space": "Ġ T h e Ġcat . <|im_end|>",
    "flags without control tokens": "Ġ T h e Ġcat . # Ċ <|eot|>",
    "chatml's template": "T h e Ġcat . <|im_end|>",
    "headers's template": "T h e Ġcat . <|eot|>",
    "spaced's template": "Ġ T h e Ġcat . <|eot|>",
    "mistral's template": "▁ T h e ▁cat . </s>",
    "starling's template": "▁ T h e ▁cat . <|end_of_turn|> </s>",
    "phi's template": "▁ T h e ▁cat . <|end|> </s>",
    "phi, newer's template": "T h e ▁cat . <|end|> </s>",
    "hybrid's template": "T h e Ġcat . <|im_end|>",
    "channels's template": "<|channel|> f in a l <|message|> T h e Ġcat . <|return|>",
    "headed's template": "Ċ <think> </think> Ċ T h e Ġcat . <|endoftext|>",
    "turns's template": "▁ T h e ▁cat . ▁ </s>",
    "turns, older's template": "▁ T h e ▁cat . ▁ </s>",
    "turns, newer's template": "▁ T h e ▁cat . ▁ </s>",
    "textual's template": "T h e ▁cat . </s>",
    "textual, older's template": "T h e ▁cat . </s>",
    "textual, newer's template": "T h e ▁cat . </s>",
}
CONTROL = sorted({token for make in TEMPLATES.values() for token in make().get_added_vocab() if not token.isspace()})
TEXTS = st.lists(st.sampled_from([*CONTROL, "the ", "Cats", "水é", ".", " ", "\n\n", "[2] "])).map("".join)


class TemplateDay(datetime):
    """The clock of transformers on the default day of chat templates."""

    @classmethod
    def now(cls, _zone=None):
        return cls.fromisoformat(TEMPLATE_DATE)


BYTES = tiny_models.tokenizer()
FEW_EXAMPLES = settings(max_examples=15)


def item(passages=PASSAGES, question="Who?", history=(), answer="The cat.", ranks=None):
    example = Example("1", question, (answer,), chat_history=tuple(history))
    return GeneratorInput(example, tuple(passages), answer, tuple(range(len(passages)) if ranks is None else ranks))


def ids_of(name, tokens):
    """Return the ids of tokens that are separated by spaces."""
    return builder(name).tokenizer.convert_tokens_to_ids(tokens.split(" "))


@pytest.mark.parametrize(("name", "turns"), GOLDEN)
def test_golden_prompts(name, turns):
    text, tokens = GOLDEN[name, turns]
    tokenizer = builder(name).tokenizer
    prompt = builder(name).prompt(item(history=HISTORY[:turns]))
    assert prompt == (ids_of(name, tokens), 0, PASSAGES, None)
    bos = tokenizer.bos_token or ""  # it occurs once, at the beginning
    words = (bos + text.replace(bos, "")).split()
    assert "".join(tokenizer.decode(prompt.ids).split()) == "".join(words)  # SentencePiece adds spaces


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_ends_with_the_separator_of_its_turn_and_one_eos(name):
    assert builder(name).answer("The cat.") == ids_of(name, ANSWERS[name])


@pytest.mark.parametrize("history", [(), HISTORY, HISTORY * 2], ids=len)
@pytest.mark.parametrize("name", TEMPLATES)
def test_prompt_and_answer_equal_the_rendered_chat_template(monkeypatch, name, history):
    built, tokenizer = builder(f"{name}'s template"), builder(f"{name}'s template").tokenizer
    thinking = {"enable_thinking": False} if "enable_thinking" in tokenizer.chat_template else {}
    context = f"{INSTRUCTION}\n\n[1] Water\nBoil the water.\n\n[2] Cats and dogs.\n\nWho?"
    messages = [*({"role": t.role, "content": t.text} for t in history), {"role": "user", "content": context}]
    monkeypatch.setattr(chat_template_utils, "datetime", TemplateDay)
    prompt = built.prompt(item(history=history)).ids
    assert prompt == tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False, **thinking)
    messages.append({"role": "assistant", "content": "Yes."})
    whole = tokenizer.apply_chat_template(messages, return_dict=False, **thinking)
    row = prompt + built.answer("Yes.")
    if tokenizer.eos_token_id not in whole[len(prompt) :]:
        assert row.pop() == tokenizer.eos_token_id  # the template ends a turn with another token
    assert row == whole[: len(row)]


# The text between a prompt and its answer

OPENS = CHATML.replace("assistant\n{% endif", "assistant\n<think>{% endif")  # as the distills of DeepSeek R1
WRITES = OPENS.replace("{{ message.content", "{{ '<think></think>' * (message.role != 'user') + message.content")
QUIRKY = OPENS.replace("{{ message.content", "{{ '<think>' * (message.role != 'user') + message.content")


@pytest.mark.parametrize(
    ("template", "header"), [(OPENS, "\n</think>\n\n"), (WRITES, "</think>"), (QUIRKY, "\n</think>\n\n")]
)
@pytest.mark.parametrize("make", [hybrid, chatml])
def test_an_answer_closes_the_reasoning_that_its_prompt_opens(caplog, make, template, header):
    tokenizer = make()
    tokenizer.chat_template = template
    built = PromptBuilder(tokenizer)
    assert tokenizer.decode(built.prompt(item()).ids).endswith("assistant\n<think>")
    assert tokenizer.decode(built.answer("Yes.")) == f"{header}Yes.<|im_end|>"
    assert built.read(built.answer("Yes </think>.")) == ("Yes </think>.", "")
    assert not caplog.records


@pytest.mark.parametrize(
    ("opening", "differs"), [("bot\n", True), ("assistant\n", False), ("assistant\n\nSo: ", False), ("assis", False)]
)
def test_a_prompt_that_the_whole_conversation_does_not_continue_is_one_warning(caplog, opening, differs):
    tokenizer = chatml()
    tokenizer.chat_template = CHATML.replace("<|im_start|>assistant\n{% endif", f"<|im_start|>{opening}{{% endif")
    built = PromptBuilder(tokenizer)
    for history in ((), HISTORY):
        built.prompt(item(history=history))
    assert [opening.strip() in record.getMessage() for record in caplog.records] == [True] * differs


def test_text_of_the_template_before_an_answer_is_read_as_no_part_of_it():
    tokenizer = chatml()
    tokenizer.chat_template = CHATML.replace(
        "{{ message.content", "{{ 'Answer: ' * (message.role != 'user') + message.content"
    )
    built = PromptBuilder(tokenizer)
    assert tokenizer.decode(built.answer("Yes.")) == "Answer: Yes.<|im_end|>"
    assert [built.answer_text(tokenizer(text)["input_ids"]) for text in ("Answer: Yes.", "Yes.")] == ["Yes."] * 2


def test_a_prompt_that_ends_inside_a_token_is_continued_by_the_rest_of_the_text():
    """The template writes "Bot: Yes.", and the prompt ends with the space: "▁" alone, not the "▁Y" of the whole."""
    for make in (mistral, chatml):
        tokenizer = make()
        tokenizer.chat_template = (
            "{% for m in messages %}{{ {'user': 'User: ', 'assistant': 'Bot: '}[m.role] + m.content + eos_token }}"
            "{% endfor %}"
            "{% if add_generation_prompt %}Bot: {% endif %}"
        )
        built = PromptBuilder(tokenizer)
        row = built.prompt(item()).ids + built.answer("the cat")
        assert tokenizer.decode(row).endswith(f"Bot: the cat{tokenizer.eos_token}")


# The end of an answer


def test_control_tokens_of_the_checkpoint_end_answers():
    tokenizer = builder("headed's template").tokenizer
    user, text = tokenizer.convert_tokens_to_ids(["<|user|>", "T"])
    built = PromptBuilder(tokenizer, stop_ids=[user, text])
    assert built.stop_ids == sorted([tokenizer.eos_token_id, user])
    assert built.answer_text([*built.answer("Yes.")[:-1], user, text]) == "Yes."


def test_the_end_of_a_channel_does_not_end_an_answer():
    tokenizer = builder("channels's template").tokenizer
    end, start = tokenizer.convert_tokens_to_ids(["<|end|>", "<|start|>"])
    assert PromptBuilder(tokenizer, stop_ids=[end, start]).stop_ids == sorted([tokenizer.eos_token_id, start])
    tokenizer.chat_template = tokenizer.chat_template.replace("<|return|>", "<|end|>")
    assert PromptBuilder(tokenizer, stop_ids=[end]).stop_ids == [tokenizer.eos_token_id]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"generation_config": [7, 8], "config": 9}, [7, 8, 9]),
        ({"config": 9}, [9]),
        ({"generation_config": None}, []),
        ({}, []),
    ],
)
def test_stop_ids_are_those_of_both_files(tmp_path, files, expected):
    for name, value in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps({"eos_token_id": value}))
    assert load_stop_ids(str(tmp_path)) == expected


@pytest.mark.parametrize("text", ["{", *(f'{{"eos_token_id": {value}}}' for value in ('"</s>"', "[1, null]", "true"))])
def test_a_file_with_stop_ids_that_are_none_is_an_error(tmp_path, text):
    (tmp_path / "generation_config.json").write_text(text)
    with pytest.raises(InputError, match=r"generation_config\.json.*expected"):
        load_stop_ids(str(tmp_path))


def test_the_longer_of_two_control_tokens_matches():
    tokenizer = chatml()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>assistant"]}, False)
    messages = [{"role": "user", "content": f"{INSTRUCTION}\n\nWho?"}]
    expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert PromptBuilder(tokenizer).prompt(item(())).ids == expected


@pytest.mark.parametrize("name", [name for name in FORMATS if not name.startswith(("turns", "textual"))])
def test_bos_occurs_once_if_the_tokenizer_adds_one(name):
    for history in ((), HISTORY):
        ids = builder(name).prompt(item(history=history)).ids
        bos = builder(name).tokenizer.bos_token_id
        assert [i for i, id in enumerate(ids) if id == bos] == ([] if bos is None else [0])


@pytest.mark.parametrize(("name", "per_question"), [("turns's template", 1), ("textual's template", 0)])
def test_every_bos_of_a_chat_template_is_kept_and_none_is_added(name, per_question):
    ids = builder(name).prompt(item(history=HISTORY * 2)).ids
    assert ids.count(builder(name).tokenizer.bos_token_id) == 3 * per_question


def test_bos_of_the_template_is_kept_if_the_tokenizer_adds_none():
    ids = PromptBuilder(BYTES).prompt(item(history=HISTORY)).ids
    assert [i for i, id in enumerate(ids) if id == tiny_models.BOS] == [0]


def test_a_bos_that_is_also_eos_ends_turns():
    tokenizer = headers()
    tokenizer.eos_token = tokenizer.bos_token
    built = PromptBuilder(tokenizer, ChatFormat("user", "bot", "\n", tokenizer.eos_token))
    assert built.prompt(item(history=HISTORY)).ids.count(tokenizer.eos_token_id) == 2
    assert built.answer("Yes.").count(tokenizer.eos_token_id) == 1


@pytest.mark.parametrize("name", ANSWERS)
def test_generation_stops_at_eos_and_at_a_separator_that_starts_with_a_control_token(name):
    ends = [token for token in ANSWERS[name].partition(". ")[2].split() if token.startswith("<")]
    assert builder(name).stop_ids == sorted(ids_of(name, " ".join(ends)))


@pytest.mark.parametrize("separator", ["###\n", "\n\n", "\n", "bot<|header|>"])
def test_a_separator_of_ordinary_text_does_not_stop_generation(separator):
    tokenizer = headers()
    built = PromptBuilder(tokenizer, ChatFormat("User", "Bot", "\n", separator))
    assert tokenizer.decode(built.answer("Yes.")) == f" Yes.{separator}<|eot|>"
    assert built.stop_ids == [tokenizer.eos_token_id]


@pytest.mark.parametrize("name", FORMATS)
@FEW_EXAMPLES
@given(text=TEXTS)
def test_the_text_of_an_answers_ids_is_the_answer(name, text):
    built = builder(name)
    # If the mark of reasoning is no token, a cut answer or one that closes the mark cannot be told from reasoning.
    assume("<think>" in built.text_tokenizer.control or not text.strip().startswith("<think>"))
    ids = built.answer(text)
    assert {built.answer_text(each) for each in (ids, [*ids, *ids], ids[:-1])} == {text.strip()}


# Data is text


@pytest.mark.parametrize("name", FORMATS)
@FEW_EXAMPLES
@given(texts=st.tuples(*[TEXTS] * 6))
def test_control_tokens_in_data_are_text(name, texts):
    built, tokenizer = builder(name), builder(name).tokenizer
    control = {id for token, id in tokenizer.get_added_vocab().items() if not token.isspace()}

    def row(title, text, question, user, assistant, answer):
        history = (Turn("user", user), Turn("assistant", assistant))
        return built.prompt(item([Passage(text, title)], question, history)).ids, built.answer(answer)

    for ids, plain in zip(row(*texts), row(*"abcdef"), strict=True):
        assert [id for id in ids if id in control] == [id for id in plain if id in control]
    prompt, target = map(tokenizer.decode, row(*texts))
    assert all(data in prompt for data in texts[:-1])
    assert texts[-1].lstrip(" ") in target  # SentencePiece merges a first space with its own


# Truncation


@given(
    lengths=st.lists(st.integers(0, 26), max_size=5),
    question=st.text("abc", max_size=20),
    turns=st.lists(st.text("xyz", max_size=9), max_size=3),
    budget=st.integers(60, 260),
    random=st.randoms(use_true_random=False),
)
@settings(max_examples=150)
def test_passages_are_truncated_from_the_last_ranked_on_at_their_ends(lengths, question, turns, budget, random):
    """Each token is one character, so that the expected prompt is a truncated text."""
    texts = ["ABCDE"[i] + ascii_lowercase[:length] for i, length in enumerate(lengths)]
    ranks = random.sample(range(len(texts)), len(texts))
    history = [Turn(("user", "assistant")[i % 2], text) for i, text in enumerate(turns)]
    chosen = item([Passage(text) for text in texts], question, history, ranks=ranks)

    def rendered(texts):
        chat = "".join(f"{turn.role}: {turn.text}\n" for turn in history) + f"user: {question}\nassistant:"
        return "Read.\n\n" + "".join(f"[{i}] {text}\n\n" for i, text in enumerate(texts, 1)) + chat

    built = PromptBuilder(BYTES, ChatFormat("user", "assistant", "\n", "\n"), "Read.", budget)
    kept, truncated = dict(zip(ranks, texts, strict=True)), 0  # in the order of the prompt
    while kept and (excess := len(rendered(kept.values())) - budget) > 0:
        last = max(kept)
        truncated += min(excess, len(kept[last]))
        kept[last] = kept[last][:-excess]
        if not kept[last]:
            del kept[last]
    expected = rendered(kept.values())
    if len(expected) > budget:
        with pytest.raises(InputError, match=f"take {len(expected)} tokens, --max_prompt_length is {budget}$"):
            built.prompt(chosen)
    else:
        ids, *counts = built.prompt(chosen)[:3]
        read = tuple(passage for passage, rank in zip(chosen.passages, ranks, strict=True) if rank in kept)
        assert (BYTES.decode(ids), *counts) == (expected, truncated, read)


@pytest.mark.parametrize("name", FORMATS)
@FEW_EXAMPLES
@given(share=st.floats(0, 1), text=TEXTS, first=st.booleans())
def test_truncation_removes_one_stretch_of_one_passage_after_whole_passages(name, share, text, first):
    """Also if tokens cross the edges of passages."""
    ranked = list(zip((2, 0, 1) if first else (0, 1, 2), ("Boil it.", f"zz{text}zz", "Cats"), strict=True))
    kept = [[(rank, Passage(text)) for rank, text in ranked if rank < n] for n in range(4)]
    chosen = [item([passage for _, passage in k], history=HISTORY, ranks=[rank for rank, _ in k]) for k in kept]
    whole = [builder(name).prompt(each) for each in chosen]
    budget = len(whole[0].ids) + round(share * (len(whole[3].ids) - len(whole[0].ids)))
    short = PromptBuilder(builder(name).tokenizer, FORMATS[name][1], max_prompt_length=budget)
    ids, truncated, read, _ = short.prompt(chosen[3])
    assert len(ids) <= budget
    assert (truncated == 0) == (budget == len(whole[3].ids))
    marks = [prompt.ids for prompt in whole]
    num_read = marks.index(ids) if ids in marks else next(n for n in range(4) if len(marks[n]) > budget)
    assert read == chosen[num_read].passages
    if not any(ids == prompt.ids for prompt in whole):
        assert len(ids) == budget
        excesses = [(prompt.ids, len(prompt.ids) - budget) for prompt in whole]
        assert any(ids == full[:i] + full[i + n :] for full, n in excesses if n > 0 for i in range(len(full) - n + 1))


@pytest.mark.parametrize(("name", "dot"), [("chatml's template", ".ĊĊ"), ("mistral's flags", ".\n\n")])
def test_a_token_across_the_edge_of_a_passage_is_never_truncated(name, dot):
    """The passage in "[1]| C|a|t|s| and| dogs|.\\n\\n|" has five tokens of its own."""
    chosen = item(PASSAGES[1:])
    whole, without = builder(name).prompt(chosen).ids, builder(name).prompt(item(())).ids
    edge = len(whole) - 1 - whole[::-1].index(*ids_of(name, dot))
    for truncated in range(6):
        built = PromptBuilder(builder(name).tokenizer, FORMATS[name][1], max_prompt_length=len(whole) - truncated)
        expected = whole[: edge - truncated] + whole[edge:] if truncated < 5 else without
        assert built.prompt(chosen)[:3] == (expected, truncated, PASSAGES[1:] if truncated < 5 else ())


# Errors

ONCE = "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"
REFUSED = {
    "drops": "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}",
    "reorders": "{% for m in messages | reverse %}{{ m.content }}{% endfor %}",
    "repeats": ONCE + "{{ messages[0].content }}",
    "rewrites": "{% for m in messages %}{{ m.content | upper }}{% endfor %}",
}


@pytest.mark.parametrize("template", REFUSED.values(), ids=REFUSED)
def test_a_template_that_does_not_write_each_message_once_and_in_order_is_an_error(template):
    tokenizer = chatml()
    tokenizer.chat_template = template
    with pytest.raises(InputError, match=r"each message once and in order\. Set --user_prefix"):
        PromptBuilder(tokenizer).prompt(item(history=HISTORY))


def test_a_template_that_rejects_the_roles_is_an_error():
    with pytest.raises(InputError, match="messages of user, user: roles must alternate"):
        builder("mistral's template").prompt(item(history=HISTORY[:1]))
    tokenizer = chatml()
    tokenizer.chat_template = ONCE + "{{ raise_exception('never') }}"
    with pytest.raises(InputError, match="messages of user: never"):
        PromptBuilder(tokenizer)


@pytest.mark.parametrize(
    ("lacks", "chat", "message"),
    [
        ("chat_template", None, "no chat template. Set --user_prefix and --assistant_prefix"),
        ("eos_token", STARLING, "no end-of-sequence token"),
    ],
)
def test_a_tokenizer_without_chat_template_or_eos_is_an_error(lacks, chat, message):
    tokenizer = mistral()
    setattr(tokenizer, lacks, None)
    with pytest.raises(InputError, match=message):
        PromptBuilder(tokenizer, chat)


def test_a_saved_tokenizer_is_loaded_and_another_path_is_an_error(tmp_path):
    chatml().save_pretrained(tmp_path / "tokenizer")
    loaded = PromptBuilder(load_tokenizer(str(tmp_path / "tokenizer"))).prompt(item())
    assert loaded == builder("chatml's template").prompt(item())
    for path in (str(tmp_path / "nowhere"), "no such/path/at all"):
        with pytest.raises(InputError, match="expected a checkpoint folder or a hub name"):
            load_tokenizer(path)
    with pytest.raises(InputError, match=f"{tmp_path}: no tokenizer can be loaded: "):
        load_tokenizer(str(tmp_path))
