from .bm25 import BM25Retriever as BM25Retriever
from .dense import DenseRetriever as DenseRetriever
from .encoder import Encoder as Encoder
from .hybrid import HybridRetriever as HybridRetriever
from .index import DamagedIndexError as DamagedIndexError
from .index import FaissIndex as FaissIndex
from .index import StaleIndexError as StaleIndexError
from .negatives import mine_negatives as mine_negatives
from .negatives import write_negatives as write_negatives
from .opening import open_retriever as open_retriever
from .rerank import Reranker as Reranker
from .rerank import RerankingRetriever as RerankingRetriever
from .retrieve import KS as KS
from .retrieve import CorpusRetriever as CorpusRetriever
from .retrieve import Retrieval as Retrieval
from .retrieve import Retrieved as Retrieved
from .retrieve import Retriever as Retriever
from .retrieve import build_query as build_query
from .retrieve import open_corpus as open_corpus
from .retrieve import retrieve_splits as retrieve_splits
from .retrieve import uses_only_gold as uses_only_gold

__all__ = [
    "KS",
    "BM25Retriever",
    "CorpusRetriever",
    "DamagedIndexError",
    "DenseRetriever",
    "Encoder",
    "FaissIndex",
    "HybridRetriever",
    "Reranker",
    "RerankingRetriever",
    "Retrieval",
    "Retrieved",
    "Retriever",
    "StaleIndexError",
    "build_query",
    "mine_negatives",
    "open_corpus",
    "open_retriever",
    "retrieve_splits",
    "uses_only_gold",
    "write_negatives",
]
