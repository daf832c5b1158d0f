from .corpus import PassageStore as PassageStore
from .corpus import open_passages as open_passages
from .file_report import DataError as DataError
from .passage_selection import REFUSAL_ANSWER as REFUSAL_ANSWER
from .passage_selection import GeneratorInput as GeneratorInput
from .passage_selection import select_passages as select_passages
from .passage_selection import warn_without_gold as warn_without_gold
from .records import Example as Example
from .records import Passage as Passage
from .records import Turn as Turn
from .records import load_examples as load_examples
from .records import load_splits as load_splits

__all__ = [
    "REFUSAL_ANSWER",
    "DataError",
    "Example",
    "GeneratorInput",
    "Passage",
    "PassageStore",
    "Turn",
    "load_examples",
    "load_splits",
    "open_passages",
    "select_passages",
    "warn_without_gold",
]
