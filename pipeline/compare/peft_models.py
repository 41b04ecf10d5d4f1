"""PEFT's methods put on a base, trained or to be trained.

PEFT is imported where it is used, and only there: without it the other methods can still be compared.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pipeline.base.base_model import head_parameters
from pipeline.compare import soft_prompt
from pipeline.errors import CompareError
from pipeline.params import PrefixParams, Task
from pipeline.prefix.tuning import Prefix, PrefixShape

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Adapted:
    """A base with one of PEFT's methods on it.

    Attributes:
        model: the base itself, adapted in place: what is trained, scored and asked.
        peft_model: PEFT's wrapper around it, which saves.
        own: the method's trainable parameters by name.
        head: the classification head's.
        details: what was chosen for it, for the record.
    """

    model: PreTrainedModel
    peft_model: Any
    own: Mapping[str, torch.nn.Parameter]
    head: Mapping[str, torch.nn.Parameter]
    details: Mapping[str, Any]

    def save(self, folder: Path, base_name: str) -> None:
        """Write adapter_config.json and adapter_model.safetensors, in PEFT's format."""
        self.peft_model.active_peft_config.base_model_name_or_path = base_name
        self.peft_model.save_pretrained(str(folder), save_embedding_layers=False)
        (folder / "README.md").unlink(missing_ok=True)  # a form for a model card, larger than a small adapter

    @contextmanager
    def in_training(self, seed: int) -> Iterator[None]:
        """Inside the block LoRA's own dropout is in force, drawn from `seed`; all else stays in evaluation mode."""
        dropouts = [
            module
            for name, module in self.peft_model.named_modules()
            if ".lora_dropout." in name and isinstance(module, torch.nn.Dropout)
        ]
        if not dropouts:
            yield
            return
        device = self.model.device
        with torch.random.fork_rng([] if device.type == "cpu" else [device]):
            torch.manual_seed(seed)
            for module in dropouts:
                module.train()
            try:
                yield
            finally:
                for module in dropouts:
                    module.eval()

    def bare(self) -> PreTrainedModel:
        """The base as it was, for checking that it is; the method is gone then."""
        return self.peft_model.unload() if _is_lora(self.peft_model) else self.model


