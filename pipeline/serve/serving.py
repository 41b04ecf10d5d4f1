"""A registered version as an MLflow model: the adapter from MLflow, the base model from this machine.

The model holds the adapter and its lineage record, never the base's weights. Loading finds the base by the
recorded source (a relative path is taken from `PREFIXLINE_WORKSPACE`, else the current folder), verifies base
and adapter by their recorded digests, and attaches the prefix. Nothing is unpickled: MLflow runs
`pipeline/serve/serving_model.py`, and weights are safetensors.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow.pyfunc import PythonModel

from pipeline.digest import verify
from pipeline.errors import PrefixError
from pipeline.params import BaseModelParams
from pipeline.register.lineage import LineageRecord

if TYPE_CHECKING:
    import pandas  # type: ignore[import-untyped]
    from mlflow.pyfunc import PythonModelContext

    from pipeline.data.encoding import Encoded


class Predictor:
    """A prefix on its base model, answering texts. Safe to call from several threads; they take turns.

    Args:
        record: of the version.
        adapter: its folder.
        workspace: what a relative base path is taken from.

    Raises:
        IntegrityError: adapter or base are not the recorded ones.
        BaseModelError: the base is not on this machine.
        AdapterError: the adapter does not fit the base.
    """

    def __init__(self, record: LineageRecord, adapter: Path, workspace: Path) -> None:
        from pipeline.base import base_model
        from pipeline.data.encoding import encoder_for
        from pipeline.prefix.adapter import adapter_facts, install_head, load_adapter

        verify(adapter, record.files)
        recorded = record.base_model
        params = BaseModelParams(source=recorded["source"], digest=recorded["digest"])
        base = base_model.resolve(recorded["name"], params, workspace)
        self._task = record.params["task"]
        self._labels: list[str] = record.dataset["labels"] or []
        self._settings = record.params["evaluation"]
        self._truncate = record.params["data"]["too_long"] == "truncate"
        pooling = adapter_facts(adapter).pooling
        self._model: Any = base_model.load(base, self._task, labels=self._labels or None, pooling=pooling)
        self._prefix, head = load_adapter(adapter, self._model)
        install_head(self._model, head)
        words = base_model.tokenizer(base)
        self._words = words
        self._encoder = encoder_for(
            words,
            window=base_model.window(base),
            prefix_length=self._prefix.length,
            max_tokens=record.params["data"]["max_tokens"],
            encoder_decoder=base_model.is_encoder_decoder(base),
        )
        self._turn = threading.Lock()

    def __call__(self, texts: Sequence[str]) -> pandas.DataFrame:
        """One row per text: for classification `label` and `probability.LABEL` for each; else `text`.

        Raises:
            PrefixError: a text is not a string, has no tokens, or does not fit the base's window beside the prefix.
        """
        import pandas as pd

        if wrong := [i for i, text in enumerate(texts) if not isinstance(text, str)]:
            raise PrefixError(f"row {wrong[0]}: got {type(texts[wrong[0]]).__name__}; expected a text")
        if self._task == "generation":
            return pd.DataFrame({"text": self._generate(texts)})
        probabilities = self._classify(texts)
        frame = pd.DataFrame(probabilities, columns=[f"probability.{label}" for label in self._labels])
        frame.insert(0, "label", [self._labels[i] for i in probabilities.argmax(axis=1)])
        return frame

    def _classify(self, texts: Sequence[str]) -> Any:
        """Class probabilities, float64 [texts, labels]."""
        import numpy as np
        import torch

        from pipeline.base.padding import pad_token, padded
        from pipeline.prefix.attention import attach

        rows = [
            self._fitting(i, text, encoded)
            for i, (text, encoded) in enumerate(zip(texts, self._encoder.texts(texts), strict=True))
        ]
        probabilities = np.empty((len(rows), len(self._labels)))
        with self._turn, torch.inference_mode(), attach(self._model, self._prefix):
            for part in self._batches(range(len(rows)), rows):
                ids, mask = padded([rows[i] for i in part], pad_token(self._model))
                logits = self._model(input_ids=ids, attention_mask=mask).logits
                probabilities[part] = logits.double().softmax(-1).numpy()
        return probabilities

    def _generate(self, sources: Sequence[str]) -> list[str]:
        import torch

        from pipeline.evaluate import scoring

        rows = [encoded.input_ids for encoded in self._encoder.sources(sources, [[""]] * len(sources))]
        if self._truncate:
            rows = [self._encoder.cut_prompt(*pair) for pair in zip(rows, sources, strict=True)]
        for i, row in enumerate(rows):
            if not row:
                raise PrefixError(f"row {i}: the source {sources[i]!r} has no tokens; expected a text")
            if len(row) > self._encoder.longest_prompt:
                raise PrefixError(
                    f"row {i}: the source has {len(row)} tokens; expected at most {self._encoder.longest_prompt}"
                )
        with self._turn, torch.inference_mode():
            return scoring.generated(
                self._model,
                self._prefix,
                rows,
                self._words,
                batch_size=self._settings["batch_size"],
                max_new_tokens=self._settings["max_new_tokens"],
                beams=self._settings["beams"],
                reserved=self._prefix.length,
                what=None,
            )

    def _fitting(self, i: int, text: str, encoded: Encoded) -> list[int]:
        if not encoded.input_ids:
            raise PrefixError(f"row {i}: {text!r} has no tokens; expected a text")
        if encoded.length <= self._encoder.limit:
            return encoded.input_ids
        if self._truncate:
            return self._encoder.cut_text(text)
        raise PrefixError(
            f"row {i}: the text has {encoded.length} tokens; expected at most {self._encoder.limit} "
            "(data.too_long: truncate would cut it)"
        )

    def _batches(self, members: Sequence[int], rows: Sequence[Sequence[int]]) -> list[list[int]]:
        """Rows of like length together, at most the evaluation's batch size."""
        order = sorted(members, key=lambda i: len(rows[i]))
        size = self._settings["batch_size"]
        return [order[start : start + size] for start in range(0, len(order), size)]


class PrefixModel(PythonModel):  # type: ignore[misc]
    """What `mlflow.pyfunc.load_model("models:/NAME@candidate")` loads."""

    _skip_type_hint_validation = True  # MLflow's switch; it would warn that `predict` has no annotations

    def load_context(self, context: PythonModelContext) -> None:
        """Called by MLflow with the downloaded artifacts `adapter` and `lineage`. Raises what `Predictor` raises."""
        record = LineageRecord.from_json(Path(context.artifacts["lineage"]).read_bytes())
        workspace = Path(os.environ.get("PREFIXLINE_WORKSPACE") or Path.cwd())
        self._predictor = Predictor(record, Path(context.artifacts["adapter"]), workspace)

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        """One row per text of `model_input`: a list of texts, or a DataFrame whose first column holds them.

        Without annotations, because MLflow would derive another signature from them than the one registered.
        """
        is_frame = hasattr(model_input, "iloc")
        return self._predictor(list(model_input.iloc[:, 0]) if is_frame else list(model_input))
