"""Evaluate a trained generator, or a retriever alone: Recall@k; BLEU, ROUGE, EM, F1; runtime.

    accelerate launch recipes/evaluate.py --qa_model_name_or_path path/to/save/dir/model \\
        --embedding_model_name_or_path checkpoint/to/retriever/model \\
        --document_path path/to/document.pkl --index_path path/to/index/dir/of/document \\
        --eval_data_path path/to/test_w_qa.jsonl --output_dir path/to/evaluation

Without --qa_model_name_or_path the retriever alone is scored; without --embedding_model_name_or_path the generator
reads the passages that the questions bring ("ctxs"), or where none does the gold passages. Writes score.json,
predictions.jsonl and config.json.
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal

from rqa import inputs
from rqa.errors import InputError
from rqa.flags import at_least, cli, flag, parse_configs, require, write_config
from rqa.passages import REFUSAL_ANSWER


@dataclass(frozen=True)
class Evaluation:
    """What is evaluated, on what."""

    embedding_model_name_or_path: str = flag("", "checkpoint folder or hub name of the sentence encoder")
    document_path: str = flag("", "the corpus of passages: .jsonl, .jsonl.gz or LocalRQA's document.pkl")
    index_path: str = flag("", "folder of the corpus' index; built there when it does not exist")
    eval_data_path: str = flag("", "examples: .jsonl, .jsonl.gz or .json")
    output_dir: str = flag("", "new folder for the scores and the predictions")
    refusal_answer: str = flag(REFUSAL_ANSWER, "the reference of examples that are unanswerable or have no answer")
    batch_size: int = flag(8, "questions answered at a time on one device")
    attribution: Literal["none", "cross_attention", "leave_one_out", "both"] = flag(
        "none",
        "what each answer rests on, passage by passage: the attention of fusion-in-decoder, or its loss without one",
    )

    def check(self) -> None:
        """Raise InputError for values that cannot be."""
        require(self, "eval_data_path", "output_dir")
        at_least(self, 1, "batch_size")
        if self.embedding_model_name_or_path:
            require(self, "document_path", "index_path")


def main() -> None:
    """Retrieve, answer, score, write."""
    configs = parse_configs(Evaluation(), inputs.Reader(), inputs.Retrieval(), inputs.Index())
    flags, reader, retrieval, index = configs
    if not (reader.qa_model_name_or_path or flags.embedding_model_name_or_path):
        raise InputError("give --qa_model_name_or_path, --embedding_model_name_or_path, or both")
    if flags.attribution != "none" and not reader.qa_model_name_or_path:
        raise InputError(f"--attribution {flags.attribution}: without --qa_model_name_or_path there are no answers")
    if flags.attribution in ("cross_attention", "both") and not reader.qa_is_fid:
        raise InputError(f"--attribution {flags.attribution}: a decoder has no cross-attention: give leave_one_out")

    # What takes seconds to import: --help and a misspelt flag need not wait for it.
    from rqa.attribution import Attribution, CrossAttention, leave_one_out
    from rqa.data import load_examples
    from rqa.evaluate import KS, AnswerLoss, evaluate
    from rqa.generate import Generator
    from rqa.launch import make_accelerator
    from rqa.reader import attention_for, collator_for, load_reader
    from rqa.retrieval import open_corpus, reads_gold, retrieve_splits
    from rqa.run import headline, log, new_folder

    examples = load_examples(flags.eval_data_path, **reader.speakers)
    encoder, passages = flags.embedding_model_name_or_path, None
    if not (is_gold := reads_gold(encoder, [examples])):
        passages = open_corpus(encoder, flags.document_path, [examples], flag="--embedding_model_name_or_path")
    accelerator = make_accelerator(bf16=reader.bf16, deepspeed=None)
    folder = new_folder(accelerator, flags.output_dir)
    if reader.qa_model_name_or_path:
        collator = collator_for(reader.qa_model_name_or_path, **reader.reading)
        collator.check(examples)
        kind = {"is_fid": reader.qa_is_fid, "use_flash_attention": reader.use_flash_attention}
        attention = attention_for(accelerator, reader.qa_model_name_or_path, **kind)

    k, found = retrieval.embedding_max_num_to_retrieve, None
    if not is_gold:
        [found] = retrieve_splits(
            accelerator,
            passages,
            encoder,
            flags.index_path,
            (examples,),
            max(k, *KS),
            history_turns=retrieval.query_history,
            cached=False,  # its time is a result
            **vars(index),
        )

    generate = loss = None
    attributions: dict[str, Attribution] = {}
    if reader.qa_model_name_or_path:
        model = load_reader(
            accelerator,
            reader.qa_model_name_or_path,
            is_fid=reader.qa_is_fid,
            attention=attention,
            encoder_batch_size=reader.encoder_batch_size,
        )
        generate = Generator(accelerator, model, collator, flags.batch_size, reader.generation_limit)
        loss = AnswerLoss(accelerator, model, collator, flags.batch_size)
        if flags.attribution in ("cross_attention", "both"):
            attributions["cross_attention"] = CrossAttention(accelerator, model, collator, flags.batch_size)
        if flags.attribution in ("leave_one_out", "both"):
            attributions["leave_one_out"] = partial(leave_one_out, loss.each)
    scores = evaluate(
        examples,
        retrieval=found,
        generate=generate,
        loss=loss,
        attributions=attributions,
        k=k,
        refusal_answer=flags.refusal_answer,
    )
    if accelerator.is_main_process:
        scores.write(folder)
        write_config(folder / "config.json", configs)
        log.info("%s: %s", folder, headline(scores.metrics))


if __name__ == "__main__":
    cli(main)
