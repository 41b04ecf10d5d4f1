"""The events of a prefix in MLflow: append-only, each epoch claimed by one writer, over MLflow's public API.

A ledger is one MLflow run that holds events as params, which MLflow never changes once they are written:
`log_param(run, "000007", event)` succeeds for whoever is first, and again for the same event, so that a repeated request
or a lost reply does no harm. MLflow takes 6,000 characters a param; a longer event lies in parts under keys named by
their SHA-256, written before its epoch is claimed.

Which run it is, is decided once: the run is made first, then an experiment `prefixline.ledger.NAME` tagged with the run.
MLflow keeps the names of experiments unique, so of several that begin a ledger at once one makes it. The registered
model is tagged with the run and with an event that is known to have happened (`Anchor`), so that a ledger that is gone
or was cut short is found to be.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from pipeline.digest import canonical_json
from pipeline.errors import IntegrityError, RegistryError, UnreachableError
from pipeline.ledger import chain
from pipeline.ledger.chain import Anchor
from pipeline.ledger.events import Event
from pipeline.ledger.fold import State, fold
from pipeline.tracking.connection import Registry, pages

if TYPE_CHECKING:
    from mlflow.entities import Experiment, Run
    from mlflow.entities.model_registry import RegisteredModel

LEDGERS = "prefixline.ledgers"
"""The experiment that holds the ledgers' runs."""

POINTER = "prefixline.ledger."
"""The experiment of this name and the prefix's is tagged with the run that is the ledger."""

RUN_TAG, ANCHOR_TAG = "prefixline.ledger", "prefixline.ledger_anchor"

VALUE_LIMIT = 6_000
"""Characters of a param's value in MLflow."""

TAKEN = "Changing param values is not allowed"
"""What MLflow says of a param that has another value. Where it says so in other words the run is read, which takes longer."""

FIRST_WAIT, LONGEST_WAIT = 0.2, 5.0
"""Seconds, at most, before an epoch is claimed again; twice as long each time."""

_EPOCH, _PART = re.compile("[0-9]{6,}"), re.compile("part\\.[0-9a-f]{64}")


@dataclass(frozen=True)
class Reading:
    """A ledger as it was read, with the registered model as it was just before.

    Attributes:
        run_id: the ledger's run; None where no ledger has been begun.
        events: checked, in the order of their epochs.
        aliases: {alias: version} of the registered model.
        anchor: None where the model has no tag yet.
        tagged: whether the model is tagged with the run.
    """

    name: str
    run_id: str | None
    events: tuple[Event, ...]
    aliases: Mapping[str, str]
    anchor: Anchor | None
    tagged: bool = False

    @cached_property
    def state(self) -> State:
        """Where every version stands.

        Raises:
            IntegrityError: the events contradict each other.
        """
        return fold(self.events)


def read(registry: Registry, name: str, run_id: str | None = None) -> Reading:
    """The ledger of the prefix `name`; empty where none has been begun.

    Args:
        run_id: the ledger's run, for who has read it a moment ago: it is decided once.

    Raises:
        IntegrityError: it, or a part of it, is not what was written, is deleted, or is gone.
        RegistryError, UnreachableError: MLflow refused, or does not answer.
    """
    with registry.errors(f"reading the ledger of {name}"):
        # First, for what the model is tagged with has happened: the events that are read next must have it.
        model = _model(registry, name)
        tags = {} if model is None else dict(model.tags)
        aliases = {} if model is None else {alias: str(v) for alias, v in dict(model.aliases).items()}
        anchor = _anchor(name, tags)
        run_id = run_id or _run_id(registry, name)
        if tags.get(RUN_TAG, run_id) != run_id:
            raise _gone(
                name,
                f"the registered model is tagged with run {tags[RUN_TAG]}, the ledger is {run_id or 'gone'}",
            )
        if run_id is None:
            return Reading(name, None, (), aliases, anchor)
        params = dict(_run(registry, name, run_id).data.params)
    events = chain.check(name, _contents(name, params), anchor)
    return Reading(name, run_id, events, aliases, anchor, RUN_TAG in tags)


