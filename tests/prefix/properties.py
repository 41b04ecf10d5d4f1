"""What has to hold of a prefix on every architecture, each as a function that fails where it does not.

A property that an architecture cannot have raises `RefusedError`, after it has seen that it is refused; its message is the
cell of the table.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from peft import PeftModel

from pipeline.base.mean_pooled import MeanPooledForSequenceClassification
from pipeline.errors import PrefixError
from pipeline.prefix.adapter import load_adapter, save_adapter
from pipeline.prefix.architecture import anatomy
from pipeline.prefix.attention import attach
from pipeline.prefix.generation import generate
from pipeline.prefix.packing import Tree, pack, packs
from pipeline.prefix.text_start import text_key_values
from pipeline.prefix.tuning import Prefix, PrefixShape
from pipeline.train.batches import Batch, GenerationRows
from tests.prefix import models, slow
from tests.prefix.cases import LENGTH, TOLERANCE, Case, alone, batch, of_row, plain, prefixed, weighed
from tests.prefix.peer import peer

NEW = 4
IN_SIGHT = models.WINDOW - LENGTH
"""How many tokens of a row have all positions in front of them within a window."""


class RefusedError(Exception):
    """The property cannot hold of the architecture, and the engine says so, or does not claim it."""


def parts_of(prefix: Prefix, rows: torch.Tensor) -> slow.Parts:
    return slow.cut(rows, [(layer.heads, layer.key_size, layer.value_size) for layer in prefix.shape.layers])


def reference(
    case: Case, model: Any, prefix: Prefix, rows: torch.Tensor, inputs: dict[str, torch.Tensor]
) -> torch.Tensor:
    """The logits of one row alone, without the engine."""
    parts, tokens = parts_of(prefix, rows), inputs["input_ids"].shape[1]
    first = LENGTH
    if case.family in ("Roberta", "XLMRoberta", "Camembert", "Esm"):
        first += model.config.pad_token_id + 1
    positions = {} if case.both else {"position_ids": torch.arange(first, first + tokens)[None]}
    if case.by_cache:
        if case.family in ("Bloom", "Mpt"):
            positions = {}
        return slow.by_cache(model, parts, inputs["input_ids"], **positions)
    order = None
    if case.both:
        encoder = len(model.get_encoder().block if "T5" in case.family else model.get_encoder().layers)
        decoder = (len(parts) - encoder) // 2
        pairs = [(encoder + layer, encoder + decoder + layer) for layer in range(decoder)]
        order = [*range(encoder), *(layer for pair in pairs for layer in pair)]
    with slow.by_hand(model, parts, order):
        logits: torch.Tensor = model(**inputs, **positions).logits
    return logits


def _pairs(model: Any) -> list[tuple[Any, Any]]:
    return [
        (layer.attention.self.key_proj, layer.attention.self.value_proj)
        for layer in model.deberta.encoder.layer
    ]


# -- properties ----------------------------------------------------------------------------------------------


def logits_are_right(case: Case) -> None:
    """Logits equal a slow, independent reference to 1e-5."""
    model = case.model().double()
    inputs = batch(case, model)
    mask = inputs["attention_mask"]
    if case.family == "DebertaV2":
        prefix = Prefix(PrefixShape.of_model(model), LENGTH).double()
        for row in range(3):
            tokens = alone(inputs, row)["input_ids"]
            rows, expected = slow.by_joint_pass(
                model, _pairs(model), torch.tensor([[7, 9, 11, 30, 6]]), tokens
            )
            prefix.init_from(rows)
            with attach(model, prefix):
                states = model(**inputs, output_hidden_states=True).hidden_states[-1]
            assert slow.close(states[row][mask[row] == 1], expected[0]) < TOLERANCE
        return
    prefix = models.random_prefix(model, LENGTH).double()
    ours = prefixed(model, prefix, **inputs)
    for row in range(3):
        expected = reference(case, model, prefix, prefix.vectors.detach(), alone(inputs, row))[0]
        assert slow.close(of_row(case, ours, mask, row), expected) < TOLERANCE


def gradients_are_right(case: Case) -> None:
    """The prefix's gradient is the reference's, also after an evaluation pass; the base has none and stays."""
    model = case.model().double()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    inputs = batch(case, model)
    mask = inputs["attention_mask"]
    prefix = models.random_prefix(model, LENGTH, scale=0.7).double()
    with attach(model, prefix):
        with torch.inference_mode():
            model(**inputs)
        loss = weighed(case, model(**inputs).logits, mask)
        with torch.no_grad():
            model(**inputs)
        loss.backward()
    gradient = prefix.vectors.grad
    assert gradient is not None
    assert models.least(prefix.shape, gradient) > 1e-4
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    rows = prefix.vectors.detach()
    if case.family == "DebertaV2":  # no second way to its gradient but the quotient of differences
        step = 1e-5 * torch.randn(rows.shape, generator=torch.Generator().manual_seed(3), dtype=rows.dtype)
        values = []
        for moved in (rows + step, rows - step):
            prefix.init_from(moved)
            values.append(weighed(case, prefixed(model, prefix, **inputs), mask).item())
        slope = (values[0] - values[1]) / 2
        assert slope == pytest.approx((gradient * step).sum().item(), rel=1e-4)
        return
    rows = rows.clone().requires_grad_()
    total = torch.zeros((), dtype=rows.dtype)
    for row in range(3):
        expected = reference(case, model, prefix, rows, alone(inputs, row))
        real = torch.ones(1, expected.shape[1], dtype=torch.long)
        total = total + weighed(case, expected, real)
    total.backward()
    assert rows.grad is not None
    assert (gradient - rows.grad).abs().max() < TOLERANCE * rows.grad.abs().max()


def padding_changes_nothing(case: Case) -> None:
    """Padding on either side gives a row what it has alone: its logits, or its states where a head reads one column."""
    model = case.model().double()
    prefix = models.random_prefix(model, LENGTH).double()
    right, left = batch(case, model), batch(case, model, "left")
    for row in range(3):
        tokens = alone(right, row)["input_ids"][0]
        left["input_ids"][row, -len(tokens) :] = tokens

    def computed(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        if case.kind != "encoder":
            return prefixed(model, prefix, **inputs)
        with attach(model, prefix), torch.no_grad():
            states: torch.Tensor = model(**inputs, output_hidden_states=True).hidden_states[-1]
        return states

    def same(inputs: dict[str, torch.Tensor]) -> bool:
        together, mask = computed(inputs), inputs["attention_mask"]
        away = []
        for row in range(3):
            found = together[row] if case.both else together[row][mask[row] == 1]
            away.append(slow.close(found, computed(alone(inputs, row))[0]))
        return max(away) < TOLERANCE

    assert same(right)
    if case.family in ("Mpt", "DebertaV2"):
        with pytest.raises(PrefixError, match="padding on the left"):
            computed(left)
        raise RefusedError("right only: it would take padding for distance")
    if "Bart" in case.family:
        with torch.no_grad():
            moved = model(**left).logits[0] - model(**alone(left, 0)).logits[0]
        assert moved.abs().max() > 1e-2
        raise RefusedError(
            "right only: it counts positions from the begin of a row, with a prefix or without"
        )
    assert same(left)


def checkpointing_changes_nothing(case: Case) -> None:
    """Gradient checkpointing gives the same logits and the same gradient, whatever pass came between."""
    found = []
    for checkpointed in (False, True):
        model = case.model()
        if checkpointed:
            if not model.supports_gradient_checkpointing:
                with pytest.raises(ValueError, match="does not support activation checkpointing"):
                    model.gradient_checkpointing_enable({"use_reentrant": False})
                raise RefusedError("transformers has no gradient checkpointing for it")
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
            for name in (
                "attention_dropout",
                "dropout",
                "activation_dropout",
                "attn_dropout_p",
                "dropout_rate",
                "hidden_dropout",
            ):
                if isinstance(getattr(module, name, None), float):
                    setattr(module, name, 0.0)
        inputs = batch(case, model)
        prefix = models.random_prefix(model, LENGTH)
        with attach(model, prefix):
            logits = model(**inputs).logits
            with torch.no_grad():
                model(**inputs)
            weighed(case, logits, inputs["attention_mask"]).backward()
        assert prefix.vectors.grad is not None
        found.append((logits.detach(), prefix.vectors.grad))
    (logits, gradient), (again, checkpointed_gradient) = found
    assert slow.close(again, logits) < TOLERANCE
    assert (checkpointed_gradient - gradient).abs().max() < TOLERANCE * gradient.abs().max()


def packed_rows_are_the_same(case: Case) -> None:
    """Packed rows with shared sources have the losses and gradients of a row for each reference."""
    sources, references = [[5, 9, 14], [7]], [[[8, 6, 2], [9, 2]], [[4, 2]]]
    model = case.model()
    if not packs(anatomy(model), 10):
        if case.kind == "decoder":
            _check_stays_padded(model)
        raise RefusedError("rows stay padded")
    prefix = models.random_prefix(model, LENGTH)
    gradients, losses = [], []
    for packed in (False, True):
        prefix.zero_grad()
        with attach(model, prefix):
            if packed:
                rows = pack(
                    [
                        Tree(np.array(source), tuple(np.array(reference) for reference in group))
                        for source, group in zip(sources, references, strict=True)
                    ],
                    pad=0,
                    width=32,
                )
                logits = model(
                    input_ids=rows.input_ids, position_ids=rows.position_ids, attention_mask=rows.mask(model)
                ).logits.flatten(0, 1)[rows.positions]
                loss = torch.nn.functional.cross_entropy(logits, rows.targets, reduction="sum")
            else:
                loss = torch.zeros(())
                for source, group in zip(sources, references, strict=True):
                    for reference in group:
                        labels = torch.tensor([[-100] * len(source) + reference])
                        one = model(input_ids=torch.tensor([source + reference]), labels=labels).loss
                        loss = loss + one * len(reference)
            loss.backward()
        assert prefix.vectors.grad is not None
        losses.append(loss.item())
        gradients.append(prefix.vectors.grad.clone())
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    assert (gradients[1] - gradients[0]).abs().max() < TOLERANCE * gradients[0].abs().max()


def _check_stays_padded(model: Any) -> None:
    """A decoder's rows for training have one reference each, and its own positions."""
    columns = {"input_ids": [list(range(4, 13))], "target_ids": [[[8, 6, 2], [9, 2]]]}
    (made,) = GenerationRows(datasets.Dataset.from_dict(columns), pad=0, model=model).batches(
        np.array([0]), 1
    )
    assert isinstance(made, Batch)
    assert made.input_ids.tolist() == [[*range(4, 13), 9, 0], [*range(4, 13), 8, 6]]


