"""Seconds to embed passages, and passages a second: sentence-transformers' `encode`, and the blocks of rqa.

    python benchmarks/embedding.py --embedding_model data/models/all-minilm-l6-v2 \\
        --full_dataset_file_path data/stdlib/passages.jsonl [--passages 5000] [--repeats 3]

encode: `SentenceTransformer.encode` with float32 and its own batch size. rqa: `Encoder.encode_blocks`, in bfloat16 if
the device is fast in it. Both are measured in turn, so that other work on the machine slows both. The ratio is that of
the fastest repeats. half: the share of the best 10 passages that stay if vectors are rounded to float16.
"""

import argparse
import time
from itertools import islice

import numpy as np

from rqa import data, distributed, retrieval
from rqa.retrieval.vectors import block_size


def main() -> None:
    """Print the seconds of each repeat, and the ratio."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--embedding_model", required=True)
    parser.add_argument("--full_dataset_file_path", required=True)
    parser.add_argument("--passages", type=int, default=5000)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    passages = [*islice(data.open_passages(args.full_dataset_file_path), args.passages)]
    encoder = retrieval.Encoder(args.embedding_model, device=distributed.default_device())
    model, size = encoder.model, block_size(len(passages))
    blocks = [passages[start : start + size] for start in range(0, len(passages), size)]
    texts = [f"{encoder.passage_prefix}{passage.content}" for passage in passages]
    seconds: dict[str, list[float]] = {"encode": [], "rqa": []}
    vectors = np.empty(0)
    print(f"{len(passages):,} passages on {encoder.device}, bfloat16 {encoder.is_half}")
    for _ in range(args.repeats):
        start = time.perf_counter()
        model.encode(texts, show_progress_bar=False)
        seconds["encode"].append(time.perf_counter() - start)
        start = time.perf_counter()
        vectors = np.concatenate([*encoder.encode_blocks(blocks, len(passages))])
        seconds["rqa"].append(time.perf_counter() - start)
        print(*(f"{name} {each[-1]:.1f} s" for name, each in seconds.items()), sep="  ", flush=True)
    print(
        f"ratio {min(seconds['encode']) / min(seconds['rqa']):.2f}, {len(passages) / min(seconds['rqa']):.0f} a second"
    )
    best = [np.argsort(-vectors[:500] @ each.T)[:, :10] for each in (vectors, vectors.astype(np.float16).astype("f4"))]
    print(f"half: {np.mean([len({*a} & {*b}) / 10 for a, b in zip(*map(np.ndarray.tolist, best), strict=True)]):.4f}")


if __name__ == "__main__":
    main()
