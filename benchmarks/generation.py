"""How long does generation of answers for an evaluation take, compared with one `generate()` for each question?

    python benchmarks/generation.py [--new_tokens 32 128] [--dtypes fp32 bf16] [--rounds 5] [--keep]

SmolLM2 with 135 million parameters, 16 prompts of about 300 tokens; every answer has all of its new tokens. rqa:
batches of 8 prompts of similar length, as recipes/evaluate.py. one by one: `generate()` of transformers for each
prompt, without padding, greedy, with its cache; in bf16 with weights in bfloat16.
"""

import resource

import measure
import torch
from rows import MODEL, generator_inputs, load_collator
from transformers import AutoModelForCausalLM

from rqa import distributed, generation, models

TOKENS, NUM_PROMPTS, BATCH_SIZE = 300, 16, 8
UNUSED_TOKEN = 16  # reserved: no answer stops before its limit
ONE_BY_ONE = "one by one"


def measure_here(way: str, dtype: str, new_tokens: int, seed: int) -> measure.Run:
    """Generate once after a warm-up, and return seconds for a question."""
    inputs, collator = generator_inputs(TOKENS)[seed * NUM_PROMPTS :][:NUM_PROMPTS], load_collator()
    if way == "rqa":
        accelerator = distributed.make_accelerator(bf16=dtype == "bf16", deepspeed=None)
        collator.builder.stop_ids = [UNUSED_TOKEN]
        wrapper = models.AnswerLM.from_pretrained(str(MODEL))
        generator = generation.Generator(accelerator, wrapper, collator, BATCH_SIZE, new_tokens)
        generator(inputs[:1])
        start = measure.clock()
        answers = generator(inputs)
        seconds, tokens = measure.clock() - start, sum(answer.num_tokens for answer in answers)
    else:
        model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=measure.torch_dtype(dtype)).eval()
        options = {"do_sample": False, "min_new_tokens": new_tokens, "max_new_tokens": new_tokens}
        prompts = [torch.tensor(row.prompts) for row in collator.encode(inputs)]
        model.generate(prompts[0], attention_mask=torch.ones_like(prompts[0]), **options)
        start = measure.clock()
        ids = [model.generate(prompt, attention_mask=torch.ones_like(prompt), **options) for prompt in prompts]
        seconds = measure.clock() - start
        tokens = sum(each.shape[1] - prompt.shape[1] for each, prompt in zip(ids, prompts, strict=True))
    assert tokens == NUM_PROMPTS * new_tokens, f"{tokens} tokens"
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"seconds": seconds / NUM_PROMPTS, "memory": memory}


def main() -> None:
    """Measure and print the tables."""
    parser = measure.parser(__doc__, rounds=5)
    parser.add_argument("--new_tokens", type=int, nargs="+", default=[32, 128])
    args = parser.parse_args()
    if args.child:
        way, dtype, new_tokens = args.child
        measure.print_numbers(lambda: measure_here(way, dtype, int(new_tokens), args.round))
        return
    for new_tokens in args.new_tokens:
        for dtype in args.dtypes:
            ways = {way: measure.child(__file__, way, dtype, new_tokens) for way in ("rqa", ONE_BY_ONE)}
            settings = {"dtype": dtype, "batch": BATCH_SIZE, "new tokens": new_tokens}
            title, name = f"Generation, {new_tokens} new tokens, {dtype}", f"generation-{new_tokens}-{dtype}"
            measure.answer(args, measure.new_question(args, name, title, "rqa", settings), ways)


if __name__ == "__main__":
    main()
