from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModel

from pipeline.base import base_model
from pipeline.base.base_files import identity_files
from pipeline.base.base_model import ResolvedBase
from pipeline.digest import digest, sha256_file
from pipeline.errors import BaseModelError, IntegrityError
from pipeline.params import BaseModelParams
from tests.prefix import models

REVISION = "0123456789abcdef0123456789abcdef01234567"
OFFLINE_ERROR = "cannot be used offline"


@pytest.fixture
def encoder(encoder_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(encoder_folder, tmp_path / "model"))


@pytest.fixture
def decoder(decoder_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(decoder_folder, tmp_path / "model"))


def pinned(source: dict[str, str], folder: Path) -> BaseModelParams:
    return BaseModelParams.model_validate({"source": source, "digest": digest(identity_files(folder))})


def resolved(folder: Path) -> ResolvedBase:
    return base_model.resolve("tiny", pinned({"path": str(folder)}, folder), folder.parent)


def edit_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def reshard(folder: Path) -> None:
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="20KB")


def hub_cache(folder: Path, home: Path) -> Path:
    """The layout the hub client writes: blobs by hash, a snapshot of symbolic links. Returns the snapshot."""
    repository = home / "models--team--tiny"
    snapshot = repository / "snapshots" / REVISION
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for file in folder.iterdir():
        blob = repository / "blobs" / sha256_file(file)
        shutil.copy(file, blob)
        (snapshot / file.name).symlink_to(os.path.relpath(blob, snapshot))
    return snapshot


