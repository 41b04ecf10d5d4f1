"""What params.yaml may say, as frozen typed objects, each section's rules with it. Read by `pipeline.params_file`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from pipeline.errors import ParamsError

Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_-]{0,62}$")]
KeyName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.@-]{0,62}$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Task = Literal["classification", "generation"]
Dtype = Literal["float32", "bfloat16"]
Pooling = Literal["mean"]
TextFrom = Literal["labels", "words", "examples"]
VERSION = r"^[a-z][a-z0-9_-]{0,62}(:[1-9][0-9]*|@[a-z]+)$"
"""A registered version: NAME:NUMBER or NAME@STAGE."""

Texts = Annotated[tuple[str, ...], Field(strict=False)]
"""A list in YAML is a tuple here; what is in it is not turned into anything."""

METRICS: Mapping[str, Literal["higher", "lower"]] = {
    "accuracy": "higher",
    "macro_f1": "higher",
    "calibration_error": "lower",
    "loss": "lower",
    "perplexity": "lower",
    "bleu": "higher",
    "chrf": "higher",
    "rouge_l": "higher",
}
"""Each metric a gate can judge, and which way is better. `loss` is in nats: per row for classification,
per target token for generation."""

METRIC_RANGE: Mapping[str, tuple[float, float]] = {
    **dict.fromkeys(("accuracy", "macro_f1", "calibration_error", "rouge_l"), (0.0, 1.0)),
    **dict.fromkeys(("bleu", "chrf"), (0.0, 100.0)),
    "loss": (0.0, math.inf),
    "perplexity": (1.0, math.inf),
}
"""What each metric can be; a floor outside would always or never be met."""

TASK_METRICS: Mapping[Task, tuple[str, ...]] = {
    "classification": ("accuracy", "macro_f1", "calibration_error", "loss"),
    "generation": ("loss", "perplexity", "bleu", "chrf", "rouge_l"),
}


class _Section(BaseModel):
    # strict: `true` is no number and "3" no integer.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)


class HubSource(_Section):
    """A model repository on the hub, at one commit."""

    hub: Annotated[str, StringConstraints(pattern=r"^[\w.-]+(/[\w.-]+)?$")]
    revision: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{40}$")]


class PathSource(_Section):
    """A local directory; a relative path is taken from the workspace."""

    path: Annotated[str, Field(min_length=1)]


class PackageSource(_Section):
    """An installed Python package that carries the weights in `folder`."""

    package: Annotated[str, StringConstraints(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$")]
    folder: str = "."


class BaseModelParams(_Section):
    """Where a base model comes from, and the SHA-256 over its files that says it is the one meant."""

    source: HubSource | PathSource | PackageSource
    digest: Sha256


class SplitParams(_Section):
    """Shares of the rows; a row's split follows from the hash of `salt` and its own content."""

    train: Fraction = 0.8
    validation: Fraction = 0.1
    test: Fraction = 0.1
    salt: str = ""

    @model_validator(mode="after")
    def _add_up_to_one(self) -> SplitParams:
        total = self.train + self.validation + self.test
        if abs(total - 1) > 1e-9:
            raise ValueError(f"train + validation + test is {total:g}; expected 1")
        return self


_NOT_DATA = frozenset({".git", ".dvc", ".prefixline", "artifacts", "pins", "reports", "~"})


class DataParams(_Section):
    """The raw data: a file or a folder of files in the workspace, and what its columns mean.

    Classification reads `text` and `label`; generation reads `source` and `target`, whose cells are one
    text or, in JSONL and Parquet, a list of texts. Rows with an equal source are one example with several
    references. `max_tokens` limits a text, a source with its longest target, or, on an encoder-decoder, each of
    source and target. `imported_from` is a URL or a path outside the workspace, taken in with `dvc import-url`;
    each retraining takes in what is there then, over whatever was changed here.
    """

    path: Annotated[str, StringConstraints(pattern=r"^[^/].*$")]
    imported_from: Annotated[str, Field(min_length=1)] | None = None
    text: str = "text"
    label: str = "label"
    labels: Texts | None = None
    source: str = "source"
    target: str = "target"
    slices: Texts = ()
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    too_long: Literal["error", "truncate", "drop"] = "error"
    splits: SplitParams = SplitParams()

    @model_validator(mode="after")
    def _nothing_twice(self) -> DataParams:
        problems = [
            f"{key}: got {list(names)!r}; expected each once"
            for key, names in (("labels", self.labels), ("slices", self.slices))
            if names is not None and len(set(names)) < len(names)
        ]
        parts = PurePosixPath(self.path).parts
        if not parts or ".." in parts or parts[0] in _NOT_DATA:
            problems.append(
                f"path: got {self.path!r}; expected a file or folder in the workspace and none of its own: "
                f"{', '.join(sorted(_NOT_DATA))}"
            )
        for one, other in (("text", "label"), ("source", "target")):
            if (column := getattr(self, one)) == getattr(self, other):
                problems.append(f"{other}: got {column!r}, as {one}; expected another column")
        if problems:
            raise ValueError("\n".join(problems))
        return self


