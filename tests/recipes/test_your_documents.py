"""docs/your-documents.md: its commands run in their order, with tiny models and a server that writes questions."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import httpx
import pytest
from tiny_models import save_decoder, save_encoder
from world import LAUNCH_SECONDS, ROOT, launch_environment, read_jsonl
from writer_server import WriterServer, lamp

PAGE = (ROOT / "docs/your-documents.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```bash\n(.*?)^```$", PAGE, flags=re.DOTALL | re.MULTILINE)


def documents(folder):
    """Write Markdown files, each with a heading for each lamp."""
    folder.mkdir()
    for document in range(8):
        parts = [f"# Lamps {document}\n"]
        for number in range(3 * document, 3 * document + 3):
            row = lamp(number, document)
            parts.append(f"## {row['metadata']['title'].rpartition(' > ')[2]}\n\n{row['page_content']}\n")
        (folder / f"lamps{document}.md").write_text("\n".join(parts), encoding="utf-8")


def run(block, folder, environment):
    """Run a block as bash does, and stop at the first error."""
    command = ["bash", "-euo", "pipefail", "-c", block]
    done = subprocess.run(command, cwd=folder, env=environment, text=True, capture_output=True, timeout=LAUNCH_SECONDS)
    assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def serve(block, folder, environment):
    """Run the server of a block, ask and rate one question, stop it as Ctrl-C does."""
    server = subprocess.Popen(block.split(), cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        url = wait_for_address(server)
        asked = {"model": "rqa", "messages": [{"role": "user", "content": "When was the lamp of Babab lit?"}]}
        reply = httpx.post(f"{url}/v1/chat/completions", json=asked, timeout=60).raise_for_status().json()
        rating = {"id": reply["id"], "correct": True, "comment": ""}
        httpx.post(f"{url}/feedback", json=rating, headers={"Origin": url}, timeout=60).raise_for_status()
        server.send_signal(signal.SIGINT)
        assert server.wait(60) == 0
    finally:
        server.kill()
        server.wait()


def wait_for_address(server):
    deadline = time.monotonic() + LAUNCH_SECONDS
    for line in server.stderr:
        if found := re.search(r"http://127\.0\.0\.1:\d+", line):
            return found[0]
        assert time.monotonic() < deadline
    raise AssertionError("the server ended")


COMMANDS = re.findall(r"recipes/(\w+\.py)((?:\\\n|[^\n`])*)", PAGE)


@pytest.mark.parametrize(("recipe", "words"), COMMANDS, ids=[recipe for recipe, _ in COMMANDS])
def test_every_recipe_and_flag_of_the_page_exists(recipe, words):
    places = [ROOT / "recipes" / recipe, *(ROOT / "rqa/cli").glob("*.py")]
    text = "\n".join(path.read_text(encoding="utf-8") for path in places)
    for flag in re.findall(r"--(\w+)", words):
        assert re.search(rf'^ +{flag}: .* = (cli\.)?flag\(|"--{flag}"', text, re.MULTILINE), flag


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_commands_of_the_page_lead_from_a_folder_to_a_page_that_answers(tmp_path):
    documents(tmp_path / "documents")
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    for name, words in {"python": "", "accelerate": "-m accelerate.commands.accelerate_cli"}.items():
        (bin_folder / name).write_text(f'#!/bin/sh\nexec {sys.executable} {words} "$@"\n')
        (bin_folder / name).chmod(0o755)
    variables, *rest = BLOCKS
    names = re.findall(r"(\w+)=", variables)
    with WriterServer() as server:
        values = {
            "DOCUMENTS": str(tmp_path / "documents"),
            "ENCODER": save_encoder(tmp_path / "encoder", length=512),
            "MODEL": save_decoder(tmp_path / "model"),
            "WRITER": "writer",
            "WRITER_URL": server.url,
            "OPENAI_API_KEY": "EMPTY",
        }
        assert {*names} == {*values}
        path = f"{bin_folder}{os.pathsep}{os.environ['PATH']}"
        environment = launch_environment(**values, PATH=path, ACCELERATE_USE_CPU="true")
        for block in rest:
            if "serve.py" in block:
                serve(block, tmp_path, environment)
            else:
                run(block, tmp_path, environment)
    work = tmp_path / "work"
    assert json.loads((work / "run/test/score.json").read_text())["metrics"]["judge_accuracy"] is not None
    [rated] = read_jsonl(work / "rated.jsonl")
    assert rated["question"] == "When was the lamp of Babab lit?"
    assert read_jsonl(work / "train2.jsonl")[-1] == rated
