"""Write made-up facts and an untrained T5: a demonstration of fusion-in-decoder that needs no downloads.

    python recipes/demo_facts.py --output_dir data/facts

A passage states one fact about one person. Each question has its own passages ("ctxs"): first the one with the answer,
then others about the same person, namesakes and strangers, so that both the name and the relation must be read. Facts
change from question to question: the same person lives in another town, so that memorized facts are of no use. No
person of test.jsonl is in train.jsonl. withheld.jsonl is test.jsonl without the passages that contain the answer.
`model` is a small T5 with random weights; its tokens are words. The same seed writes the same bytes.
"""

import json
import random
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rqa.atomic_files import write_text
from rqa.cli import Parser, run_main
from rqa.terminal import write_result

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def joined(beginnings: str, endings: str) -> list[str]:
    """Return each beginning joined with each ending."""
    return ["".join(parts) for parts in product(beginnings.split(), endings.split())]


# Few names: each is so frequent that the model learns within minutes to match question and passage.
FIRST_NAMES = joined("Al Be Da El Ka Lo Mi Su", "bin dra la mos rin vo")
LAST_NAMES = joined("Ash Clay East Green Hart Marsh Stone West", "brook dale field ford ley wood")
VALUES = {
    "town": joined("Bru Dor Fen Hol Lam Ost Ros Tar", "au burg grad heim mouth now stad ville"),
    "thing": (
        "apples bells books boots bottles buttons candles carpets clocks coins dolls drums fans feathers flags flutes "
        "forks gloves hats jars kettles keys kites knives lamps leaves locks maps masks medals mirrors mugs nails nets "
        "paintings pearls pens pipes plates puppets puzzles ribbons rings ropes saddles scarves shells shoes spoons "
        "stamps stones swords tents tickets tiles toys trains trumpets umbrellas vases violins watches wheels whistles"
    ).split(),
}
Relation = tuple[str, str, str]  # a question about a person, the passage with its answer, and the kind of the answer
RELATIONS: tuple[Relation, ...] = (
    ("Where does {} live?", "{} lives in {}.", "town"),
    ("Where does {} work?", "{} works in {}.", "town"),
    ("Where does {} study?", "{} studies in {}.", "town"),
    ("What does {} sell?", "{} sells many {}.", "thing"),
    ("What does {} repair?", "{} repairs many {}.", "thing"),
    ("What does {} collect?", "{} collects many {}.", "thing"),
)
# Number of questions of each split, fewest and most passages of a question. In training the number varies: a question
# with one passage teaches to copy, one with several to choose.
SPLITS = {"train": (20000, 1, 8), "eval": (128, 8, 8), "test": (500, 20, 20)}


def main() -> None:
    """Write the questions and the model, and print their sizes."""
    parser = Parser()
    parser.add_argument("--output_dir", type=Path, default="data/facts", help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of facts and weights; default: %(default)s")
    flags = parser.parse_args()
    files = {split: list(questions(split, flags.seed)) for split in SPLITS}
    files["withheld"] = [{**row, "ctxs": row["ctxs"][1:]} for row in files["test"]]
    for file, rows in files.items():
        write_text(flags.output_dir / f"{file}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        write_result(f"{file:8} {len(rows):5}")
    save_model(flags.output_dir / "model", flags.seed)


def people_of(split: str) -> list[str]:
    """Return the people of a split: 20 % test, 10 % eval, 70 % train. All names are in each, no person is in two."""
    numbered = product(enumerate(FIRST_NAMES), enumerate(LAST_NAMES))
    splits = ("test", "test", "eval", *("train",) * 7)
    return [f"{first} {last}" for (i, first), (j, last) in numbered if splits[(i + j) % 10] == split]


def questions(split: str, seed: int) -> Iterator[dict[str, Any]]:
    """Yield the rows of a split in the format of Fusion-in-Decoder, with the gold passage as "gold_docs"."""
    count, fewest, most = SPLITS[split]
    rng, people = random.Random(f"{seed}/{split}"), people_of(split)
    bearers = {name: [each for each in people if name in each.split()] for name in (*FIRST_NAMES, *LAST_NAMES)}
    for number in range(count):
        person = rng.choice(people)
        relation = question, statement, kind = rng.choice(RELATIONS)
        namesakes = [each for name in person.split() for each in bearers[name] if each != person]
        others = distractors(rng, person, relation, namesakes, people, rng.randint(fewest, most) - 1)
        unused = {kind: iter(rng.sample(values, len(values))) for kind, values in VALUES.items()}
        answer = next(unused[kind])
        gold = statement.format(person, answer)
        texts = [gold, *(other.format(someone, next(unused[its_kind])) for someone, (_, other, its_kind) in others)]
        yield {
            "id": f"{split}-{number}",
            "question": question.format(person),
            "answers": [answer],
            "ctxs": [{"title": "", "text": text} for text in texts],
            "gold_docs": [{"page_content": gold}],
        }


def distractors(
    rng: random.Random, person: str, relation: Relation, namesakes: Sequence[str], people: Sequence[str], count: int
) -> list[tuple[str, Relation]]:
    """Return (person, relation) of the other passages: of the same person, or of the same relation, namesakes first."""
    of_person = [(person, other) for other in RELATIONS if other != relation]
    chosen = rng.sample(of_person, min(count // 2, len(of_person)))
    rest = count - len(chosen)
    others = dict.fromkeys([*rng.sample(namesakes, rest // 2), *rng.sample(people, rest + 1)])
    chosen += [(someone, relation) for someone in others if someone != person][:rest]
    rng.shuffle(chosen)
    return chosen


def save_model(folder: Path, seed: int) -> None:
    """Write the checkpoint folder of an untrained model with its tokenizer."""
    import torch  # torch and transformers take seconds to import
    from transformers import T5Config, T5ForConditionalGeneration

    tokenizer = word_tokenizer()
    torch.manual_seed(seed)
    # No dropout: the facts change, so that memorizing is no risk.
    config = T5Config(d_model=128, d_kv=32, d_ff=256, num_heads=4, num_layers=2, num_decoder_layers=1, dropout_rate=0.0)
    config.vocab_size, config.eos_token_id = len(tokenizer), tokenizer.eos_token_id
    config.pad_token_id = config.decoder_start_token_id = tokenizer.pad_token_id
    model = T5ForConditionalGeneration(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_result(f"{'model':8} {model.num_parameters():,} parameters, {len(tokenizer)} tokens")


def word_tokenizer() -> "PreTrainedTokenizerFast":
    """Return a tokenizer with words, full stop and question mark as tokens; it appends eos to each text."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    texts = ["question: title: context:", *FIRST_NAMES, *LAST_NAMES, *VALUES["town"], *VALUES["thing"]]
    texts += [text.format(*FIRST_NAMES) for question, statement, _ in RELATIONS for text in (question, statement)]
    split = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), pre_tokenizers.Split(Regex("[.?]"), "isolated")])
    tokens = dict.fromkeys(token for text in texts for token, _ in split.pre_tokenize_str(text))
    vocabulary = {token: id for id, token in enumerate(["<pad>", "</s>", "<unk>", *tokens])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = split
    backend.decoder = decoders.Metaspace()
    eos = ("</s>", vocabulary["</s>"])
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[eos])
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=512, **special)


if __name__ == "__main__":
    run_main(main)
