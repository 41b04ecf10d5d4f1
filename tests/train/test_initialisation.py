"""Where a prefix starts from, and what is recorded of it; on tiny real bases."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from peft import PrefixTuningConfig, get_peft_model

from pipeline.base import base_model
from pipeline.base.base_files import identity_files
from pipeline.base.base_model import head_parameters
from pipeline.base.mean_pooled import MeanPooledForSequenceClassification
from pipeline.digest import digest
from pipeline.errors import AdapterError, IntegrityError, PrefixError
from pipeline.params import BaseModelParams, PrefixParams
from pipeline.prefix.adapter import adapter_digest, save_adapter
from pipeline.prefix.text_start import text_key_values
from pipeline.prefix.tuning import Prefix
from pipeline.train.initialisation import Start, WarmStart, start
from pipeline.train.start_text import choice, given_text, repeated, task_text
from tests.prefix.models import decoder, encoder, random_prefix

LABELS = ("card_arrival", "lost-card", "pin")
ROWS = datasets.Dataset.from_dict(
    {"text": ["blue cat", "The CAT sat", "a blue dog", "one more"], "label": [0, 1, 2, 1]}
)
PAIRS = datasets.Dataset.from_dict(
    {"source": ["a=1", "b=2"], "targets": [["one fine day", "fine"], ["day one fine"]]}
)


@pytest.fixture
def tokenizer(encoder_folder: Path) -> Any:
    params = {"source": {"path": str(encoder_folder)}, "digest": digest(identity_files(encoder_folder))}
    return base_model.tokenizer(
        base_model.resolve("tiny", BaseModelParams.model_validate(params), encoder_folder)
    )


def base(labels: int, **more: Any) -> Any:
    """An encoder that knows the tokenizer's words."""
    return encoder(labels=labels, vocab_size=100, **more)


def begin(
    model: Any, tokenizer: Any, warm: WarmStart | None = None, labels: Sequence[str] = LABELS, **params: Any
) -> Start:
    prefix = PrefixParams.model_validate({"length": 5, **params})
    return start(
        model, prefix, "classification", tokenizer=tokenizer, labels=labels, rows=ROWS, seed=0, warm_start=warm
    )  # fmt: skip


# -- the text ------------------------------------------------------------------------------------------------


def test_a_text_is_made_of_labels_words_or_examples() -> None:
    def made(made_of: Any, task: Any, rows: Any, length: int) -> str:
        return task_text(made_of, task, LABELS, rows, length=length)

    assert made("labels", "classification", ROWS, 5) == "card arrival lost card pin"
    assert made("words", "classification", ROWS, 3) == "blue cat dog"
    assert made("words", "generation", PAIRS, 2) == "fine day"
    # spread over the rows, in their order
    assert made("examples", "classification", ROWS, 2) == "blue cat card arrival\na blue dog pin"
    assert made("examples", "classification", ROWS, 9).count("\n") == 3
    assert made("examples", "generation", PAIRS, 9) == "a=1\none fine day\nb=2\nday one fine"


def test_unless_said_otherwise_it_is_the_labels_where_they_have_letters_else_words() -> None:
    assert choice("classification", LABELS) == "labels"
    assert choice("classification", ("0", "1")) == "words"
    assert choice("generation", None) == "words"


def test_a_made_texts_tokens_are_repeated_or_cut_to_the_length() -> None:
    assert repeated([1, 2, 3], 7) == [1, 2, 3, 1, 2, 3, 1]
    assert repeated([1, 2, 3], 2) == [1, 2]
    with pytest.raises(PrefixError, match="has no tokens"):
        repeated([], 3)


def test_a_given_text_must_have_as_many_tokens_as_the_prefix(tokenizer: Any) -> None:
    ids = tokenizer("the red cat", add_special_tokens=False).input_ids
    assert given_text("the red cat", tokenizer, 3) == ids
    assert given_text("the red cat", tokenizer, 2) == ids[:2]
    with pytest.raises(
        PrefixError, match=r"prefix\.text has 3 tokens, .*length is 4; .*set prefix\.length to 3"
    ):
        given_text("the red cat", tokenizer, 4)
    with pytest.raises(PrefixError, match=r"has 0 tokens.*write a longer text, or leave"):
        given_text(" ", tokenizer, 4)


