"""Embed a corpus and build the index that the other recipes open.

    python recipes/build_index.py --embedding_model checkpoint/to/retriever/model \\
        --full_dataset_file_path path/to/document.pkl --full_dataset_index_path path/to/index

With `accelerate launch` all processes embed. A launch after a kill embeds the blocks that are missing. An existing
index is verified byte by byte and kept; --rebuild true replaces one of other passages, and embeds new ones alone.
--verify true compares the whole corpus with that of its first opening.
"""

import logging

from rqa import data, distributed, retrieval
from rqa.cli import BuildArgs, parse_args, run_main
from rqa.terminal import plural

log = logging.getLogger("rqa")


def main() -> None:
    """Build the index, or open it; then verify it."""
    [args] = parse_args(BuildArgs())

    passages = data.open_passages(verify=args.verify, **args.corpus_options)
    log.info("%s, %s merged", plural(len(passages), "passage"), plural(passages.duplicates, "duplicate row"))
    questions = data.load_examples(args.index_queries) if args.index_queries else []
    accelerator = distributed.make_accelerator(deepspeed=None)
    options = {"device": accelerator.device, "rebuild": args.rebuild, **args.retriever_options}
    options["recall_queries"] = [retrieval.build_query(each) for each in questions]
    retriever = retrieval.open_retriever(passages, accelerator=accelerator, **options)
    if accelerator.is_main_process:
        retriever.verify()
        log.info("fingerprint: %s", retriever.fingerprint())


if __name__ == "__main__":
    run_main(main)
