"""Embed a corpus and build the index that the other recipes open.

    python recipes/build_index.py --embedding_model checkpoint/to/retriever/model \\
        --full_dataset_file_path path/to/document.pkl --full_dataset_index_path path/to/index

An existing index is verified byte by byte and kept. So is the cached corpus with --verify true.
"""

import logging
from dataclasses import dataclass

from rqa import data, distributed, retrieval
from rqa.cli import IndexArgs, flag, parse_args, require, run_main
from rqa.terminal import plural

log = logging.getLogger("rqa")


@dataclass(frozen=True)
class BuildArgs(IndexArgs):
    """The corpus, its index, and the sentence encoder."""

    verify: bool = flag(
        False, "compare the whole corpus with that of its first opening, not only size, time and samples"
    )


def main() -> None:
    """Build the index, or open it; then verify it."""
    [args] = parse_args(BuildArgs())
    require(args, "embedding_model", "full_dataset_file_path", "full_dataset_index_path")

    passages = data.open_passages(verify=args.verify, **args.corpus_options)
    log.info("%s, %s merged", plural(len(passages), "passage"), plural(passages.duplicates, "duplicate row"))
    device = distributed.default_device()
    retriever = retrieval.open_retriever(passages, device=device, **args.retriever_options)
    retriever.verify()
    index = retriever.index
    log.info("%s: %s of %d dimensions", args.full_dataset_index_path, plural(len(index), "vector"), index.dimension)
    log.info("fingerprint: %s", retriever.fingerprint())


if __name__ == "__main__":
    run_main(main)