class PrefixParams(_Section):
    """The prefix: `length` vectors per attention layer, and where they start.

    `initialisation: random` draws from a normal distribution with standard deviation `random_scale`, values
    with `random_value_scale` where that is not null: small ones leave the base's own answers nearly as they are at first.

    `initialisation: text` starts from the base's own keys and values on a prompt: on the first `length` tokens of
    `text`, which must have as many; or, where `text` is null, of a text made from the task, repeated where it is
    shorter. `text_from` says what it is made of: the names of the labels, the most frequent words of the training
    rows, or whole examples of them; null takes the labels where they have letters, else the words.

    `initialisation: version` goes on from a registered version, of this base and length: from `version`, written
    NAME:NUMBER or NAME@STAGE, or, where that is null, from this prefix's own version in production; while there
    is none, from random vectors, or from `text` or `text_from` where one of them is given. `initialisation: adapter`
    does so from the folder `adapter`, ours or PEFT's, relative to the workspace. The classification head comes along where
    the labels and what it reads (`training.head_pooling`) are the same; otherwise it starts new.

    `projection` is the hidden width of the reparameterisation MLP (Li & Liang 2021, section 4.3); null trains the
    vectors directly.
    """

    length: Annotated[int, Field(ge=1, le=4096)] = 16
    initialisation: Literal["text", "random", "version", "adapter"] = "random"
    text: Annotated[str, Field(min_length=1)] | None = None
    text_from: TextFrom | None = None
    random_scale: Annotated[float, Field(gt=0)] = 0.5
    random_value_scale: Annotated[float, Field(gt=0)] | None = None
    version: Annotated[str, StringConstraints(pattern=VERSION)] | None = None
    adapter: Annotated[str, Field(min_length=1)] | None = None
    projection: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _one_start(self) -> PrefixParams:
        problems = []
        if self.text is not None and self.text_from is not None:
            problems.append(f"text_from: got {self.text_from!r} beside a text; expected only one of the two")
        if self.initialisation == "adapter" and self.adapter is None:
            problems.append("adapter: missing; initialisation: adapter needs the folder to go on from")
        if problems:
            raise ValueError("\n".join(problems))
        return self

    @property
    def from_text(self) -> bool:
        """Whether a prefix with no version or adapter to go on from starts from a text."""
        described = self.text is not None or self.text_from is not None
        return self.initialisation == "text" or (self.initialisation == "version" and described)


