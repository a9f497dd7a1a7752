"""Several training steps in one call: the step graph as the body of ONNX's standard `Scan`.

The carried tensors are the scan's state, the batches are what it scans, and everything else that a step reads comes
from outside. The number of steps in a call stays free, so no batch of padding is needed, and the file is no larger:
inside a scan no shapes need to be stated.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx

from device_runtime.engines.spec import BATCH_ROLES, STEPS, GraphSpec

_INNER = "step/"
"""Names inside the body must differ from those outside."""


def scan_steps(data: bytes, spec: GraphSpec) -> bytes:
    """A lowered step graph -> the graph of `spec.stacked(most)`: any number of such steps, one after another.

    data: ONNX, with inputs and outputs as in spec.
    """
    model = onnx.load_from_string(data)
    graph = model.graph
    carried = list(spec.carry.values())
    scanned = [t.name for t in spec.inputs if t.role in BATCH_ROLES]
    given = {value.name: value for value in graph.input}
    results = {value.name: value for value in graph.output}
    per_step = [t.name for t in spec.outputs if t.name not in spec.carry]
    renamed = {name: _INNER + name for name in (*carried, *scanned, *results)}

    body = onnx.GraphProto(name="step")
    body.input.extend(_named(given[name], _INNER + name) for name in (*carried, *scanned))
    body.output.extend(_named(results[name], _INNER + name) for name in (*spec.carry, *per_step))
    body.initializer.extend(graph.initializer)
    body.node.extend(_rewired(node, renamed) for node in graph.node)

    outer = onnx.GraphProto(name=graph.name)
    outer.input.extend(_stacked(given[t.name]) if t.role in BATCH_ROLES else given[t.name] for t in spec.inputs)
    outer.output.extend(results[t.name] if t.name in spec.carry else _stacked(results[t.name]) for t in spec.outputs)
    outer.node.append(
        onnx.helper.make_node(
            "Scan", [*carried, *scanned], [*spec.carry, *per_step], body=body, num_scan_inputs=len(scanned)
        )
    )
    made = onnx.helper.make_model(outer, opset_imports=model.opset_import, ir_version=model.ir_version)
    return bytes(made.SerializeToString())


def _named(value: onnx.ValueInfoProto, name: str) -> onnx.ValueInfoProto:
    copy = onnx.ValueInfoProto()
    copy.CopyFrom(value)
    copy.name = name
    return copy


def _rewired(node: onnx.NodeProto, renamed: Mapping[str, str]) -> onnx.NodeProto:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    for names in (copy.input, copy.output):
        names[:] = [renamed.get(name, name) for name in names]
    return copy


def _stacked(value: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
    copy = _named(value, value.name)
    shape = copy.type.tensor_type.shape
    dims = list(shape.dim)
    shape.ClearField("dim")
    shape.dim.add().dim_param = STEPS
    shape.dim.extend(dims)
    return copy
