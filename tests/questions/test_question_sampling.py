"""Sampling: documents in one split each, their shares, and an order that spreads over documents."""

from collections import Counter
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rqa.data.records import Passage
from rqa.errors import InputError
from rqa.questions.sampling import SPLITS, PassageSampler, document_names

SHARES = {"train": 0.8, "validation": 0.1, "test": 0.1}
WORDS = " ".join(f"word{i}" for i in range(20))


def passage(text, *sources, title=""):
    return Passage(f"{text} {WORDS}", title, sources)


def corpus(sizes):
    return [passage(f"{i}-{j}", f"d{i}.md#{j}-{j + 1}") for i, size in enumerate(sizes) for j in range(size)]


def taken(sampler):
    return {split: list(iter(partial(sampler.take, split), None)) for split in sampler.num_documents}


def test_the_document_is_the_source_without_its_part_or_the_first_title_or_the_passage():
    assert document_names(Passage("a", "T > U", ("it/a.md#1-2", "b.pdf"))) == ["it/a.md", "b.pdf"]
    assert document_names(Passage("a", "T > U")) == ["T"]
    assert document_names(Passage("a", "", ("#1-2",))) == ["#1-2"]
    assert document_names(bare := Passage("a")) == [bare.id]


@settings(max_examples=50)
@given(
    st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=3), min_size=20, max_size=60),
    st.integers(0, 5),
)
def test_no_document_is_in_two_splits(sources, seed):
    """Passages have several sources, which join documents; compared with a search for connected documents."""
    passages = [passage(str(i), *(f"d{n}.md#{i}" for n in numbers)) for i, numbers in enumerate(sources)]
    groups = []
    for names in ({*document_names(each)} for each in passages):
        joined = [group for group in groups if group & names]
        groups = [group for group in groups if not group & names] + [names.union(*joined)]
    if len(groups) < len(SPLITS):
        with pytest.raises(InputError, match=f"at least 3 documents .* got {len(groups)}"):
            PassageSampler(passages, SHARES, seed=seed)
        return
    sampler = PassageSampler(passages, SHARES, seed=seed)
    split_of = {}
    for split, chosen in taken(sampler).items():
        assert chosen
        for each in chosen:
            for name in document_names(each):
                assert split_of.setdefault(name, split) == split
    assert sum(sampler.num_documents.values()) == len(groups)
    for group in groups:
        assert len({split_of[name] for name in group}) == 1


@settings(max_examples=50)
@given(st.lists(st.integers(1, 7), min_size=3, max_size=30), st.integers(0, 9))
def test_every_passage_is_taken_once_and_the_splits_have_at_most_their_share(sizes, seed):
    passages = corpus(sizes)
    by_split = taken(PassageSampler(passages, SHARES, seed=seed))
    ids = [each.id for chosen in by_split.values() for each in chosen]
    assert sorted(ids) == sorted(each.id for each in passages)
    for split in ("validation", "test"):
        documents = {name for each in by_split[split] for name in document_names(each)}
        assert len(by_split[split]) <= 0.1 * len(passages) or len(documents) == 1


def test_every_document_gives_a_passage_before_one_gives_its_second():
    [chosen] = taken(PassageSampler(corpus([40, 2, 5, 1]), {**SHARES, "validation": 0, "test": 0}, seed=3)).values()
    names = [document_names(each)[0] for each in chosen]
    for turn, size in ((4, 4), (3, 3), (2, 2), (2, 2), (2, 2)):
        assert len({*names[:turn]}) == size
        names = names[turn:]
    assert {*names} == {"d0.md"}


def test_the_order_depends_on_the_seed_and_not_on_the_order_of_the_corpus():
    passages = corpus([5] * 20)
    first, again, other = (
        taken(PassageSampler(each, SHARES, seed=seed))
        for each, seed in ((passages, 1), (passages[::-1], 1), (passages, 2))
    )
    assert first == again != other


def test_short_passages_are_left_out_and_counted():
    long = " ".join(["word"] * 20)
    texts = [long, long.removesuffix(" word"), "字" * 20, "字" * 19, "# Title"]
    sampler = PassageSampler([Passage(text) for text in texts], {"train": 1, "validation": 0, "test": 0}, seed=0)
    assert sampler.num_short == 3
    assert Counter(each.text for each in taken(sampler)["train"]) == Counter([long, "字" * 20])


def test_passages_can_be_documents():
    passages = [passage(str(i), "one.md") for i in range(30)]
    with pytest.raises(InputError, match="--split_by passage"):
        PassageSampler(passages, SHARES, seed=0)
    sampler = PassageSampler(passages, SHARES, seed=0, by_document=False)
    assert sampler.num_documents == {"train": 24, "validation": 3, "test": 3}
