"""Convert a folder of documents to a corpus of passages that fit the encoder.

    python recipes/make_corpus.py --embedding_model checkpoint/to/retriever/model \\
        --input_path path/to/documents --output_path path/to/corpus.jsonl

Formats: Markdown, HTML, reStructuredText, text, PDF, DOCX. The same folder gives the same file. An existing file is
compared and replaced. The status is 1 if more files than --max_bad_files cannot be converted; the corpus has the rest.
"""

from dataclasses import dataclass

from rqa import distributed, documents, retrieval
from rqa.cli import at_least, flag, parse_args, require, run_main
from rqa.errors import InputError
from rqa.terminal import write_result


@dataclass(frozen=True)
class CorpusArgs:
    """The folder, the corpus, and the encoder whose tokens are counted."""

    input_path: str = flag(
        "", "folder of documents; its folders are read too, but no links or hidden files", is_path=True
    )
    output_path: str = flag("", "the corpus: a .jsonl file", "full_dataset_file_path", "document_path", is_path=True)
    embedding_model: str = flag(
        "",
        "checkpoint folder or hub name of the sentence encoder, which counts the tokens",
        "embedding_model_name_or_path",
        "eval_embedding_model",
        is_path=True,
    )
    passage_prefix: str | None = flag(
        None, 'text before each passage ("passage: " for E5); default: the prompt in the checkpoint'
    )
    max_passage_tokens: int = flag(256, "tokens of a passage with its title; always fewer than the encoder's own limit")
    max_bad_files: int = flag(0, "files that may be left out because they cannot be converted; more give status 1")
    max_file_mib: float = flag(100, "size of a file in MiB; a larger one cannot be converted")
    dry_run: bool = flag(False, "report, but write no file")

    def check(self) -> None:
        """Raise InputError for values that are not allowed."""
        require(self, "input_path", "output_path", "embedding_model")
        at_least(self, 16, "max_passage_tokens")
        at_least(self, 0, "max_bad_files", "max_file_mib")


def main() -> int:
    """Write the corpus and print the report; return 1 if too many files are left out."""
    [args] = parse_args(CorpusArgs())

    listing = documents.list_files(args.input_path, max_file_mib=args.max_file_mib)
    previous = documents.previous_passages(args.output_path)
    device = distributed.default_device()
    options = {"passage_prefix": args.passage_prefix, "side": "passage"}
    encoder = retrieval.Encoder(args.embedding_model, device=device, **options)
    max_tokens = min(args.max_passage_tokens, encoder.max_passage_tokens - 1)  # at the limit itself it warns
    splitter = documents.Splitter(encoder.count_passage_tokens, max_tokens)
    try:
        report = documents.write_corpus(listing, args.output_path, splitter, previous, is_dry_run=args.dry_run)
    except OSError as error:
        raise InputError(f"--output_path {args.output_path}: cannot be written: {error.strerror}") from error

    for line in (*report.changes(), *report.lines(max_tokens)):
        write_result(line)
    write_result(f"{args.output_path}: {'not written (--dry_run)' if args.dry_run else 'written'}")
    return int(len(report.problems) > args.max_bad_files)


if __name__ == "__main__":
    run_main(main)
