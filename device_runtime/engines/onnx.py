"""Stock ONNX Runtime on the CPU."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from device_runtime.engines.binding import Binding, Room
from device_runtime.engines.spec import Array, Arrays, GraphSpec
from device_runtime.errors import EngineError, EngineUnavailable

if TYPE_CHECKING:
    import onnxruntime

_TYPES = {
    "bool": "tensor(bool)",
    "float16": "tensor(float16)",
    "float32": "tensor(float)",
    "int32": "tensor(int32)",
    "int64": "tensor(int64)",
}


class OnnxGraph:
    def __init__(self, session: onnxruntime.InferenceSession, spec: GraphSpec) -> None:
        self.spec = spec
        self._session = session
        self._outputs = [t.name for t in spec.outputs]

    def __call__(self, inputs: Arrays) -> dict[str, Array]:
        self.spec.check(inputs)
        try:
            results = self._session.run(self._outputs, dict(inputs))
        except Exception as error:  # onnxruntime's errors share no base but this
            raise EngineError(f"onnxruntime failed while running the graph: {_short(error)}") from None
        return dict(zip(self._outputs, results, strict=True))

    def bind(self, values: Arrays) -> OnnxBinding:
        return OnnxBinding(self._session, self.spec, values)


class OnnxBinding(Binding):
    """Two sets of buffers for what is carried: each step reads one and writes the other."""

    def __init__(self, session: onnxruntime.InferenceSession, spec: GraphSpec, values: Arrays) -> None:
        super().__init__(spec, values)
        self.session = session
        self.turn = 0
        here = {name: self.buffers[name] for name in spec.carry.values()}
        self._halves = (here, {name: np.empty_like(array) for name, array in here.items()})
        self.fixed = _wrapped({n: a for n, a in self.buffers.items() if n not in here})
        self.moving = [_wrapped(half) for half in self._halves]

    def _room(self, sizes: Mapping[str, int]) -> OnnxRoom:
        return OnnxRoom(self, sizes)

    def values(self) -> dict[str, Array]:
        return {name: array.copy() for name, array in self._halves[self.turn].items()}


class OnnxRoom(Room):
    def __init__(self, binding: OnnxBinding, sizes: Mapping[str, int]) -> None:
        spec = binding.spec
        super().__init__(spec, sizes)
        self._binding = binding
        batch, results = _wrapped(self.buffers), _wrapped(self.results)
        self._ios = []
        for read, written in (binding.moving, binding.moving[::-1]):
            io = binding.session.io_binding()
            for name, value in {**binding.fixed, **batch, **read}.items():
                io.bind_ortvalue_input(name, value)
            for t in spec.outputs:
                carried = spec.carry.get(t.name)
                io.bind_ortvalue_output(t.name, results[t.name] if carried is None else written[carried])
            self._ios.append(io)

    def run(self) -> None:
        binding = self._binding
        try:
            binding.session.run_with_iobinding(self._ios[binding.turn])
        except Exception as error:  # onnxruntime's errors share no base but this
            raise EngineError(f"onnxruntime failed while running the graph: {_short(error)}") from None
        binding.turn = 1 - binding.turn


def _wrapped(arrays: Arrays) -> dict[str, onnxruntime.OrtValue]:
    """The arrays' own memory, as onnxruntime takes it."""
    import onnxruntime

    return {name: onnxruntime.OrtValue.ortvalue_from_numpy(array) for name, array in arrays.items()}


class OnnxEngine:
    """name, version, format: see `Engine`."""

    name = "onnx"
    format = "onnx"

    def __init__(self, threads: int) -> None:
        # not at the top: `device_runtime` must have switched its telemetry off before, and it takes 40 MiB
        try:
            import onnxruntime
        except ImportError as error:
            raise EngineUnavailable(
                f"onnxruntime does not import ({error}): pip install 'onnxruntime>=1.24,<1.29'; "
                "it has no wheels for 32-bit systems"
            ) from None
        self.version: str = onnxruntime.__version__
        self._session = onnxruntime.InferenceSession
        self._threads = threads
        self._options = onnxruntime.SessionOptions
        self._sequential = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        self._all = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL

    def load(self, path: Path, spec: GraphSpec) -> OnnxGraph:
        options = self._options()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.execution_mode = self._sequential
        options.graph_optimization_level = self._all
        # patterns cost 1 MiB, and several steps in a call take 5 to 14 % less by them; without the arena, a step takes
        # a quarter longer (measured on a DIN and the classifier)
        options.enable_mem_pattern = True
        if self._threads == 1:
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 4  # what matters arrives as an exception
        try:
            session = self._session(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's errors share no base but this
            raise EngineError(f"onnxruntime {self.version} cannot load {path.name}: {_short(error)}") from None
        for kind, tensors, found in (
            ("input", spec.inputs, session.get_inputs()),
            ("output", spec.outputs, session.get_outputs()),
        ):
            have = {t.name: t.type for t in found}
            want = {t.name: _TYPES.get(t.dtype, t.dtype) for t in tensors}
            if have != want:
                name = sorted(n for n in {*have, *want} if have.get(n) != want.get(n))[0]
                raise EngineError(
                    f"{path.name}: {kind} {name!r} is {have.get(name, 'absent')} in the file, "
                    f"{want.get(name, 'absent')} in the manifest"
                )
        return OnnxGraph(session, spec)


def create(threads: int, cache: Path | None = None) -> OnnxEngine:
    """cache: not needed.

    Raises:
        EngineUnavailable: onnxruntime is not installed or does not import.
    """
    return OnnxEngine(threads)


def _short(error: Exception) -> str:
    """The first line of onnxruntime's message, without its decoration."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    line = re.sub(r"^\[ONNXRuntimeError\] : \d+ : ", "", line)
    return re.sub(r"/onnxruntime_src/\S+ .*?\) (?=\S)", " ", line)[:500]  # where in its source: hundreds of characters
