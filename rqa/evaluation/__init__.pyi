from .attribution import CrossAttention as CrossAttention
from .attribution import leave_one_out as leave_one_out
from .attribution import share_on_gold as share_on_gold
from .comparison import Evaluation as Evaluation
from .comparison import Results as Results
from .comparison import check_same_questions as check_same_questions
from .comparison import differences as differences
from .comparison import differing_questions as differing_questions
from .comparison import paired_predictions as paired_predictions
from .comparison import read_evaluation as read_evaluation
from .comparison import read_results as read_results
from .context_report import Contexts as Contexts
from .context_report import build_contexts as build_contexts
from .context_report import compare_contexts as compare_contexts
from .context_report import context_table as context_table
from .evaluate import ATTRIBUTIONS as ATTRIBUTIONS
from .evaluate import AnswerLoss as AnswerLoss
from .evaluate import Evaluator as Evaluator
from .evaluate import Scores as Scores
from .metrics import METRICS as METRICS
from .metrics import Metric as Metric
from .metrics import answer_scores as answer_scores
from .metrics import corpus_bleu as corpus_bleu
from .metrics import format_scores as format_scores
from .metrics import retrieval_scores as retrieval_scores
from .results import EvaluationRecord as EvaluationRecord
from .results import PairedResult as PairedResult
from .results import PassageRecord as PassageRecord
from .results import PredictionRecord as PredictionRecord
from .results import ScoreRecord as ScoreRecord
from .results import StepRecord as StepRecord
from .results import TimingRecord as TimingRecord
from .results import read_record as read_record
from .results import write_record as write_record
from .significance import LEVEL as LEVEL
from .significance import RESAMPLES as RESAMPLES
from .significance import compare as compare
from .significance import interval as interval
from .significance import paired_test as paired_test
from .significance import question_scores as question_scores
from .significance import score_intervals as score_intervals

__all__ = [
    "ATTRIBUTIONS",
    "LEVEL",
    "METRICS",
    "RESAMPLES",
    "AnswerLoss",
    "Contexts",
    "CrossAttention",
    "Evaluation",
    "EvaluationRecord",
    "Evaluator",
    "Metric",
    "PairedResult",
    "PassageRecord",
    "PredictionRecord",
    "Results",
    "ScoreRecord",
    "Scores",
    "StepRecord",
    "TimingRecord",
    "answer_scores",
    "build_contexts",
    "check_same_questions",
    "compare",
    "compare_contexts",
    "context_table",
    "corpus_bleu",
    "differences",
    "differing_questions",
    "format_scores",
    "interval",
    "leave_one_out",
    "paired_predictions",
    "paired_test",
    "question_scores",
    "read_evaluation",
    "read_record",
    "read_results",
    "retrieval_scores",
    "score_intervals",
    "share_on_gold",
    "write_record",
]
