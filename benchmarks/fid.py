"""Time and memory of three implementations of fusion-in-decoder.

    python benchmarks/fid.py [--passages 10] [--kinds words web] [--tasks train generate] [--dtypes fp32] [--rounds 5]

fixed: passages padded to a fixed length, as in the published code. longest: passages padded to the longest of the
batch. In both, one encoder call reads all passages, and the cross-attention of the decoder reads padding too. rqa:
rqa.models.fid. Each measurement has its own process, for its memory, and the fastest of its steps counts. The model
is a T5 with random weights. Lengths: passages of 100 words (164 tokens with the question, padded to 250), and web
documents (median 300, truncated at 512). Positions are those that the encoder computes for each token.
"""

import gc
from collections.abc import Callable
from contextlib import nullcontext
from itertools import product
from typing import Any

import measure
import psutil
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import T5Config, T5ForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

from rqa.distributed.device import default_device, peak_memory_gib
from rqa.models.fid import FusionInDecoder

FIXED = {"words": 250, "web": 512}  # tokens of a padded passage
WAYS = ("rqa", "longest", "fixed")
NUM_EXAMPLES, ANSWER_LENGTH, MAX_NEW_TOKENS = 2, 16, 32
STEPS = 3  # steps of each measurement after a warm-up; the fastest counts
TITLES = {"words": "passages of 100 words", "web": "web documents"}


def passages(kind: str, number: int) -> dict[str, Tensor]:
    """Return a batch (B, N, L), padded to its longest passage, and the labels (B, T)."""
    draw = torch.Generator().manual_seed(number)
    normal = torch.randn(NUM_EXAMPLES, number, generator=draw)
    drawn = 164 + 16 * normal if kind == "words" else 300 * torch.exp(0.55 * normal)
    lengths = drawn.long().clamp(20, FIXED[kind])
    mask = torch.arange(int(lengths.max())) < lengths[..., None]
    ids = torch.randint(3, 32000, mask.shape, generator=draw) * mask
    labels = torch.randint(3, 32000, (NUM_EXAMPLES, ANSWER_LENGTH), generator=draw)
    return {"input_ids": ids, "attention_mask": mask.long(), "labels": labels}


class Published:
    """Encodes all passages in one call; the decoder reads padding too."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def encode(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Any]:
        """Return the encoder states, (B, N·L, D), and their mask."""
        hidden = self.model.encoder(input_ids.flatten(0, 1), attention_mask.flatten(0, 1)).last_hidden_state
        memory = hidden.view(len(input_ids), -1, hidden.shape[-1])
        return {
            "encoder_outputs": BaseModelOutput(last_hidden_state=memory),
            "attention_mask": attention_mask.flatten(1),
        }

    def __call__(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of each example."""
        before = torch.nn.functional.pad(labels[:, :-1], (1, 0))  # answers begin with token 0
        encoded = self.encode(input_ids, attention_mask)
        logits = self.model(**encoded, decoder_input_ids=before, use_cache=False).logits
        return cross_entropy(logits.float().mT, labels, reduction="none").sum(-1)

    @torch.no_grad()
    def generate(self, input_ids: Tensor, attention_mask: Tensor, **options: Any) -> Tensor:
        """Generate greedily."""
        ids: Tensor = self.model.generate(**self.encode(input_ids, attention_mask), decoder_start_token_id=0, **options)
        return ids


def measure_here(way: str, kind: str, number: int, task: str, dtype: str) -> measure.Run:
    """Measure one implementation in this process."""
    torch.manual_seed(0)
    device = default_device()
    config = T5Config.from_dict(
        {"d_model": 256, "d_kv": 64, "d_ff": 512, "num_layers": 2, "num_heads": 4, "feed_forward_proj": "gated-gelu",
         "dropout_rate": 0.0, "decoder_start_token_id": 0}
    )  # fmt: skip
    is_bf16 = dtype == "bf16"
    if is_bf16 and device.type == "cpu":
        config._attn_implementation = "eager"  # the choice of rqa.models.fid.fid_attention, for all implementations
    seq2seq: Any = T5ForConditionalGeneration(config).to(device)  # type: ignore[arg-type]
    model: Any = FusionInDecoder(seq2seq) if way == "rqa" else Published(seq2seq)
    batch = {name: tensor.to(device) for name, tensor in passages(kind, number).items()}
    real = int(batch["attention_mask"].sum())
    if way == "fixed":
        missing = FIXED[kind] - batch["input_ids"].shape[-1]
        for name in ("input_ids", "attention_mask"):
            batch[name] = torch.nn.functional.pad(batch[name], (0, missing))
    computed = []

    def count(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        computed.append((args[0] if args else kwargs["input_ids"]).numel())

    seq2seq.encoder.register_forward_pre_hook(count, with_kwargs=True)

    def train() -> None:
        model(**batch).sum().backward()
        seq2seq.zero_grad()

    def generate() -> None:
        prompts = {name: batch[name] for name in ("input_ids", "attention_mask")}
        length = {"max_new_tokens": MAX_NEW_TOKENS, "min_new_tokens": MAX_NEW_TOKENS}
        model.generate(**prompts, **length, eos_token_id=1, pad_token_id=0)

    step: Callable[[], None] = {"train": train, "generate": generate}[task]
    seq2seq.train(task == "train")
    before = torch.cuda.memory_allocated() if device.type == "cuda" else psutil.Process().memory_info().rss
    with torch.autocast(device.type, torch.bfloat16) if is_bf16 else nullcontext():
        step()  # warm-up; its memory counts
        memory, positions = peak_memory_gib(device) - before / 2**30, sum(computed)
        seconds = []
        for _ in range(STEPS):
            gc.collect()
            start = measure.clock()
            step()
            seconds.append(measure.clock() - start)
    return {"seconds": min(seconds), "memory": memory, "positions": positions / real}


def main() -> None:
    """Measure and print the tables."""
    parser = measure.parser(__doc__, rounds=5)
    parser.add_argument("--passages", type=int, nargs="+", default=[10], help="numbers of passages")
    parser.add_argument("--kinds", nargs="+", default=[*FIXED], choices=[*FIXED], help="kinds of passages")
    parser.add_argument("--tasks", nargs="+", default=["train", "generate"], choices=("train", "generate"))
    args = parser.parse_args()
    if args.child:
        way, kind, number, task, dtype = args.child
        measure.print_numbers(lambda: measure_here(way, kind, int(number), task, dtype))
        return
    for task, kind, number, dtype in product(args.tasks, args.kinds, args.passages, args.dtypes):
        ways = {way: measure.child(__file__, way, kind, number, task, dtype) for way in WAYS}
        settings = {"dtype": dtype, "passages": number, "examples": NUM_EXAMPLES}
        name, title = f"fid-{task}-{kind}-{number}-{dtype}", f"FiD, {task}, {number} {TITLES[kind]}, {dtype}"
        measure.answer(args, measure.new_question(args, name, title, "rqa", settings), ways)


if __name__ == "__main__":
    main()