def put_on(
    name: str,
    model: PreTrainedModel,
    task: Task,
    prefix: PrefixParams,
    *,
    seed: int,
    dropout: float = 0.0,
    lora_rank: int | None = None,
    start_tokens: Sequence[int] | None = None,
) -> Adapted:
    """Put a new, untrained adapter of the method `name` on `model`.

    Args:
        name: prompt, ptuning or lora.
        model: frozen, with a head for classification; it is changed in place.
        prefix: the prefix it is compared with: its length is the number of virtual tokens.
        seed: of what the method draws.
        dropout: LoRA: of what its matrices read, in a block of `Adapted.in_training`. The others have none in PEFT.
        lora_rank: LoRA's rank; None for the one whose number of trainable parameters is nearest to the prefix's.
        start_tokens: prompt tuning: the tokens whose embeddings it starts from, one for each virtual token; None for
            tokens drawn from the vocabulary.
    """
    import peft

    writes = "SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM"
    common: dict[str, Any] = {
        "task_type": "SEQ_CLS" if task == "classification" else writes,
        "modules_to_save": _head_modules(model) or None,
    }
    # Of an encoder-decoder in the encoder alone, where PEFT's forward pass reads them.
    # The vectors are as wide as words, which may be narrower than states (ALBERT); PEFT would take the latter, and of some
    # configs (DistilBERT) it finds neither.
    inner = model.config.get_text_config()
    virtual: dict[str, Any] = {
        "num_virtual_tokens": prefix.length,
        "num_transformer_submodules": 1,
        "token_dim": model.get_input_embeddings().embedding_dim,
        "num_layers": inner.num_hidden_layers,
        "num_attention_heads": inner.num_attention_heads,
    }
    details: dict[str, Any] = {}
    head = head_parameters(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name == "lora":
            targets = _lora_targets(model)
            rank = lora_rank or nearest_rank(model, prefix, targets)
            # Scaled by 1: with AdamW, lora_alpha / r does what the learning rate does, which is tuned.
            config: Any = peft.LoraConfig(
                r=rank, lora_alpha=rank, lora_dropout=dropout, target_modules=targets,
                exclude_modules=_excluded(model, targets), **common,
            )  # fmt: skip
        elif name == "prompt":
            config = peft.PromptTuningConfig(prompt_tuning_init="SAMPLE_VOCAB", **virtual, **common)
        else:
            width = int(inner.hidden_size)
            config = peft.PromptEncoderConfig(encoder_hidden_size=width, **virtual, **common)
        wrapped = _wrapped(model, config)
    if name == "lora":
        targeted = {name.rpartition(".")[2] for name in wrapped.base_model.targeted_module_names}
        details = {"rank": rank, "alpha": rank, "targets": sorted(targeted)}
    elif name == "prompt":
        details = {"virtual_tokens": prefix.length, "start": "vocabulary" if start_tokens is None else "text"}
        if start_tokens is not None:
            words = model.get_input_embeddings().weight
            with torch.no_grad():
                wrapped.prompt_encoder["default"].embedding.weight.copy_(words[list(start_tokens)])
    else:
        details = {"virtual_tokens": prefix.length, "encoder": f"MLP, {width} wide"}
    adapted = _adapted(wrapped, details)
    assert len(adapted.head) == len(head), "PEFT trains another head than ours"
    return adapted


def load(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """Put the adapter that `Adapted.save` wrote to `folder` on `model`, head included, ready to be asked."""
    import peft

    with warnings.catch_warnings(action="ignore", category=FutureWarning):
        wrapped = peft.PeftModel.from_pretrained(model, str(folder))
    return _adapted(wrapped, {}).model


def nearest_rank(model: PreTrainedModel, prefix: PrefixParams, targets: Any) -> int:
    """The LoRA rank whose trainable parameters are nearest in number to the prefix's; at least 1."""
    import peft

    wanted = prefix_parameters(model, prefix)
    probe = _wrapped(
        model, peft.LoraConfig(r=1, target_modules=targets, exclude_modules=_excluded(model, targets))
    )
    each: int = sum(p.numel() for name, p in probe.named_parameters() if "lora_" in name)
    probe.unload()
    return max(1, round(wanted / each))


def prefix_parameters(model: PreTrainedModel, params: PrefixParams) -> int:
    """How many numbers a prefix trains on `model`; with a projection, the projection's."""
    prefix = Prefix(PrefixShape.of_model(model), params.length, projection=params.projection)
    return sum(parameter.numel() for parameter in prefix.parameters())


def _wrapped(model: PreTrainedModel, config: Any) -> Any:
    import peft

    # PEFT 0.21 asks for an attribute that transformers has renamed.
    with warnings.catch_warnings(action="ignore", category=FutureWarning):
        try:
            return peft.get_peft_model(model, config)
        except ValueError as error:
            kind = str(config.peft_type.value).lower()
            raise CompareError(
                f"PEFT cannot put {kind} on {type(model).__name__}: {error}\nLeave the method out with --methods"
            ) from error


def _adapted(wrapped: Any, details: Mapping[str, Any]) -> Adapted:
    model = wrapped.get_base_model()
    wrapped.eval()
    if not _is_lora(wrapped):
        soft_prompt.enter(wrapped)
    model.config.use_cache = (
        False  # asked for where it is wanted: it would copy every key and value in training
    )
    trained = {name: p for name, p in wrapped.named_parameters() if p.requires_grad}
    head = {name: p for name, p in trained.items() if ".modules_to_save." in name}
    own = {name: p for name, p in trained.items() if name not in head}
    return Adapted(model, wrapped, own, head, details)


def _is_lora(wrapped: Any) -> bool:
    return not wrapped.active_peft_config.is_prompt_learning


def _head_modules(model: PreTrainedModel) -> list[str]:
    """The modules of the head as PEFT is to find them, which looks for names that end so.

    One called `head` is named by its parts: P-tuning's own encoder has an `mlp_head`.
    """
    return sorted(
        {
            name.rpartition(".")[0] if name.startswith("head.") else name.split(".")[0]
            for name in head_parameters(model)
        }
    )


def _excluded(model: PreTrainedModel, targets: Any) -> list[str] | None:
    """Of all linear layers those of the head, which is trained itself."""
    if targets != "all-linear":
        return None
    return sorted({name.rpartition(".")[0] for name in head_parameters(model)})


def _lora_targets(model: PreTrainedModel) -> Any:
    """PEFT's usual modules for this architecture (mostly query and value), or all linear ones where it knows none."""
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as USUAL

    return USUAL.get(model.config.model_type, "all-linear")
