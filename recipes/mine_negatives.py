"""Add hard negatives to questions: passages that a retriever ranks high and that do not answer them.

    python recipes/mine_negatives.py --input_file path/to/train.jsonl --output_file path/to/train_negatives.jsonl \\
        --embedding_model checkpoint/to/retriever/model \\
        --full_dataset_file_path path/to/document.pkl --full_dataset_index_path path/to/index

Any retriever works, such as --retriever bm25. Left out are gold passages and near copies of them, passages that contain
an answer, and with --reranker_model those that the cross-encoder scores near the gold passage or above. Ranks are those
of the retriever, with its cross-encoder if it has one. The output has the same rows, in their order, with
"hard_neg_docs". --hard_negatives of the training recipes and recipes/retriever_contrastive.py read them.
"""

from functools import partial
from pathlib import Path

from rqa import cli, data, distributed, retrieval
from rqa.terminal import write_result


def main() -> None:
    """Retrieve, select, write; print the counts."""
    args, search = cli.parse_args(cli.MiningArgs(), cli.SearchArgs())
    args.check_beside(search)
    output = Path(args.output_file)
    cli.check_output(output)
    examples = data.load_examples(args.input_file, max_bad_rows=args.max_bad_rows)
    passages = data.open_passages(**search.corpus_options)
    accelerator = distributed.make_accelerator(deepspeed=None)
    device, splits = accelerator.device, [examples]
    open_retriever = partial(retrieval.open_retriever, passages, device=device, **search.retriever_options)
    [hits] = retrieval.retrieve_splits(
        accelerator, open_retriever, passages, splits, args.last_rank, **search.search_options
    )
    if not accelerator.is_main_process:
        return
    score = None
    if name := search.reranker_model:
        score = retrieval.Reranker(name, device=device, batch_size=search.embedding_batch_size).scores
    queries = [retrieval.build_query(example, history_turns=search.query_history) for example in examples]
    negatives, counts = retrieval.mine_negatives(examples, queries, hits, score=score, **args.mining_options)
    retrieval.write_negatives(args.input_file, examples, negatives, output)
    for name, count in counts.items():
        write_result(f"{name}: {count}")
    write_result(f"{output}: written")


if __name__ == "__main__":
    cli.run_main(main)
