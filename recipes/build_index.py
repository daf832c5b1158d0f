"""Embed a corpus and build the index that the other recipes open.

    python recipes/build_index.py --embedding_model checkpoint/to/retriever/model \\
        --full_dataset_file_path path/to/document.pkl --full_dataset_index_path path/to/index

An existing index is verified byte by byte and kept.
"""

import logging

from rqa import data, distributed, retrieval
from rqa.cli import IndexArgs, parse_args, run_main
from rqa.terminal import plural

log = logging.getLogger("rqa")


def main() -> None:
    """Build the index, or open it; then verify it."""
    [args] = parse_args(IndexArgs())
    args.require_retriever()

    passages = data.open_passages(args.full_dataset_file_path)
    log.info("%s, %s merged", plural(len(passages), "passage"), plural(passages.duplicates, "duplicate row"))
    device = distributed.default_device()
    retriever = retrieval.open_retriever(passages, device=device, **args.retriever_options)
    retriever.verify()
    log.info("fingerprint: %s", retriever.fingerprint())


if __name__ == "__main__":
    run_main(main)
