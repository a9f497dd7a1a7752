"""Worker: one of CoDA's own engines. Arguments: engine, threads, folder with `GRAPH.FORMAT`, `spec.json`, `inputs`."""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.peers.protocol import Step, Weights, serve

DEVICE = ["numpy", "msgspec", "zstandard", "pynacl", "safetensors"]


def start() -> tuple[Step, Weights]:
    import msgspec
    from safetensors.numpy import load_file

    from device_runtime.engines import GraphSpec, open_engine

    name, threads, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    spec = msgspec.json.decode((folder / "spec.json").read_bytes(), type=GraphSpec)
    inputs = load_file(folder / "inputs")
    engine = open_engine(name, threads)
    values = {t.name: inputs[t.name] for t in spec.of("param", "attribute", "state")}
    bound = engine.load(folder / f"step.{engine.format}", spec).bind(values)
    batch = {n: a for n, a in inputs.items() if n not in values}
    trained = {t.name for t in spec.of("param")} & set(spec.carry.values())
    return lambda: float(bound.step(batch)["loss"]), lambda: {n: a for n, a in bound.values().items() if n in trained}


if __name__ == "__main__":
    serve(start, [*DEVICE, {"onnx": "onnxruntime", "reference": "onnx"}.get(sys.argv[1], sys.argv[1])])
