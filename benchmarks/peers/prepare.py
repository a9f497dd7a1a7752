"""The same work for everybody, in each one's own form: model, weights, batch, loss, optimizer and clipping."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import onnx
import torch
from msgspec.structs import replace
from safetensors.numpy import save_file
from torch import Tensor, nn

from benchmarks.subjects import Subject
from device_runtime.engines import GraphSpec, TensorSpec, open_engine
from device_runtime.engines.binding import shape
from device_runtime.engines.spec import BATCH
from export.graphs import GraphPlan, NamedTensors
from export.lowering import quiet, to_executorch, to_onnx, trace
from export.models.classifier import SampleClassifier
from export.package import STEPS_IN_A_CALL
from export.parity import Oracle, check
from export.scan import scan_steps
from export.step import SGD, weighted_log_loss
from export.training import EPSILON

HERE = Path(__file__).parent
TARGETS = ("label", "sample_weight")


class Loss(nn.Module):
    """Features, labels and sample weights by position -> the weighted loss, for exporters that want a module."""

    def __init__(self, chosen: Subject) -> None:
        super().__init__()
        self.module = chosen.module
        self.names = chosen.features

    def forward(self, *given: Tensor) -> Tensor:
        *features, label, weight = given
        return weighted_log_loss(self.module(**dict(zip(self.names, features, strict=True))), label, weight)


def device(chosen: Subject, folder: Path, engines: Sequence[str]) -> None:
    """Write `step.FORMAT` for our own engines, as many steps in a call as in a bundle and checked against autograd,
    `spec.json` and `inputs` (of one step).

    Raises:
        EngineError: it cannot be lowered, or does not agree.
    """
    traced, steps = trace(chosen.plan), STEPS_IN_A_CALL[chosen.plan.name]
    for name in engines:
        engine = open_engine(name)
        path = folder / f"step.{engine.format}"
        path.write_bytes({"onnx": scan_steps, "executorch": to_executorch}[engine.format](traced))
        check(traced.plan, Oracle(chosen.module, chosen.step), engine, path, steps)
    (folder / "spec.json").write_bytes(msgspec.json.encode(traced.plan.spec.stacked(steps)))
    arrays = {t.name: chosen.plan.examples[t.name].numpy() for t in traced.plan.spec.inputs}
    save_file({n: np.ascontiguousarray(a).reshape(a.shape) for n, a in arrays.items()}, folder / "inputs")


def executorch_training(chosen: Subject, folder: Path) -> str:
    """Write `training.pte` and `training.json`: why that failed, or nothing."""
    if not isinstance(chosen.step.optimizer, SGD):
        return f"it knows SGD only, and {type(chosen.module).__name__} trains by {type(chosen.step.optimizer).__name__}"
    names = [*chosen.features, *TARGETS]
    try:
        with quiet():
            from executorch.exir import EdgeCompileConfig, to_edge
            from torch.export.experimental import _export_forward_backward

            given = tuple(chosen.plan.examples[n] for n in names)
            joint = _export_forward_backward(torch.export.export(Loss(chosen), given, strict=True))
            edge = to_edge(joint, compile_config=EdgeCompileConfig(_check_ir_validity=False))
            (folder / "training.pte").write_bytes(edge.to_executorch().buffer)
    except Exception as error:  # exporters raise what they like
        return f"its joint graph cannot be exported: {type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"
    declared = {"inputs": names, "rate": chosen.rate, "clip": chosen.step.clip}
    (folder / "training.json").write_text(json.dumps(declared))
    return ""


def ort_training(chosen: Subject, folder: Path, environment: Path) -> str:
    """Let onnxruntime-training add gradients and optimizer to the loss's graph: why that failed, or nothing."""
    (folder / "loss.onnx").write_bytes(loss_graph(chosen))
    arrays = {n: chosen.plan.examples[n].numpy() for n in (*chosen.features, *TARGETS, "learning_rate")}
    np.savez(folder / "inputs.npz", **arrays)  # type: ignore[arg-type]
    kind = "sgd" if isinstance(chosen.step.optimizer, SGD) else "adamw"
    words = ["prepare", folder, ",".join(chosen.step.trained), kind, chosen.step.clip, EPSILON]
    return ran([environment / "bin" / "python", HERE / "ort_training.py", *words])


def mnn(chosen: Subject, folder: Path) -> str:
    """Write the classifier's batch and weights: why MNN cannot be given this subject, or nothing."""
    if not isinstance(chosen.module, SampleClassifier):
        return "models have to be written anew in MNN's own expressions; the classifier's row says whether those train"
    names = (*chosen.features, *TARGETS, *chosen.step.trained, "learning_rate")
    arrays = {n: chosen.plan.examples[n].numpy() for n in names}
    np.savez(folder / "mnn.npz", **arrays, epsilon=np.float32(EPSILON))  # type: ignore[arg-type]
    return ""


def loss_graph(chosen: Subject) -> bytes:
    """Features, labels and sample weights -> the weighted loss, as ONNX, with every weight an initializer of its name.

    Exported with the weights as inputs: an exporter that knows their values folds some of them into constants, and a
    trained weight that is gone cannot be given a gradient.
    """
    step = chosen.plan.spec
    held = step.of("param", "attribute")

    def function(inputs: NamedTensors) -> dict[str, Tensor]:
        return {"loss": weighted_log_loss(chosen.step.logits(inputs, inputs), inputs["label"], inputs["sample_weight"])}

    # batches of one size, which is all that a peer is asked for
    fixed = {BATCH: step.batch}
    batch = (replace(t, shape=shape(t, fixed)) for t in step.of("feature", "label", "weight"))
    inputs = (*held, *batch)
    bounds = {name: bound for name, bound in step.bounds.items() if name != BATCH}
    spec = GraphSpec(inputs, (TensorSpec("loss", "float32", (), "output"),), {}, bounds)
    plan = GraphPlan("loss", function, spec, {t.name: chosen.plan.examples[t.name] for t in inputs})
    model = onnx.load_from_string(to_onnx(trace(plan)))
    names = {t.name for t in held}
    kept = [value for value in model.graph.input if value.name not in names]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(chosen.plan.examples[t.name].numpy(), t.name) for t in held
    )
    return bytes(model.SerializeToString())


def ran(command: Sequence[object]) -> str:
    """Run a command: why it failed, by the last line that it wrote, or nothing."""
    try:
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    except OSError as error:
        return f"{command[0]} cannot be run: {error.strerror}"
    return "" if done.returncode == 0 else last_line(done.stderr)


def last_line(told: str) -> str:
    lines = told.strip().splitlines() or ["it said nothing"]
    return lines[-1][:200]
