from .plan import Plan as Plan
from .rules import Rules as Rules
from .sampling import PassageSampler as PassageSampler
from .writer import Question as Question
from .writer import Task as Task
from .writer import Writer as Writer
from .writing import RESPONSES_FILE as RESPONSES_FILE
from .writing import estimate_questions as estimate_questions
from .writing import write_questions as write_questions

__all__ = [
    "RESPONSES_FILE",
    "PassageSampler",
    "Plan",
    "Question",
    "Rules",
    "Task",
    "Writer",
    "estimate_questions",
    "write_questions",
]
