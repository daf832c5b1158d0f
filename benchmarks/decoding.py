"""Seconds of an answer, decoded token by token and by prompt lookup, side by side.

    python benchmarks/decoding.py --model_name_or_path runs/quickstart/after/model --test_file data/stdlib/test.jsonl \\
        [--bf16 false] [--tokens 4 8 16] [--batch_size 8] [--max_new_tokens 40] [--examples 24] [--rounds 2]

The prompts have the gold passages and those of the next question. Ratios are of the fastest round of each way. In
bfloat16 an answer may differ by rounding, as it does in another batch.
"""

import argparse
import time

from rqa import data, distributed, generation, models
from rqa.timing import record_spans


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model_name_or_path", required=True)
    parser.add_argument("--test_file", required=True)
    parser.add_argument("--bf16", type=lambda text: text == "true", default=None)
    parser.add_argument("--tokens", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--max_new_tokens", type=int, default=40)
    parser.add_argument("--examples", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    accelerator = distributed.make_accelerator(bf16=args.bf16, deepspeed=None)
    collator = models.load_collator(args.model_name_or_path, max_new_tokens=args.max_new_tokens)
    model = models.load_generator(accelerator, args.model_name_or_path)
    examples = data.load_examples(args.test_file)[: args.examples]
    pairs = zip(examples, [*examples[1:], examples[0]], strict=True)
    inputs = [data.GeneratorInput.from_ranked(a, [*a.gold_passages, *b.gold_passages]) for a, b in pairs]
    limits = (args.batch_size, args.max_new_tokens)
    ways = {
        n: generation.Generator(accelerator, model, collator, *limits, prompt_lookup_tokens=n)
        for n in (0, *args.tokens)
    }
    passes: list[int] = []
    accelerator.unwrap_model(model).model.register_forward_hook(lambda *_: passes.append(1))
    best: dict[int, tuple[float, float, int, list[generation.Answer]]] = {}
    ways[0](inputs[: args.batch_size])  # a warm-up
    for _ in range(args.rounds):
        for tokens, generate in ways.items():
            passes.clear()
            start = time.perf_counter()
            with record_spans() as spans:
                answers = generate(inputs)
            seconds = time.perf_counter() - start
            decode = sum(span.seconds for span in spans if span.stage == "decode")
            measured = (seconds, decode, len(passes), answers)
            if tokens not in best or seconds < best[tokens][0]:
                best[tokens] = measured
    plain = best[0]
    num_tokens = sum(answer.num_tokens for answer in plain[3])
    precision = {"no": "fp32"}.get(accelerator.mixed_precision, accelerator.mixed_precision)
    print(f"{precision}, {len(inputs)} answers of {num_tokens / len(inputs):.0f} tokens, batches of {args.batch_size}")
    for tokens, (seconds, decode, count, answers) in best.items():
        equal = sum(a == b for a, b in zip(answers, plain[3], strict=True))
        print(
            f"{tokens:2} candidates  {seconds / len(inputs):.3f} s an answer ({plain[0] / seconds:.2f}x)  "
            f"decoding {decode / len(inputs):.3f} s ({plain[1] / decode:.2f}x)  "
            f"{count} passes  equal {equal} of {len(inputs)}"
        )


if __name__ == "__main__":
    main()