def names(registry: Registry) -> frozenset[str]:
    """Every prefix of which a ledger was begun, also where its registered model or the ledger is deleted since.

    Raises:
        RegistryError, UnreachableError: MLflow refused, or does not answer.
    """
    from mlflow.entities import ViewType

    with registry.errors("listing the ledgers"):
        pointers = pages(
            registry.client.search_experiments,
            view_type=ViewType.ALL,
            filter_string=f"name LIKE '{POINTER}%'",
        )
        return frozenset(pointer.name.removeprefix(POINTER) for pointer in pointers)


def append(registry: Registry, reading: Reading, make: Callable[[Reading], Event | None]) -> Reading | None:
    """Append what `make` makes of the ledger: first as `reading` has it, then, where another event came first, as it is now.

    Each time another came first it waits, longer and longer and by chance (exponential backoff with full jitter), so that
    many who came second together do not all come again together.

    Args:
        make: the event that follows; None ends it, since none is needed; what it raises ends it too.

    Returns:
        The ledger up to the event, which is its last; None where `make` made none.

    Raises:
        IntegrityError, RegistryError, UnreachableError: as `read` and `claim`.
    """
    for attempt in itertools.count():
        event = make(reading)
        if event is None:
            return None
        if claim(registry, event, reading.run_id):
            return replace(reading, events=(*reading.events, event))
        time.sleep(random.uniform(0, min(LONGEST_WAIT, FIRST_WAIT * 2**attempt)))  # noqa: S311
        reading = read(registry, reading.name, reading.run_id)
    raise AssertionError("unreachable: count() has no end")


def claim(registry: Registry, event: Event, run_id: str | None = None) -> bool:
    """Write `event` at its epoch, unless that is taken.

    Args:
        run_id: the ledger's run, for who has read it.

    Returns:
        Whether it holds the epoch; False where another does.

    Raises:
        UnreachableError, RegistryError: MLflow does not answer, or refused; whether the event was written is said
            where it is known.
        IntegrityError: the ledger is deleted or gone.
    """
    name, key, content = event.prefix, _key(event.epoch), event.to_json().decode()
    with registry.errors(f"writing epoch {event.epoch} of the ledger of {name}"):
        run_id = run_id or _run_id(registry, name) or _begin(registry, name)
        head, parts = _divided(content)
        for digest, part in parts.items():
            registry.put(registry.client.log_param, run_id, f"part.{digest}", part)
    for again in (True, False):
        try:
            with registry.errors(f"writing epoch {event.epoch} of the ledger of {name}"):
                registry.client.log_param(run_id, key, head)
            return True
        except (RegistryError, UnreachableError) as error:
            if TAKEN in str(error):
                return False
            # Taken, or written and the reply lost, or not written: the ledger knows.
            try:
                with registry.errors(f"reading epoch {event.epoch} of the ledger of {name}"):
                    held = registry.client.get_run(run_id).data.params.get(key)
            except (RegistryError, UnreachableError) as unread:
                raise type(error)(
                    f"{error}\nWhether this was recorded is not known; `prefixline history {name}` says so once MLflow "
                    "answers."
                ) from unread
            if held is not None:
                return bool(held == head)
            if not again:  # the first time it may be sqlite's lock; the same event once more does no harm
                raise
    raise AssertionError("unreachable: the second time returns or raises")


def mark(registry: Registry, reading: Reading) -> None:
    """Tag the registered model with the run that is the ledger and with its newest event."""
    state, client = reading.state, registry.client
    if not reading.tagged:
        registry.put(client.set_registered_model_tag, reading.name, RUN_TAG, reading.run_id)
    registry.put(client.set_registered_model_tag, reading.name, ANCHOR_TAG, f"{state.epoch} {state.head}")


def _begin(registry: Registry, name: str) -> str:
    """Make the ledger of `name`, or find that of whoever was first; its run."""
    from mlflow.exceptions import MlflowException

    client = registry.client
    made: str = client.create_run(
        registry.experiment(LEDGERS), tags={"prefixline.prefix": name}, run_name=name
    ).info.run_id
    try:
        client.create_experiment(
            POINTER + name, artifact_location=registry.artifact_root, tags={RUN_TAG: made}
        )
    except MlflowException:
        # Another was first, or the reply was lost and this is ours.
        decided = _run_id(registry, name)
        if decided is None:
            raise
    else:
        decided = made
    if decided != made:
        client.delete_run(made)
    registry.put(client.set_registered_model_tag, name, RUN_TAG, decided)
    return decided