class TrainingParams(_Section):
    """AdamW with a warm-up schedule, clipping, and early stopping on the validation loss.

    `batch_size` is in examples per optimiser step (a source with all of its references is one example);
    it is computed in `gradient_accumulation` pieces. `patience` is in validations without a better loss;
    null never stops early. `warmup` is a share of all steps. `max_steps` ends the epochs sooner. `adam_beta1` and
    `adam_beta2` are how slowly AdamW forgets gradients and their squares.

    `head_pooling` is what the classification head reads of the tokens' last states: `mean`, their mean, as sentence
    encoders were trained to be read; null, what the architecture's own head reads (the first token of BERT, the last of a
    decoder). PEFT has no head on the mean.

    `dropout` is the probability with which a number of the prefix, and one that the classification head reads, is left out
    of a row in a step; generation, which packs rows, leaves the same numbers of the prefix out of all rows of a step. The
    frozen base drops nothing. Where each row drops by itself, memory grows with rows times the prefix's numbers;
    `gradient_accumulation` bounds it.

    `gradient_checkpointing` computes the layers twice instead of keeping what they made: less memory, more time,
    the same result. `dtype` is what the base multiplies matrices in while the prefix is trained; bfloat16 is faster
    on processors that have it and slower on others. Validations and the test are in float32 always.

    `processes` train together on this machine, each on its share of every step; they add up to the same result but for
    rounding. `threads` and the pieces of `gradient_accumulation` are of all of them together.
    """

    learning_rate: Annotated[float, Field(gt=0, le=100)] = 0.03
    head_learning_rate: Annotated[float, Field(gt=0, le=100)] = 0.03
    head_pooling: Pooling | None = None
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    adam_beta1: Annotated[float, Field(ge=0, lt=1)] = 0.8
    adam_beta2: Annotated[float, Field(ge=0, lt=1)] = 0.95
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    epochs: Annotated[int, Field(ge=1)] = 3
    max_steps: Annotated[int, Field(ge=1)] | None = None
    batch_size: Annotated[int, Field(ge=1)] = 32
    gradient_accumulation: Annotated[int, Field(ge=1)] = 1
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.06
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    validations_per_epoch: Annotated[int, Field(ge=1)] = 1
    patience: Annotated[int, Field(ge=1)] | None = 3
    checkpoint_seconds: Annotated[float, Field(ge=0)] = 30.0
    gradient_checkpointing: bool = False
    dtype: Dtype = "float32"
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    threads: Annotated[int, Field(ge=1)] | None = None
    processes: Annotated[int, Field(ge=1)] = 1

    def deciding(self) -> dict[str, Any]:
        """The settings that decide what a training ends with, but for rounding."""
        return self.model_dump(exclude={"checkpoint_seconds", "threads", "processes"})


class EvaluationParams(_Section):
    """How the test rows are scored; the generation settings do nothing for classification."""

    batch_size: Annotated[int, Field(ge=1)] = 64
    calibration_bins: Annotated[int, Field(ge=2)] = 15
    max_new_tokens: Annotated[int, Field(ge=1)] = 64
    beams: Annotated[int, Field(ge=1)] = 1
    max_generated_rows: Annotated[int, Field(ge=1)] | None = None


class Comparison(_Section):
    """Judged on the paired difference to another system over the same test rows.

    The bootstrap interval of (ours − theirs), turned so that higher is better, must lie above `margin`
    (better than) or above −`margin` (not worse than).
    """

    metric: str
    margin: Annotated[float, Field(ge=0)] = 0.0


class SliceCriteria(_Section):
    """The same judgement for every value of a column listed under `data.slices` with at least `min_rows`."""

    column: str
    min_rows: Annotated[int, Field(ge=1)] = 30
    floors: dict[str, float] = {}
    not_worse_than_champion: Comparison | None = None


class GateParams(_Section):
    """What a version must show before it is registered. `floors` are ceilings for metrics where lower is better."""

    confidence: Fraction = 0.95
    resamples: Annotated[int, Field(ge=100)] = 2000
    floors: dict[str, float] = {}
    better_than_base: Comparison | None = None
    not_worse_than_champion: Comparison | None = None
    slices: Annotated[tuple[SliceCriteria, ...], Field(strict=False)] = ()


class ScheduleParams(_Section):
    """When the prefix is retrained: a cron expression in `timezone`."""

    cron: Annotated[str, StringConstraints(pattern=r"^(\S+\s+){4}\S+$")]
    timezone: str = "UTC"


class StageRules(_Section):
    """What a promotion to a stage needs, besides a verdict that passed and a lineage record that verifies: always.

    `smoke_test`: the version is loaded from the registry as any MLflow client loads it, and predicts again what its
    evaluation recorded. `fresh_evaluation`: on the test rows of the data as it is now, it reaches the floors of `gate`.

    `signed_by` names the keys (under `keys`) of those who may promote, and roll back to production; with none, no
    signature is needed. `approvals` is how many of `approvers` must agree, none of them the one who asks. It needs
    `signed_by`, since whoever asks without a key could ask under another name and agree with himself.
    """

    smoke_test: bool = False
    fresh_evaluation: bool = False
    signed_by: Texts = ()
    approvals: Annotated[int, Field(ge=0)] = 0
    approvers: Texts = ()

    @model_validator(mode="after")
    def _can_be_met(self) -> StageRules:
        problems = [
            f"{key}: got {list(names)!r}; expected each once"
            for key, names in (("signed_by", self.signed_by), ("approvers", self.approvers))
            if len(set(names)) < len(names)
        ]
        approvers = set(self.approvers)
        if self.approvals > len(approvers):
            problems.append(
                f"approvals: got {self.approvals}; expected at most {len(approvers)}, the approvers"
            )
        elif self.approvals and not self.signed_by:
            problems.append(
                "signed_by: is empty; approvals need it, or anyone could ask and agree with himself"
            )
        elif self.approvals and all(self.approvals > len(approvers - {name}) for name in self.signed_by):
            problems.append(
                f"approvals: got {self.approvals}; nobody in signed_by has as many approvers besides himself"
            )
        if problems:
            raise ValueError("\n".join(problems))
        return self


