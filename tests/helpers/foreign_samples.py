"""Small hand-written files of every format that rqa converts, and the examples or passages that they contain."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rqa.data.records import Example, Passage


@dataclass
class Sample:
    """A file of one format: rows, or one object, or files of a folder; and its examples or passages."""

    format: str
    content: Any  # a list of rows, one object, or texts of files by their names in a folder
    examples: list[dict[str, Any]] = field(default_factory=list)
    passages: list[tuple[str, str, str]] = field(default_factory=list)  # text, title, source
    corpus: list[tuple[str, str, str]] | None = None  # of --corpus_path
    is_folder: bool = False

    def write(self, folder: Path, ending: str = "json") -> Path:
        """Write the sample under a name that reveals nothing."""
        path = folder / f"input.{ending}"
        if self.is_folder:
            for name, text in self.content.items():
                (folder / "input" / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / "input" / name).write_text(text, encoding="utf-8")
            return folder / "input"
        path.write_text(as_text(self.content, ending), encoding="utf-8")
        return path


def as_text(content: Any, ending: str) -> str:
    """Return JSON Lines for "jsonl", else one array or object over several lines."""
    return lines(content) if ending == "jsonl" else json.dumps(content, indent=1, ensure_ascii=False)


def lines(rows: list[Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def described(example: Example) -> dict[str, Any]:
    """Return the fields of an example that are not empty, as samples state them. Ids by line are left out."""
    values = {
        "id": "" if example.id.startswith("train:") else example.id,
        "question": example.question,
        "answers": [*example.answers],
        "gold": list(map(triple, example.gold_passages)),
        "negatives": list(map(triple, example.hard_negatives)),
        "contexts": list(map(triple, example.contexts)),
        "unanswerable": example.unanswerable,
    }
    return {name: value for name, value in values.items() if value}


def triple(passage: Passage) -> tuple[str, str, str]:
    return passage.text, passage.title, ", ".join(passage.sources)


OWL = "Owls hunt at night."
OWLS = (OWL, "Owls", "Owls")
BEE = ("Bees dance.", "Bees", "Bees")
ELK = ("Elks swim well. They eat plants.", "Elks", "Elks")

SQUAD = Sample(
    "squad",
    {
        "version": "v2.0",
        "data": [
            {
                "title": "Owls",
                "paragraphs": [
                    {
                        "context": OWL,
                        "qas": [
                            {
                                "id": "o1",
                                "question": "When do owls hunt?",
                                "is_impossible": False,
                                "answers": [
                                    {"text": "at night", "answer_start": 10},
                                    {"text": "night", "answer_start": 13},
                                    {"text": "at night", "answer_start": 10},
                                ],
                            },
                            {
                                "id": "o2",
                                "question": "What do owls sing?",
                                "is_impossible": True,
                                "answers": [],
                                "plausible_answers": [{"text": "night", "answer_start": 13}],
                            },
                        ],
                    }
                ],
            },
            {
                "title": "Bees",
                "paragraphs": [
                    {
                        "context": BEE[0],
                        "qas": [
                            {"id": "b1", "question": "Who dances?", "answers": [{"text": "Bees", "answer_start": 0}]}
                        ],
                    }
                ],
            },
        ],
    },
    [
        {"id": "o1", "question": "When do owls hunt?", "answers": ["at night", "night"], "gold": [OWLS]},
        {"id": "o2", "question": "What do owls sing?", "gold": [OWLS], "unanswerable": True},
        {"id": "b1", "question": "Who dances?", "answers": ["Bees"], "gold": [BEE]},
    ],
    corpus=[OWLS, BEE],
)
SQUAD_ROWS = Sample(
    "squad",
    [
        {
            "id": "o1",
            "title": "Owls",
            "context": OWL,
            "question": "When do owls hunt?",
            "answers": {"text": ["at night", "night"], "answer_start": [10, 13]},
        },
        {
            "id": "o2",
            "title": "Owls",
            "context": OWL,
            "question": "What do owls sing?",
            "answers": {"text": [], "answer_start": []},
        },
    ],
    SQUAD.examples[:2],
)
HOTPOTQA = Sample(
    "hotpotqa",
    [
        {
            "_id": "h1",
            "question": "Which animal that swims eats plants?",
            "answer": "the elk",
            "type": "bridge",
            "level": "easy",
            "supporting_facts": [["Elks", 0], ["Elks", 1]],
            "context": [["Owls", [OWL]], ["Elks", ["Elks swim well.", " They eat plants."]], ["Bees", [BEE[0]]]],
        },
        {"_id": "h2", "question": "Who dances?", "context": [["Bees", [BEE[0]]]]},
    ],
    [
        {
            "id": "h1",
            "question": "Which animal that swims eats plants?",
            "answers": ["the elk"],
            "gold": [ELK],
            "negatives": [OWLS, BEE],
        },
        {"id": "h2", "question": "Who dances?", "contexts": [BEE]},
    ],
    corpus=[ELK, OWLS, BEE],
)
HOTPOTQA_COLUMNS = Sample(
    "hotpotqa",
    [
        {
            "id": "h1",
            "question": "Which animal that swims eats plants?",
            "answer": "the elk",
            "supporting_facts": {"title": ["Elks"], "sent_id": [1]},
            "context": {"title": ["Elks", "Owls"], "sentences": [["Elks swim well.", "They eat plants."], [OWL]]},
        }
    ],
    [
        {
            "id": "h1",
            "question": "Which animal that swims eats plants?",
            "answers": ["the elk"],
            "gold": [ELK],
            "negatives": [OWLS],
        }
    ],
)
DPR = Sample(
    "dpr",
    [
        {
            "dataset": "own",
            "question": "when do owls hunt",
            "answers": ["at night", "night"],
            "positive_ctxs": [{"title": "Owls", "text": OWL, "score": 1000, "passage_id": "17"}],
            "negative_ctxs": [{"title": "Tea", "text": "Tea is hot.", "score": 0, "passage_id": "3"}],
            "hard_negative_ctxs": [
                {"title": "Bees", "text": BEE[0], "score": 2.5, "passage_id": "4"},
                {"title": "Owls", "text": OWL, "score": 1.5, "passage_id": "17"},
            ],
        },
        {"question": "who swims", "answers": ["elks"], "positive_ctxs": [], "hard_negative_ctxs": []},
    ],
    [
        {"question": "when do owls hunt", "answers": ["at night", "night"], "gold": [OWLS], "negatives": [BEE]},
        {"question": "who swims", "answers": ["elks"]},
    ],
    corpus=[OWLS, BEE],
)
NQ_OPEN = Sample(
    "nq_open",
    [{"question": "who dances", "answer": ["bees", "honey bees"]}, {"question": "who swims", "answer": "elks"}],
    [{"question": "who dances", "answers": ["bees", "honey bees"]}, {"question": "who swims", "answers": ["elks"]}],
)
FLASHRAG = Sample(
    "flashrag",
    [
        {"id": "dev_0", "question": "who dances", "golden_answers": ["bees"], "metadata": {"kind": "easy"}},
        {
            "id": "dev_1",
            "question": "who swims",
            "golden_answers": ["elks"],
            "metadata": {
                "supporting_facts": {"title": ["Elks"], "sent_id": [0]},
                "context": {
                    "title": ["Elks", "Bees"],
                    "sentences": [["Elks swim well.", " They eat plants."], [BEE[0]]],
                },
            },
        },
        {"id": "dev_2", "question": "who sings", "golden_answers": []},
    ],
    [
        {"id": "dev_0", "question": "who dances", "answers": ["bees"]},
        {"id": "dev_1", "question": "who swims", "answers": ["elks"], "gold": [ELK], "negatives": [BEE]},
        {"id": "dev_2", "question": "who sings"},
    ],
)
FLASHRAG_CORPUS = Sample(
    "flashrag_corpus",
    [{"id": "0", "contents": f'"Owls"\n{OWL}'}, {"id": "1", "contents": "No title."}, {"id": "2", "contents": " "}],
    passages=[OWLS, ("No title.", "", "1")],
)
RAFT_ANSWER = "##begin_quote##Owls hunt##end_quote## <ANSWER>: at night"
RAFT = Sample(
    "raft",
    [
        {
            "id": "seed_task_0",
            "type": "general",
            "question": "When do owls hunt?",
            "context": {"title": [["placeholder_title"] * 2], "sentences": [["Bees dance.", OWL]]},
            "oracle_context": OWL,
            "cot_answer": RAFT_ANSWER,
            "instruction": "<DOCUMENT>Bees dance.</DOCUMENT>",
        }
    ],
    [
        {
            "id": "seed_task_0",
            "question": "When do owls hunt?",
            "answers": [RAFT_ANSWER],
            "gold": [(OWL, "", "")],
            "negatives": [(BEE[0], "", "")],
        }
    ],
)
BEIR = Sample(
    "beir",
    {
        "corpus.jsonl": lines(
            [
                {"_id": "d1", "title": "Owls", "text": OWL, "metadata": {}},
                {"_id": "d2", "title": "", "text": "Tea is hot.", "metadata": {}},
                {"_id": "d3", "title": "Only a title", "text": ""},
                {"_id": "d4", "title": "", "text": ""},
            ]
        ),
        "queries.jsonl": lines(
            [
                {"_id": "q1", "text": "When do owls hunt?", "metadata": {}},
                {"_id": "q2", "text": "Is tea hot?"},
                {"_id": "q3", "text": "Who judges this?"},
            ]
        ),
        "qrels/test.tsv": "query-id\tcorpus-id\tscore\nq2\td2\t2\nq1\td1\t1\nq1\td3\t1\nq1\td2\t0\n",
    },
    [
        {"id": "q1", "question": "When do owls hunt?", "gold": [OWLS, ("Only a title", "", "Only a title")]},
        {"id": "q2", "question": "Is tea hot?", "gold": [("Tea is hot.", "", "d2")]},
    ],
    corpus=[OWLS, ("Tea is hot.", "", "d2"), ("Only a title", "", "Only a title")],
    is_folder=True,
)
RAGAS = Sample(
    "ragas",
    [
        {
            "user_input": "When do owls hunt?",
            "reference_contexts": [OWL],
            "reference": "At night.",
            "synthesizer_name": "single_hop",
        },
        {
            "user_input": "Who dances and who hunts?",
            "reference_contexts": [f"<1-hop>\n\n{BEE[0]}", f"<2-hop>\n\n{OWL}"],
            "retrieved_contexts": ["Tea is hot."],
            "response": "Bees.",
            "reference": "Bees and owls.",
        },
    ],
    [
        {"question": "When do owls hunt?", "answers": ["At night."], "gold": [(OWL, "", "")]},
        {
            "question": "Who dances and who hunts?",
            "answers": ["Bees and owls."],
            "gold": [(BEE[0], "", ""), (OWL, "", "")],
            "contexts": [("Tea is hot.", "", "")],
        },
    ],
)
RAGAS_OLD = Sample(
    "ragas",
    [
        {
            "question": "Who dances?",
            "contexts": [BEE[0]],
            "ground_truth": "Bees.",
            "evolution_type": "simple",
            "metadata": [{"source": "bees.md", "filename": "other"}],
        },
        {"question": "Who hunts?", "contexts": [OWL], "ground_truths": ["Owls.", "An owl."], "answer": "Elks."},
    ],
    [
        {"question": "Who dances?", "answers": ["Bees."], "gold": [(BEE[0], "", "bees.md")]},
        {"question": "Who hunts?", "answers": ["Owls.", "An owl."], "contexts": [(OWL, "", "")]},
    ],
)
LANGCHAIN_DOCUMENTS = Sample(
    "langchain_documents",
    [
        {"page_content": OWL, "metadata": {"source": "owls.html", "title": "Owls", "page": 3}, "type": "Document"},
        {"page_content": BEE[0], "metadata": {"file_path": "bees.pdf", "source": None}},
        {
            "lc": 1,
            "type": "constructor",
            "id": ["langchain", "schema", "document", "Document"],
            "kwargs": {"page_content": ELK[0], "metadata": {"source": "elks.md"}, "type": "Document", "id": "e1"},
        },
        {"page_content": "", "metadata": {}},
    ],
    passages=[(OWL, "Owls", "owls.html"), (BEE[0], "", "bees.pdf"), (ELK[0], "", "elks.md")],
)
LANGCHAIN_QA = Sample(
    "langchain_qa",
    [
        {"query": "When do owls hunt?", "answer": "At night.", "context": OWL},
        {"qa_pairs": {"query": "Who dances?", "answer": "Bees."}},
    ],
    [
        {"question": "When do owls hunt?", "answers": ["At night."], "gold": [(OWL, "", "")]},
        {"question": "Who dances?", "answers": ["Bees."]},
    ],
)
LLAMAINDEX_PAIRS = Sample(
    "llamaindex_pairs",
    {
        "queries": {"q-a": "When do owls hunt?", "q-b": "Who dances?"},
        "corpus": {"n1": OWL, "n2": BEE[0], "n3": "Tea is hot."},
        "relevant_docs": {"q-a": ["n1"], "q-b": ["n2"]},
        "mode": "text",
    },
    [
        {"id": "q-a", "question": "When do owls hunt?", "gold": [(OWL, "", "n1")]},
        {"id": "q-b", "question": "Who dances?", "gold": [(BEE[0], "", "n2")]},
    ],
    corpus=[(OWL, "", "n1"), (BEE[0], "", "n2"), ("Tea is hot.", "", "n3")],
)
LLAMAINDEX_RAG = Sample(
    "llamaindex_rag",
    {
        "examples": [
            {
                "query": "When do owls hunt?",
                "query_by": {"model_name": "", "type": "human"},
                "reference_contexts": [OWL],
                "reference_answer": "At night.",
                "reference_answer_by": {"model_name": "", "type": "human"},
            },
            {"query": "Who sings?", "reference_contexts": None, "reference_answer": ""},
        ]
    },
    [
        {"question": "When do owls hunt?", "answers": ["At night."], "gold": [(OWL, "", "")]},
        {"question": "Who sings?"},
    ],
)
NODES = [
    {
        "id_": "n1",
        "embedding": None,
        "metadata": {"file_name": "owls.md", "document_title": "Owls"},
        "relationships": {"1": {"node_id": "doc1", "node_type": "4"}},
        "text": OWL,
        "start_char_idx": 0,
        "class_name": "TextNode",
    },
    {"id_": "n2", "metadata": {}, "relationships": {"1": {"node_id": "doc2"}}, "text": BEE[0]},
    {"id_": "n3", "metadata": {}, "text_resource": {"text": "Tea is hot."}, "class_name": "Document"},
    {"id_": "n4", "metadata": {}, "text": ""},
]
NODE_PASSAGES = [(OWL, "Owls", "owls.md"), (BEE[0], "", "doc2"), ("Tea is hot.", "", "n3")]
LLAMAINDEX_NODES = Sample("llamaindex_nodes", NODES, passages=NODE_PASSAGES)
LLAMAINDEX_DOCSTORE = Sample(
    "llamaindex_nodes",
    {
        "docstore/metadata": {"n1": {"doc_hash": "0"}},
        "docstore/data": {node["id_"]: {"__data__": node, "__type__": "1"} for node in NODES},
    },
    passages=NODE_PASSAGES,
)
RQA_FEEDBACK = Sample(
    "rqa_feedback",
    [
        {
            "id": f"chatcmpl-{i}",
            "question": "who dances",
            "chat_history": [],
            "answer": "bees [2]",
            "citations": is_citing,
            "passages": [
                {"number": 1, "id": "0a", "title": "", "text": "Elks swim.", "sources": [], "score": 0.9},
                {"number": 2, "id": "0b", "title": "Bees", "text": "Bees dance.", "sources": ["b.html"], "score": 0.8},
            ],
            "correct": i < 2,
            "comment": "",
            "time": "2025-01-01T00:00:00+00:00",
        }
        for i, is_citing in enumerate((True, False, True))
    ],
    [
        {
            "id": "chatcmpl-0",
            "question": "who dances",
            "answers": ["bees [1]"],
            "gold": [("Bees dance.", "Bees", "b.html")],
        },
        {
            "id": "chatcmpl-1",
            "question": "who dances",
            "answers": ["bees [2]"],
            "gold": [("Elks swim.", "", ""), ("Bees dance.", "Bees", "b.html")],
        },
    ],
    corpus=[("Bees dance.", "Bees", "b.html"), ("Elks swim.", "", "")],
)
SAMPLES = {name.lower(): value for name, value in list(globals().items()) if isinstance(value, Sample)}