def in_fresh_python(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# -- identity ------------------------------------------------------------------------------------------------


def test_the_identity_is_the_digest_of_the_model_and_tokenizer_files_alone(encoder: Path) -> None:
    names = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    expected = {name: sha256_file(encoder / name) for name in names}
    (encoder / "README.md").write_text("words")
    (encoder / "pytorch_model.bin").write_bytes(b"pickle")
    (encoder / "onnx").mkdir()
    (encoder / "onnx" / "config.json").write_text("{}")

    base = resolved(encoder)

    assert dict(base.files) == expected
    assert base.digest == digest(expected)


@pytest.mark.parametrize(
    "name", ["generation_config.json", "vocab.txt", "merges.txt", "chat_template.jinja", "spiece.model"]
)
def test_every_file_that_changes_what_the_model_computes_changes_the_identity(
    encoder: Path, name: str
) -> None:
    before = digest(identity_files(encoder))
    (encoder / name).write_text("{}")
    assert digest(identity_files(encoder)) != before


def test_hub_folder_and_package_give_one_identity(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site" / "tiny_carrier"
    shutil.copytree(encoder, package / "weights")
    (package / "__init__.py").write_text("raise RuntimeError('the code of the package was run')")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    folder = resolved(encoder)

    packaged = base_model.resolve(
        "tiny", pinned({"package": "tiny_carrier", "folder": "weights"}, encoder), tmp_path
    )
    hub_cache(encoder, tmp_path / "hub")
    params = pinned({"hub": "team/tiny", "revision": REVISION}, encoder)
    hub = in_fresh_python(
        "from pathlib import Path; from pipeline.base.base_model import resolve; "
        "from pipeline.params import BaseModelParams; "
        f"base = resolve('tiny', BaseModelParams.model_validate({params.model_dump()!r}), Path('.')); "
        "print(base.digest, base.folder)",
        HF_HUB_CACHE=str(tmp_path / "hub"),
    ).split()

    assert packaged.digest == folder.digest == hub[0]
    assert packaged.folder == package / "weights"
    assert Path(hub[1]).name == REVISION
    assert packaged.source == {"package": "tiny_carrier", "folder": "weights"}


def test_a_relative_path_is_taken_from_the_workspace(encoder: Path) -> None:
    base = base_model.resolve("tiny", pinned({"path": "model"}, encoder), encoder.parent)
    assert base.folder == encoder


def test_a_nested_package_is_found_without_running_its_parent(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = tmp_path / "site" / "outer_carrier" / "inner"
    shutil.copytree(encoder, inner)
    for init in (inner / "__init__.py", inner.parent / "__init__.py"):
        init.write_text("raise RuntimeError('the code of the package was run')")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    base = base_model.resolve("tiny", pinned({"package": "outer_carrier.inner"}, encoder), tmp_path)
    assert base.folder == inner


# -- refusals ------------------------------------------------------------------------------------------------


def test_a_wrong_digest_prints_the_found_and_the_expected_one(encoder: Path) -> None:
    params = BaseModelParams.model_validate({"source": {"path": str(encoder)}, "digest": "0" * 64})
    with pytest.raises(IntegrityError) as caught:
        base_model.resolve("tiny", params, encoder)
    assert digest(identity_files(encoder)) in str(caught.value)
    assert "0" * 64 in str(caught.value)
    assert "base_models.tiny.digest" in str(caught.value)


def test_a_pickle_only_folder_is_refused_by_file_name_with_the_way_out(encoder: Path) -> None:
    (encoder / "model.safetensors").rename(encoder / "pytorch_model.bin")
    with pytest.raises(BaseModelError, match=r"pytorch_model\.bin.*run code.*save_pretrained"):
        identity_files(encoder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_remote_code_is_refused(encoder: Path, name: str) -> None:
    content = json.loads((encoder / name).read_text())
    (encoder / name).write_text(json.dumps({**content, "auto_map": {"AutoModel": "modeling.Mine"}}))
    with pytest.raises(BaseModelError, match="auto_map"):
        identity_files(encoder)


def test_incomplete_shards_are_refused_by_name(encoder: Path) -> None:
    reshard(encoder)
    assert len([name for name in identity_files(encoder) if name.endswith(".safetensors")]) == 7
    assert not base_model.load(resolved(encoder), "classification", labels=["a", "b"]).training
    (encoder / "model-00003-of-00007.safetensors").unlink()
    with pytest.raises(BaseModelError, match=r"lacks 1 of 7.*model-00003-of-00007"):
        identity_files(encoder)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"weight_map": {"a": "../../elsewhere.safetensors"}}, "expected a .safetensors file beside it"),
        ({"weight_map": {"a": "pytorch_model.bin"}}, "expected a .safetensors file beside it"),
        ({}, "no weight_map"),
        ([], "holds list; expected a mapping"),
    ],
)
def test_a_weight_index_that_names_something_else_is_refused(encoder: Path, index: Any, message: str) -> None:
    (encoder / "model.safetensors").unlink()
    (encoder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(BaseModelError, match=message):
        identity_files(encoder)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "does not exist"),
        (lambda folder: (folder / "config.json").write_text("{"), "is not JSON"),
        (lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe"), "is not JSON"),
        (lambda folder: (folder / "model.safetensors").unlink(), r"no model\.safetensors"),
        (lambda folder: shutil.rmtree(folder), "not a folder"),
    ],
)
def test_an_incomplete_folder_is_refused(encoder: Path, spoil: Callable[[Path], None], message: str) -> None:
    spoil(encoder)
    with pytest.raises(BaseModelError, match=message):
        identity_files(encoder)


@pytest.mark.parametrize("package", ["no_such_package_here", "json.decoder", "no_such.nested", "json.nested"])
def test_a_package_that_is_not_there_is_refused(package: str, tmp_path: Path) -> None:
    params = BaseModelParams.model_validate({"source": {"package": package}, "digest": "0" * 64})
    with pytest.raises(BaseModelError, match="not installed"):
        base_model.resolve("tiny", params, tmp_path)


@pytest.mark.parametrize("folder", ["nowhere", "../..", "/"])
def test_a_package_folder_outside_the_package_is_refused(folder: str, tmp_path: Path) -> None:
    params = BaseModelParams.model_validate(
        {"source": {"package": "json", "folder": folder}, "digest": "0" * 64}
    )
    with pytest.raises(BaseModelError, match="not a folder inside the package json"):
        base_model.resolve("tiny", params, tmp_path)


