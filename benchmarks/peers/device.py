"""Worker: one of CoDA's own engines, with as many steps in a call as the spec has room for.

Arguments: engine, threads, folder with `step.FORMAT`, `spec.json`, `inputs` (of one step).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.peers.protocol import serve

DEVICE = ["numpy", "msgspec", "zstandard", "pynacl", "safetensors"]


def start() -> Callable[[], float]:
    import msgspec
    import numpy as np
    from safetensors.numpy import load_file

    from device_runtime.engines import GraphSpec, open_engine
    from device_runtime.engines.spec import BATCH_ROLES

    name, threads, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    spec = msgspec.json.decode((folder / "spec.json").read_bytes(), type=GraphSpec)
    inputs = load_file(folder / "inputs")
    engine = open_engine(name, threads)
    values = {t.name: inputs[t.name] for t in spec.of("param", "attribute", "state")}
    bound = engine.load(folder / f"step.{engine.format}", spec).bind(values)
    stacked = {t.name for t in spec.of(*BATCH_ROLES)}
    batch = {n: np.stack([a] * spec.steps) if n in stacked else a for n, a in inputs.items() if n not in values}
    return lambda: float(bound.step(batch)["loss"][-1])


if __name__ == "__main__":
    serve(start, [*DEVICE, {"onnx": "onnxruntime", "reference": "onnx"}.get(sys.argv[1], sys.argv[1])])
