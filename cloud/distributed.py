"""One training in several processes, on one machine or on many: each takes its share of the samples, gradients are
averaged over all samples of a step, and every process makes the same update.

`torchrun` starts the processes and tells each who it is (RANK, WORLD_SIZE, MASTER_ADDR, …). Of an embedding table only
the rows that a step touches travel.
"""

from __future__ import annotations

import datetime
import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from cloud.training_sets import Share
from device_runtime.errors import StoreError, Unreachable
from device_runtime.samples import Float32

PATIENCE = datetime.timedelta(minutes=10)
"""How long a process waits for another before it takes it for lost. Rank 0 writes checkpoints meanwhile."""


@dataclass(frozen=True)
class Team:
    """The processes of a training; alone unless `torchrun` started this one.

    Raises (from every method):
        Unreachable: another process has ended, or does not answer.
    """

    share: Share = field(default_factory=Share)

    @property
    def leads(self) -> bool:
        """Whether this is the process that reads and writes checkpoints."""
        return self.share.rank == 0

    @property
    def alone(self) -> bool:
        return self.share.of == 1

    def handed_out(self, data: bytes | None) -> bytes | None:
        """What the leader gives, in every process."""
        if self.alone:
            return data
        with _explained():
            length = torch.tensor([-1 if data is None else len(data)])
            dist.broadcast(length, 0)
            if int(length) < 0:
                return None
            held = torch.zeros(int(length), dtype=torch.uint8)
            if self.leads and data:
                held.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
            dist.broadcast(held, 0)
        return held.numpy().tobytes()

    def gathered(self, values: Float32) -> Float32:
        """float32 [sum of n]: the values of all processes, in the order of their ranks."""
        if self.alone:
            return values
        with _explained():
            return np.concatenate([part.numpy() for part in _gather(torch.from_numpy(values))])

    def check_same(self, what: str, *parts: bytes) -> None:
        """Raises: StoreError: these bytes differ between processes."""
        if self.alone:
            return
        digest = hashlib.sha256(b"".join(parts)).digest()
        with _explained():
            mine = torch.frombuffer(bytearray(digest), dtype=torch.uint8)
            found = [torch.zeros_like(mine) for _ in range(self.share.of)]
            dist.all_gather(found, mine)
        if differing := [rank for rank, other in enumerate(found) if not torch.equal(other, found[0])]:
            raise StoreError(
                f"{what} of process {differing[0]} is not that of process 0; give all the same data and settings"
            )

    def average(
        self,
        dense: Sequence[nn.Parameter],
        tables: Sequence[nn.Parameter],
        touched: Tensor,
        rows: Sequence[Tensor],
        loss: float,
        count: int,
    ) -> tuple[float, int]:
        """Put the mean gradient over the samples of all processes into `grad`; gives (sum of losses, samples) of all.

        dense: their `grad` is that of this process' mean loss. tables: their gradient is nought but in the rows
        `touched`, int64 [k], where it is `rows`, [k, …] each. loss: this process' mean; count: its samples, maybe none.
        """
        if self.alone:
            for table, part in zip(tables, rows, strict=True):
                table.grad = torch.zeros_like(table).index_add_(0, touched, part)
            return loss * count, count
        with _explained():
            return self._average(dense, tables, touched, rows, loss, count)

    def _average(
        self,
        dense: Sequence[nn.Parameter],
        tables: Sequence[nn.Parameter],
        touched: Tensor,
        rows: Sequence[Tensor],
        loss: float,
        count: int,
    ) -> tuple[float, int]:
        given = [p.grad for p in dense]
        flat = [
            (torch.zeros_like(p) if g is None else g * count).reshape(-1) for p, g in zip(dense, given, strict=True)
        ]
        used = torch.tensor([float(g is not None) for g in given])
        everything = torch.cat([*flat, used, torch.tensor([loss * count, float(count)])])
        dist.all_reduce(everything)
        total = everything[-1]
        at = 0
        for number, parameter in enumerate(dense):
            part = everything[at : at + parameter.numel()].reshape(parameter.shape) / total
            # what no process' loss depends on is left alone, as by a process on its own
            parameter.grad = part if everything[len(everything) - 2 - len(dense) + number] else None
            at += parameter.numel()
        ids = _gather(touched)
        for table, mine in zip(tables, rows, strict=True):
            table.grad = torch.zeros_like(table)
            for where, part in zip(ids, _gather((mine * count).contiguous(), [len(i) for i in ids]), strict=True):
                table.grad.index_add_(0, where, part)
            table.grad /= total
        return float(everything[-2]), int(total)


ALONE = Team()


@contextmanager
def team(env: Mapping[str, str] = os.environ) -> Iterator[Team]:
    """The team that `torchrun` put this process into, or it alone; threads are divided among a machine's processes.

    Raises:
        Unreachable: the others cannot be met.
    """
    of = int(env.get("WORLD_SIZE", "1"))
    if of == 1:
        yield Team()
        return
    with _explained():
        dist.init_process_group("gloo", timeout=PATIENCE)
    try:
        # torchrun gives each process one thread unless it is told otherwise
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // int(env.get("LOCAL_WORLD_SIZE", "1"))))
        yield Team(Share(int(env["RANK"]), of))
    finally:
        dist.destroy_process_group()


def _gather(mine: Tensor, lengths: Sequence[int] | None = None) -> list[Tensor]:
    """[n, …] of every process, where n may differ. lengths: where they are known."""
    if lengths is None:
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(dist.get_world_size())]
        dist.all_gather(sizes, torch.tensor([len(mine)]))
        lengths = [int(size) for size in sizes]
    longest = max(lengths)
    padded = torch.zeros((longest, *mine.shape[1:]), dtype=mine.dtype)
    padded[: len(mine)] = mine
    found = [torch.zeros_like(padded) for _ in lengths]
    dist.all_gather(found, padded)
    return [part[:length] for part, length in zip(found, lengths, strict=True)]


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ValueError) as error:  # of gloo, and of the store that processes meet at
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        reason = re.sub(r"^\[[^\]]*\] ", "", first).partition(". ")[0]  # without the place in gloo's source
        raise Unreachable(
            f"another process of this training has ended or does not answer ({reason}); start all again with the "
            "same arguments: training goes on from its last checkpoint"
        ) from None
