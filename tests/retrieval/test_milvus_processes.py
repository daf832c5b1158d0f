"""--store FOLDER in recipes: a killed build continues, a folder has one process at a time, evaluate.py searches it.

    python tests/retrieval/test_milvus_processes.py N MOMENT RECIPE [FLAGS]

runs a recipe in blocks of 4 passages, and kills it with SIGKILL in the N-th write, before or after the database has it.
"""

import json
import os
import re
import runpy
import signal
import sys
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from milvus_lite.adapter.grpc.servicer import MilvusServicer
from milvus_lite.db import MilvusLite
from pymilvus import MilvusClient
from world import launch

from rqa.data.corpus import open_passages
from rqa.errors import InputError
from rqa.retrieval import milvus
from rqa.retrieval.opening import open_retriever

BLOCK = 4


@pytest.fixture
def flags(world, tmp_path):
    """Flags of build_index.py, with a folder as the database."""
    folders = {"--index_path": str(tmp_path / "index"), "--store": str(tmp_path / "store")}
    return {"--embedding_model": world.encoder, "--document_path": world.corpus, **folders}


def build(flags, kill_in=0, moment="before"):
    """Run build_index.py with small blocks, and return its output."""
    by = (sys.executable, __file__, str(kill_in), moment)
    return launch("build_index.py", flags, by=by, expect=-signal.SIGKILL if kill_in else 0)


def stored(folder):
    """Return the name of the collection of a database, and its rows: {id: (hash of the content, vector)}."""
    client = MilvusClient(str(folder / milvus.LITE))
    [name] = client.list_collections()
    client.load_collection(name)
    rows = client.query(name, filter='id != ""', output_fields=["id", "content", "vector"])
    return name, {row["id"]: (row["content"], np.array(row["vector"], np.float32).tobytes()) for row in rows}


@pytest.mark.slow
@pytest.mark.parametrize(("moment", "num_stored"), [("before", 2 * BLOCK), ("after", 3 * BLOCK)])
def test_a_build_killed_in_a_write_embeds_only_the_missing_passages(flags, tmp_path, world, moment, num_stored):
    num_passages = len(Path(world.corpus).read_text().splitlines())
    assert "to write" in build(flags, kill_in=3, moment=moment)
    again = build(flags)
    assert f"{num_passages - num_stored} vectors to write, {num_stored} are in" in again
    assert f"{num_passages - num_stored} embedded, 0 copied" in again
    other = {**flags, "--index_path": str(tmp_path / "one"), "--store": str(tmp_path / "uninterrupted")}
    assert fingerprint(build(other)) == fingerprint(again)
    assert stored(tmp_path / "store") == stored(tmp_path / "uninterrupted")


def fingerprint(printed):
    return re.search("^fingerprint: .*", printed, re.MULTILINE)[0]


def test_a_folder_that_another_process_has_opened_is_an_error(world, flags, tmp_path):
    """A lock of another process and one of another open file are the same to the system."""
    (tmp_path / "store").mkdir()
    database = MilvusLite(str(tmp_path / "store" / milvus.LITE))
    try:
        with pytest.raises(InputError, match=rf"--store {tmp_path / 'store'}: .*One process at a time opens a folder"):
            open_retriever(
                open_passages(world.corpus), world.encoder, tmp_path / "index", device="cpu", store=flags["--store"]
            )
    finally:
        database.close()


@pytest.mark.slow
def test_evaluation_of_a_retriever_with_a_folder_gives_the_scores_of_faiss(world, flags, tmp_path):
    launch("build_index.py", flags)
    metrics = []
    for name in ("store", "faiss"):
        own = {**flags, "--eval_data_path": world.test, "--output_dir": str(tmp_path / name)}
        if name == "faiss":
            del own["--store"]
        printed = launch("evaluate.py", own)
        assert "to write" not in printed
        assert ("--store" in printed) == (name == "store")
        metrics.append(json.loads((tmp_path / name / "score.json").read_text())["metrics"])
    assert metrics[0] == metrics[1]


def kill_in_write(last, moment):
    """Kill this process in a write, before or after the database has its vectors; the writer gets no answer."""
    plain, writes = MilvusServicer.Upsert, count(1)

    def upsert(self, request, context):
        is_last = next(writes) == last
        if is_last and moment == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        answer = plain(self, request, context)
        if is_last:
            os.kill(os.getpid(), signal.SIGKILL)
        return answer

    MilvusServicer.Upsert = upsert


if __name__ == "__main__":
    kill_in_write(int(sys.argv[1]), sys.argv[2])
    milvus.BLOCK = BLOCK
    sys.argv = sys.argv[3:]
    runpy.run_path(sys.argv[0], run_name="__main__")
