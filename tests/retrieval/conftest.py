"""A small encoder checkpoint."""

import json
from pathlib import Path

import pytest
from sentence_transformers import SentenceTransformer
from tiny_models import save_encoder


@pytest.fixture(scope="package")
def path(tmp_path_factory):
    return save_encoder(tmp_path_factory.mktemp("encoder") / "sentences")


@pytest.fixture
def with_config():
    def with_config(path, copy, **values):
        """Write a copy of a checkpoint with other values in its configuration of prompts."""
        SentenceTransformer(path, device="cpu").save(str(copy))
        config = Path(copy, "config_sentence_transformers.json")
        config.write_text(json.dumps(json.loads(config.read_text()) | values))
        return str(copy)

    return with_config


@pytest.fixture
def progress(monkeypatch):
    """All progress that ended: (description, done, total)."""
    ended = []

    def end(self, *_):
        self._ended.set()
        ended.append((self.description, self.done, self.total))

    monkeypatch.setattr("rqa.terminal.Progress.__exit__", end)
    return ended