def _model(registry: Registry, name: str) -> RegisteredModel | None:
    from mlflow.exceptions import MlflowException

    try:
        return registry.client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def _run_id(registry: Registry, name: str) -> str | None:
    pointer: Experiment | None = registry.client.get_experiment_by_name(POINTER + name)
    if pointer is None:
        return None
    if pointer.lifecycle_stage != "active":
        raise _gone(
            name,
            f"the experiment {POINTER + name!r} is deleted in MLflow; restore it: "
            f"mlflow experiments restore --experiment-id {pointer.experiment_id}",
        )
    run_id: str | None = pointer.tags.get(RUN_TAG)
    if run_id is None:
        raise _gone(
            name,
            f"the experiment {POINTER + name!r} has lost its tag {RUN_TAG}, which names the ledger's run",
        )
    return run_id


def _run(registry: Registry, name: str, run_id: str) -> Run:
    from mlflow.exceptions import MlflowException

    try:
        run = registry.client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise _gone(name, f"its run {run_id} is gone from MLflow") from error
    if run.info.lifecycle_stage != "active":
        raise _gone(
            name, f"its run {run_id} is deleted in MLflow; restore it: mlflow runs restore --run-id {run_id}"
        )
    return run


def _anchor(name: str, tags: Mapping[str, str]) -> Anchor | None:
    text = tags.get(ANCHOR_TAG)
    if text is None:
        return None
    found = re.fullmatch("([1-9][0-9]*) ([0-9a-f]{64})", text)
    if found is None:
        raise _gone(
            name, f"the registered model's tag {ANCHOR_TAG} is {text!r}; expected an epoch and a SHA-256"
        )
    return Anchor(int(found[1]), found[2])


def _key(epoch: int) -> str:
    return f"{epoch:06d}"


def _divided(content: str) -> tuple[str, dict[str, str]]:
    """What is written at the epoch, and {SHA-256: part} of what does not fit there."""
    if len(content) <= VALUE_LIMIT:
        return content, {}
    parts = [content[start : start + VALUE_LIMIT] for start in range(0, len(content), VALUE_LIMIT)]
    digests = [_sha256(part) for part in parts]
    return canonical_json({"parts": digests}).decode(), dict(zip(digests, parts, strict=True))


def _contents(name: str, params: Mapping[str, str]) -> dict[int, bytes]:
    """{epoch: JSON} of what the run holds.

    Raises:
        IntegrityError: it holds something else, or a part is missing or has changed.
    """
    contents: dict[int, bytes] = {}
    problems: list[str] = []
    for key, value in params.items():
        if _PART.fullmatch(
            key
        ):  # read where an event names it; one that none names is of a writer who came second
            continue
        if not _EPOCH.fullmatch(key) or key != _key(int(key)):
            problems.append(f"param {key!r}: is neither an epoch nor a part of an event")
            continue
        try:
            contents[int(key)] = _whole(value, params)
        except IntegrityError as error:
            problems += [f"epoch {int(key)}: {problem}" for problem in error.problems]
    if problems:
        raise _gone(name, *problems)
    return contents


def _whole(value: str, params: Mapping[str, str]) -> bytes:
    """The event's JSON, put together where it lies in parts.

    Raises:
        IntegrityError: a part is missing or has changed.
    """
    if not value.startswith('{"parts":'):
        return value.encode()
    try:
        digests = json.loads(value)["parts"]
        parts = [params[f"part.{digest}"] for digest in digests]
    except (ValueError, TypeError, KeyError) as error:
        raise IntegrityError([f"its list of parts cannot be followed: {error!r}"]) from error
    if changed := [digest for digest, part in zip(digests, parts, strict=True) if _sha256(part) != digest]:
        raise IntegrityError([f"its part {digest} has been changed" for digest in changed])
    return "".join(parts).encode()


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _gone(name: str, *problems: str) -> IntegrityError:
    return IntegrityError(
        problems,
        heading=f"The ledger of {name} is not what was written (deleted, tampered or corrupted); it is never begun "
        "anew, and until it is restored no stage is moved:",
    )
