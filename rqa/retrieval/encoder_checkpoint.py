"""Sentence encoders on the disk: their files are checked, and every weight is loaded or there is an InputError."""

import hashlib
import json
import logging
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.integrations import deepspeed

from rqa.atomic_files import sha256_of
from rqa.distributed.hub import check_checkpoint_name, quiet_transformers
from rqa.distributed.pickled_weights import log_pickled, pickled_files, read_pickled
from rqa.distributed.untrusted import check_untrusted_folder, read_settings
from rqa.errors import InputError
from rqa.terminal import Progress, track

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder, SentenceTransformer

log = logging.getLogger(__name__)

QUERY_PROMPTS, PASSAGE_PROMPTS = ("query",), ("document", "passage", "corpus")  # names, the first one that is set
SETTINGS_FILE = "config_sentence_transformers.json"
_CHECKPOINT_FILES = ["*.safetensors", "*.json", "*.txt", "*.model"]
_PICKLED = "pytorch_model*.bin"
_EXPORTS = ("onnx", "openvino")  # folders for other runtimes
_SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")
_LOAD_OPTIONS: dict[str, Any] = {
    "trust_remote_code": False,
    "local_files_only": True,
    # A checkpoint's own files cannot replace these: plain attention, plain experts, no code from the hub.
    "model_kwargs": {
        "dtype": torch.float32,
        "attn_implementation": None,
        "experts_implementation": None,
        "use_kernels": False,
    },
}
# Raised by transformers and sentence-transformers for files, or values in them, that they do not expect.
_LOADING_ERRORS = (
    *(OSError, ValueError, ImportError, SafetensorError, StrictDataclassError),
    *(ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError),
)
_DPR_KEYS = {r"^(question|ctx)_encoder\.bert_model\.": ""}  # names of a BERT's weights in a checkpoint of DPR
Side = Literal["both", "query", "passage"]  # texts that an encoder embeds
# The class of a checkpoint of DPR that embeds one side alone (Karpukhin et al., 2020, arXiv:2004.04906).
_DPR_SIDES: dict[str, Side] = {"DPRQuestionEncoder": "query", "DPRContextEncoder": "passage"}
_POOLER = re.compile(r"(^|\.)pooler\.")  # weights for the task of BERT's pretraining

# Ends of the class names of models that are no encoders, and what they are. Their mean over tokens ranks badly.
_OTHER_MODELS = {
    "ForCausalLM": "a decoder",
    "LMHeadModel": "a decoder",
    "ForConditionalGeneration": "a generator",
    "ForSequenceClassification": "a classifier or cross-encoder, which reads query and passage together",
    "ForTokenClassification": "a classifier of tokens",
    "ForQuestionAnswering": "a reader",
    "DPRReader": "a reader",
}


@dataclass(frozen=True)
class Settings:
    """The prompts, the similarity and the number of dimensions (None: all) that a checkpoint was trained for."""

    prompts: dict[str, str | None]
    similarity: str
    truncate_dim: int | None

    def prompt(self, *names: str) -> str:
        """Return the first prompt with one of these names, "" if there is none."""
        return next(filter(None, map(self.prompts.get, names)), "")

    @property
    def unknown_prompts(self) -> list[str]:
        """The names of all prompts, if none is for queries or passages."""
        names = [name for name, text in self.prompts.items() if text]
        return [] if {*QUERY_PROMPTS, *PASSAGE_PROMPTS} & {*names} else names


