"""Flags of the server."""

import os
from dataclasses import dataclass
from pathlib import Path

from rqa.cli.parser import at_least, flag, require_package
from rqa.errors import InputError


@dataclass(frozen=True)
class ServeArgs:
    """The address of the server, its limits, and the file of feedback."""

    evaluation: str = flag(
        "", "folder of an evaluation, or of the test of a training run; its flags are defaults", is_path=True
    )
    host: str = flag("127.0.0.1", "address to listen on; one of the network needs --token_name")
    port: int = flag(8000, "port to listen on; 0: a free one, which is logged")
    token_name: str = flag("", "environment variable with the token of the server; default: no token")
    served_model_name: str = flag("rqa", "name of the model in requests")
    feedback_file: str = flag(
        "", "file of the feedback; default: feedback.jsonl in the folder of --evaluation, or here", is_path=True
    )
    max_batch_size: int = flag(8, "questions answered at a time")
    max_queue: int = flag(64, "questions that wait at most; more are refused with status 503")
    answer_timeout: float = flag(120.0, "seconds until a question is given up, with its time in the queue")
    shutdown_timeout: int = flag(30, "seconds that running answers have after SIGTERM")

    def check(self) -> None:
        """Raise InputError for values that are not allowed."""
        for package in ("starlette", "uvicorn"):
            require_package("serving", package, "serve")
        at_least(self, 1, "max_batch_size", "max_queue", "shutdown_timeout")
        at_least(self, 0, "port")
        if not self.answer_timeout > 0:
            raise InputError(f"--answer_timeout: expected more than 0 seconds, got {self.answer_timeout}")
        if self.token_name and not os.environ.get(self.token_name):
            raise InputError(f"--token_name {self.token_name}: expected an environment variable with a token, got none")

    @property
    def token(self) -> str:
        """The token, empty without --token_name."""
        return os.environ[self.token_name] if self.token_name else ""

    @property
    def feedback_path(self) -> Path:
        """The file of the feedback."""
        return Path(self.feedback_file or Path(self.evaluation, "feedback.jsonl"))