def _search(case: Case, model: Any, prefix: Prefix, prompt: torch.Tensor, beams: int) -> list[int]:
    """The best continuation by whole passes without a cache."""
    start = [model.config.decoder_start_token_id] if case.both else []
    alive: list[tuple[float, list[int]]] = [(0.0, [])]
    for _ in range(NEW):
        grown = []
        for score, tokens in alive:
            said = torch.tensor([start + tokens], dtype=torch.long)
            inputs = (
                {"input_ids": prompt, "decoder_input_ids": said}
                if case.both
                else {"input_ids": torch.cat([prompt, said], dim=1)}
            )
            gains = prefixed(model, prefix, **inputs)[0, -1].log_softmax(-1)
            grown += [(score + gain, [*tokens, token]) for token, gain in enumerate(gains.tolist())]
        alive = sorted(grown, reverse=True)[:beams]
    return alive[0][1]


def generation_is_right(case: Case) -> None:
    """Greedy and beam search with a cache find what searches over whole passes find."""
    model = case.model()
    prefix = models.random_prefix(model, LENGTH, scale=2.0)
    settings: dict[str, Any] = {"max_new_tokens": NEW, "eos_token_id": 60, "pad_token_id": 0}
    if case.kind.startswith("encoder of") or case.kind == "encoder":
        with pytest.raises(PrefixError, match="does not generate"):
            generate(model, prefix, **models.batch(side="left"), **settings)
        raise RefusedError("an encoder writes nothing")
    inputs = models.batch(side="right" if case.both else "left", pad=model.config.pad_token_id)
    if case.both:
        model.generation_config.forced_eos_token_id = None
    for beams in (1, 2):
        ours = generate(model, prefix, **inputs, **settings, beams=beams)
        expected = [_search(case, model, prefix, alone(inputs, row)["input_ids"], beams) for row in range(3)]
        assert ours.tolist() == expected
        assert ours.tolist() != generate(model, None, **inputs, **settings, beams=beams).tolist()