def checkpoint_folder(name_or_path: str, *, is_reranker: bool = False, side: Side = "both") -> Path:
    """Return the folder of a checkpoint, after checking its files; a hub name is downloaded into the hub's cache.

    Raises InputError if it is no sentence encoder (no cross-encoder if `is_reranker`), embeds another side than `side`,
    is damaged, or has settings that run code.
    """
    folder = Path(name_or_path)
    if not folder.is_dir():
        check_checkpoint_name(name_or_path)
        exports = [f"{name}/*" for name in _EXPORTS]
        try:
            folder = Path(snapshot_download(name_or_path, allow_patterns=_CHECKPOINT_FILES, ignore_patterns=exports))
            if not any(folder.rglob("*.safetensors")):
                patterns = [*_CHECKPOINT_FILES, _PICKLED]
                folder = Path(snapshot_download(name_or_path, allow_patterns=patterns, ignore_patterns=exports))
        except (OSError, ValueError) as error:
            raise InputError(f"{name_or_path}: expected a checkpoint folder or a hub name: {error}") from error
    files = checkpoint_files(folder)
    if not files:
        raise InputError(f"{name_or_path}: expected a checkpoint, got a folder without config.json and weights.")
    check_untrusted_folder(folder)
    _check_weight_files(files)
    if is_reranker:
        _check_reranker(name_or_path, folder / "config.json")
    elif not (modules := folder / "modules.json").exists():
        _check_architecture(name_or_path, folder / "config.json", side)
    elif not read_settings(modules):
        raise InputError(f"{modules}: expected a list of modules, got none. Copy the file again")
    return folder


def checkpoint_files(folder: Path) -> list[Path]:
    """Return the files that affect embeddings: weights, configurations, vocabularies."""
    paths = {path for pattern in _CHECKPOINT_FILES for path in folder.rglob(pattern)}
    paths |= {path for each in folder.rglob(_PICKLED) for path in pickled_files(each.parent)}
    names = {path.relative_to(folder) for path in paths}
    return sorted(folder / name for name in names - {Path(SETTINGS_FILE)} if name.parts[0] not in _EXPORTS)


def checkpoint_fingerprint(name: str, folder: Path) -> str:
    """Return a hash of the checkpoint's files, the same in another folder."""
    digest = hashlib.sha256()
    for path in track(checkpoint_files(folder), f"hashing {name}", unit="files"):
        digest.update(f"{path.relative_to(folder)} {sha256_of(path)}".encode())
    return digest.hexdigest()


def read_encoder_settings(folder: Path) -> Settings:
    """Return the settings of sentence-transformers. Raises InputError if they are of another type of model."""
    path = folder / SETTINGS_FILE
    values = read_settings(path) if path.exists() else {}
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected a JSON object, got {type(values).__name__}. Copy the file again")
    if (kind := values.get("model_type", "SentenceTransformer")) != "SentenceTransformer":
        raise InputError(f"{path}: expected a SentenceTransformer, got a {kind}. Choose a sentence encoder")
    prompts, truncate_dim = values.get("prompts") or {}, values.get("truncate_dim")
    if not isinstance(prompts, dict) or not all(isinstance(text, str | None) for text in prompts.values()):
        raise InputError(f'{path}: "prompts": expected texts by name, got {prompts}')
    if truncate_dim is not None and (type(truncate_dim) is not int or truncate_dim < 1):
        raise InputError(f'{path}: "truncate_dim": expected a number of dimensions, got {truncate_dim}')
    similarity = values.get("similarity_fn_name") or "cosine"
    if similarity not in _SIMILARITIES:
        raise InputError(f'{path}: "similarity_fn_name": expected one of {", ".join(_SIMILARITIES)}, got {similarity}')
    return Settings(prompts, similarity, truncate_dim)


def _check_weight_files(files: list[Path]) -> None:
    """Raise InputError if a weights file is damaged, or is a pickle that would run code."""
    for path in files:
        if path.suffix == ".bin":
            read_pickled(path)
        elif path.suffix == ".safetensors":
            try:
                with safe_open(path, "pt"):  # reads the header, and compares it with the size of the file
                    pass
            except (OSError, SafetensorError) as error:
                raise InputError(f"{path}: expected a safetensors file, got {error}. Copy the file again") from error


def _read_config(path: Path) -> tuple[dict[str, Any], str]:
    """Return a config.json, and the name of its class of model."""
    config = read_settings(path)
    if not isinstance(config, dict):
        raise InputError(f"{path}: expected a JSON object, got {type(config).__name__}. Copy the file again")
    names = config.get("architectures")
    return config, str(names[0]) if isinstance(names, list) and names else ""


