"""The frozen base model: verified by content, loaded without running its code, every parameter frozen.

What its identity is, and where its files are found: `pipeline.base.base_files`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.base.base_files import CONFIG, GENERATION_CONFIG, TOKENIZER_FILES, find, read_json
from pipeline.digest import digest, sha256_file, tensors_digest
from pipeline.errors import BaseModelError, IntegrityError
from pipeline.params import BaseModelParams, Pooling, Task

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

_POSITIONS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length")
_POSITIONS_OF_BOTH = (*_POSITIONS, "max_encoder_position_embeddings", "max_decoder_position_embeddings")
_MOST = 10**6
"""More tokens than that are what transformers writes for a tokenizer that knows no limit."""
_OFFSET_POSITIONS = frozenset(
    ("camembert", "data2vec-text", "roberta", "roberta-prelayernorm", "xlm-roberta")
)
"""Architectures whose first position is `pad_token_id + 1`, which many positions are therefore never used."""


@dataclass(frozen=True)
class ResolvedBase:
    """A base model found on this machine whose bytes are the pinned ones.

    Attributes:
        name: its key under `base_models`.
        folder: where its files lie.
        digest: its identity (see `pipeline.base.base_files`).
        files: {file name: SHA-256} of the files the identity covers.
        source: where it was said to be, as written in params.yaml.
    """

    name: str
    folder: Path
    digest: str
    files: Mapping[str, str]
    source: Mapping[str, str]


def resolve(name: str, params: BaseModelParams, workspace: Path) -> ResolvedBase:
    """Find the base model and verify it against the pinned digest.

    A hub model is taken from the local cache when the whole of it is there, and downloaded otherwise.

    Args:
        name: its key under `base_models`, for messages.
        workspace: the folder that a relative `path` is taken from.

    Raises:
        BaseModelError: it is not there, incomplete, or asks for code or pickle to be run.
        IntegrityError: its digest is another one than pinned.
    """
    where = f"base_models.{name}"
    folder, files = find(params.source, params.digest, workspace, where)
    found = digest(files)
    if found != params.digest:
        raise IntegrityError(
            [
                f"found    {found}",
                f"expected {params.digest}",
                f"If these are the files you mean, put the found digest under {where}.digest; otherwise "
                "they were changed: fetch them again",
                *(f"{file}: {sha256}" for file, sha256 in files.items()),
            ],
            heading=f"{where}: the files in {folder} are not the pinned base model (SHA-256):",
        )
    return ResolvedBase(name, folder, found, files, params.source.model_dump())


def _verify(base: ResolvedBase, names: Sequence[str]) -> None:
    """Hash again what is about to be read: it may have changed since it was resolved."""
    problems = []
    for name in names:
        path = base.folder / name
        actual = sha256_file(path) if path.is_file() else "missing"
        if actual != base.files[name]:
            problems.append(f"{name}: found {actual}, expected {base.files[name]}")
    if problems:
        raise IntegrityError(problems, heading=f"{base.folder} changed since it was verified; do not use it:")


def tokenizer(base: ResolvedBase) -> PreTrainedTokenizerFast:
    """The base's tokenizer, from its `tokenizer.json`, without importing torch.

    Its end of text is the token that the base was trained to end with and `generate` stops at: where the base names
    ends (generation_config.json, else config.json) and the tokenizer's own is none of them, the first of those that is a
    special token with no other part.

    Raises:
        BaseModelError: there is no `tokenizer.json`, or it holds no tokenizer.
        IntegrityError: its files changed since `resolve`.
    """
    from transformers import PreTrainedTokenizerFast

    if "tokenizer.json" not in base.files:
        raise BaseModelError(
            f"{base.folder} has no tokenizer.json; expected a fast tokenizer. Write one with "
            "AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
        )
    read = (CONFIG, GENERATION_CONFIG, *TOKENIZER_FILES)
    _verify(base, [name for name in base.files if name in read or name.endswith(".model")])
    if "model" not in read_json(base.folder / "tokenizer.json", base.name):
        raise BaseModelError(f"{base.folder}/tokenizer.json has no model; save the tokenizer again")
    fast: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(
        base.folder, local_files_only=True, trust_remote_code=False
    )
    ends = _ends(base)
    if ends and fast.eos_token_id not in ends:
        # Configurations come with default numbers, which in a small vocabulary are anything: a word, <unk>, <pad>.
        others = {fast.unk_token_id, fast.pad_token_id, fast.mask_token_id, fast.cls_token_id}
        added = fast.added_tokens_decoder
        special = [end for end in ends if end in added and added[end].special and end not in others]
        if special:
            fast.eos_token = added[special[0]].content
    return fast


def _ends(base: ResolvedBase) -> list[int]:
    """The tokens at which the base ends a text, as its files name them."""
    for name in (GENERATION_CONFIG, CONFIG):
        if name not in base.files:
            continue
        named = read_json(base.folder / name, base.name).get("eos_token_id")
        ends = named if isinstance(named, list) else [named]
        if found := [end for end in ends if isinstance(end, int) and end >= 0]:
            return found
    return []


def is_encoder_decoder(base: ResolvedBase) -> bool:
    """Whether the base reads a source in an encoder and writes the target in a decoder (T5, BART), as its config says."""
    return bool(read_json(base.folder / CONFIG, base.name).get("is_encoder_decoder"))


def window(base: ResolvedBase) -> int | None:
    """The most tokens the base can see at once, as its config says: prefix included, unless it is an encoder-decoder.

    Of an encoder-decoder it is the smaller of what encoder and decoder hold. Where positions do not limit them and the
    config names none (T5), it is the tokenizer's limit, and None where that names none either.

    Raises:
        BaseModelError: the config names no limit, and it is no encoder-decoder.
    """
    config = read_json(base.folder / CONFIG, base.name)
    if not config.get("is_encoder_decoder"):
        return _window(config, str(base.folder / CONFIG))
    named = [config[key] for key in _POSITIONS_OF_BOTH if isinstance(config.get(key), int)]
    if not named and "tokenizer_config.json" in base.files:
        most = read_json(base.folder / "tokenizer_config.json", base.name).get("model_max_length")
        named = [most] if isinstance(most, int) and 0 < most <= _MOST else []
    return min(named, default=None)


def window_of(model: PreTrainedModel) -> int | None:
    """The most tokens that a loaded model can see at once; None for an encoder-decoder that nothing limits."""
    if model.config.is_encoder_decoder:
        from pipeline.prefix.architecture import anatomy

        return anatomy(model).window
    return _window(model.config.to_dict(), type(model).__name__)


def _window(config: Mapping[str, Any], where: str) -> int:
    inner = config.get("text_config")
    for section in (config, inner if isinstance(inner, dict) else {}):
        for key in _POSITIONS:
            if isinstance(section.get(key), int):
                if config.get("model_type") in _OFFSET_POSITIONS:
                    return int(section[key]) - int(section.get("pad_token_id") or 0) - 1
                return int(section[key])
    raise BaseModelError(f"{where} names no window; expected one of {', '.join(_POSITIONS)}")


def load(
    base: ResolvedBase,
    task: Task,
    *,
    labels: Sequence[str] | None = None,
    pooling: Pooling | None = None,
    seed: int = 0,
) -> PreTrainedModel:
    """Load the verified base: float32, evaluation mode, every parameter frozen.

    For classification a head for `labels` is put on it, always new and drawn from `seed` alone; everything
    else must come from the files, whole and in the config's shape. The head is the only part that training
    may change (`head_parameters`).

    Args:
        task: classification (`labels` needed) or generation.
        labels: the class names, in the order of the label numbers.
        pooling: which of the tokens' states the head reads: mean, or None for what the architecture's own head does.
        seed: of the head.

    Raises:
        BaseModelError: transformers cannot build it, or the weights do not fit the config.
        IntegrityError: its files changed since `resolve`.
    """
    import torch
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        AutoModelForSeq2SeqLM,
        AutoModelForSequenceClassification,
    )

    _verify(base, list(base.files))
    try:
        with _quiet_transformers(), torch.random.fork_rng(devices=[]):
            config = AutoConfig.from_pretrained(base.folder, local_files_only=True, trust_remote_code=False)
            if task == "classification":
                _refuse_decoder_beside(config, base)
                _label(config, labels or ())
                kind = AutoModelForSequenceClassification
            elif config.is_encoder_decoder:
                _refuse_incomplete(config, base)
                kind = AutoModelForSeq2SeqLM
            else:
                _refuse_bidirectional(config, base)
                kind = AutoModelForCausalLM
            model, report = kind.from_pretrained(
                base.folder,
                config=config,
                dtype=torch.float32,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,  # reported below, and refused outside the head
                output_loading_info=True,
            )
    except (OSError, ValueError, KeyError, TypeError, SafetensorError, StrictDataclassError) as error:
        raise BaseModelError(
            f"{base.folder}: transformers cannot load it for {task}: {type(error).__name__}: {error}"
        ) from error
    mean = task == "classification" and pooling == "mean"
    _refuse_misfit(model, report, base, unread=("pooler",) if mean else ())
    if mean:
        from pipeline.base.mean_pooled import MeanPooledForSequenceClassification

        model = MeanPooledForSequenceClassification(model.base_model)
    model.eval().requires_grad_(False)
    if model.config.pad_token_id is None:
        # A classifier on a decoder finds each row's last token by it; rows are padded with it.
        words = tokenizer(base)
        model.config.pad_token_id = words.eos_token_id if words.pad_token_id is None else words.pad_token_id
    _draw_head(model, seed)
    return model


def _label(config: Any, labels: Sequence[str]) -> None:
    if len(labels) < 2:
        raise ValueError(f"got {len(labels)} labels; expected at least 2")
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: i for i, label in enumerate(labels)}
    config.problem_type = "single_label_classification"


def _refuse_bidirectional(config: Any, base: ResolvedBase) -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    if config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False):
        raise BaseModelError(
            f"{base.folder} is a {config.model_type}, whose tokens see those after them; "
            "expected a causal decoder or an encoder-decoder for generation"
        )


def _refuse_decoder_beside(config: Any, base: ResolvedBase) -> None:
    if config.is_encoder_decoder:
        raise BaseModelError(
            f"{base.folder} is a {config.model_type}, an encoder-decoder, which is used for generation only; "
            "expected an encoder or a causal decoder for classification, or task: generation with the labels' names "
            "as targets"
        )


def _refuse_incomplete(config: Any, base: ResolvedBase) -> None:
    if not is_encoder_decoder(base):  # a default of transformers; rows were prepared by what the file says
        raise BaseModelError(
            f"{base.folder / CONFIG} is of a {config.model_type} and does not say is_encoder_decoder: true; add it"
        )
    start = getattr(config, "decoder_start_token_id", None)
    if not isinstance(start, int):
        raise BaseModelError(
            f"{base.folder / CONFIG}: decoder_start_token_id is {start}; expected the token that the decoder begins with"
        )
    if GENERATION_CONFIG in base.files:
        other = read_json(base.folder / GENERATION_CONFIG, base.name).get("decoder_start_token_id")
        if other not in (None, start):
            raise BaseModelError(
                f"{base.folder}: decoder_start_token_id is {start} in {CONFIG} and {other} in {GENERATION_CONFIG}; "
                "expected the same: a prefix is trained behind the first, and PEFT would generate behind the second"
            )


def _refuse_misfit(
    model: PreTrainedModel, report: Mapping[str, Any], base: ResolvedBase, *, unread: Sequence[str]
) -> None:
    """transformers only warns of parameters it had to invent, cut to another shape, or leave out.

    Args:
        unread: modules that may be missing.
    """
    head = head_parameters(model).keys()
    problems = [
        f"{name}: missing"
        for name in sorted(set(report["missing_keys"]) - head)
        if not set(unread) & set(name.split("."))
    ]
    problems += [
        f"{name}: shape {list(stored)} in the file, {list(wanted)} by {CONFIG}"
        for name, stored, wanted in sorted(report["mismatched_keys"])
        if name not in head
    ]
    layers = {_unnumbered(name, model) for name in model.state_dict()}
    problems += [
        f"{name}: in the file, but {CONFIG} has no such layer"
        for name in sorted(report["unexpected_keys"])
        if _unnumbered(name, model) in layers and any(part.isdigit() for part in name.split("."))
    ]
    if problems:
        more = f"\n  … and {len(problems) - 12} more" if len(problems) > 12 else ""
        raise BaseModelError(
            f"{base.folder}: the weights do not fit {CONFIG} for {type(model).__name__}; expected every "
            "parameter of the base, in the config's shape:\n  " + "\n  ".join(problems[:12]) + more
        )


def _unnumbered(name: str, model: PreTrainedModel) -> str:
    parts = name.removeprefix(f"{model.base_model_prefix}.").split(".")
    return ".".join("#" if part.isdigit() else part for part in parts)


def _draw_head(model: PreTrainedModel, seed: int) -> None:
    import torch

    generator = torch.Generator().manual_seed(seed)
    scale = getattr(model.config, "initializer_range", 0.02)
    for _, parameter in sorted(head_parameters(model).items()):
        with torch.no_grad():
            if parameter.dim() > 1:
                parameter.normal_(0.0, scale, generator=generator)
            else:
                parameter.zero_()


def head_parameters(model: PreTrainedModel) -> dict[str, torch.nn.Parameter]:
    """{name: parameter} of a sequence classifier's head: whatever lies outside its backbone; else nothing."""
    if not type(model).__name__.endswith("ForSequenceClassification"):
        return {}
    from pipeline.prefix.architecture import outside_backbone

    return outside_backbone(model)


def weights_digest(model: PreTrainedModel) -> str:
    """SHA-256 over the name, type, shape and bytes of every parameter and buffer of the base.

    The classification head is left out: it is trained. Equal before and after training, or the base changed.
    """
    head = head_parameters(model).keys()
    tensors = sorted([*model.named_parameters(), *model.named_buffers()], key=lambda item: item[0])
    return tensors_digest((name, tensor) for name, tensor in tensors if name not in head)


def check_unchanged(before: str, after: str, base: str, *, lost: str, where: str = "") -> None:
    """Raise IntegrityError where `weights_digest` is not what it was before a training.

    Args:
        base: its name.
        lost: what the training does not give for that reason.
        where: the process, of several.
    """
    if after != before:
        raise IntegrityError(
            [f"weights were {before}", f"weights are  {after}{where}"],
            heading=f"{base}: the frozen base changed during training; {lost}:",
        )


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Its bars and load report would say in other words what `_refuse_misfit` checks."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
