"""Embed a corpus and build its index, which the other recipes then open.

    python recipes/build_index.py --embedding_model checkpoint/to/retriever/model \\
        --document_path path/to/document.pkl --index_path path/to/index/dir/of/document

An index that is there already is checked, every byte of it, and kept.
"""

from dataclasses import dataclass
from pathlib import Path

from rqa.cli import data_args as inputs
from rqa.cli.parser import cli, flag, parse_configs, require


@dataclass(frozen=True)
class Corpus:
    """What is indexed."""

    embedding_model: str = flag("", "checkpoint folder or hub name of the sentence encoder")
    document_path: str = flag("", "the corpus of passages: .jsonl, .jsonl.gz or LocalRQA's document.pkl")
    index_path: str = flag("", "folder of the index")

    def check(self) -> None:
        """Raise InputError for values that cannot be."""
        require(self, "embedding_model", "document_path", "index_path")


def main() -> None:
    """Build, or verify."""
    corpus, index = parse_configs(Corpus(), inputs.Index())

    # What takes seconds to import: --help and a misspelt flag need not wait for it.
    from rqa.data.corpus import open_passages
    from rqa.distributed.device import default_device
    from rqa.retrieval.dense import open_retriever
    from rqa.retrieval.index import FaissIndex
    from rqa.training.run_log import log

    passages = open_passages(corpus.document_path)
    log.info("%d passages, %d rows merged into equal ones", len(passages), passages.duplicates)
    path = Path(corpus.index_path)
    retriever = open_retriever(passages, corpus.embedding_model, path, device=default_device(), **vars(index))
    FaissIndex.load(path, verify=True)
    log.info(
        "%s: %d vectors of %d dimensions, fingerprint %s",
        path,
        len(passages),
        retriever.index.dimension,
        retriever.fingerprint(),
    )


if __name__ == "__main__":
    cli(main)
