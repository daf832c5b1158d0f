from .convert import Document as Document
from .convert import read_document as read_document
from .files import Listing as Listing
from .files import list_files as list_files
from .sections import Section as Section
from .splitter import Splitter as Splitter
from .writer import CorpusReport as CorpusReport
from .writer import previous_passages as previous_passages
from .writer import write_corpus as write_corpus

__all__ = [
    "CorpusReport",
    "Document",
    "Listing",
    "Section",
    "Splitter",
    "list_files",
    "previous_passages",
    "read_document",
    "write_corpus",
]