def test_a_hub_model_that_is_absent_or_partly_cached_is_refused_offline(
    encoder: Path, tmp_path: Path
) -> None:
    params = pinned({"hub": "team/tiny", "revision": REVISION}, encoder)
    code = (
        "from pathlib import Path; from pipeline.base.base_model import resolve; "
        "from pipeline.errors import BaseModelError; from pipeline.params import BaseModelParams\n"
        f"params = BaseModelParams.model_validate({params.model_dump()!r})\n"
        "try: resolve('tiny', params, Path('.'))\n"
        "except BaseModelError as error: print(error)"
    )
    assert OFFLINE_ERROR in in_fresh_python(code, HF_HUB_CACHE=str(tmp_path / "empty"))
    snapshot = hub_cache(encoder, tmp_path / "hub")
    (snapshot / "model.safetensors").unlink()
    partly = in_fresh_python(code, HF_HUB_CACHE=str(tmp_path / "hub"))
    assert OFFLINE_ERROR in partly
    assert "no model.safetensors" in partly


def test_a_hub_that_does_not_answer_is_a_base_model_error(encoder: Path, tmp_path: Path) -> None:
    params = pinned({"hub": "team/tiny", "revision": REVISION}, encoder)
    said = in_fresh_python(
        "from pathlib import Path; from pipeline.base.base_model import resolve; "
        "from pipeline.errors import BaseModelError; from pipeline.params import BaseModelParams\n"
        f"params = BaseModelParams.model_validate({params.model_dump()!r})\n"
        "try: resolve('tiny', params, Path('.'))\n"
        "except BaseModelError as error: print(error)",
        HF_HUB_CACHE=str(tmp_path / "empty"),
        HF_HUB_OFFLINE="0",
        HF_ENDPOINT="http://127.0.0.1:9",  # the discard port of this machine: nothing listens
    )
    assert "could not be downloaded" in said


# -- loading -------------------------------------------------------------------------------------------------


