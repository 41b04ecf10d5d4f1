"""Which trainings are done: every learning rate with the first seed, then the best one with the others.

The best rate is the one with the lowest validation loss, the figure by which a training also chooses its best step. Test
rows choose nothing. Finished trainings are kept under the digest of all that decides them, and not done again.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.compare import worker
from pipeline.compare.job import RECORD, RESULT, Job, Setting
from pipeline.compare.methods import METHODS
from pipeline.errors import CompareError, IntegrityError
from pipeline.train import checkpoints

Say = Callable[[str], None]


@dataclass(frozen=True)
class Swept:
    """One method's trainings.

    Attributes:
        rate: the chosen one; None for the probe.
        tried: the records of the first seed, in the order of the rates.
        chosen: the jobs and records at the chosen rate, one for each seed.
    """

    method: str
    rate: float | None
    tried: tuple[Mapping[str, Any], ...]
    chosen: tuple[tuple[Job, Mapping[str, Any]], ...]

    @property
    def at_the_end(self) -> str | None:
        """Where the chosen rate is the lowest or highest tried, "lowest" or "highest": a better one may lie beyond."""
        rates = sorted(float(record["rate"]) for record in self.tried if record["rate"] is not None)
        if len(rates) < 2 or self.rate not in (rates[0], rates[-1]):
            return None
        return "lowest" if self.rate == rates[0] else "highest"


def sweep(
    setting: Setting,
    method: str,
    rates: Sequence[float],
    seeds: Sequence[int],
    out: Path,
    *,
    lora_rank: int | None,
    say: Say,
) -> Swept:
    """Train `method` with every rate, choose one, and train the other seeds with it.

    Args:
        rates: to be tried; not read for the probe, which has none.
        seeds: the first chooses the rate. The probe draws nothing, and is fitted once.

    Raises:
        CompareError: a training failed, or none of the rates led to a finite loss.
        KeyboardInterrupt: interrupted; the same call goes on.
    """

    def job(rate: float | None, seed: int) -> Job:
        return Job(setting, method, rate, seed, lora_rank if method == "lora" else None)

    wanted: Sequence[float | None] = rates if METHODS[method].rates else [None]
    first = [job(rate, seeds[0]) for rate in wanted]
    tried = [trained(one, out, say) for one in first]
    finite = [i for i, record in enumerate(tried) if "diverged" not in record]
    if not finite:
        raise CompareError(
            f"{METHODS[method].title}: the loss was not finite at any learning rate tried ({', '.join(map(str, rates))}); "
            f"try lower ones with --rates {method}=…"
        )
    best = min(finite, key=lambda i: float(tried[i]["validation_loss"]))
    chosen = [(first[best], tried[best])]
    for seed in seeds[1:] if METHODS[method].rates else ():
        other = job(first[best].rate, seed)
        record = trained(other, out, say)
        if "diverged" in record:
            raise CompareError(
                f"{METHODS[method].title}: learning rate {first[best].rate} was the best with seed {seeds[0]}, and with "
                f"seed {seed} the loss is not finite; try lower ones with --rates {method}=…"
            )
        chosen.append((other, record))
    return Swept(method, first[best].rate, tuple(tried), tuple(chosen))


def trained(job: Job, out: Path, say: Say) -> Mapping[str, Any]:
    """The record of a training: the one that is kept, or else it is done now."""
    folder = job.folder(out)
    title = named(job)
    record = _kept(folder, job)
    if record is not None:
        say(f"{title}: kept from before")
        return record
    say(title)
    folder.mkdir(parents=True, exist_ok=True)
    job.write(folder)
    worker.start("train", [folder], what=title)
    record = _kept(folder, job)
    if record is None:
        raise CompareError(
            f"{title}: {folder} does not hold what was just trained; run the same command again"
        )
    return record


def named(job: Job) -> str:
    """What the job is, for people."""
    title = METHODS[job.method].title
    return title if job.rate is None else f"{title}, learning rate {job.rate:g}, seed {job.seed}"


def _kept(folder: Path, job: Job) -> Mapping[str, Any] | None:
    """The record of a finished training; one that is damaged is deleted."""
    if not (folder / RESULT).exists():
        return None
    try:
        record: Mapping[str, Any] = json.loads(
            (checkpoints.opened(folder / RESULT) / RECORD).read_text(encoding="utf-8")
        )
    except IntegrityError:
        shutil.rmtree(folder / RESULT)
        return None
    return record if record["key"] == job.key else None
