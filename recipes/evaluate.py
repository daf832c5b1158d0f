"""Evaluate a trained generator, or a retriever alone: Recall@k; BLEU, ROUGE, EM, F1; runtime.

    accelerate launch recipes/evaluate.py --qa_model_name_or_path path/to/save/dir/model \\
        --embedding_model_name_or_path checkpoint/to/retriever/model \\
        --document_path path/to/document.pkl --index_path path/to/index/dir/of/document \\
        --eval_data_path path/to/test_w_qa.jsonl --output_dir path/to/evaluation

Without --qa_model_name_or_path the retriever alone is scored; without --embedding_model_name_or_path the generator
reads the gold passages. Writes score.json, predictions.jsonl and config.json.
"""

from dataclasses import dataclass

from rqa import config
from rqa.errors import InputError
from rqa.flags import at_least, cli, flag, parse_configs, require, write_config
from rqa.passages import REFUSAL_ANSWER


@dataclass(frozen=True)
class Evaluation:
    """What is evaluated, on what."""

    qa_model_name_or_path: str = flag("", "checkpoint folder or hub name of the generator")
    embedding_model_name_or_path: str = flag("", "checkpoint folder or hub name of the sentence encoder")
    document_path: str = flag("", "the corpus of passages: .jsonl, .jsonl.gz or LocalRQA's document.pkl")
    index_path: str = flag("", "folder of the corpus' index; built there when it does not exist")
    eval_data_path: str = flag("", "examples, JSONL")
    output_dir: str = flag("", "new folder for the scores and the predictions")
    refusal_answer: str = flag(REFUSAL_ANSWER, "the reference of examples that are unanswerable or have no answer")
    batch_size: int = flag(8, "questions answered at a time on one device")
    bf16: bool | None = flag(None, "true or false: bfloat16 autocast; default: where this device is fast in it")
    use_flash_attention: bool = flag(False, "use flash attention 2 (needs CUDA and the package flash-attn)")

    def check(self) -> None:
        """Raise InputError for values that cannot be."""
        require(self, "eval_data_path", "output_dir")
        at_least(self, 1, "batch_size")
        if self.embedding_model_name_or_path:
            require(self, "document_path", "index_path")
        elif not self.qa_model_name_or_path:
            raise InputError("give --qa_model_name_or_path, --embedding_model_name_or_path, or both")


def main() -> None:
    """Retrieve, answer, score, write."""
    configs = parse_configs(Evaluation(), config.Retrieval(), config.Index(), config.Prompt())
    flags, retrieval, index, prompt = configs

    # What takes seconds to import: --help and a misspelt flag need not wait for it.
    from rqa.collators import ConcatenatedCollator
    from rqa.data import load_examples, open_passages
    from rqa.decoder import AnswerLM, check_window
    from rqa.evaluate import KS, AnswerLoss, evaluate
    from rqa.generate import Generator
    from rqa.hardware import attention_kernel
    from rqa.launch import make_accelerator
    from rqa.prompts import PromptBuilder, load_tokenizer
    from rqa.retrieval import retrieve_splits
    from rqa.run import headline, log, new_folder

    examples = load_examples(flags.eval_data_path, **prompt.speakers)
    accelerator = make_accelerator(bf16=flags.bf16, deepspeed=None)
    attention = attention_kernel(flags.use_flash_attention, accelerator.mixed_precision)
    folder = new_folder(accelerator, flags.output_dir)
    if flags.qa_model_name_or_path:
        tokenizer = load_tokenizer(flags.qa_model_name_or_path)
        builder = PromptBuilder(tokenizer, prompt.chat, prompt.instruction, prompt.max_prompt_length)
        collator = ConcatenatedCollator(builder, prompt.max_answer_length)
        collator.check(examples)
        check_window(flags.qa_model_name_or_path, prompt.max_row_length)

    k, found = retrieval.embedding_max_num_to_retrieve, None
    if flags.embedding_model_name_or_path:
        [found] = retrieve_splits(
            accelerator,
            open_passages(flags.document_path),
            flags.embedding_model_name_or_path,
            flags.index_path,
            (examples,),
            max(k, *KS),
            history_turns=retrieval.query_history,
            cached=False,  # its time is a result
            **vars(index),
        )

    generate = loss = None
    if flags.qa_model_name_or_path:
        lm = AnswerLM.from_pretrained(flags.qa_model_name_or_path, attention=attention)
        model = accelerator.prepare_model(lm, evaluation_mode=True)  # no process makes room for gradients
        generate = Generator(accelerator, model, collator, flags.batch_size, prompt.generation_limit)
        loss = AnswerLoss(accelerator, model, collator, flags.batch_size)
    scores = evaluate(examples, retrieval=found, generate=generate, loss=loss, k=k, refusal_answer=flags.refusal_answer)
    if accelerator.is_main_process:
        scores.write(folder)
        write_config(folder / "config.json", configs)
        log.info("%s: %s", folder, headline(scores.metrics))


if __name__ == "__main__":
    cli(main)