def _check_reranker(name: str, path: Path) -> None:
    """Raise InputError unless a checkpoint is a cross-encoder with one score."""
    architecture, labels = "no config.json", 1
    if path.exists():
        config, architecture = _read_config(path)
        id2label = config.get("id2label")
        labels = len(id2label) if isinstance(id2label, dict) else config.get("num_labels", 2)
    if not architecture.endswith("ForSequenceClassification") or labels != 1:
        what = f"{architecture or 'another model'} with {labels} labels" if labels != 1 else architecture
        raise InputError(
            f"--reranker_model {name}: expected a cross-encoder, a model for sequence classification with one label, "
            f"got {what or 'another model'}. Choose another checkpoint"
        )


def is_dpr(folder: Path) -> bool:
    """Return True for a checkpoint of DPR without modules of sentence-transformers."""
    path = folder / "config.json"
    return not (folder / "modules.json").exists() and path.exists() and _read_config(path)[1] in _DPR_SIDES


def _check_dpr(name: str, config: dict[str, Any], architecture: str, side: Side) -> None:
    """Raise InputError unless a checkpoint of DPR embeds `side`, by the output of BERT."""
    own = _DPR_SIDES[architecture]
    if own != side:
        fix = "Set --embedding_model to the encoder of passages, and --query_encoder to that of questions"
        kind = {"query": "questions", "passage": "passages"}
        expected = f"an encoder of {kind[side]}" if side in kind else "a sentence encoder"
        raise InputError(f"{name}: expected {expected}, got {architecture}, an encoder of {kind[own]} alone. {fix}")
    if config.get("projection_dim"):
        size = config["projection_dim"]
        raise InputError(f"{name}: projection_dim: expected 0, got {size}. Choose another checkpoint")


def _check_architecture(name: str, path: Path, side: Side) -> None:
    """Raise InputError if a checkpoint of transformers alone, which gets mean pooling, is no encoder of `side`."""
    if not path.exists():
        raise InputError(f"{name}: expected modules.json or config.json, got neither. Choose another folder")
    config, architecture = _read_config(path)
    if architecture in _DPR_SIDES:
        _check_dpr(name, config, architecture, side)
        return
    kind = next((kind for ending, kind in _OTHER_MODELS.items() if architecture.endswith(ending)), "")
    if config.get("is_encoder_decoder") and not architecture.endswith(("Encoder", "EncoderModel")):
        kind = "an encoder-decoder"
    elif not kind and _is_decoder(config.get("model_type")):
        kind = "a decoder"
    if kind:
        raise InputError(
            f"{name}: expected a sentence encoder, got {architecture or config['model_type']}, {kind}. "
            "Choose another checkpoint. One that was trained to embed has a modules.json, which sentence-transformers "
            "writes with its pooling"
        )
    log.warning("%s has no modules.json: its vectors are means over its tokens", name)


def _is_decoder(model_type: object) -> bool:
    from transformers.models.auto import modeling_auto as auto

    return model_type in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.keys() - auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES.keys()


def load_encoder(name: str, folder: Path, device: torch.device, truncate_dim: int | None) -> "SentenceTransformer":
    """Return the frozen model with float32 weights. Raises InputError if it cannot be loaded, or lacks weights."""
    from sentence_transformers import SentenceTransformer  # takes two seconds; a cached retrieval needs none

    if any(path.suffix == ".bin" for path in checkpoint_files(folder)):
        log_pickled(name)
    # Old versions of sentence-transformers do not read truncate_dim from the checkpoint.
    with _loading(name, "a sentence encoder") as loaded:
        options: dict[str, Any] = {"modules": _dpr_modules(folder)} if is_dpr(folder) else _LOAD_OPTIONS
        name_or_path = None if is_dpr(folder) else str(folder)
        model = SentenceTransformer(name_or_path, device=str(device), truncate_dim=truncate_dim, **options)
    for part, loading in loaded:
        _check_loaded(name, part, loading, reads_pooler=_reads_pooler(model))
    for module in model.modules():
        _check_tokenizer(name, module)
        _check_positions(name, module)
    _check_embeddings(name, model.eval())
    return model


