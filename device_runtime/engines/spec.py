"""What a graph takes and gives: declared in the manifest, checked before anything runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt

from device_runtime.errors import GraphInputError

Array = npt.NDArray[np.generic]
Arrays = Mapping[str, Array]

Role = Literal["param", "attribute", "state", "feature", "label", "weight", "hyper", "output"]
BATCH_ROLES: tuple[Role, ...] = ("feature", "label", "weight")
BATCH = "batch"
"""The dimension of the samples in a batch: any number of them up to a bound."""
STEPS = "steps"
"""The leading dimension of a batch, where a graph takes several training steps in a call."""


class TensorSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Name, dtype (a NumPy name) and shape of a tensor; a dimension that may vary is named by a string.

    role: `param` a weight; `attribute` an integer map that belongs to a table's rows; `state` of the optimizer
    (starts as zeros); `feature`, `label`, `weight` (per sample, 0 = padding) a batch; `hyper` a scalar setting;
    `output` anything that a graph returns.
    table: of a `param`, `attribute` or `state`, the vocabulary whose rows are its first dimension, where it is sliced;
    of a `feature`, the vocabulary whose rows its values index (int64, 0 = padding); else empty.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    role: Role
    table: str = ""


class GraphSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Inputs and outputs in the graph's own order.

    carry: output -> the input that it feeds on the next call (updated weights and optimizer state).
    bounds: dimension name -> (least, most); that of the samples in a batch is called `BATCH`.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    carry: dict[str, str] = {}
    bounds: dict[str, tuple[int, int]] = {}

    def of(self, *roles: Role) -> tuple[TensorSpec, ...]:
        """The inputs that play one of these roles."""
        return tuple(t for t in self.inputs if t.role in roles)

    @property
    def batch(self) -> int:
        """How many samples a batch has, at most."""
        if BATCH not in self.bounds:
            raise GraphInputError("this graph takes no batch of samples")
        return self.bounds[BATCH][1]

    @property
    def steps(self) -> int:
        """How many training steps a call takes, at most; 0 where batches have no dimension for them."""
        return self.bounds[STEPS][1] if STEPS in self.bounds else 0

    def stacked(self, most: int) -> GraphSpec:
        """The same step, taken up to `most` times in a call: batches, and outputs that are not carried, have a leading
        dimension for it."""
        inputs = tuple(_stacked(t) if t.role in BATCH_ROLES else t for t in self.inputs)
        outputs = tuple(t if t.name in self.carry else _stacked(t) for t in self.outputs)
        return GraphSpec(inputs, outputs, self.carry, {**self.bounds, STEPS: (1, most)})

    def check(self, given: Arrays) -> None:
        """Refuse tensors that do not fit.

        Raises:
            GraphInputError: names the tensor, what was expected and what was given. Also for a feature that points
                outside the rows given for its table, and for a batch or setting that is not finite.
        """
        self.check_names(given, self.inputs)
        self.check_tensors(given, self.inputs)
        rows = self.rows(given)
        for tensor in self.of("feature", "label", "weight", "hyper"):
            self.check_values(tensor, given[tensor.name], rows)

    def check_names(self, given: Arrays, tensors: Sequence[TensorSpec]) -> None:
        """Refuse anything but exactly these tensors. Raises: GraphInputError."""
        names = {t.name for t in tensors}
        if missing := sorted(names - set(given)):
            raise GraphInputError(f"missing tensors: {', '.join(missing)}")
        if extra := sorted(set(given) - names):
            raise GraphInputError(f"tensors that the graph does not take: {', '.join(extra)}")

    def check_tensors(
        self, given: Arrays, tensors: Sequence[TensorSpec], known: Mapping[str, int] | None = None
    ) -> dict[str, int]:
        """Refuse dtypes and shapes that do not fit; the sizes of the dimensions that vary, those known among them.
        Raises: GraphInputError."""
        sizes = dict(known or {})
        for tensor in tensors:
            array = given.get(tensor.name)
            if array is None:
                raise GraphInputError(f"missing tensors: {tensor.name}")
            if array.dtype != np.dtype(tensor.dtype):
                raise GraphInputError(f"tensor {tensor.name!r}: expected {tensor.dtype}, given {array.dtype}")
            if not self._fits(tensor, array.shape, sizes):
                raise GraphInputError(
                    f"tensor {tensor.name!r}: expected shape {list(tensor.shape)}"
                    f"{self._legend(tensor, sizes)}, given {list(array.shape)}"
                )
        return sizes

    def rows(self, given: Arrays) -> dict[str, int]:
        """Vocabulary -> how many rows of it are given."""
        return {t.table: given[t.name].shape[0] for t in self.of("param", "attribute") if t.table}

    def check_values(self, tensor: TensorSpec, array: Array, rows: Mapping[str, int]) -> None:
        """Refuse an id outside its table, which not every engine looks at, and a number that is not finite, which
        would end up in every weight. Raises: GraphInputError."""
        if array.dtype.kind == "f":
            self.check_finite(tensor, array)
            return
        if tensor.table not in rows or array.dtype.kind != "i" or not array.size:
            return
        # one pass: seen as unsigned, a negative id is a huge one
        if int(array.view(f"u{array.itemsize}").max()) >= rows[tensor.table]:
            outside = next(i for i in array.ravel().tolist() if not 0 <= i < rows[tensor.table])
            raise GraphInputError(
                f"tensor {tensor.name!r}: expected rows of {tensor.table!r} from 0 to {rows[tensor.table] - 1}, "
                f"given {outside}"
            )

    def check_finite(self, tensor: TensorSpec, array: Array) -> None:
        """Raises: GraphInputError: names the tensor and the first number that is nan or inf."""
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            wrong = array[~np.isfinite(array)].flat[0]
            raise GraphInputError(f"tensor {tensor.name!r}: expected finite numbers, given {wrong}")

    def _fits(self, tensor: TensorSpec, shape: tuple[int, ...], sizes: dict[str, int]) -> bool:
        if len(shape) != len(tensor.shape):
            return False
        for want, have in zip(tensor.shape, shape, strict=True):
            if isinstance(want, int):
                if want != have:
                    return False
            else:
                least, most = self.bounds[want]
                if not least <= have <= most or sizes.setdefault(want, have) != have:
                    return False
        return True

    def _legend(self, tensor: TensorSpec, sizes: dict[str, int]) -> str:
        notes = []
        for d in tensor.shape:
            if isinstance(d, str):
                least, most = self.bounds[d]
                notes.append(
                    f" ({d} is {sizes[d]} in another tensor)" if d in sizes else f" ({d} from {least} to {most})"
                )
        return "".join(notes)


def _stacked(tensor: TensorSpec) -> TensorSpec:
    return TensorSpec(tensor.name, tensor.dtype, (STEPS, *tensor.shape), tensor.role, tensor.table)
