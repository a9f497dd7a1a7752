"""How fast a step could be: its multiply-adds at a large matrix product's rate, its bytes at a copy's."""

from __future__ import annotations

import json
import math
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from device_runtime.engines import Array

_SIZE = 256


@dataclass(frozen=True)
class Floor:
    """multiply_adds: of matrix products. bytes: that the operators read and write, each tensor as often as it is used;
    those that only rename (reshape, squeeze) move none. floor_ms: both at the measured rates, one after the other.
    dominant: the operator types that take most of the time, with their shares."""

    multiply_adds: int
    bytes: int
    gemm_rate: float
    copy_rate: float
    floor_ms: float
    dominant: dict[str, float]


def floor(data: bytes, inputs: Mapping[str, Array]) -> Floor:
    """Of an ONNX graph, for these inputs, in one thread."""
    model = onnx.load_from_string(data)
    for value in model.graph.input:
        shape = [helper.make_tensor_type_proto(value.type.tensor_type.elem_type, inputs[value.name].shape)]
        value.type.CopyFrom(shape[0])
    shapes = _shapes(model, inputs)
    products, moved = 0, 0
    for node in model.graph.node:
        if node.op_type in ("Reshape", "Squeeze", "Unsqueeze", "Identity", "Shape"):
            continue
        out = math.prod(shapes[node.output[0]][0])
        if node.op_type in ("MatMul", "Gemm"):
            first = shapes[node.input[0]][0]
            transposed = any(a.name == "transA" and a.i for a in node.attribute)
            products += out * first[-2 if transposed and len(first) > 1 else -1]
        moved += sum(math.prod(s) * size for s, size in (shapes[n] for n in (*node.input, *node.output) if n in shapes))
    gemm, copy = _gemm_rate(), _copy_rate()
    return Floor(products, moved, gemm, copy, 1e3 * (products / gemm + moved / copy), _dominant(data, inputs))


def _shapes(model: onnx.ModelProto, inputs: Mapping[str, Array]) -> dict[str, tuple[tuple[int, ...], int]]:
    """name -> (shape, bytes of an element), by running the graph once with every value as an output."""
    names = [n for node in model.graph.node for n in node.output if n]
    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    known = {o.name for o in wide.graph.output}
    wide.graph.output.extend(helper.make_empty_tensor_value_info(n) for n in names if n not in known)
    results = _session(wide.SerializeToString()).run(names, dict(inputs))
    found = {n: (tuple(a.shape), a.itemsize) for n, a in zip(names, results, strict=True)}
    for constant in model.graph.initializer:
        array = onnx.numpy_helper.to_array(constant)
        found[constant.name] = (tuple(array.shape), array.itemsize)
    return found | {n: (tuple(a.shape), a.itemsize) for n, a in inputs.items()}


def _session(data: bytes, profile: str = "") -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    if profile:
        options.enable_profiling, options.profile_file_prefix = True, profile
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def _gemm_rate() -> float:
    """Multiply-adds a second, onnxruntime's own product."""
    info = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [_SIZE, _SIZE]) for n in "abc"]
    graph = helper.make_graph([helper.make_node("MatMul", ["a", "b"], ["c"])], "g", info[:2], info[2:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    session, square = _session(model.SerializeToString()), np.ones((_SIZE, _SIZE), np.float32)
    return _SIZE**3 / _seconds(lambda: session.run(None, {"a": square, "b": square}))


def _copy_rate() -> float:
    """Bytes a second, read and written, of a tensor as large as the step's larger ones (256 KiB: it stays in cache)."""
    here = np.ones(1 << 16, np.float32)
    there = np.empty_like(here)
    return 2 * here.nbytes / _seconds(lambda: np.copyto(there, here))


def _seconds(call: Callable[[], object]) -> float:
    taken = []
    for _ in range(200):
        begin = time.perf_counter()
        call()
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken)


def _dominant(data: bytes, inputs: Mapping[str, Array]) -> dict[str, float]:
    """Operator type -> share of the time in operators, of the five largest, by onnxruntime's profile."""
    with tempfile.TemporaryDirectory() as folder:
        session = _session(data, f"{folder}/profile")
        for _ in range(100):
            session.run(None, dict(inputs))
        events = json.loads(Path(session.end_profiling()).read_text())
    each: dict[str, list[float]] = {}
    kinds = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            each.setdefault(event["name"], []).append(event["dur"])
            kinds[event["name"]] = event["args"]["op_name"]
    total: Counter[str] = Counter()
    for name, durations in each.items():
        total[kinds[name]] += statistics.median(durations)  # type: ignore[assignment]
    whole = sum(total.values()) or 1
    return {kind: share / whole for kind, share in total.most_common(5)}
