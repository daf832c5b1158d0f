"""The table of formats, and the format of an input, recognized by its content."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from rqa.conversion import beir, feedback, libraries, open_domain, reading_comprehension
from rqa.conversion.rows import Converted, Row
from rqa.conversion.source import Source
from rqa.errors import InputError

Reader = Callable[[Source], Iterator[Converted]]


@dataclass(frozen=True)
class Format:
    """A format that can be converted.

    `fits` returns True for the first rows, or for the one object, of a file. A format of folders has none.
    `questions` and `passages` are its readers; a corpus has no questions.
    """

    help: str
    fits: Callable[[Row], bool] | None = None
    questions: Reader | None = None
    passages: Reader | None = None

    def fits_source(self, source: Source) -> bool:
        """Return True if more than half of the first rows fit, or the folder."""
        if self.fits is None or source.shape == "folder":
            return self.fits is None and source.shape == "folder" and beir.is_beir(source)
        return 2 * sum(map(self.fits, source.first_rows)) > len(source.first_rows)


_COMPREHENSION = {
    "squad": Format(
        "SQuAD 1.1 and 2.0: the object with data, or rows of the hub's copy",
        reading_comprehension.is_squad,
        reading_comprehension.squad_questions,
    ),
    "hotpotqa": Format(
        "HotpotQA: question, answer, context, supporting_facts",
        reading_comprehension.is_hotpotqa,
        reading_comprehension.hotpotqa_questions,
    ),
}
_OPEN_DOMAIN = {
    "dpr": Format(
        "Natural Questions of DPR: question, answers, positive_ctxs, hard_negative_ctxs",
        open_domain.is_dpr,
        open_domain.dpr_questions,
    ),
    "nq_open": Format("NQ-open: question, answer", open_domain.is_nq_open, open_domain.nq_open_questions),
    "flashrag": Format("FlashRAG: question, golden_answers", open_domain.is_flashrag, open_domain.flashrag_questions),
    "flashrag_corpus": Format(
        "a corpus of FlashRAG: id, contents",
        open_domain.is_flashrag_corpus,
        passages=open_domain.flashrag_passages,
    ),
    "raft": Format(
        "RAFT: question, context, oracle_context, cot_answer", open_domain.is_raft, open_domain.raft_questions
    ),
    "beir": Format(
        "BEIR: a folder with corpus.jsonl, queries.jsonl, qrels; no answers",
        questions=beir.beir_questions,
        passages=beir.beir_passages,
    ),
}
_LIBRARIES = {
    "ragas": Format(
        "RAGAS: user_input, reference, reference_contexts; or question, ground_truth, contexts",
        libraries.is_ragas,
        libraries.ragas_questions,
    ),
    "langchain_documents": Format(
        "documents of LangChain, a corpus: page_content, metadata",
        libraries.is_langchain_documents,
        passages=libraries.langchain_passages,
    ),
    "langchain_qa": Format(
        "examples of LangChain: query, answer", libraries.is_langchain_qa, libraries.langchain_questions
    ),
    "llamaindex_pairs": Format(
        "EmbeddingQAFinetuneDataset of LlamaIndex: queries, corpus, relevant_docs; no answers",
        libraries.is_llamaindex_pairs,
        libraries.llamaindex_pairs_questions,
        libraries.llamaindex_pairs_passages,
    ),
    "llamaindex_rag": Format(
        "LabelledRagDataset of LlamaIndex: examples of query, reference_answer, reference_contexts",
        libraries.is_llamaindex_rag,
        libraries.llamaindex_rag_questions,
    ),
    "llamaindex_nodes": Format(
        "nodes or docstore.json of LlamaIndex, a corpus: id_, text, metadata",
        libraries.is_llamaindex_nodes,
        passages=libraries.llamaindex_passages,
    ),
}
_OWN = {
    "rqa_feedback": Format(
        "feedback.jsonl of recipes/serve.py: question, answer, passages, correct",
        feedback.is_rqa_feedback,
        feedback.feedback_questions,
    ),
}
# By the names that --format accepts
FORMATS = {**_COMPREHENSION, **_OPEN_DOMAIN, **_LIBRARIES, **_OWN}


def recognized(source: Source) -> str:
    """Return the name of the format that the content fits. Raises InputError if none or several fit."""
    names = [name for name, each in FORMATS.items() if each.fits_source(source)]
    if len(names) == 1:
        return names[0]
    if names:
        problem = f"expected one format, got {source.contents}, which fit {' and '.join(names)}"
    elif any(map(_is_own, source.first_rows)):
        problem = f"rqa reads {source.contents} as they are. No conversion is needed"
    else:
        problem = f"expected one of the formats {', '.join(FORMATS)}, got {source.contents}"
    raise InputError(f"{source.path}: {problem}. --format NAME selects a format.")


def _is_own(row: Row) -> bool:
    return "question" in row and not row.keys().isdisjoint({"gold_answer", "gold_docs", "ctxs", "target"})
