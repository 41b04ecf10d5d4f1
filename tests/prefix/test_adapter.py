"""Adapters on disk: exact round trips, PEFT both ways, and every way in which a folder can be wrong."""

from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from pipeline.base.mean_pooled import MeanPooledForSequenceClassification
from pipeline.errors import AdapterError, PrefixError
from pipeline.prefix.adapter import (
    AdapterFacts,
    adapter_digest,
    adapter_facts,
    install_head,
    load_adapter,
    save_adapter,
)
from pipeline.prefix.attention import attach
from pipeline.prefix.tuning import Prefix, PrefixShape
from tests.prefix.models import batch, decoder, encoder, encoder_decoder, in_peft, random_prefix

LABELS = ("a", "b", "c", "d", "e")


def trained_head(model: Any, *names: str) -> dict[str, torch.Tensor]:
    """Copies of `model`'s head parameters, moved away from the base's own."""
    found = {name: p for name, p in model.named_parameters() if name.startswith(names)}
    generator = torch.Generator().manual_seed(4)
    return {name: torch.randn(p.shape, generator=generator) for name, p in found.items()}


def saved(folder: Path, model: Any, prefix: Prefix, **more: Any) -> Path:
    if hasattr(model, "classifier"):
        more = {
            "head": trained_head(model, "classifier."),
            "task": "classification",
            "labels": LABELS,
            **more,
        }
    else:
        more = {"head": {}, "task": "generation", **more}
    save_adapter(folder, prefix, model, base_name="tiny", **more)
    return folder


def logits(model: Any, prefix: Prefix, head: dict[str, torch.Tensor]) -> torch.Tensor:
    install_head(model, head)
    with attach(model, prefix), torch.no_grad():
        result: torch.Tensor = model(**batch(pad=model.config.pad_token_id)).logits
    return result


