from .batching import BatchLayout as BatchLayout
from .batching import steps_per_epoch as steps_per_epoch
from .batching import training_batches as training_batches
from .checkpoint import Checkpoints as Checkpoints
from .checkpoint import DamagedCheckpointError as DamagedCheckpointError
from .checkpoint import export as export
from .contrastive import ContrastiveCollator as ContrastiveCollator
from .contrastive import ContrastiveEncoder as ContrastiveEncoder
from .contrastive import ContrastiveRow as ContrastiveRow
from .contrastive import check_replicated as check_replicated
from .contrastive import export_encoder as export_encoder
from .distillation import DistillationCollator as DistillationCollator
from .distillation import Lesson as Lesson
from .distillation import Teacher as Teacher
from .distillation import read_teacher as read_teacher
from .early_stopping import EarlyStopping as EarlyStopping
from .loop import Step as Step
from .loop import train_steps as train_steps
from .optim import OPTIMIZERS as OPTIMIZERS
from .optim import OptimizerKind as OptimizerKind
from .optim import make_optimizer as make_optimizer
from .run_log import Run as Run
from .run_log import RunLog as RunLog
from .run_log import log_rows as log_rows
from .run_log import new_folder as new_folder
from .run_log import run_fingerprint as run_fingerprint
from .run_log import start_run as start_run
from .schedule import learning_rate_at as learning_rate_at
from .schedule import max_weight_change as max_weight_change
from .signals import StopSignals as StopSignals
from .signals import log_resume_command as log_resume_command
from .trackers import Tracker as Tracker

__all__ = [
    "OPTIMIZERS",
    "BatchLayout",
    "Checkpoints",
    "ContrastiveCollator",
    "ContrastiveEncoder",
    "ContrastiveRow",
    "DamagedCheckpointError",
    "DistillationCollator",
    "EarlyStopping",
    "Lesson",
    "OptimizerKind",
    "Run",
    "RunLog",
    "Step",
    "StopSignals",
    "Teacher",
    "Tracker",
    "check_replicated",
    "export",
    "export_encoder",
    "learning_rate_at",
    "log_resume_command",
    "log_rows",
    "make_optimizer",
    "max_weight_change",
    "new_folder",
    "read_teacher",
    "run_fingerprint",
    "start_run",
    "steps_per_epoch",
    "train_steps",
    "training_batches",
]
