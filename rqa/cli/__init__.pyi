from .card_facts import card_facts as card_facts
from .data_args import DataArgs as DataArgs
from .data_args import FidPromptArgs as FidPromptArgs
from .data_args import GeneratorArgs as GeneratorArgs
from .data_args import PassageArgs as PassageArgs
from .data_args import PromptArgs as PromptArgs
from .data_args import row_options as row_options
from .endpoint_args import EndpointArgs as EndpointArgs
from .evaluation_args import EvaluationArgs as EvaluationArgs
from .judge_args import JudgeArgs as JudgeArgs
from .parser import Parser as Parser
from .parser import at_least as at_least
from .parser import check_output as check_output
from .parser import flag as flag
from .parser import flat as flat
from .parser import options as options
from .parser import parse_args as parse_args
from .parser import require as require
from .parser import run_main as run_main
from .question_args import QuestionArgs as QuestionArgs
from .question_args import WriterArgs as WriterArgs
from .retrieval_args import BuildArgs as BuildArgs
from .retrieval_args import IndexArgs as IndexArgs
from .retrieval_args import RetrievalArgs as RetrievalArgs
from .retrieval_args import SearchArgs as SearchArgs
from .retriever_training_args import ContrastiveArgs as ContrastiveArgs
from .retriever_training_args import MiningArgs as MiningArgs
from .serve_args import ServeArgs as ServeArgs
from .sharing_args import SharingArgs as SharingArgs
from .training_args import LoopRunArgs as LoopRunArgs
from .training_args import ModelArgs as ModelArgs
from .training_args import OptimizationArgs as OptimizationArgs
from .training_args import RunArgs as RunArgs
from .training_args import flags_locked_on_resume as flags_locked_on_resume

__all__ = [
    "BuildArgs",
    "ContrastiveArgs",
    "DataArgs",
    "EndpointArgs",
    "EvaluationArgs",
    "FidPromptArgs",
    "GeneratorArgs",
    "IndexArgs",
    "JudgeArgs",
    "LoopRunArgs",
    "MiningArgs",
    "ModelArgs",
    "OptimizationArgs",
    "Parser",
    "PassageArgs",
    "PromptArgs",
    "QuestionArgs",
    "RetrievalArgs",
    "RunArgs",
    "SearchArgs",
    "ServeArgs",
    "SharingArgs",
    "WriterArgs",
    "at_least",
    "card_facts",
    "check_output",
    "flag",
    "flags_locked_on_resume",
    "flat",
    "options",
    "parse_args",
    "require",
    "row_options",
    "run_main",
]
