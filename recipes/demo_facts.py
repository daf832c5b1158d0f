"""Made-up facts and an untrained T5: fusion-in-decoder at work, without a pretrained model or anybody's data.

    python recipes/demo_facts.py --output_dir data/facts

A passage states one fact of one person. A question brings its passages ("ctxs"): first the one that answers it, then
others of the same person, of namesakes and of strangers, so that the name and the relation must be read, in full. Every
question has facts of its own: the next one moves the same person to another town, and nothing can be known by heart.
No person of test.jsonl is in train.jsonl; withheld.jsonl is test.jsonl without the passages that answer. `model` is a
small T5 of random weights, whose tokens are words. The same seed writes the same bytes.
"""

import argparse
import json
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Row = dict[str, Any]


def joined(beginnings: str, endings: str) -> list[str]:
    """Return every beginning with every ending."""
    return ["".join(parts) for parts in product(beginnings.split(), endings.split())]


# Few names: each is met often enough to learn within minutes that it is the same in the question and in a passage.
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


class Relation(NamedTuple):
    """What is asked of a person, the passage that tells it, and the kind of value that answers."""

    question: str
    statement: str
    kind: str


RELATIONS = (
    Relation("Where does {} live?", "{} lives in {}.", "town"),
    Relation("Where does {} work?", "{} works in {}.", "town"),
    Relation("Where does {} study?", "{} studies in {}.", "town"),
    Relation("What does {} sell?", "{} sells many {}.", "thing"),
    Relation("What does {} repair?", "{} repairs many {}.", "thing"),
    Relation("What does {} collect?", "{} collects many {}.", "thing"),
)

# Questions of each split, and between how many and how many passages come with one. In training the numbers differ: a
# single passage teaches to copy, several to choose.
SPLITS = {"train": (20000, 1, 8), "eval": (128, 8, 8), "test": (500, 20, 20)}


def main() -> None:
    """Write the questions and the model, and tell their sizes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default="data/facts", help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of facts and weights; default: %(default)s")
    flags = parser.parse_args()
    flags.output_dir.mkdir(parents=True, exist_ok=True)
    files = {split: list(questions(split, flags.seed)) for split in SPLITS}
    files["withheld"] = [{**row, "ctxs": row["ctxs"][1:]} for row in files["test"]]
    for file, rows in files.items():
        lines = [json.dumps(row) + "\n" for row in rows]
        (flags.output_dir / f"{file}.jsonl").write_text("".join(lines), encoding="utf-8")
        print(f"{file:8} {len(rows):5}")
    save_model(flags.output_dir / "model", flags.seed)


def people_of(split: str) -> list[str]:
    """Return the people of a split, two in ten for test, one for eval: every name is in each, no person in two."""
    numbered = product(enumerate(FIRST_NAMES), enumerate(LAST_NAMES))
    splits = ("test", "test", "eval", *("train",) * 7)
    return [f"{first} {last}" for (i, first), (j, last) in numbered if splits[(i + j) % 10] == split]


def questions(split: str, seed: int) -> Iterator[Row]:
    """Yield the rows of a split, in Fusion-in-Decoder's own form, with the gold passage beside it."""
    count, fewest, most = SPLITS[split]
    rng = random.Random(f"{seed}/{split}")
    people = people_of(split)
    bearers = defaultdict(list)  # of each name
    for person in people:
        for name in person.split():
            bearers[name].append(person)
    for number in range(count):
        person, relation = rng.choice(people), rng.choice(RELATIONS)
        namesakes = [each for name in person.split() for each in bearers[name] if each != person]
        others = distractors(rng, person, relation, namesakes, people, rng.randint(fewest, most) - 1)
        unused = {kind: iter(rng.sample(values, len(values))) for kind, values in VALUES.items()}
        answer = next(unused[relation.kind])
        gold = relation.statement.format(person, answer)
        texts = [gold, *(other.statement.format(someone, next(unused[other.kind])) for someone, other in others)]
        yield {
            "id": f"{split}-{number}",
            "question": relation.question.format(person),
            "answers": [answer],
            "ctxs": [{"title": "", "text": text} for text in texts],
            "gold_docs": [{"page_content": gold}],
        }


def distractors(
    rng: random.Random, person: str, relation: Relation, namesakes: Sequence[str], people: Sequence[str], count: int
) -> list[tuple[str, Relation]]:
    """Return whom and what the other passages are about: the same person, or the same relation, of namesakes first."""
    of_person = [(person, other) for other in RELATIONS if other != relation]
    chosen = rng.sample(of_person, min(count // 2, len(of_person)))
    rest = count - len(chosen)
    others = dict.fromkeys([*rng.sample(namesakes, rest // 2), *rng.sample(people, rest + 1)])
    others.pop(person, None)
    chosen += [(someone, relation) for someone in [*others][:rest]]
    rng.shuffle(chosen)
    return chosen


def save_model(folder: Path, seed: int) -> None:
    """Write the checkpoint folder of an untrained model and its tokenizer."""
    import torch  # takes seconds to import, as the next does
    from transformers import T5Config, T5ForConditionalGeneration

    tokenizer = word_tokenizer()
    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=128,
        d_kv=32,
        d_ff=256,
        num_heads=4,
        num_layers=2,
        num_decoder_layers=1,
        dropout_rate=0.0,  # against learning by heart, which the data rule out
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    config.decoder_start_token_id = tokenizer.pad_token_id
    model = T5ForConditionalGeneration(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    print(f"{'model':8} {model.num_parameters():,} parameters, {len(tokenizer)} tokens")


def word_tokenizer() -> "PreTrainedTokenizerFast":
    """Return a tokenizer of which each word, full stop and question mark is a token; eos ends every text."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    texts = ["question: title: context:", *FIRST_NAMES, *LAST_NAMES, *VALUES["town"], *VALUES["thing"]]
    for relation in RELATIONS:
        person, value = FIRST_NAMES[0], VALUES[relation.kind][0]
        texts += [relation.question.format(person), relation.statement.format(person, value)]
    split = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), pre_tokenizers.Split(Regex("[.?]"), "isolated")])
    tokens = dict.fromkeys(token for text in texts for token, _ in split.pre_tokenize_str(text))
    vocabulary = {token: id for id, token in enumerate(["<pad>", "</s>", "<unk>", *tokens])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = split
    backend.decoder = decoders.Metaspace()
    backend.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", vocabulary["</s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512
    )


if __name__ == "__main__":
    main()