def _dpr_modules(folder: Path) -> list[torch.nn.Module]:
    """Return the modules of a checkpoint of DPR: its BERT, and the output for the first token."""
    from sentence_transformers.models import Pooling, Transformer

    config, _ = _read_config(folder / "config.json")
    with tempfile.TemporaryDirectory() as bert:
        for path in folder.iterdir():
            if path.name != "config.json":
                Path(bert, path.name).symlink_to(path.resolve())
        config |= {"model_type": "bert", "architectures": ["BertModel"]}
        Path(bert, "config.json").write_text(json.dumps(config))
        options = {**_LOAD_OPTIONS["model_kwargs"], "key_mapping": _DPR_KEYS, "add_pooling_layer": False}
        transformer = Transformer(bert, model_kwargs=options, config_kwargs={"local_files_only": True})
    return [transformer, Pooling(int(config["hidden_size"]), "cls")]


def load_reranker(name: str, folder: Path, device: torch.device) -> "CrossEncoder":
    """Return the frozen cross-encoder with float32 weights. Raises InputError if it cannot be loaded, or lacks weights.

    Its inputs are cut at the positions of the model.
    """
    from sentence_transformers import CrossEncoder

    if any(path.suffix == ".bin" for path in checkpoint_files(folder)):
        log_pickled(name)
    with _loading(name, "a cross-encoder") as loaded:
        model = CrossEncoder(str(folder), device=str(device), **_LOAD_OPTIONS)
        model.predict([("a", "a")], show_progress_bar=False)
    for part, loading in loaded:
        _check_loaded(name, part, loading, reads_pooler=True)
    for module in model.modules():
        _check_tokenizer(name, module)
        _check_positions(name, module)
    return model.eval()  # type: ignore[no-any-return]


@contextmanager
def _loading(name: str, kind: str) -> Iterator[list[tuple[PreTrainedModel, dict[str, Any]]]]:
    """Show the progress of loading, outside of ZeRO-3's initialization; yield as `_recorded_loading` does."""
    with (
        Progress(f"loading {name}"),
        _errors(name, kind),
        quiet_transformers(),
        _without_zero3_init(),
        _recorded_loading() as loaded,
    ):
        yield loaded