@pytest.mark.parametrize("make", [decoder, encoder])
@pytest.mark.parametrize("projection", [None, 6])
def test_what_is_loaded_is_exactly_what_was_saved(make: Any, projection: int | None, tmp_path: Path) -> None:
    model = make()
    prefix = Prefix(PrefixShape.of_model(model), 5, projection=projection)
    prefix.init_random(0.5, torch.Generator().manual_seed(0))
    folder = saved(tmp_path / "adapter", model, prefix)
    again, head = load_adapter(folder, make())
    assert torch.equal(again.key_values(), prefix.key_values())
    assert again.projection is None
    expected = trained_head(model, "classifier.") if make is encoder else {}
    assert head.keys() == expected.keys()
    assert all(torch.equal(head[name], expected[name]) for name in expected)
    assert sorted(file.name for file in folder.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


@pytest.mark.parametrize(
    ("make", "family", "head"),
    [
        (decoder, "Llama", ()),
        (decoder, "Qwen3", ()),
        (decoder, "GPT2", ()),
        (encoder, "Bert", ("classifier.",)),
        (encoder, "Bert", ("classifier.", "bert.pooler.")),
        (encoder, "Roberta", ("classifier.",)),
        (encoder, "Electra", ("classifier.",)),
    ],
)
def test_peft_loads_it_and_answers_the_same(
    make: Any, family: str, head: tuple[str, ...], tmp_path: Path
) -> None:
    model = make(family)
    more = {"head": trained_head(model, *head)} if head else {}
    folder = saved(tmp_path / "adapter", model, random_prefix(model), **more)
    theirs = PeftModel.from_pretrained(make(family), folder).eval()
    with torch.no_grad():
        inputs = batch(pad=model.config.pad_token_id)
        expected = theirs(**inputs).logits
    ours = logits(model, *load_adapter(folder, model))
    chosen = slice(None) if head else inputs["attention_mask"] == 1
    assert expected.std() > 0.05
    assert (ours[chosen] - expected[chosen]).abs().max() < 1e-5


@pytest.mark.parametrize("make", [decoder, encoder])
def test_what_peft_saves_is_loaded_and_answers_the_same(make: Any, tmp_path: Path) -> None:
    model = make()
    theirs = in_peft(model, random_prefix(model), "SEQ_CLS" if make is encoder else "CAUSAL_LM")
    if make is encoder:
        torch.nn.init.normal_(theirs.base_model.classifier.modules_to_save.default.weight)
    theirs.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = theirs(**batch()).logits
    ours = logits(model, *load_adapter(tmp_path, model))
    chosen = slice(None) if make is encoder else batch()["attention_mask"] == 1
    assert (ours[chosen] - expected[chosen]).abs().max() < 1e-5
    task = "classification" if make is encoder else "generation"
    assert adapter_facts(tmp_path) == AdapterFacts(task, 5, "", None, None)


def test_peft_saves_the_same_keys_and_shapes(tmp_path: Path) -> None:
    model = encoder()
    in_peft(model, random_prefix(model), "SEQ_CLS").save_pretrained(tmp_path / "theirs")
    saved(tmp_path / "ours", model, random_prefix(model))
    ours, theirs = (load_file(tmp_path / who / "adapter_model.safetensors") for who in ("ours", "theirs"))
    assert {name: t.shape for name, t in ours.items()} == {name: t.shape for name, t in theirs.items()}
    configs = [json.loads((tmp_path / who / "adapter_config.json").read_text()) for who in ("ours", "theirs")]
    assert configs[0].keys() == configs[1].keys()


def test_the_facts_come_back(tmp_path: Path) -> None:
    model = encoder()
    folder = saved(tmp_path / "adapter", model, random_prefix(model), base_digest="f" * 64)
    assert adapter_facts(folder) == AdapterFacts("classification", 5, "tiny", "f" * 64, LABELS)


def test_equal_content_is_equal_bytes(tmp_path: Path) -> None:
    model = encoder()
    prefix = random_prefix(model)
    # safetensors alone draws the order of the metadata at every save
    assert len({adapter_digest(saved(tmp_path / str(i), model, prefix)) for i in range(12)}) == 1


def on_the_mean(*, labels: int = 5) -> Any:
    inner = encoder(labels=labels)
    torch.manual_seed(3)
    return MeanPooledForSequenceClassification(inner.base_model).eval().requires_grad_(False)


def test_a_head_on_the_mean_comes_back_and_says_what_it_reads(tmp_path: Path) -> None:
    model = on_the_mean()
    prefix, head = random_prefix(model), trained_head(model, "mean_classifier.")
    folder = saved(tmp_path / "adapter", model, prefix, head=head, task="classification", labels=LABELS)
    again, same = load_adapter(folder, on_the_mean())
    assert torch.equal(again.key_values(), prefix.key_values())
    assert same.keys() == head.keys()
    assert all(torch.equal(same[name], head[name]) for name in head)
    assert adapter_facts(folder).pooling == "mean"
    assert adapter_facts(saved(tmp_path / "own", encoder(), prefix)).pooling is None


def test_peft_refuses_a_head_on_the_mean_instead_of_reading_another_token_with_it(tmp_path: Path) -> None:
    model = on_the_mean()
    head = trained_head(model, "mean_classifier.")
    folder = saved(
        tmp_path / "adapter", model, random_prefix(model), head=head, task="classification", labels=LABELS
    )
    with pytest.raises((ValueError, KeyError), match="PREFIXLINE"):
        PeftModel.from_pretrained(encoder(), folder)


def test_a_head_is_not_put_where_other_states_are_read_and_the_prefix_alone_may_be(tmp_path: Path) -> None:
    mean, own = on_the_mean(), encoder()
    prefix = random_prefix(own)
    folders = {
        "mean": saved(
            tmp_path / "mean",
            mean,
            prefix,
            head=trained_head(mean, "mean_classifier."),
            task="classification",
            labels=LABELS,
        ),
        "own": saved(tmp_path / "own", own, prefix),
    }
    with pytest.raises(AdapterError, match=r"trained on the mean of the tokens; .*reads what the arch"):
        load_adapter(folders["mean"], own)
    with pytest.raises(AdapterError, match=r"trained on what the architecture's .*reads the mean of the"):
        load_adapter(folders["own"], mean)
    for folder, model in ((folders["mean"], own), (folders["own"], mean)):
        again, head = load_adapter(folder, model, head=False)
        assert torch.equal(again.key_values(), prefix.key_values())
        assert head == {}


def test_an_adapter_that_would_overwrite_the_frozen_base_is_refused(tmp_path: Path) -> None:
    model = encoder()
    folder = saved(tmp_path / "adapter", model, random_prefix(model))
    config = json.loads((folder / "adapter_config.json").read_text())
    config["modules_to_save"].append("bert.encoder")
    (folder / "adapter_config.json").write_text(json.dumps(config))
    tensors = load_file(folder / "adapter_model.safetensors")
    inside = {name: p for name, p in model.named_parameters() if name.startswith("bert.encoder.")}
    tensors |= {f"base_model.{name}": torch.full_like(p, 9.0) for name, p in inside.items()}
    save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(AdapterError, match=r"base_model\.bert\.encoder\.layer\.0\.\S+ is one too many"):
        load_adapter(folder, model)
    with pytest.raises(AdapterError, match=r"nothing was saved: tensor bert\.encoder\.\S+ is one too many"):
        save_adapter(
            tmp_path / "other",
            random_prefix(model),
            model,
            head=inside,
            task="classification",
            base_name="tiny",
        )


def test_an_adapter_that_names_no_pooling_has_the_bytes_it_always_had(tmp_path: Path) -> None:
    folder = saved(tmp_path / "adapter", encoder(), random_prefix(encoder()))
    assert b"pooling" not in (folder / "adapter_model.safetensors").read_bytes()


def test_the_digest_follows_the_content(tmp_path: Path) -> None:
    model = encoder()
    first = adapter_digest(saved(tmp_path / "first", model, random_prefix(model)))
    assert adapter_digest(saved(tmp_path / "other", model, random_prefix(model, seed=8))) != first


def config_edit(**change: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "adapter_config.json"
        config = json.loads(path.read_text()) | change
        path.write_text(json.dumps({key: value for key, value in config.items() if value != "DELETE"}))

    return edit


def tensor_edit(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "adapter_model.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)

    return edit


def text_edit(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes())) and None


BASE = "base_model.classifier"
FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no folder": (lambda folder: shutil.rmtree(folder), "adapter_config.json: no such file"),
    "no config": (
        lambda folder: (folder / "adapter_config.json").unlink(),
        "adapter_config.json: no such file",
    ),
    "config a folder": (
        lambda folder: [(folder / "adapter_config.json").unlink(), (folder / "adapter_config.json").mkdir()],
        "adapter_config.json: cannot be read: Is a directory",
    ),
    "weights a folder": (
        lambda folder: [
            (folder / "adapter_model.safetensors").unlink(),
            (folder / "adapter_model.safetensors").mkdir(),
        ],
        "adapter_model.safetensors: cannot be read: ",
    ),
    "more than a float32 holds": (
        tensor_edit(
            lambda t: t.update(
                prompt_embeddings=torch.full_like(t["prompt_embeddings"], 1e60, dtype=torch.float64)
            )
        ),
        "prompt_embeddings: got NaN or inf",
    ),
    "no weights": (
        lambda folder: (folder / "adapter_model.safetensors").unlink(),
        "safetensors: no such file",
    ),
    "config cut short": (text_edit("adapter_config.json", lambda b: b[:40]), "is not JSON"),
    "config too deep": (
        text_edit("adapter_config.json", lambda b: b"[" * 200_000),
        "is not JSON",
    ),
    "config not UTF-8": (text_edit("adapter_config.json", lambda b: b"\xff" + b), "is not JSON"),
    "config a list": (text_edit("adapter_config.json", lambda b: b"[]"), "got list; expected a JSON object"),
    "weights cut short": (
        text_edit("adapter_model.safetensors", lambda b: b[:-10]),
        "not a whole safetensors",
    ),
    "weights empty": (text_edit("adapter_model.safetensors", lambda b: b""), "not a whole safetensors"),
    "weights a pickle": (text_edit("adapter_model.safetensors", lambda b: b"\x80\x04K\x01."), "not a whole"),
    "unknown key": (config_edit(lora_alpha=3), "key 'lora_alpha' is unknown"),
    "missing key": (config_edit(token_dim="DELETE"), "key 'token_dim' is missing"),
    "another method": (config_edit(peft_type="LORA"), "peft_type: got 'LORA'; expected 'PREFIX_TUNING'"),
    "another task": (
        config_edit(task_type="SEQ_2_SEQ_LM"),
        "task_type: got 'SEQ_2_SEQ_LM'; expected SEQ_CLS, TOKEN_CLS or CAUSAL_LM",
    ),
    "submodules": (
        config_edit(num_transformer_submodules=2),
        "num_transformer_submodules: got 2, PEFT",
    ),
    "another depth": (config_edit(num_layers=4), "num_layers: got 4; expected 3"),
    "other heads": (config_edit(num_attention_heads=2), "num_attention_heads: got 2; expected 4"),
    "another width": (config_edit(token_dim=64), "token_dim: got 64; expected 32"),
    "no length": (config_edit(num_virtual_tokens=0), "num_virtual_tokens: got 0; expected a whole number"),
    "length a word": (config_edit(num_virtual_tokens="5"), "num_virtual_tokens: got '5'"),
    "another length": (
        config_edit(num_virtual_tokens=6),
        "contradict each other: length 6 and 5$",
    ),
    "another length of the tensor": (
        tensor_edit(lambda t: t.update(prompt_embeddings=torch.zeros(6, 192))),
        r"prompt_embeddings: got shape \[6, 192\]; expected \[5",
    ),
    "a base without a name": (config_edit(base_model_name_or_path=5), "base_model_name_or_path: got 5"),
    "bad modules": (config_edit(modules_to_save="classifier"), "modules_to_save: got 'classifier'"),
    "missing tensor": (tensor_edit(lambda t: t.pop(f"{BASE}.bias")), f"tensor {BASE}.bias is missing"),
    "no prefix": (tensor_edit(lambda t: t.pop("prompt_embeddings")), "tensor prompt_embeddings is missing"),
    "extra tensor": (tensor_edit(lambda t: t.update(x=torch.zeros(1))), "tensor x is one too many"),
    "NaN": (
        tensor_edit(lambda t: t["prompt_embeddings"][0, 0].fill_(torch.nan)),
        "prompt_embeddings: got NaN",
    ),
    "infinity": (
        tensor_edit(lambda t: t[f"{BASE}.bias"][0].fill_(torch.inf)),
        f"{BASE}.bias: got NaN or inf",
    ),
    "integers": (
        tensor_edit(lambda t: t.update({f"{BASE}.bias": torch.zeros(5, dtype=torch.int64)})),
        "got int64",
    ),
    "another head": (
        tensor_edit(lambda t: t.update({f"{BASE}.bias": torch.zeros(7)})),
        rf"{BASE}.bias: got shape \[7\]; expected \[5\]",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_folder_that_is_not_whole_is_refused(fault: str, tmp_path: Path) -> None:
    damage, message = FAULTS[fault]
    model = encoder()
    folder = saved(tmp_path / "adapter", model, random_prefix(model))
    load_adapter(folder, model)
    damage(folder)
    with pytest.raises(AdapterError, match=message):
        load_adapter(folder, model)


def test_an_adapter_for_generation_that_brings_a_head_is_refused(tmp_path: Path) -> None:
    model = decoder()
    folder = saved(tmp_path / "adapter", model, random_prefix(model))
    config_edit(modules_to_save=["lm_head"])(folder)
    with pytest.raises(
        AdapterError, match=r"modules_to_save: got \['lm_head'\]; expected null for generation"
    ):
        load_adapter(folder, model)


def test_an_error_names_the_folder_and_all_that_is_wrong(tmp_path: Path) -> None:
    model = encoder()
    folder = saved(tmp_path / "adapter", model, random_prefix(model))
    config_edit(num_layers=4, token_dim=64)(folder)
    with pytest.raises(AdapterError) as caught:
        load_adapter(folder, model)
    assert all(part in str(caught.value) for part in (str(folder), "num_layers: got 4", "token_dim: got 64"))


def test_an_adapter_for_another_base_is_refused(tmp_path: Path) -> None:
    model = encoder()
    folder = saved(tmp_path / "adapter", model, random_prefix(model))
    with pytest.raises(AdapterError, match="num_layers: got 3; expected 2"):
        load_adapter(folder, encoder(num_hidden_layers=2))
    with pytest.raises(AdapterError, match=r"classifier.bias: got shape \[5\]; expected \[6\]"):
        load_adapter(folder, encoder(labels=6))


def facts_with(**change: Any) -> str:
    facts = {
        "task": "classification",
        "length": 5,
        "base_name": "tiny",
        "base_digest": None,
        "labels": list(LABELS),
    }
    return json.dumps(facts | change)


def test_facts_that_are_in_order_are_read_from_any_writers_json(tmp_path: Path) -> None:
    folder = saved(tmp_path / "adapter", encoder(), random_prefix(encoder()))
    path = folder / "adapter_model.safetensors"
    save_file(load_file(path), path, {"prefixline": facts_with()})
    assert adapter_facts(folder) == AdapterFacts("classification", 5, "tiny", None, LABELS)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ("{", "is not understood"),
        ("{}", "is not understood: task: Field required; "),
        ("[]", "is not understood: all of it: "),
        (facts_with(unheard=1), "unheard: got 1: Unexpected"),
        (facts_with(task="translation"), "task: got 'translation': Input should be 'classification'"),
        (facts_with(length="5"), "length: got '5': Input should be a valid integer"),
        (facts_with(base_name=None), "base_name: got None: Input should be a valid string"),
        (facts_with(base_digest=7), "base_digest: got 7: Input should be a valid string"),
        (facts_with(base_digest="abc"), "base_digest: got 'abc': String should match pattern"),
        (facts_with(labels="abcde"), "labels: got 'abcde': Input should be a valid array"),
        (facts_with(labels=["a", 2]), r"labels.1: got 2: Input should be a valid string"),
        (facts_with(pooling="max"), "pooling: got 'max': Input should be 'mean'"),
        (
            '{"task":"generation","length":5,"base_name":"tiny","base_digest":null,"labels":null}',
            "contradict each other: task 'classification' and 'generation'$",
        ),
    ],
)
def test_facts_that_are_damaged_or_contradict_the_config_are_refused(
    metadata: str, message: str, tmp_path: Path
) -> None:
    model = encoder()
    folder = saved(tmp_path / "adapter", model, random_prefix(model))
    path = folder / "adapter_model.safetensors"
    save_file(load_file(path), path, {"prefixline": metadata})
    with pytest.raises(AdapterError, match=message):
        adapter_facts(folder)
    with pytest.raises(AdapterError, match=message):
        load_adapter(folder, model)


@pytest.mark.parametrize("make", [decoder, encoder])
def test_an_adapter_for_another_task_or_of_another_base_of_the_same_shape_is_refused_where_they_are_named(
    make: Any, tmp_path: Path
) -> None:
    model = make()
    folder = saved(tmp_path / "adapter", model, random_prefix(model), base_digest="f" * 64)
    task: Any = "generation" if make is decoder else "classification"
    again, _ = load_adapter(folder, model, task=task, base_digest="f" * 64)
    assert torch.equal(again.vectors, random_prefix(model).vectors)
    with pytest.raises(AdapterError) as caught:
        load_adapter(folder, model, task="token_classification", base_digest="0" * 64)
    assert (
        f"it is for {task}; expected token_classification; it was trained on the base model {'f' * 64}; got {'0' * 64}"
        in str(caught.value)
    )


@pytest.mark.parametrize(
    ("make", "change", "message"),
    [
        (
            decoder,
            {"task": "gen"},
            "task: got 'gen'; expected classification, token_classification or generation",
        ),
        (decoder, {"base_digest": "abc"}, "base_digest: got 'abc': String should match pattern"),
        (decoder, {"base_digest": 7}, "base_digest: got 7: Input should be a valid string"),
        (encoder, {"labels": "abcde"}, "labels: got 'abcde': Input should be a valid tuple"),
        (encoder, {"labels": [0, 1, 2, 3, 4]}, "labels.0: got 0: Input should be a valid string"),
        (
            encoder,
            {"labels": ["a", "b", "b", "d", "e"]},
            r"labels: got \['a', .*\], some twice; expected each once",
        ),
        (decoder, {"labels": LABELS}, "labels: got some; expected none for generation"),
        (encoder, {"labels": ["a", "b"]}, "labels: got 2; the head of BertForSequenceClassification has 5"),
        (
            encoder,
            {"task": "token_classification"},
            r"task: got token_classification; Bert\w+ is for classification",
        ),
        (encoder, {"task": "generation", "head": {}}, r"task: got generation; Bert\w+ is for classification"),
    ],
)
def test_facts_that_could_not_be_read_or_are_not_the_models_are_not_saved(
    make: Any, change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(AdapterError, match=message):
        saved(tmp_path / "adapter", make(), random_prefix(make()), **change)
    assert list(tmp_path.iterdir()) == []


def test_a_task_that_there_is_not_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="task: got 'gen'; expected classification, token_"):
        load_adapter(tmp_path, decoder(), task="gen")  # type: ignore[arg-type]


def test_a_folder_that_holds_anything_else_is_left_as_it_is(tmp_path: Path) -> None:
    model, folder = decoder(), tmp_path / "documents"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years")
    with pytest.raises(AdapterError, match=r"the folder holds 'thesis.txt', no part of an adapter; choose"):
        saved(folder, model, random_prefix(model))
    assert (folder / "thesis.txt").read_text() == "years"
    with pytest.raises(AdapterError, match="a file is there; expected a folder, or nothing"):
        saved(folder / "thesis.txt", model, random_prefix(model))
    assert [entry.name for entry in folder.iterdir()] == ["thesis.txt"]


def test_an_adapter_or_an_empty_folder_is_replaced_also_where_a_string_names_it(tmp_path: Path) -> None:
    model, folder = decoder(), tmp_path / "adapter"
    folder.mkdir()
    for seed in (1, 2):
        prefix = random_prefix(model, seed=seed)
        save_adapter(str(folder), prefix, model, head={}, task="generation", base_name="tiny")
        assert torch.equal(load_adapter(str(folder), model)[0].vectors, prefix.vectors)
        assert adapter_facts(str(folder)).base_name == "tiny"
        (folder / "README.md").write_text("as PEFT writes one")


def test_an_error_says_which_base_the_adapter_was_saved_for(tmp_path: Path) -> None:
    folder = saved(tmp_path / "adapter", encoder(), random_prefix(encoder()))
    with pytest.raises(AdapterError, match=r"it was saved for the base 'tiny'$"):
        load_adapter(folder, encoder(num_hidden_layers=2))


def test_a_decoders_adapter_on_an_encoder_decoder_is_told_in_one_sentence(tmp_path: Path) -> None:
    folder = saved(tmp_path / "adapter", decoder(), random_prefix(decoder()))
    with pytest.raises(
        AdapterError,
        match=r"ration: adapter_config.json: task_type: got 'CAUSAL_LM'; expected SEQ_CLS, TOKEN_CLS or SEQ_2_SEQ_LM; it",
    ):
        load_adapter(folder, encoder_decoder())


def test_an_adapter_that_records_no_base_is_taken_for_any(tmp_path: Path) -> None:
    model = decoder()
    folder = saved(tmp_path / "adapter", model, random_prefix(model))
    load_adapter(folder, model, base_digest="0" * 64)


def test_facts_of_a_damaged_config_are_refused(tmp_path: Path) -> None:
    model = encoder()
    folder = saved(tmp_path / "adapter", model, random_prefix(model))
    config_edit(lora_alpha=3)(folder)
    with pytest.raises(AdapterError, match="'lora_alpha' is unknown"):
        adapter_facts(folder)


@pytest.mark.parametrize(
    ("make", "head", "message"),
    [
        (encoder, {}, "got no head"),
        (encoder, {"classifier.weight": torch.zeros(5, 32)}, "tensor classifier.bias is missing"),
        (encoder, {"elsewhere.weight": torch.zeros(5)}, "tensor elsewhere.weight is one too many"),
        (
            encoder,
            {"classifier.weight": torch.zeros(4, 32), "classifier.bias": torch.zeros(5)},
            r"got shape \[4, 32\]; expected \[5, 32\]",
        ),
        (
            encoder,
            {"classifier.weight": torch.full((5, 32), torch.nan), "classifier.bias": torch.zeros(5)},
            "NaN or infinity",
        ),
        (decoder, {"lm_head.weight": torch.zeros(60, 32)}, "expected none for generation"),
    ],
)
def test_what_could_not_be_loaded_is_not_saved(
    make: Any, head: dict[str, torch.Tensor], message: str, tmp_path: Path
) -> None:
    model = make()
    with pytest.raises(AdapterError, match=f"nothing was saved: .*{message}"):
        saved(tmp_path / "adapter", model, random_prefix(model), head=head)
    assert list(tmp_path.iterdir()) == []


def test_a_prefix_that_is_not_finite_is_not_saved(tmp_path: Path) -> None:
    model = decoder()
    prefix = random_prefix(model)
    with torch.no_grad():
        prefix.vectors[2, 3] = torch.nan
    with pytest.raises(AdapterError, match="prompt_embeddings: got NaN"):
        saved(tmp_path / "adapter", model, prefix)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_old_adapter_and_nothing_else(tmp_path: Path) -> None:
    model = encoder()
    folder = saved(tmp_path / "adapter", model, random_prefix(model))
    before = adapter_digest(folder)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))  # no file may grow beyond it
    try:
        with pytest.raises(AdapterError, match=r"could not be saved: .*; what was there before is unchanged"):
            saved(folder, model, random_prefix(model, seed=8))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert adapter_digest(folder) == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["adapter"]


def test_a_model_that_cannot_carry_a_prefix_is_told_so(tmp_path: Path) -> None:
    model = encoder()
    folder = saved(tmp_path / "adapter", model, random_prefix(model))
    model.config.is_encoder_decoder = True
    with pytest.raises(PrefixError, match="cannot carry a prefix"):
        load_adapter(folder, model)


def test_a_prefix_of_another_models_shape_is_not_saved(tmp_path: Path) -> None:
    prefix = random_prefix(decoder("GPT2"))
    with pytest.raises(
        AdapterError, match="the prefix is for 3 layers of 4 heads of 8; LlamaForCausalLM needs"
    ):
        saved(tmp_path / "adapter", decoder("Llama"), prefix)
    assert list(tmp_path.iterdir()) == []