def text_starts_are_exact(case: Case) -> None:
    """Started from a text, the first logits are the base's own on the text and the input."""
    model = case.model()
    text, tokens = torch.tensor([7, 12, 9, 30, 8]), torch.tensor([[5, 6, 40, 8, 21]])
    prefix = Prefix(PrefixShape.of_model(model), LENGTH)
    prefix.init_from(text_key_values(model, text))
    assert models.least(prefix.shape, prefix.vectors) > 0
    expected = _states(case, model, torch.cat([text[None], tokens], dim=1))[:, LENGTH:]
    with attach(model, prefix):
        away = (_states(case, model, tokens) - expected).abs().amax(2)[0]  # of each token
    if case.kind != "decoder":
        assert away.min() > 1e-2
        raise RefusedError("an encoder's tokens would have seen the input")
    if case.family in ("Qwen3Next", "Lfm2"):
        assert away.min() > 1e-2
        raise RefusedError("its other layers would have read the text")
    assert expected.std() > 0.05
    if case.family in models.WINDOWED:
        assert away[:IN_SIGHT].max() < TOLERANCE
        assert away[IN_SIGHT:].min() > 1e-2
        raise RefusedError("as far as the sliding window reaches; behind it our prefix is still in sight")
    assert away.max() < TOLERANCE


