"""ExecuTorch's C++ runtime, without its Python package and without torch."""

from __future__ import annotations

import ctypes
import math
import threading
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from device_runtime.engines.binding import Binding, Room
from device_runtime.engines.shim import VERSION, load_shim
from device_runtime.engines.spec import BATCH_ROLES, STEPS, Array, Arrays, GraphSpec, TensorSpec
from device_runtime.errors import EngineError

_CODES = {"int32": 3, "int64": 4, "float16": 5, "float32": 6, "bool": 11}
"""NumPy's names of dtypes -> ExecuTorch's ScalarType."""
_NAMES = {code: name for name, code in _CODES.items()}
_MAX_DIMS = 16
_ERROR_BYTES = 1024


class ExecuTorchGraph:
    """A loaded program, which takes one step. Where the spec has batches for several steps, the shim runs it several
    times in a call. Threads may share it; their calls run one after the other."""

    def __init__(self, library: ctypes.CDLL, path: Path, spec: GraphSpec, threads: int) -> None:
        self.spec = spec
        self._library = library
        self._lock = threading.Lock()
        self._error = ctypes.create_string_buffer(_ERROR_BYTES)
        self._handle = library.coda_open(str(path).encode(), threads, self._error, _ERROR_BYTES)
        if not self._handle:
            raise EngineError(f"executorch {VERSION} cannot load {path.name}: {self._message()}")
        self._close = weakref.finalize(self, library.coda_close, self._handle)
        self._compare(path)
        # plain ctypes arrays, made once: building them would cost more than most calls
        given = len(spec.outputs)
        self._into, self._into_strides = (ctypes.c_void_p * given)(), (ctypes.c_size_t * given)()
        self._out_dtypes = (ctypes.c_int32 * given)()
        self._out_ndims = (ctypes.c_int32 * given)()
        self._out_dims = (ctypes.c_int32 * (given * _MAX_DIMS))()
        self._out_data = (ctypes.c_void_p * given)()
        self._inputs = _Inputs(spec)

    def __call__(self, inputs: Arrays) -> dict[str, Array]:
        self.spec.check(inputs)
        if self.spec.steps:
            bound = self.bind(inputs)
            results = bound.step({t.name: inputs[t.name] for t in self.spec.of(*BATCH_ROLES, "hyper")})
            last = bound.values()
            return results | {given: last[taken] for given, taken in self.spec.carry.items()}
        with self._lock:
            # contiguous copies must outlive the call; not ascontiguousarray: it makes vectors of scalars
            held = [np.asarray(inputs[t.name], order="C") for t in self.spec.inputs]
            self._inputs.point(held)
            self.run(self._inputs, self._into, self._into_strides)
            return {tensor.name: self._output(i) for i, tensor in enumerate(self.spec.outputs)}

    def bind(self, values: Arrays) -> ExecuTorchBinding:
        return ExecuTorchBinding(self, values)

    def locked(self) -> threading.Lock:
        """To be held around `run`."""
        return self._lock

    def run(
        self, inputs: _Inputs, into: ctypes.Array[ctypes.c_void_p], into_strides: ctypes.Array[ctypes.c_size_t]
    ) -> None:
        """Run on inputs that are known to fit.

        into: for each output, the address that it is copied to, or null; into_strides: how many bytes further at each
        step.

        Raises:
            EngineError: the program failed; nothing of that step was copied.
        """
        failed = self._library.coda_run(
            *(self._handle, inputs.steps, inputs.data, inputs.strides, inputs.dtypes, inputs.ndims, inputs.dims),
            *(into, into_strides, self._out_dtypes, self._out_ndims, self._out_dims, self._out_data),
            *(self._error, _ERROR_BYTES),
        )
        if failed:
            raise EngineError(f"executorch failed while running the graph: {self._message()}")

    def _output(self, i: int) -> Array:
        start = i * _MAX_DIMS
        shape = tuple(self._out_dims[start : start + self._out_ndims[i]])
        array = np.empty(shape, _NAMES[self._out_dtypes[i]])
        if source := self._out_data[i]:
            ctypes.memmove(array.ctypes.data, source, array.nbytes)
        return array

    def _message(self) -> str:
        return self._error.value.decode(errors="replace")

    def _compare(self, path: Path) -> None:
        """Refuse a file whose tensors are not those of the spec: it would be fed the wrong memory."""
        for output, tensors in enumerate((self.spec.inputs, self.spec.outputs)):
            kind = ("input", "output")[output]
            count = self._library.coda_count(self._handle, output)
            if count != len(tensors):
                raise EngineError(f"{path.name} has {count} {kind}s, its manifest names {len(tensors)}")
            for i, tensor in enumerate(tensors):
                declared = self._declared(output, i)
                if declared is None or not self._agrees(tensor, *declared):
                    found = "no tensor" if declared is None else f"{declared[0]} {list(declared[1])}"
                    raise EngineError(
                        f"{path.name}: {kind} {i} is {found}, but the manifest says "
                        f"{tensor.name!r}, {tensor.dtype} {list(_of_a_step(tensor))}"
                    )

    def _declared(self, output: int, i: int) -> tuple[str, tuple[int, ...]] | None:
        dtype, ndim, dims = ctypes.c_int32(), ctypes.c_int32(), (ctypes.c_int32 * _MAX_DIMS)()
        handle, by = self._handle, ctypes.byref
        if self._library.coda_declared(handle, output, i, by(dtype), by(ndim), by(dims)):
            return None
        return _NAMES.get(dtype.value, f"dtype {dtype.value}"), tuple(dims[: ndim.value])

    def _agrees(self, tensor: TensorSpec, dtype: str, largest: tuple[int, ...]) -> bool:
        wanted = _of_a_step(tensor)
        if dtype != tensor.dtype or len(largest) != len(wanted):
            return False
        bounds = [d if isinstance(d, int) else self.spec.bounds.get(d, (0, math.inf))[1] for d in wanted]
        return all(
            have == want if isinstance(d, int) else have >= want or want == math.inf
            for d, want, have in zip(wanted, bounds, largest, strict=True)
        )