def test_a_file_changed_after_it_was_resolved_is_not_loaded(encoder: Path) -> None:
    base = resolved(encoder)
    weights = bytearray((encoder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (encoder / "model.safetensors").write_bytes(weights)
    with pytest.raises(IntegrityError, match=r"model\.safetensors: found"):
        base_model.load(base, "classification", labels=["a", "b"])
    (encoder / "tokenizer.json").unlink()
    with pytest.raises(IntegrityError, match=r"tokenizer\.json: found missing"):
        base_model.tokenizer(base)


def test_the_backbone_is_the_file_bit_for_bit_and_frozen_in_evaluation_mode(encoder: Path) -> None:
    from safetensors.torch import load_file

    model = base_model.load(resolved(encoder), "classification", labels=["a", "b", "c"])

    stored = load_file(encoder / "model.safetensors")
    loaded = model.bert.state_dict()
    assert stored.keys() == loaded.keys()
    assert all(torch.equal(stored[name], loaded[name]) for name in stored)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not any(module.training for module in model.modules())
    assert model.dtype == torch.float32
    assert model.config.id2label == {0: "a", 1: "b", 2: "c"}


def test_the_head_follows_from_the_seed_alone_and_leaves_the_global_generator_as_it_was(
    encoder: Path,
) -> None:
    base = resolved(encoder)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = base_model.load(base, "classification", labels=["a", "b", "c"], seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(77)
    second = base_model.load(base, "classification", labels=["a", "b", "c"], seed=1)
    third = base_model.load(base, "classification", labels=["a", "b", "c"], seed=2)

    heads = [base_model.head_parameters(model) for model in (first, second, third)]
    assert [sorted(head) for head in heads] == [["classifier.bias", "classifier.weight"]] * 3
    assert torch.equal(heads[0]["classifier.weight"], heads[1]["classifier.weight"])
    assert not torch.equal(heads[0]["classifier.weight"], heads[2]["classifier.weight"])


@pytest.mark.parametrize("task_base", ["encoder", "decoder"])
@torch.no_grad()
def test_a_head_on_the_mean_reads_the_mean_of_each_rows_real_tokens(
    request: pytest.FixtureRequest, task_base: str
) -> None:
    folder = request.getfixturevalue(task_base)
    model = base_model.load(resolved(folder), "classification", labels=["a", "b", "c"], pooling="mean")
    assert sorted(base_model.head_parameters(model)) == ["mean_classifier.bias", "mean_classifier.weight"]
    head = model.mean_classifier
    head.bias.copy_(torch.tensor([0.5, -1.0, 2.0]))
    head.weight.mul_(50)  # so that the logits are far apart
    tokens = [[2, 9, 8, 3], [2, 7, 9, 30, 31, 3]]
    plain = AutoModel.from_pretrained(folder)
    expected = [
        plain(torch.tensor([row])).last_hidden_state[0].numpy().mean(axis=0) @ head.weight.numpy().T
        + head.bias.numpy()
        for row in tokens
    ]
    padded, mask = torch.tensor([[*tokens[0], 0, 0], tokens[1]]), torch.tensor([[1] * 4 + [0] * 2, [1] * 6])
    found = model(input_ids=padded, attention_mask=mask).logits.numpy()
    assert np.abs(found - np.stack(expected)).max() < 1e-5
    assert np.abs(found[0] - found[1]).max() > 0.1
    alone = model(input_ids=torch.tensor([tokens[0]])).logits.numpy()
    assert np.abs(alone[0] - expected[0]).max() < 1e-5


def test_a_head_on_the_mean_is_drawn_from_the_seed_and_the_backbone_is_the_files(encoder: Path) -> None:
    def loaded(seed: int) -> Any:
        return base_model.load(
            resolved(encoder), "classification", labels=["a", "b"], pooling="mean", seed=seed
        )

    first, again, other = loaded(1), loaded(1), loaded(2)
    assert torch.equal(first.mean_classifier.weight, again.mean_classifier.weight)
    assert not torch.equal(first.mean_classifier.weight, other.mean_classifier.weight)
    assert not any(parameter.requires_grad for parameter in first.parameters())
    assert not first.training
    plain = AutoModel.from_pretrained(encoder).state_dict()
    unread = {"pooler.dense.weight", "pooler.dense.bias"}
    assert plain.keys() - unread == first.backbone.state_dict().keys()
    assert all(torch.equal(tensor, plain[name]) for name, tensor in first.backbone.state_dict().items())
    before = base_model.weights_digest(first)
    with torch.no_grad():
        first.mean_classifier.weight.add_(1)
    assert base_model.weights_digest(first) == before


def test_a_base_saved_without_a_pooler_is_read_by_the_mean_of_its_tokens_only(encoder: Path) -> None:
    AutoModel.from_pretrained(encoder, add_pooling_layer=False).save_pretrained(encoder)
    model = base_model.load(resolved(encoder), "classification", labels=["a", "b"], pooling="mean")
    assert model.backbone.pooler is None
    with pytest.raises(BaseModelError, match=r"bert\.pooler\.dense\.bias: missing"):
        base_model.load(resolved(encoder), "classification", labels=["a", "b"])


@pytest.mark.parametrize("family", ["Qwen3Moe", "GptOss", "DeepseekV3", "OPT of two widths"])
@torch.no_grad()
def test_a_head_on_the_mean_is_put_on_experts_and_on_states_of_another_width(
    decoder: Path, family: str
) -> None:
    more = {"word_embed_proj_dim": 16} if "OPT" in family else {}
    made = models.decoder(family.split()[0], **more)
    made.save_pretrained(decoder)
    model = base_model.load(resolved(decoder), "classification", labels=["a", "b"], pooling="mean")
    plain = AutoModel.from_pretrained(decoder)
    states = plain(torch.tensor([[5, 9, 8]])).last_hidden_state[0]
    expected = states.mean(0) @ model.mean_classifier.weight.T + model.mean_classifier.bias
    found = model(input_ids=torch.tensor([[5, 9, 8]])).logits[0]
    assert expected.abs().max() > 1e-3
    assert (found - expected).abs().max() < 1e-5
    assert model.config._experts_implementation == plain.config._experts_implementation


@torch.no_grad()
def test_a_head_on_the_mean_gives_the_loss_of_labels_as_transformers_heads_do(encoder: Path) -> None:
    model = base_model.load(resolved(encoder), "classification", labels=["a", "b"], pooling="mean")
    inputs = {"input_ids": torch.tensor([[2, 9, 3], [2, 8, 3]]), "labels": torch.tensor([1, 0])}
    found = model(**inputs, return_dict=False)
    log_p = found.logits.log_softmax(-1)
    assert found.loss.item() == pytest.approx(-(log_p[0, 1] + log_p[1, 0]).item() / 2, rel=1e-6)


def test_a_head_for_other_labels_in_the_files_is_replaced(encoder: Path) -> None:
    base_model.load(resolved(encoder), "classification", labels=["x", "y", "z"]).save_pretrained(encoder)
    model = base_model.load(resolved(encoder), "classification", labels=["a", "b"])
    assert model.classifier.weight.shape == (2, 32)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"hidden_size": 48}, r"shape \[32\] in the file, \[48\] by config.json"),
        ({"num_hidden_layers": 3}, r"bert\.encoder\.layer\.2\.\S+: missing"),
        ({"num_hidden_layers": 1}, r"encoder\.layer\.1\.\S+: in the file, but config.json has no such layer"),
        ({"model_type": "nope"}, "ValueError.*nope"),
        ({"hidden_act": "nope"}, "KeyError.*nope"),
        ({"num_attention_heads": "four"}, "StrictDataclass"),
    ],
)
def test_a_base_of_another_shape_than_its_config_is_refused(
    encoder: Path, edit: dict[str, Any], message: str
) -> None:
    edit_config(encoder, **edit)
    with pytest.raises(BaseModelError, match=message):
        base_model.load(resolved(encoder), "classification", labels=["a", "b"])


