"""Retrieval by any retriever over a few passages."""

from accelerate import Accelerator
from world import write_jsonl

from rqa.data.corpus import open_passages
from rqa.retrieval.retrieve import retrieve_splits


def retrieve_with(retriever, examples, passages, k, folder, **options):
    """Return the retrieval for `examples` from a corpus of `passages`, written to `folder`."""
    rows = [{"page_content": passage.text, "metadata": {"title": passage.title}} for passage in passages]
    store = open_passages(write_jsonl(folder / "corpus.jsonl", rows))
    [retrieval] = retrieve_splits(Accelerator(cpu=True), lambda: retriever, store, [examples], k, **options)
    return retrieval