def _of_a_step(tensor: TensorSpec) -> tuple[int | str, ...]:
    return tensor.shape[1:] if tensor.shape[:1] == (STEPS,) else tensor.shape


class _Inputs:
    """Addresses and sizes of a graph's inputs, as the shim takes them."""

    def __init__(self, spec: GraphSpec) -> None:
        count = len(spec.inputs)
        shapes = [_of_a_step(t) for t in spec.inputs]
        self.steps = 1
        self.data, self.strides = (ctypes.c_void_p * count)(), (ctypes.c_size_t * count)()
        self.dtypes = (ctypes.c_int32 * count)(*[_CODES[t.dtype] for t in spec.inputs])
        self.ndims = (ctypes.c_int32 * count)(*[len(shape) for shape in shapes])
        self.dims = (ctypes.c_int32 * sum(len(shape) for shape in shapes))()
        self._stacked = [t.shape != shape for t, shape in zip(spec.inputs, shapes, strict=True)]

    def point(self, arrays: Sequence[Array]) -> None:
        """arrays: C-contiguous, in the spec's order; the caller keeps them alive."""
        self.data[:] = [array.ctypes.data for array in arrays]
        pairs = list(zip(arrays, self._stacked, strict=True))
        self.steps = next((len(array) for array, stacked in pairs if stacked), 1)
        self.strides[:] = [array.nbytes // self.steps if stacked else 0 for array, stacked in pairs]
        self.dims[:] = [size for array, stacked in pairs for size in array.shape[stacked:]]


class ExecuTorchBinding(Binding):
    """The program reads the buffers where they lie; the shim copies what is carried back into them, and the rest into
    arrays of ours."""

    def __init__(self, graph: ExecuTorchGraph, values: Arrays) -> None:
        super().__init__(graph.spec, values)
        self.graph = graph

    def _room(self, sizes: Mapping[str, int]) -> ExecuTorchRoom:
        return ExecuTorchRoom(self, sizes)

    def values(self) -> dict[str, Array]:
        return {name: self.buffers[name].copy() for name in self.spec.carry.values()}


class ExecuTorchRoom(Room):
    def __init__(self, binding: ExecuTorchBinding, sizes: Mapping[str, int]) -> None:
        spec = binding.spec
        super().__init__(spec, sizes)
        self._graph = binding.graph
        self._inputs = _Inputs(spec)
        held = {**binding.buffers, **self.buffers}
        self._inputs.point([held[t.name] for t in spec.inputs])
        count = len(spec.outputs)
        self._into, self._into_strides = (ctypes.c_void_p * count)(), (ctypes.c_size_t * count)()
        for i, tensor in enumerate(spec.outputs):
            if tensor.name in spec.carry:
                array = binding.buffers[spec.carry[tensor.name]]
            else:
                array = self.results[tensor.name]
                self._into_strides[i] = array.nbytes // self._inputs.steps
            self._into[i] = array.ctypes.data

    def run(self) -> None:
        with self._graph.locked():
            self._graph.run(self._inputs, self._into, self._into_strides)


class ExecuTorchEngine:
    """name, version, format: see `Engine`."""

    name = "executorch"
    version = VERSION
    format = "executorch"

    def __init__(self, library: ctypes.CDLL, threads: int) -> None:
        self._library = library
        self._threads = threads

    def load(self, path: Path, spec: GraphSpec) -> ExecuTorchGraph:
        for tensor in (*spec.inputs, *spec.outputs):
            if tensor.dtype not in _CODES:
                raise EngineError(f"executorch takes no tensors of {tensor.dtype}: {tensor.name!r}")
        return ExecuTorchGraph(self._library, path, spec, self._threads)


def create(threads: int, cache: Path | None = None) -> ExecuTorchEngine:
    """cache: where the shim is kept that is built at first use; `$CODA_CACHE` wins, see `shim.cache_folder`.

    The thread pool is one for the process: where engines of different thread counts run, it is resized at each change.

    Raises:
        EngineUnavailable: the wheel or a compiler is lacking; says what to install.
    """
    return ExecuTorchEngine(load_shim(cache), threads)