def test_cut_weights_are_refused(encoder: Path) -> None:
    weights = (encoder / "model.safetensors").read_bytes()
    (encoder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(BaseModelError, match="SafetensorError"):
        base_model.load(resolved(encoder), "classification", labels=["a", "b"])


def test_classification_without_labels_is_refused(encoder: Path) -> None:
    with pytest.raises(BaseModelError, match="got 0 labels; expected at least 2"):
        base_model.load(resolved(encoder), "classification")


def test_an_encoder_is_refused_for_generation(encoder: Path) -> None:
    with pytest.raises(BaseModelError, match="expected a causal decoder"):
        base_model.load(resolved(encoder), "generation")


def test_a_decoder_loads_for_both_tasks(decoder: Path) -> None:
    edit_config(decoder, pad_token_id=None)
    base = resolved(decoder)
    generator = base_model.load(base, "generation")
    classifier = base_model.load(base, "classification", labels=["a", "b"])
    assert base_model.head_parameters(generator) == {}
    assert list(base_model.head_parameters(classifier)) == ["score.weight"]
    assert classifier.config.pad_token_id == 0  # the tokenizer's


# -- tokenizer and window ------------------------------------------------------------------------------------


def test_the_tokenizer_gives_what_transformers_gives_without_importing_torch(encoder: Path) -> None:
    from transformers import AutoTokenizer

    text = "the cat sees a bird, zebra!"
    expected = AutoTokenizer.from_pretrained(encoder)(text).input_ids
    params = pinned({"path": str(encoder)}, encoder)
    said = in_fresh_python(
        "import sys; from pathlib import Path; from pipeline.base import base_model; "
        "from pipeline.params import BaseModelParams; "
        f"base = base_model.resolve('x', BaseModelParams.model_validate({params.model_dump()!r}), Path('.')); "
        f"print(base_model.tokenizer(base)({text!r}).input_ids, base_model.window(base), 'torch' in sys.modules)"
    )
    assert said.strip() == f"{expected} 64 False"


@pytest.mark.parametrize(
    ("generation_config", "config", "end"),
    [
        (2, 3, "<s>"),  # what `generate` stops at
        ([2, 0], 3, "<s>"),
        ([2, 3], 2, "</s>"),  # the tokenizer's is one of them
        (None, 2, "<s>"),
        (None, None, "</s>"),
        (7, 2, "</s>"),  # a word, from a default number
        (50_256, 2, "</s>"),
        (1, 2, "</s>"),  # <unk>, by another default number
        ([0, 2], None, "<s>"),  # <pad> is no end either
        (46, 2, "<|end|>"),  # special by its file, with no part of its own
    ],
)
def test_a_text_ends_with_the_token_that_the_base_ends_it_with(
    decoder: Path, generation_config: int | list[int] | None, config: int | None, end: str
) -> None:
    for name, ends in (("generation_config.json", generation_config), ("config.json", config)):
        content = json.loads((decoder / name).read_text())
        (decoder / name).write_text(json.dumps({**content, "eos_token_id": ends}))
    tokenizer = json.loads((decoder / "tokenizer.json").read_text())
    named = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    tokenizer["added_tokens"].append({"id": 46, "content": "<|end|>", "special": True, **named})
    (decoder / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert base_model.tokenizer(resolved(decoder)).eos_token == end


def test_a_base_without_a_readable_fast_tokenizer_is_refused(encoder: Path) -> None:
    (encoder / "tokenizer.json").write_text("{}")
    with pytest.raises(BaseModelError, match="has no model"):
        base_model.tokenizer(resolved(encoder))
    (encoder / "tokenizer.json").unlink()
    with pytest.raises(BaseModelError, match=r"no tokenizer\.json"):
        base_model.tokenizer(resolved(encoder))


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        ({}, 64),
        ({"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 1}, 512),
        ({"max_position_embeddings": None, "n_positions": 99}, 99),
        ({"max_position_embeddings": None, "text_config": {"max_position_embeddings": 77}}, 77),
    ],
)
def test_the_window_is_what_the_config_says(encoder: Path, edit: dict[str, Any], expected: int) -> None:
    edit_config(encoder, **edit)
    assert base_model.window(resolved(encoder)) == expected


def test_the_window_of_a_loaded_model_is_that_of_its_files(encoder: Path, decoder_folder: Path) -> None:
    for folder in (encoder, decoder_folder):
        base = resolved(folder)
        assert base_model.window_of(
            base_model.load(base, "classification", labels="ab")
        ) == base_model.window(base)


def test_a_config_without_a_window_is_refused(encoder: Path) -> None:
    edit_config(encoder, max_position_embeddings=None)
    with pytest.raises(BaseModelError, match="names no window"):
        base_model.window(resolved(encoder))


# -- encoder-decoders ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "window"), [("t5", None), ("bart", 64)])
def test_an_encoder_decoder_is_loaded_for_generation_with_the_weights_of_its_files(
    request: pytest.FixtureRequest, kind: str, window: int | None
) -> None:
    from transformers import AutoModelForSeq2SeqLM

    folder = request.getfixturevalue(f"{kind}_folder")
    model = base_model.load(resolved(folder), "generation")
    theirs = AutoModelForSeq2SeqLM.from_pretrained(folder).state_dict()
    assert model.state_dict().keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in model.state_dict().items())
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert base_model.is_encoder_decoder(resolved(folder))
    assert base_model.window_of(model) == window


def test_a_decoder_and_an_encoder_are_no_encoder_decoders(encoder: Path, decoder_folder: Path) -> None:
    assert not base_model.is_encoder_decoder(resolved(encoder))
    assert not base_model.is_encoder_decoder(resolved(decoder_folder))


@pytest.mark.parametrize(
    ("edit", "limit", "expected"),
    [
        ({}, 30, 64),
        ({"n_positions": None}, 30, 30),
        ({"n_positions": None}, int(1e30), None),
        ({"n_positions": None}, None, None),
        ({"n_positions": 50, "max_encoder_position_embeddings": 99}, 30, 50),
        (
            {
                "n_positions": None,
                "max_encoder_position_embeddings": 99,
                "max_decoder_position_embeddings": 40,
            },
            30,
            40,
        ),
    ],
)
def test_the_window_of_an_encoder_decoder_is_the_smaller_of_both_else_the_tokenizers_limit(
    t5_folder: Path, tmp_path: Path, edit: dict[str, Any], limit: int | None, expected: int | None
) -> None:
    folder = shutil.copytree(t5_folder, tmp_path / "t5")
    edit_config(folder, **edit)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_max_length": limit}))
    assert base_model.window(resolved(folder)) == expected
    (folder / "tokenizer_config.json").unlink()
    assert base_model.window(resolved(folder)) in (expected, None)


def test_an_encoder_decoder_is_not_loaded_for_classification(t5_folder: Path) -> None:
    with pytest.raises(
        BaseModelError, match="is a t5, an encoder-decoder, which is used for generation only"
    ):
        base_model.load(resolved(t5_folder), "classification", labels=["a", "b"])


def test_an_encoder_decoder_that_names_no_token_to_begin_with_is_refused(
    t5_folder: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(t5_folder, tmp_path / "t5")
    edit_config(folder, decoder_start_token_id=None)
    with pytest.raises(
        BaseModelError, match=r"config\.json: decoder_start_token_id is None; expected the token"
    ):
        base_model.load(resolved(folder), "generation")


def test_two_files_that_name_different_tokens_to_begin_with_are_refused(
    t5_folder: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(t5_folder, tmp_path / "t5")
    path = folder / "generation_config.json"
    content = json.loads(path.read_text())
    path.write_text(
        json.dumps({**content, "decoder_start_token_id": None})
    )  # names none: nothing to contradict
    base_model.load(resolved(folder), "generation")
    path.write_text(json.dumps({**content, "decoder_start_token_id": 9}))
    with pytest.raises(
        BaseModelError, match=r"decoder_start_token_id is 0 in config\.json and 9 in generation_config"
    ):
        base_model.load(resolved(folder), "generation")


def test_a_config_that_leaves_it_open_whether_it_is_an_encoder_decoder_is_refused(
    t5_folder: Path, tmp_path: Path
) -> None:
    """transformers fills it in, and rows would have been prepared for a decoder."""
    folder = shutil.copytree(t5_folder, tmp_path / "t5")
    config = json.loads((folder / "config.json").read_text())
    del config["is_encoder_decoder"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(BaseModelError, match="is of a t5 and does not say is_encoder_decoder: true; add it"):
        base_model.load(resolved(folder), "generation")


# -- the base never changes ----------------------------------------------------------------------------------


def test_the_weights_digest_sees_every_parameter_and_buffer_of_the_base_and_not_the_head(
    encoder: Path,
) -> None:
    model = base_model.load(resolved(encoder), "classification", labels=["a", "b"])
    before = base_model.weights_digest(model)
    head = base_model.head_parameters(model)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    assert len(tensors) == 43
    for name, tensor in tensors.items():
        kept = tensor.detach().clone()
        flat = tensor.data.reshape(-1)
        flat[-1] += 1
        assert (base_model.weights_digest(model) == before) == (name in head), name
        tensor.data.copy_(kept)
    assert base_model.weights_digest(model) == before