@pytest.mark.parametrize("made_of", ["given", "labels", "words", "examples"])
def test_a_text_start_is_the_bases_own_keys_and_values_and_says_which_text(
    tokenizer: Any, made_of: Any
) -> None:
    model = base(3)
    params = {"text": "the red cat runs the river"} if made_of == "given" else {"text_from": made_of}
    begun = begin(model, tokenizer, initialisation="text", **params)
    assert begun.record["from"] == "text"
    assert begun.record["made_of"] == made_of
    ids = repeated(tokenizer(begun.record["text"], add_special_tokens=False).input_ids, 5)
    assert torch.equal(begun.prefix.key_values(), text_key_values(model, torch.tensor(ids)))
    assert begun.head == {}


def test_a_random_start_has_the_scale_it_records_and_follows_the_seed(tokenizer: Any) -> None:
    begun = begin(base(3), tokenizer, initialisation="random", random_scale=0.3)
    assert begun.record == {"from": "random", "scale": 0.3}
    assert begun.prefix.key_values().std().item() == pytest.approx(0.3, rel=0.1)


def test_a_random_start_records_the_scale_of_the_values_where_they_have_their_own(tokenizer: Any) -> None:
    begun = begin(base(3), tokenizer, initialisation="random", random_scale=0.3, random_value_scale=0.02)
    assert begun.record == {"from": "random", "scale": 0.3, "value_scale": 0.02}
    keys, values = begun.prefix.shape.per_layer(begun.prefix.key_values())[0]
    assert keys.std().item() == pytest.approx(0.3, rel=0.2)
    assert values.std().item() == pytest.approx(0.02, rel=0.2)


@pytest.mark.parametrize("initialisation", ["random", "text"])
def test_a_prefix_that_fills_the_window_is_refused_before_anything_is_computed(
    tokenizer: Any, initialisation: str
) -> None:
    model = base(3)
    model.register_forward_pre_hook(lambda *_: pytest.fail("computed"))
    with pytest.raises(PrefixError, match="64 \\+ input of 1 tokens = 65 positions; the base model has 64"):
        begin(model, tokenizer, initialisation=initialisation, length=64)


@pytest.mark.parametrize(
    ("params", "record"),
    [
        ({}, {"from": "random", "scale": 0.5}),
        (
            {"text_from": "labels"},
            {"from": "text", "made_of": "labels", "text": "card arrival lost card pin"},
        ),
        (
            {"text": "the red cat runs fast"},
            {"from": "text", "made_of": "given", "text": "the red cat runs fast"},
        ),
    ],
)
def test_where_no_version_is_there_yet_a_text_is_started_from_if_one_is_wished_else_noise(
    tokenizer: Any, params: dict[str, str], record: dict[str, Any]
) -> None:
    assert begin(base(3), tokenizer, initialisation="version", **params).record == record


# -- an adapter that was trained before ----------------------------------------------------------------------


def saved(
    folder: Path, model: Any, *, labels: Sequence[str] = LABELS, length: int = 5
) -> tuple[WarmStart, Prefix]:
    prefix = random_prefix(model, length)
    head = {name: torch.randn_like(p) for name, p in head_parameters(model).items()}
    save_adapter(
        folder, prefix, model, head=head, task="classification", base_name="tiny", base_digest="b" * 64,
        labels=labels,
    )  # fmt: skip
    return WarmStart(folder, adapter_digest(folder), {"prefix": "words", "version": "3"}), prefix


@pytest.mark.parametrize("projection", [None, 8])
def test_a_warm_start_is_the_adapters_prefix_and_head(
    tokenizer: Any, tmp_path: Path, projection: int | None
) -> None:
    model = base(3)
    warm, prefix = saved(tmp_path / "adapter", model)
    begun = begin(model, tokenizer, warm, initialisation="version", projection=projection)
    assert (begun.prefix.key_values() - prefix.key_values()).abs().max() <= (
        0 if projection is None else 1e-5
    )
    assert begun.head.keys() == head_parameters(model).keys()
    assert all(tensor.std() > 0.5 for name, tensor in begun.head.items() if name.endswith("weight"))
    assert begun.record == {
        "from": "version", "prefix": "words", "version": "3", "adapter_digest": warm.adapter_digest,
        "head": "continued",
    }  # fmt: skip