class PromotionParams(_Section):
    """What a promotion to each stage needs. What stands in a stage is judged by the rules as they are now."""

    staging: StageRules = StageRules()
    production: StageRules = StageRules()


class PrefixEntry(_Section):
    """One entry under `prefixes`, with `defaults` filled in."""

    base_model: str
    task: Task
    data: DataParams
    prefix: PrefixParams = PrefixParams()
    training: TrainingParams = TrainingParams()
    evaluation: EvaluationParams = EvaluationParams()
    gate: GateParams = GateParams()
    promotion: PromotionParams = PromotionParams()
    schedule: ScheduleParams | None = None

    @model_validator(mode="after")
    def _metrics_fit_the_task(self) -> PrefixEntry:
        known = TASK_METRICS[self.task]
        wanted = [*((f"gate.floors.{metric}", metric) for metric in self.gate.floors)]
        for key in ("better_than_base", "not_worse_than_champion"):
            if (comparison := getattr(self.gate, key)) is not None:
                wanted.append((f"gate.{key}.metric", comparison.metric))
        for i, criteria in enumerate(self.gate.slices):
            wanted += [(f"gate.slices.{i}.floors.{metric}", metric) for metric in criteria.floors]
            if criteria.not_worse_than_champion is not None:
                metric = criteria.not_worse_than_champion.metric
                wanted.append((f"gate.slices.{i}.not_worse_than_champion.metric", metric))
        problems = [
            f"{key}: got {metric!r}; expected one of {', '.join(known)} for {self.task}"
            for key, metric in wanted
            if metric not in known
        ]
        floors = {f"gate.floors.{metric}": (metric, floor) for metric, floor in self.gate.floors.items()}
        for i, criteria in enumerate(self.gate.slices):
            floors |= {f"gate.slices.{i}.floors.{m}": (m, floor) for m, floor in criteria.floors.items()}
        for key, (metric, floor) in floors.items():
            low, high = METRIC_RANGE.get(metric, (-math.inf, math.inf))
            if not low <= floor <= high:
                problems.append(f"{key}: got {floor:g}; {metric} is between {low:g} and {high:g}")
        problems += [
            f"gate.slices.{i}.column: {criteria.column!r} is not listed under data.slices"
            for i, criteria in enumerate(self.gate.slices)
            if criteria.column not in self.data.slices
        ]
        problems += [
            f"promotion.{stage}.fresh_evaluation: has nothing to reach; expected gate.floors"
            for stage in ("staging", "production")
            if getattr(self.promotion, stage).fresh_evaluation and not self.gate.floors
        ]
        if self.task == "generation" and self.prefix.text_from == "labels":
            problems.append("prefix.text_from: got 'labels'; generation has none: expected words or examples")
        if self.task == "generation" and self.training.head_pooling is not None:
            problems.append(
                f"training.head_pooling: got {self.training.head_pooling!r}; generation has no classification head: "
                "expected null"
            )
        if problems:
            raise ValueError("\n".join(problems))
        return self


class Params(_Section):
    """The whole of params.yaml, with `defaults` merged into every prefix.

    `keys` are the public keys (`prefixline keys show`) of people and roles, by name.
    """

    base_models: dict[Name, BaseModelParams]
    keys: dict[KeyName, Sha256] = {}
    prefixes: dict[Name, PrefixEntry]

    def prefix(self, name: str) -> PrefixEntry:
        """The entry `name`.

        Raises:
            ParamsError: there is none; the message lists those there are.
        """
        if name not in self.prefixes:
            available = ", ".join(sorted(self.prefixes)) or "none"
            raise ParamsError([f"prefixes.{name}: not in params.yaml; available: {available}"])
        return self.prefixes[name]

    def base_model(self, name: str) -> BaseModelParams:
        """The base model of the prefix `name`."""
        return self.base_models[self.prefix(name).base_model]
