from .dense import DenseRetriever as DenseRetriever
from .dense import open_retriever as open_retriever
from .encoder import Encoder as Encoder
from .index import DamagedIndexError as DamagedIndexError
from .index import FaissIndex as FaissIndex
from .index import StaleIndexError as StaleIndexError
from .retrieve import KS as KS
from .retrieve import Retrieval as Retrieval
from .retrieve import Retrieved as Retrieved
from .retrieve import Retriever as Retriever
from .retrieve import build_query as build_query
from .retrieve import open_corpus as open_corpus
from .retrieve import retrieve_splits as retrieve_splits
from .retrieve import uses_only_gold as uses_only_gold

__all__ = [
    "KS",
    "DamagedIndexError",
    "DenseRetriever",
    "Encoder",
    "FaissIndex",
    "Retrieval",
    "Retrieved",
    "Retriever",
    "StaleIndexError",
    "build_query",
    "open_corpus",
    "open_retriever",
    "retrieve_splits",
    "uses_only_gold",
]
