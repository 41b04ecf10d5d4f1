"""The processes that train one prefix together: each computes a part of every step, and their gradients are added.

A process that torchrun, accelerate or `pipeline.train.launch` started finds the others by what they put into its
environment; any other process is alone. Between processes go sums of numbers and bytes of JSON and safetensors,
nothing pickled.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import distributed

from pipeline.errors import LostProcessError, TrainingError
from pipeline.train.launched import launched

RENDEZVOUS = "PREFIXLINE_RENDEZVOUS"
"""The environment variable that says where the processes meet; torchrun's MASTER_ADDR and MASTER_PORT without it."""


@dataclass(frozen=True)
class ProcessGroup:
    """Who takes part. Every process calls the same methods in the same order.

    Attributes:
        rank: this process's number, from 0; 0 writes checkpoints, curves and results.
        size: how many there are.
        local_size: how many of them are on this machine.
        device: where numbers are for the trip; nccl takes them from a GPU only, gloo from the CPU.
    """

    rank: int = 0
    size: int = 1
    local_size: int = 1
    device: torch.device = torch.device("cpu")  # noqa: RUF009  (a value, not shared state)

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def sum(self, tensors: Sequence[torch.Tensor], figures: Sequence[float]) -> list[float]:
        """Add up, over all processes: `tensors` in place, `figures` as returned, in one all-reduce.

        Figures travel in the tensors' type, float32 as a rule: counts are exact up to 2^24 then. Without tensors they
        travel in float64.

        Raises:
            LostProcessError: another process has ended.
        """
        if self.size == 1:
            return list(figures)
        dtype = tensors[0].dtype if tensors else torch.float64
        flat = torch.cat(
            [
                *(tensor.detach().reshape(-1).to(dtype) for tensor in tensors),
                torch.tensor(figures, dtype=dtype, device=tensors[0].device if tensors else self.device),
            ]
        )
        with _noticing_loss():
            distributed.all_reduce(flat)
        start = 0
        for tensor in tensors:
            tensor.copy_(flat[start : start + tensor.numel()].view_as(tensor))
            start += tensor.numel()
        summed: list[float] = flat[start:].tolist()
        return summed

    def share(self, content: bytes) -> bytes:
        """What the process of rank 0 passes; what the others pass does not matter.

        Raises:
            LostProcessError: another process has ended.
        """
        if self.size == 1:
            return content
        size = torch.tensor([len(content)], device=self.device)
        with _noticing_loss():
            distributed.broadcast(size, 0)
            box = torch.empty(int(size), dtype=torch.uint8, device=self.device)
            if self.first and content:
                box.copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))
            distributed.broadcast(box, 0)
        return box.cpu().numpy().tobytes()

    def gather(self, digest: str) -> list[str]:
        """The SHA-256 digest (64 hex characters) that each process passes, by rank.

        Raises:
            LostProcessError: another process has ended.
        """
        if self.size == 1:
            return [digest]
        mine = torch.frombuffer(bytearray.fromhex(digest), dtype=torch.uint8).to(self.device)
        boxes = [torch.empty_like(mine) for _ in range(self.size)]
        with _noticing_loss():
            distributed.all_gather(boxes, mine)
        return [box.cpu().numpy().tobytes().hex() for box in boxes]


ALONE = ProcessGroup()
"""A process that trains by itself."""

_groups = itertools.count()
"""The groups that this process joins, one after the other."""


@contextmanager
def joined(device: torch.device) -> Iterator[ProcessGroup]:
    """The group this process is one of; a group that the caller has formed already is used and left as it is.

    Args:
        device: where the model is; gloo carries gradients from a CPU, nccl from a GPU.

    Raises:
        TrainingError: the model is on a GPU that is another local process's.
        LostProcessError: another process ended before the group was formed.
    """
    ours = not (distributed.is_available() and distributed.is_initialized())
    if ours and not launched():
        yield ALONE
        return
    if ours:
        if device.type == "cuda":
            check_device(device.index, int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(device)
        from torch.distributed.distributed_c10d import PrefixStore
        from torch.distributed.rendezvous import rendezvous

        with _noticing_loss():
            where = os.environ.get(RENDEZVOUS, "env://")
            rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
            store, _, _ = next(rendezvous(where, rank, size))
            # A store may outlive a group, and then still hold the addresses of the one before.
            own = PrefixStore(f"prefixline/{next(_groups)}", store)
            backend = "nccl" if device.type == "cuda" else "gloo"
            distributed.init_process_group(backend, store=own, rank=rank, world_size=size)
    try:
        yield ProcessGroup(
            distributed.get_rank(),
            distributed.get_world_size(),
            int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
            device if distributed.get_backend() == "nccl" else torch.device("cpu"),
        )
    finally:
        # At once, whatever happened: the others wait for this process until its connections close.
        if ours:
            distributed.destroy_process_group()


def check_device(index: int | None, local_rank: int) -> None:
    """Refuse two processes on one GPU: nccl would hang.

    Raises:
        TrainingError: `index` is not `local_rank`.
    """
    if index != local_rank:
        raise TrainingError(
            f"the model is on cuda:{index}, and this is process {local_rank} of its machine; expected one GPU each. "
            f"Put the model on cuda:{local_rank}"
        )


@contextmanager
def _noticing_loss() -> Iterator[None]:
    """torch.distributed raises plain RuntimeErrors where a connection closes, and after its timeout."""
    try:
        yield
    except RuntimeError as error:
        raise LostProcessError(
            f"another process of this training has ended, and its own message says why ({error})"
        ) from error