@torch.no_grad()
def _states(case: Case, model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """A decoder's logits, or the last states of an encoder, [1, N, …]."""
    if case.kind == "decoder":
        logits: torch.Tensor = model(tokens).logits
        return logits
    if case.both:
        answer = model(input_ids=tokens, decoder_input_ids=torch.tensor([[2, 5]]))
        states: torch.Tensor = answer.encoder_last_hidden_state
    else:
        states = model(tokens, output_hidden_states=True).hidden_states[-1]
    return states


def _saved(case: Case, model: Any, prefix: Prefix, folder: Path) -> Path:
    heads = {name: p.detach() for name, p in model.named_parameters() if name.startswith("classifier.")}
    task: Any = {"encoder": "classification", "encoder of tokens": "token_classification"}.get(
        case.kind, "generation"
    )
    save_adapter(folder, prefix, model, head=heads, task=task, base_name="tiny")
    return folder


def saving_is_exact(case: Case) -> None:
    """What is loaded is bit for bit what was saved."""
    model = case.model()
    prefix = models.random_prefix(model, LENGTH)
    with TemporaryDirectory() as folder:
        again, _ = load_adapter(_saved(case, model, prefix, Path(folder) / "adapter"), model)
    assert torch.equal(again.vectors, prefix.vectors)
    inputs = batch(case, model)
    assert torch.equal(prefixed(model, again, **inputs), prefixed(model, prefix, **inputs))


def a_head_on_the_mean_is_right(case: Case) -> None:
    """A head on the mean of the tokens reads the mean of the reference's states, padded or not."""
    if case.both or case.kind == "encoder of tokens":
        raise RefusedError("no head for sequences")
    inner = case.model().double()
    inner.config.num_labels = 5
    model = MeanPooledForSequenceClassification(inner.base_model).eval().requires_grad_(False).double()
    generator = torch.Generator().manual_seed(2)
    for parameter in model.mean_classifier.parameters():
        parameter.normal_(generator=generator)
    inputs = batch(case, model)
    mask, head = inputs["attention_mask"], model.mean_classifier
    prefix = models.random_prefix(model, LENGTH).double()
    for row in range(3):
        one = alone(inputs, row)
        if case.family == "DebertaV2":
            rows, states = slow.by_joint_pass(
                inner, _pairs(inner), torch.tensor([[7, 9, 11, 30, 6]]), one["input_ids"]
            )
            prefix.init_from(rows)
        else:
            seen: list[Any] = []
            handle = model.backbone.register_forward_hook(lambda *call, seen=seen: seen.append(call[-1]))
            reference(case, model, prefix, prefix.vectors.detach(), one)
            handle.remove()
            states = seen[0].last_hidden_state
        assert states.shape[1] == mask[row].sum()
        expected = states[0].numpy().mean(axis=0) @ head.weight.numpy().T + head.bias.numpy()
        found = prefixed(model, prefix, **inputs)[row]
        assert slow.close(found, torch.from_numpy(expected)) < TOLERANCE


def detaching_leaves_no_trace(case: Case) -> None:
    """Attached and detached, the model computes, and is, what it was."""
    model = case.model()
    inputs = batch(case, model)
    before = model(**inputs).logits
    attributes = {name: set(vars(module)) for name, module in model.named_modules()}
    config, words = model.config, copy.deepcopy(model.config.to_dict())
    during = prefixed(model, models.random_prefix(model, LENGTH), **inputs)
    assert (during - before).abs().max() > 1e-2
    assert torch.equal(model(**inputs).logits, before)
    assert {name: set(vars(module)) for name, module in model.named_modules()} == attributes
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    assert model.config is config
    assert config.to_dict() == words


def long_inputs_are_refused(case: Case) -> None:
    """Inputs that with the prefix exceed the window get an error before anything is computed."""
    model = case.model()
    prefix = models.random_prefix(model, LENGTH)
    window = anatomy(model).window
    tokens = torch.full((1, 66 if window is None else window + 1 - LENGTH * anatomy(model).shifts), 7)
    inputs = {"input_ids": tokens}
    if case.both:
        inputs["decoder_input_ids"] = tokens[:, :4]
    if window is None:
        assert prefixed(model, prefix, **inputs).isfinite().all()
        raise RefusedError("it has no window")
    model.get_input_embeddings().register_forward_hook(lambda *_: pytest.fail("it computed"))
    with attach(model, prefix), pytest.raises(PrefixError, match=f"the base model has {window}"):
        model(**inputs)


def adapters_interchange_with_peft(case: Case) -> None:
    """PEFT answers the same with what we save, and we with what PEFT saves."""
    model = case.model()
    inputs = batch(case, model)
    mask = inputs["attention_mask"]
    with TemporaryDirectory() as folder:
        saved = _saved(case, model, models.random_prefix(model, LENGTH), Path(folder) / "ours")
        if '"PREFIXLINE"' in (saved / "adapter_config.json").read_text():
            with pytest.raises((ValueError, KeyError)):
                PeftModel.from_pretrained(case.model(), saved)
            raise RefusedError("PEFT has no such prefix, and refuses ours")
        prefix, _ = load_adapter(saved, model)
        ours = prefixed(model, prefix, **inputs)
        try:
            answers = plain(PeftModel.from_pretrained(case.model(), saved).eval(), inputs)
        except Exception:  # noqa: BLE001 - of whatever kind it is
            assert not peer(case)["logits"].startswith("equal")  # nor can it with a prefix of its own
            raise RefusedError("PEFT cannot run it") from None
        if case.family in models.WINDOWED:
            assert slow.close(answers[2, :IN_SIGHT], ours[2, :IN_SIGHT]) < TOLERANCE
            assert (answers[2, IN_SIGHT:] - ours[2, IN_SIGHT:]).abs().amax(1).min() > 1e-2
            raise RefusedError(
                "as far as the sliding window reaches; behind it PEFT loses sight of the prefix"
            )
        _same(case, ours, answers, mask)
        model = case.model()
        told = peer(case)["logits"] != "equal"
        prefix = models.random_prefix(model, LENGTH, seed=9)
        peft = models.in_peft(model, prefix, case.task_type, told_shape=told)
        peft.save_pretrained(Path(folder) / "theirs")
        prefix, head = load_adapter(Path(folder) / "theirs", model)
        for name, tensor in head.items():
            model.get_parameter(name).copy_(tensor)
        _same(case, prefixed(model, prefix, **inputs), plain(peft, inputs), mask)


def _same(case: Case, ours: torch.Tensor, theirs: torch.Tensor, mask: torch.Tensor) -> None:
    for row in range(3):
        assert slow.close(of_row(case, ours, mask, row), of_row(case, theirs, mask, row)) < TOLERANCE


PROPERTIES: dict[str, Callable[[Case], None]] = {
    "logits": logits_are_right,
    "gradients": gradients_are_right,
    "padding": padding_changes_nothing,
    "checkpointing": checkpointing_changes_nothing,
    "packing": packed_rows_are_the_same,
    "generation": generation_is_right,
    "text start": text_starts_are_exact,
    "mean head": a_head_on_the_mean_is_right,
    "saving": saving_is_exact,
    "detaching": detaching_leaves_no_trace,
    "window": long_inputs_are_refused,
    "PEFT's format": adapters_interchange_with_peft,
}


@cache
def outcome(case: Case, name: str) -> str:
    """ "yes", or the reason of a refusal; raises where the property does not hold."""
    try:
        PROPERTIES[name](case)
    except RefusedError as refusal:
        return str(refusal)
    return "yes"
