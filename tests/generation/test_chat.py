"""chat: streamed text is the Generator's answer, and prompts are those of an evaluation."""

import json
import random
from dataclasses import replace
from types import SimpleNamespace

import pytest
import tiny_tokenizers
import torch
from accelerate import Accelerator
from retrieving import retrieve_with
from tiny_generation import ENDS, INPUTS, MAX_NEW_TOKENS, language_model
from tiny_models import decoder, tokenizer
from tiny_seq2seq import closing_tokenizer, seq2seq

from rqa.data.passage_selection import GeneratorInput
from rqa.data.records import Example, Passage, Turn
from rqa.errors import InputError
from rqa.generation.chat import Chat, ChatQuestion
from rqa.generation.generator import Answer, AnswerStreamer, Generator
from rqa.models.decoder import AnswerLM
from rqa.models.fid import FusionInDecoder
from rqa.prompts.collators import ConcatenatedCollator, ParallelCollator
from rqa.prompts.decoder_prompt import ChatFormat, PromptBuilder
from rqa.prompts.fid_prompt import PassagePromptBuilder
from rqa.retrieval.retrieve import KS, Retrieved

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
    """Ranks passages by the length of the query, and records its calls."""

    def __init__(self):
        self.calls = []

    def retrieve(self, queries, k):
        self.calls += [(query, k) for query in queries]
        return [
            [Retrieved(PASSAGES[(len(query) + i) % len(PASSAGES)], 1 - i / 16) for i in range(min(k, len(PASSAGES)))]
            for query in queries
        ]

    def fingerprint(self):
        return "ranked"


# Streaming


def shown(collator, ids, prompt=((1, 2, 3),)):
    """Return the pieces that a streamer shows: transformers passes it the prompt, then one token at a time."""
    pieces = []
    streamer = AnswerStreamer(collator.builder, pieces.append)
    streamer.put(torch.tensor(prompt))
    for id in ids:
        streamer.put(torch.tensor([id]))
    streamer.end()
    return pieces


def random_ids(builder, numbers):
    """Return tokens of foreign text, complete and incomplete, separators, white space and control tokens."""
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
def test_the_pieces_are_the_answer_for_random_tokens(name):
    collator, numbers = COLLATORS[name], random.Random(name)
    for _ in range(30):
        ids = random_ids(collator.builder, numbers)
        first_stop = next((i + 1 for i, id in enumerate(ids) if id in collator.builder.stop_ids), len(ids))
        pieces = shown(collator, ids[:first_stop])
        assert "".join(pieces) == collator.builder.answer_text(ids)
        assert all(pieces)


def test_a_character_is_shown_after_its_last_byte():
    collator = ConcatenatedCollator(PromptBuilder(tokenizer()))
    assert shown(collator, collator.builder.answer("  日本 é茶😀 !\n\n")) == ["日", "本", " é", "茶", "😀", " !"]


def test_text_of_the_template_before_an_answer_is_not_shown():
    tokenizer = tiny_tokenizers.chatml()
    tokenizer.chat_template = tiny_tokenizers.CHATML.replace(
        "{{ message.content", "{{ 'Answer: ' * (message.role != 'user') + message.content"
    )
    collator = ConcatenatedCollator(PromptBuilder(tokenizer))
    ids = collator.builder.answer("Yes.")
    assert "".join(shown(collator, ids)) == "Yes."
    assert shown(collator, ids[:1]) == [tokenizer.decode(ids[:1])]  # cut before the answer


def test_a_control_token_does_not_end_a_run_of_bytes():
    """One byte is missing for a character: then the whole run is invalid."""
    collator = COLLATORS["mistral's template"]
    ids = collator.builder.tokenizer.convert_tokens_to_ids(["<0xC3>", "<0xA9>", "<s>", "<0xE2>"])
    assert "".join(shown(collator, ids)) == collator.builder.answer_text(ids) == "\ufffd" * 3
    whole = [*ids[:3], *ids[:2]]
    assert "".join(shown(collator, whole)) == collator.builder.answer_text(whole) == "éé"


def test_ordinary_text_is_delayed_by_at_most_a_separator():
    for name, late in {"bytes": 3, "flags without control tokens": 3, "starling's flags": 0}.items():
        collator = COLLATORS[name]
        ids, pieces = collator.builder.answer("Water" * 8)[1:20], []  # without an invisible space
        streamer = AnswerStreamer(collator.builder, pieces.append)
        streamer.put(torch.tensor([[1]]))
        for i, id in enumerate(ids):
            streamer.put(torch.tensor([id]))
            assert "".join(pieces) == collator.builder.answer_text(ids[: max(0, i + 1 - late)])


