from .citation_support import build_support_requests as build_support_requests
from .client import Judge as Judge
from .judge_evaluation import RESPONSES_FILE as RESPONSES_FILE
from .judge_evaluation import build_requests as build_requests
from .judge_evaluation import judge_answers as judge_answers
from .judge_evaluation import read_labels as read_labels
from .prompt import JudgeRequest as JudgeRequest
from .prompt import SupportRequest as SupportRequest
from .verdicts import Agreement as Agreement
from .verdicts import Cost as Cost
from .verdicts import Verdict as Verdict
from .verdicts import cohens_kappa as cohens_kappa
from .verdicts import summarize as summarize

__all__ = [
    "RESPONSES_FILE",
    "Agreement",
    "Cost",
    "Judge",
    "JudgeRequest",
    "SupportRequest",
    "Verdict",
    "build_requests",
    "build_support_requests",
    "cohens_kappa",
    "judge_answers",
    "read_labels",
    "summarize",
]
