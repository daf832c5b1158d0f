"""chat: what is shown is what Generator answers; what is read, what an evaluation reads."""

import json
import random
import sys
import unicodedata
from dataclasses import replace

import pytest
import tiny_tokenizers
import torch
from accelerate import Accelerator
from test_generate import ENDS, MAX_NEW_TOKENS, READINGS, language_model
from tiny_models import decoder, tokenizer
from tiny_seq2seq import closing_tokenizer, seq2seq

from rqa.data.passage_selection import GeneratorInput
from rqa.data.records import Example, Passage, Turn
from rqa.errors import InputError
from rqa.generation.chat import AnswerStreamer, Asked, headings, read, reply, stream
from rqa.generation.generator import Answer, Generator
from rqa.models.decoder import AnswerLM
from rqa.models.fid import FusionInDecoder
from rqa.prompts.collators import ConcatenatedCollator, ParallelCollator
from rqa.prompts.decoder_prompt import ChatFormat, PromptBuilder
from rqa.prompts.fid_prompt import PassagePromptBuilder
from rqa.retrieval.retrieve import KS, Retrieved, retrieve_all
from rqa.terminal import printable

PASSAGES = [
    Passage(f"Lampe {i} – ランプ. " * (i % 4 + 1), f"Lamp {i}" * (i % 3 > 0), (f"{i}.html",)) for i in range(12)
]
FOREIGN = "Größe: 日本茶 für 5 €! 😀 naïve 한국어"
PREFIXES = PromptBuilder(tokenizer(), ChatFormat("User", "Assistant", "\n", "#\n"))  # a separator of ordinary text
COLLATORS = {
    **{name: ConcatenatedCollator(tiny_tokenizers.builder(name)) for name in tiny_tokenizers.FORMATS},
    "bytes": ConcatenatedCollator(PREFIXES),
    "fusion-in-decoder": ParallelCollator(PassagePromptBuilder(closing_tokenizer())),
    "fusion-in-decoder, opening": ParallelCollator(PassagePromptBuilder(closing_tokenizer(opening=True))),
}


class Ranked:
    """Ranks passages by the length of the query, and remembers what it was asked."""

    def __init__(self):
        self.asked = []

    def retrieve(self, queries, k):
        self.asked += [(query, k) for query in queries]
        return [
            [Retrieved(PASSAGES[(len(query) + i) % len(PASSAGES)], 1 - i / 16) for i in range(min(k, len(PASSAGES)))]
            for query in queries
        ]

    def fingerprint(self):
        return "ranked"


# What is shown


def shown(collator, ids, prompt=((1, 2, 3),)):
    """What a streamer shows of ids, piece by piece: transformers hands it the prompt, then a token at a time."""
    pieces = []
    streamer = AnswerStreamer(collator, pieces.append)
    streamer.put(torch.tensor(prompt))
    for id in ids:
        streamer.put(torch.tensor([id]))
    streamer.end()
    return pieces


def random_ids(builder, numbers):
    """Tokens of foreign text, whole and torn, of separators, of white space, of control tokens that end nothing."""
    vocabulary = builder.tokenizer.get_vocab()
    single_bytes = [id for token, id in vocabulary.items() if token.startswith("<0x")]
    parts = [
        lambda: builder.answer(FOREIGN)[: numbers.randrange(1, 30)],
        lambda: builder.answer(FOREIGN)[numbers.randrange(1, 20) :],
        lambda: builder.answer(numbers.choice([" ", "\n", "#\n", "#", "\u3000", "\ufffd", "Water "])),
        lambda: [numbers.choice(single_bytes or [*vocabulary.values()])],
        lambda: [numbers.choice([*vocabulary.values()])],
    ]
    ids = [id for _ in range(numbers.randrange(1, 9)) for id in numbers.choice(parts)()]
    ids = [id for id in ids if id not in builder.stop_ids]
    ending = builder.answer("")
    return ids + numbers.choice([[], ending[: numbers.randrange(len(ending))], ending])


@pytest.mark.parametrize("name", COLLATORS)
def test_the_pieces_are_the_answer_whatever_is_generated(name):
    collator, numbers = COLLATORS[name], random.Random(name)
    for _ in range(30):
        ids = random_ids(collator.builder, numbers)
        first_stop = next((i + 1 for i, id in enumerate(ids) if id in collator.builder.stop_ids), len(ids))
        pieces = shown(collator, ids[:first_stop])
        assert "".join(pieces) == collator.builder.answer_text(ids)
        assert all(pieces)


def test_each_character_is_shown_when_its_last_byte_is_there():
    collator = ConcatenatedCollator(PromptBuilder(tokenizer()))
    assert shown(collator, collator.builder.answer("  日本 é茶😀 !\n\n")) == ["日", "本", " é", "茶", "😀", " !"]