def overfitted(model, collator, item):
    """Train a model on one input until it generates that answer."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    batch = collator([item])
    for _ in range(150):
        loss = model(**batch).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if loss < 3:
            break
    return model


EXAMPLE = Example("1", "Was?", (FOREIGN,), chat_history=(Turn("user", "Tee?"), Turn("assistant", "お茶")))
INPUT = GeneratorInput.from_ranked(EXAMPLE, PASSAGES[:2])


@pytest.fixture(scope="module", params=["decoder", "fid"])
def foreign(request):
    """A model of each kind that generates other scripts, with its collator."""
    torch.manual_seed(0)
    if request.param == "decoder":
        collator = ConcatenatedCollator(PREFIXES)
        return overfitted(AnswerLM(decoder()), collator, INPUT), collator
    collator = ParallelCollator(PassagePromptBuilder(closing_tokenizer()))
    return overfitted(FusionInDecoder(seq2seq("mt5")), collator, INPUT), collator


def both(model, collator, item, max_new_tokens):
    """Return the answer of a batch, the streamed answer, and its pieces."""
    generator, pieces = Generator(Accelerator(cpu=True, mixed_precision="no"), model, collator, 1, max_new_tokens), []
    answer = generator.stream(collator.encode([item])[0], pieces.append)
    [expected] = generator([item])
    return expected, answer, pieces


def test_the_streamed_answer_is_that_of_a_batch(foreign):
    expected, answer, pieces = both(*foreign, INPUT, 100)
    assert answer == expected
    assert "".join(pieces) == expected.text == FOREIGN
    assert expected.finished
    assert len(pieces) > 20


@pytest.mark.parametrize("max_new_tokens", [1, 3, 4, 9, 10, 11])
def test_max_new_tokens_may_end_inside_a_character(foreign, max_new_tokens):
    expected, answer, pieces = both(*foreign, INPUT, max_new_tokens)
    assert answer == expected
    assert "".join(pieces) == expected.text
    assert not expected.finished


def decoders():
    """Yield models that often generate each kind of end, with dropout."""
    for builder, end in ENDS.values():
        yield AnswerLM(language_model(end, dropout=0.5)), ConcatenatedCollator(builder)


def fusions():
    yield FusionInDecoder(seq2seq("bart", dropout=0.5)), COLLATORS["fusion-in-decoder, opening"]


@pytest.mark.parametrize(("model", "collator"), [*decoders(), *fusions()])
def test_an_answer_is_streamed_to_its_end_without_dropout(model, collator):
    for item in INPUTS[:5]:
        expected, answer, pieces = both(model.train(), collator, item, MAX_NEW_TOKENS)
        assert answer == expected
        assert "".join(pieces) == expected.text


# Prompts


def encode(retriever, collator, question, history=(), **options):
    return Chat(retriever, SimpleNamespace(collator=collator), **options).encode(question, history)


@pytest.mark.parametrize("collator", [ConcatenatedCollator(PREFIXES), COLLATORS["fusion-in-decoder"]])
@pytest.mark.parametrize(("k", "history_turns"), [(3, 1), (2, 0), (11, 2)])
def test_the_prompt_is_that_of_an_evaluation(collator, k, history_turns, tmp_path):
    ours, theirs = Ranked(), Ranked()
    question = encode(ours, collator, "Was?", EXAMPLE.chat_history, k=k, history_turns=history_turns)
    retrieval = retrieve_with(theirs, [EXAMPLE], PASSAGES, k + max(KS), tmp_path, history_turns=history_turns)
    assert ours.calls == theirs.calls[1:]  # without the warm-up
    [item] = retrieval.inputs([EXAMPLE], k)
    assert question.row.prompts == collator.encode([item])[0].prompts
    assert list(question.retrieved) == retrieval.retrieved[0][:k]
    assert question.num_dropped_messages == 0


def test_the_history_contains_questions_and_answers():
    ranked, history, messages = Ranked(), (), []
    for text, answer in [("a?", "A"), ("b?", "B"), ("c?", "")]:
        question = encode(ranked, COLLATORS["bytes"], text, history, k=1)
        assert question.example.chat_history == history
        history = question.history(answer)
        messages += [("user", text), ("assistant", answer)]
    assert [(turn.role, turn.text) for turn in history] == messages
    assert [query for query, _ in ranked.calls] == ["a?", "a?\nb?", "b?\nc?"]


HISTORY = tuple(Turn(role, f"{role} {i} " + "x" * (17 * i % 40)) for i in range(5) for role in ("user", "assistant"))
SMALL = {
    "decoder": lambda length: ConcatenatedCollator(PromptBuilder(tokenizer(), max_prompt_length=length)),
    "fid": lambda length: ParallelCollator(PassagePromptBuilder(closing_tokenizer(), length)),
}


def by_brute_force(collator, question, history, passages):
    """Return the history of the prompt, after all have been tried: the longest that truncates no passage, or shorter.

    None if the question alone does not fit.
    """
    truncated = {}
    for start in range(0, len(history) + 1, 2):
        example = Example("", question, (), chat_history=history[start:])
        try:
            prompt = collator.builder.prompt(GeneratorInput.from_ranked(example, passages))
        except InputError:
            continue
        truncated[history[start:]] = prompt.truncated
    fitting = [each for each, tokens in truncated.items() if tokens == 0 or len(each) <= 2]
    return max(fitting, key=len) if fitting else None


@pytest.mark.parametrize("kind", SMALL)
def test_the_oldest_messages_are_dropped_if_they_do_not_fit(kind):
    seen = set()
    for length in range(10, 900, 13):
        collator, text = SMALL[kind](length), "Was?"
        passages = [hit.passage for hit in Ranked().retrieve([f"user 4 {'x' * 28}\n{text}"], 3)[0]]
        expected = by_brute_force(collator, text, HISTORY, passages)
        if expected is None:
            with pytest.raises(InputError, match="question take"):
                encode(Ranked(), collator, text, HISTORY, k=3)
            continue
        question = encode(Ranked(), collator, text, HISTORY, k=3)
        assert question.example.chat_history == expected
        assert question.num_dropped_messages == len(HISTORY) - len(expected)
        seen.add((len(expected), question.row.truncated > 0))
    assert {(10, False), (8, False), (2, True), (0, True)} <= seen


def test_only_passages_in_the_prompt_are_sources():
    seen = set()
    for length in range(60, 400, 7):
        collator = SMALL["decoder"](length)
        try:
            question = encode(Ranked(), collator, "Was?", k=3)
        except InputError:
            continue
        prompt = collator.builder.tokenizer.decode(question.row.prompts[0])
        numbers = [number for number in range(1, 4) if f"[{number}]" in prompt]
        assert numbers == list(range(1, 1 + len(question.retrieved)))
        assert list(question.retrieved) == Ranked().retrieve(["Was?"], 3)[0][: len(numbers)]
        seen.add(len(numbers))
    assert seen == {0, 1, 2, 3}


def test_truncated_passages_of_fusion_in_decoder_are_sources():
    question = encode(Ranked(), SMALL["fid"](30), "Was?", k=3)
    assert question.row.truncated > 0
    assert len(question.retrieved) == len(question.row.prompts) == 3


# Output


def test_a_heading_has_number_title_sources_and_score():
    hits = (
        Retrieved(Passage("text", "A\n\x1b[1mtitle", ("a.html", "b.html")), 0.98765),
        Retrieved(Passage("No title,\nbut a long text. " * 9), -1.0),
    )
    first, second = ChatQuestion(EXAMPLE, hits, COLLATORS["bytes"].encode([INPUT])[0], 0).headings()
    assert first == "[1] A ␛[1mtitle - a.html, b.html - 0.988"
    assert second == "[2] No title, but a long text. No title, but a long text. No tit - -1.000"


def test_a_reply_is_a_json_object():
    question = encode(Ranked(), COLLATORS["bytes"], "Was?", k=2)
    reply = json.loads(json.dumps(question.reply(Answer("So.", 4, 9, finished=True, truncated=0, num_passages=2))))
    passages = reply.pop("passages")
    assert reply == {"question": "Was?", "answer": "So.", "finished": True}
    assert [passage["number"] for passage in passages] == [1, 2]
    for passage, hit in zip(passages, question.retrieved, strict=True):
        assert passage["id"] == hit.passage.id
        read_back = Retrieved(Passage(passage["text"], passage["title"], tuple(passage["sources"])), passage["score"])
        assert replace(read_back, score=0.0) == replace(hit, score=0.0)
        assert (read_back.score, read_back.passage.sources) == (hit.score, hit.passage.sources)