@contextmanager
def _errors(name: str, kind: str = "a sentence encoder") -> Iterator[None]:
    """Raise the errors of libraries that read a checkpoint as InputError, in one line."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except _LOADING_ERRORS as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{name}: expected {kind}, got an error: {reason}") from error


def _check_embeddings(name: str, model: "SentenceTransformer") -> None:
    """Raise InputError unless a query and a passage get vectors of one dimension."""
    with _errors(name):
        dimensions = [len(encode(["a"], prompt="")[0]) for encode in (model.encode_query, model.encode_document)]
    if len({*dimensions}) > 1:
        raise InputError(
            f"{name}: expected one dimension, got queries of dimension {dimensions[0]} and passages of {dimensions[1]}"
        )


def _check_positions(name: str, module: torch.nn.Module) -> None:
    """Raise InputError if texts may be longer than the positions that the encoder has embeddings of."""
    is_transformer = any(isinstance(part, PreTrainedModel) for part in module.children())
    length = getattr(module, "max_seq_length", None) or 0
    for place, part in module.named_modules() if is_transformer else ():
        if place.endswith("position_embeddings") and isinstance(part, torch.nn.Embedding):
            first = 0 if part.padding_idx is None else part.padding_idx + 1  # of RoBERTa's family
            if length > (limit := part.num_embeddings - first):
                raise InputError(
                    f"{name}: expected a max_seq_length of at most {limit}, the positions of the encoder, "
                    f"in sentence_bert_config.json or tokenizer_config.json, got {length}. Correct it"
                )


@contextmanager
def _recorded_loading() -> Iterator[list[tuple[PreTrainedModel, dict[str, Any]]]]:
    """Yield a list of the models that transformers loads inside the block, with their missing weights.

    sentence-transformers does not return them, and transformers fills them with random numbers.
    """
    plain, loaded = PreTrainedModel.__dict__["from_pretrained"], []

    def from_pretrained(cls: type[PreTrainedModel], *args: Any, **options: Any) -> PreTrainedModel:
        options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
        model, loading = plain.__func__(cls, *args, **options)
        loaded.append((model, loading))
        return model  # type: ignore[no-any-return]

    PreTrainedModel.from_pretrained = classmethod(from_pretrained)  # type: ignore[assignment]
    try:
        yield loaded
    finally:
        PreTrainedModel.from_pretrained = plain  # type: ignore[method-assign]


def _reads_pooler(model: "SentenceTransformer") -> bool:
    """Return True if the embedding is the output of a pooler, not computed from the tokens."""
    outputs = [
        getattr(module, "module_output_name", "")
        for module in model.modules()
        if any(isinstance(part, PreTrainedModel) for part in module.children())
    ]
    return "sentence_embedding" in outputs


def _check_loaded(name: str, model: PreTrainedModel, loading: dict[str, Any], *, reads_pooler: bool) -> None:
    missing = {*loading["missing_keys"], *(key for key, *_ in loading["mismatched_keys"])}
    if not reads_pooler:
        missing = {key for key in missing if not _POOLER.search(key)}
    if missing:
        others = sorted(loading["unexpected_keys"])
        raise InputError(
            f"{name}: expected every weight of {type(model).__name__}, the checkpoint lacks {len(missing)} of "
            f"{len(model.state_dict())}: {', '.join(sorted(missing)[:3])}"
            + (f"; it has others, such as {others[0]}" if others else "")
        )


def _check_tokenizer(name: str, module: torch.nn.Module) -> None:
    """Let a tokenizer without a padding token that has an embedding pad with another token: padding is masked.

    Raises InputError if there is no vocabulary; texts with other tokens that have no embedding raise it when embedded.
    """
    tokenizer = getattr(module, "tokenizer", None)
    model = next((part for part in module.children() if isinstance(part, PreTrainedModel)), None)
    embeddings = model and model.get_input_embeddings()
    if not isinstance(tokenizer, PreTrainedTokenizerBase) or not isinstance(embeddings, torch.nn.Embedding):
        return
    size = embeddings.num_embeddings
    if len(tokenizer) < size / 2:  # without its files transformers makes one of special tokens alone
        expected = f"a tokenizer of about {size:,} tokens"
        raise InputError(f"{name}: expected {expected}, got one of {len(tokenizer):,}. Add its files")
    beyond = {token for token, i in tokenizer.get_vocab().items() if i >= size} if len(tokenizer) > size else set()
    if tokenizer.pad_token is None or tokenizer.pad_token in beyond:
        others = (tokenizer.eos_token, tokenizer.sep_token, tokenizer.unk_token)
        if not (usable := [token for token in others if token and token not in beyond]):
            raise InputError(f"{name}: expected a tokenizer with a padding token, got none. Set its pad_token")
        tokenizer.pad_token = usable[0]
    if beyond:
        embeddings.register_forward_pre_hook(partial(_check_ids, name, sorted(beyond)))


def _check_ids(name: str, tokens: list[str], embeddings: torch.nn.Embedding, inputs: tuple[Tensor, ...]) -> None:
    if int(inputs[0].max()) >= embeddings.num_embeddings:
        raise InputError(
            f"{name}: expected an embedding of every token, got {embeddings.num_embeddings:,} embeddings, and a text "
            f"with one of the tokens beyond them: {', '.join(map(repr, tokens[:3]))}. Resize the embeddings"
        )


@contextmanager
def _without_zero3_init() -> Iterator[None]:
    """Hide the ZeRO-3 configuration from transformers: under it models load with empty weights."""
    config = deepspeed._hf_deepspeed_config_weak_ref
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = config