def test_a_control_token_does_not_end_a_run_of_bytes():
    """Which are one character too few: then none of them is one."""
    collator = COLLATORS["mistral's template"]
    ids = collator.builder.tokenizer.convert_tokens_to_ids(["<0xC3>", "<0xA9>", "<s>", "<0xE2>"])
    assert "".join(shown(collator, ids)) == collator.builder.answer_text(ids) == "\ufffd" * 3
    whole = [*ids[:3], *ids[:2]]
    assert "".join(shown(collator, whole)) == collator.builder.answer_text(whole) == "éé"


def test_ordinary_text_is_kept_back_by_no_more_than_a_separator():
    for name, late in {"bytes": 3, "flags without control tokens": 3, "starling's flags": 0}.items():
        collator = COLLATORS[name]
        ids, pieces = collator.builder.answer("Water" * 8)[1:20], []  # without a space that could not be seen
        streamer = AnswerStreamer(collator, pieces.append)
        streamer.put(torch.tensor([[1]]))
        for i, id in enumerate(ids):
            streamer.put(torch.tensor([id]))
            assert "".join(pieces) == collator.builder.answer_text(ids[: max(0, i + 1 - late)])


def taught(model, collator, reading):
    """Train a model on one reading until it answers that."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    batch = collator([reading])
    for _ in range(150):
        loss = model(**batch).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if loss < 3:
            break
    return model


EXAMPLE = Example("1", "Was?", (FOREIGN,), chat_history=(Turn("user", "Tee?"), Turn("assistant", "お茶")))
READING = GeneratorInput.from_ranked(EXAMPLE, PASSAGES[:2])


@pytest.fixture(scope="module", params=["decoder", "fid"])
def foreign(request):
    """A model of each kind that answers in other scripts, with its collator."""
    torch.manual_seed(0)
    if request.param == "decoder":
        collator = ConcatenatedCollator(PREFIXES)
        return taught(AnswerLM(decoder()), collator, READING), collator
    collator = ParallelCollator(PassagePromptBuilder(closing_tokenizer()))
    return taught(FusionInDecoder(seq2seq("mt5")), collator, READING), collator


def both(model, collator, reading, max_new_tokens):
    """The answer of Generator, and that which is streamed, with its pieces."""
    accelerator, pieces = Accelerator(cpu=True, mixed_precision="no"), []
    asked = Asked(reading.example, (), collator.encode([reading])[0], 0)
    answer = stream(accelerator, model, collator, asked, pieces.append, max_new_tokens=max_new_tokens)
    [expected] = Generator(accelerator, model, collator, 1, max_new_tokens)([reading])
    return expected, answer, pieces


def test_what_is_streamed_is_the_generators_answer(foreign):
    expected, answer, pieces = both(*foreign, READING, 100)
    assert answer == expected
    assert "".join(pieces) == expected.text == FOREIGN
    assert expected.finished
    assert len(pieces) > 20


@pytest.mark.parametrize("max_new_tokens", [1, 3, 4, 9, 10, 11])
def test_it_may_be_cut_within_a_character(foreign, max_new_tokens):
    expected, answer, pieces = both(*foreign, READING, max_new_tokens)
    assert answer == expected
    assert "".join(pieces) == expected.text
    assert not expected.finished


def decoders():
    """For each way in which an answer can end, with weights that say it often, and dropout."""
    for builder, end in ENDS.values():
        yield AnswerLM(language_model(end, dropout=0.5)), ConcatenatedCollator(builder)


def fusions():
    yield FusionInDecoder(seq2seq("bart", dropout=0.5)), COLLATORS["fusion-in-decoder, opening"]


@pytest.mark.parametrize(("model", "collator"), [*decoders(), *fusions()])
def test_whatever_a_model_says_is_streamed_up_to_its_end(model, collator):
    for reading in READINGS[:5]:
        expected, answer, pieces = both(model.train(), collator, reading, MAX_NEW_TOKENS)
        assert answer == expected
        assert "".join(pieces) == expected.text


# What is read


@pytest.mark.parametrize("collator", [ConcatenatedCollator(PREFIXES), COLLATORS["fusion-in-decoder"]])
@pytest.mark.parametrize(("k", "history_turns"), [(3, 1), (2, 0), (11, 2)])
def test_a_question_is_read_as_an_evaluation_reads_it(collator, k, history_turns):
    ours, theirs = Ranked(), Ranked()
    asked = read("Was?", EXAMPLE.chat_history, ours, collator, k=k, history_turns=history_turns)
    found = retrieve_all(theirs, [EXAMPLE], k + max(KS), history_turns=history_turns)
    assert ours.asked == theirs.asked[1:]  # without the warm-up
    [reading] = found.readings([EXAMPLE], k)
    assert asked.row.prompts == collator.encode([reading])[0].prompts
    assert list(asked.found) == found.found[0][:k]
    assert asked.forgotten == 0


def test_a_conversation_is_what_was_asked_and_answered():
    ranked, history, messages = Ranked(), (), []
    for question, answer in [("a?", "A"), ("b?", "B"), ("c?", "")]:
        asked = read(question, history, ranked, COLLATORS["bytes"], k=1, history_turns=1)
        assert asked.example.chat_history == history
        history = asked.history(answer)
        messages += [("user", question), ("assistant", answer)]
    assert [(turn.role, turn.text) for turn in history] == messages
    assert [query for query, _ in ranked.asked] == ["a?", "a?\nb?", "b?\nc?"]


HISTORY = tuple(Turn(role, f"{role} {i} " + "x" * (17 * i % 40)) for i in range(5) for role in ("user", "assistant"))
SMALL = {
    "decoder": lambda length: ConcatenatedCollator(PromptBuilder(tokenizer(), max_prompt_length=length)),
    "fid": lambda length: ParallelCollator(PassagePromptBuilder(closing_tokenizer(), length)),
}


def by_brute_force(collator, question, history, passages):
    """The latest messages that are read, all ways tried: most that cost no passage anything, else the last exchange."""
    ways = {}
    for start in range(0, len(history) + 1, 2):
        example = Example("", question, (), chat_history=history[start:])
        try:
            ways[history[start:]] = collator.builder.prompt(GeneratorInput.from_ranked(example, passages)).cut
        except InputError:
            continue
    uncut = [way for way, cut in ways.items() if cut == 0]
    short = [way for way in ways if len(way) <= 2]
    return max(uncut + short, key=len) if ways else None


@pytest.mark.parametrize("kind", SMALL)
def test_the_oldest_messages_are_forgotten_where_there_is_no_room(kind):
    seen = set()
    for length in range(10, 900, 13):
        collator = SMALL[kind](length)
        question = "Was?"
        passages = [hit.passage for hit in Ranked().retrieve([f"user 4 {'x' * 28}\n{question}"], 3)[0]]
        expected = by_brute_force(collator, question, HISTORY, passages)
        if expected is None:
            with pytest.raises(InputError, match="question alone take"):
                read(question, HISTORY, Ranked(), collator, k=3)
            continue
        asked = read(question, HISTORY, Ranked(), collator, k=3)
        assert asked.example.chat_history == expected
        assert asked.forgotten == len(HISTORY) - len(expected)
        seen.add((len(expected), asked.row.cut > 0))
    assert {(10, False), (8, False), (2, True), (0, True)} <= seen


def test_passages_that_are_not_in_the_prompt_are_no_sources():
    seen = set()
    for length in range(60, 400, 7):
        collator = SMALL["decoder"](length)
        try:
            asked = read("Was?", (), Ranked(), collator, k=3)
        except InputError:
            continue
        prompt = collator.builder.tokenizer.decode(asked.row.prompts[0])
        numbers = [number for number in range(1, 4) if f"[{number}]" in prompt]
        assert numbers == list(range(1, 1 + len(asked.found)))
        assert list(asked.found) == Ranked().retrieve(["Was?"], 3)[0][: len(numbers)]
        seen.add(len(numbers))
    assert seen == {0, 1, 2, 3}


def test_fusion_in_decoder_reads_all_of_them():
    asked = read("Was?", (), Ranked(), SMALL["fid"](30), k=3)
    assert asked.row.cut > 0
    assert len(asked.found) == len(asked.row.prompts) == 3


# What a terminal is given


def test_a_terminal_is_given_no_control_character_but_tab_and_line_feed():
    for code in range(sys.maxunicode + 1):
        character = chr(code)
        given = printable(character)
        if unicodedata.category(character) == "Cc" and character not in "\t\n":
            assert not any(unicodedata.category(c) == "Cc" for c in given)
        else:
            assert given == character
    assert printable("a\r\n\x1b[31mred\x1b]0;title\x07\x9b1m\x7f") == "a\n␛[31mred␛]0;title␇\ufffd1m␡"


def test_a_source_is_one_line_with_its_number_title_sources_and_score():
    found = (
        Retrieved(Passage("text", "A\n\x1b[1mtitle", ("a.html", "b.html")), 0.98765),
        Retrieved(Passage("No title,\nbut a long text. " * 9), -1.0),
    )
    first, second = headings(found)
    assert first == "[1] A ␛[1mtitle - a.html, b.html - 0.988"
    assert second == "[2] No title, but a long text. No title, but a long text. No tit - -1.000"


def test_a_reply_is_ready_for_json():
    asked = read("Was?", (), Ranked(), COLLATORS["bytes"], k=2)
    written = json.loads(json.dumps(reply(asked, Answer("So.", 4, 9, finished=True))))
    passages = written.pop("passages")
    assert written == {"question": "Was?", "answer": "So.", "finished": True}
    assert [passage["number"] for passage in passages] == [1, 2]
    for passage, hit in zip(passages, asked.found, strict=True):
        assert passage["id"] == hit.passage.id
        read_back = Retrieved(Passage(passage["text"], passage["title"], tuple(passage["sources"])), passage["score"])
        assert replace(read_back, score=0.0) == replace(hit, score=0.0)
        assert (read_back.score, read_back.passage.sources) == (hit.score, hit.passage.sources)