@pytest.mark.parametrize(
    "labels", [LABELS[::-1], (*LABELS, "top_up")], ids=["another order", "one more class"]
)
def test_with_other_labels_the_head_starts_new_and_the_prefix_goes_on(
    tokenizer: Any, tmp_path: Path, labels: Sequence[str]
) -> None:
    warm, prefix = saved(tmp_path / "adapter", base(3))
    begun = begin(base(len(labels)), tokenizer, warm, labels, initialisation="version")
    assert torch.equal(begun.prefix.key_values(), prefix.key_values())
    assert begun.head == {}
    assert begun.record["head"] == "new"


def test_with_another_pooling_the_head_starts_new_and_the_prefix_goes_on(
    tokenizer: Any, tmp_path: Path
) -> None:
    mean = MeanPooledForSequenceClassification(base(3).base_model).requires_grad_(False)
    warm, prefix = saved(tmp_path / "adapter", base(3))
    begun = begin(mean, tokenizer, warm, initialisation="version")
    assert torch.equal(begun.prefix.key_values(), prefix.key_values())
    assert (begun.head, begun.record["head"]) == ({}, "new")
    warm, _ = saved(tmp_path / "mean", mean)
    begun = begin(mean, tokenizer, warm, initialisation="version")
    assert begun.record["head"] == "continued"
    assert begun.head.keys() == {"mean_classifier.weight", "mean_classifier.bias"}


def test_an_adapter_of_pefts_is_gone_on_from_with_a_new_head(tokenizer: Any, tmp_path: Path) -> None:
    model = base(3)
    config = PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=5)
    theirs = get_peft_model(copy.deepcopy(model), config)
    theirs.save_pretrained(tmp_path / "peft")
    (tmp_path / "peft" / "README.md").unlink()
    vectors = theirs.prompt_encoder.default.embedding.weight
    warm = WarmStart(tmp_path / "peft", adapter_digest(tmp_path / "peft"), {"adapter": "old"})
    begun = begin(model, tokenizer, warm, initialisation="adapter", adapter="old")
    assert torch.equal(begun.prefix.key_values(), vectors)
    assert (begun.record["from"], begun.record["adapter"], begun.record["head"]) == ("adapter", "old", "new")


def test_an_adapter_that_is_not_the_pinned_one_is_an_integrity_error(tokenizer: Any, tmp_path: Path) -> None:
    model = base(3)
    warm, _ = saved(tmp_path / "adapter", model)
    saved(tmp_path / "adapter", model, labels=("a", "b", "c"))
    with pytest.raises(IntegrityError, match="is not the adapter to go on from"):
        begin(model, tokenizer, warm, initialisation="version")


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"num_hidden_layers": 2}, "num_layers: got 2; expected 3"),
        ({"num_attention_heads": 2}, "num_attention_heads: got 2; expected 4"),
        ({"hidden_size": 64}, "token_dim: got 64; expected 32"),
    ],
)
def test_an_adapter_of_other_layers_or_heads_is_refused(
    tokenizer: Any, tmp_path: Path, other: dict[str, int], said: str
) -> None:
    warm, _ = saved(tmp_path / "adapter", base(3, **other))
    with pytest.raises(AdapterError, match=said):
        begin(base(3), tokenizer, warm, initialisation="version")


def test_an_adapter_of_another_length_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    warm, _ = saved(tmp_path / "adapter", base(3), length=4)
    with pytest.raises(PrefixError, match=r"got 4 positions .* for a prefix of 5"):
        begin(base(3), tokenizer, warm, initialisation="version")


def test_a_generation_prefix_goes_on_without_a_head(tmp_path: Path) -> None:
    model = decoder()
    prefix = random_prefix(model)
    save_adapter(tmp_path / "adapter", prefix, model, head={}, task="generation", base_name="tiny")
    warm = WarmStart(tmp_path / "adapter", adapter_digest(tmp_path / "adapter"), {"adapter": "old"})
    params = PrefixParams(length=5, initialisation="adapter", adapter="old")
    begun = start(
        model, params, "generation", tokenizer=None, labels=None, rows=PAIRS, seed=0, warm_start=warm
    )  # type: ignore[arg-type]  # fmt: skip
    assert torch.equal(begun.prefix.key_values(), prefix.key_values())
    assert begun.head == {}
    assert "head" not in begun.record
