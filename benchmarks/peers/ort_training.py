"""Worker: onnxruntime-training, in the environment that `ort_training.sh` makes. It imports nothing of CoDA.

Arguments: threads, folder with `artifacts/` and `inputs.npz`. Or `prepare`, folder with `loss.onnx` (features, labels
and sample weights in, weighted loss out; weights as initializers), names of the trained ones, `sgd` or `adamw`, the
norm to clip at, epsilon: writes `artifacts/`, with gradients and optimizer added by onnxruntime-training.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from protocol import Trainer, serve  # type: ignore[import-not-found]


def prepare(folder: Path, trained: list[str], optimizer: str, clip: float, epsilon: float) -> None:
    import onnx
    from onnxruntime.training import artifacts, onnxblock

    limit = onnxblock.optim.ClipGradNorm(clip) if clip else None
    kinds = {
        "sgd": lambda: onnxblock.optim.SGD(clip_grad=limit),
        "adamw": lambda: onnxblock.optim.AdamW(eps=epsilon, weight_decay=0.0, clip_grad=limit),
    }
    (folder / "artifacts").mkdir(exist_ok=True)
    artifacts.generate_artifacts(
        onnx.load(str(folder / "loss.onnx")),
        requires_grad=trained,
        optimizer=kinds[optimizer](),
        artifact_directory=str(folder / "artifacts"),
    )
    if optimizer == "adamw":
        _as_pytorch(folder / "artifacts" / "optimizer_model.onnx")


def _as_pytorch(path: Path) -> None:
    """Of the operator's two readings of Adam, take PyTorch's, which corrects the second moment before epsilon is added;
    the artifacts ask for the other, and the Python interface has no word for it."""
    import onnx

    model = onnx.load(str(path))
    [mode] = [
        a for n in model.graph.node if n.op_type == "AdamWOptimizer" for a in n.attribute if a.name == "adam_mode"
    ]
    mode.i = 0
    onnx.save(model, str(path))


def start() -> Trainer:
    import numpy as np
    import onnxruntime
    from onnxruntime.training.api import CheckpointState, Module, Optimizer

    folder = Path(sys.argv[2])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(sys.argv[1])
    made = folder / "artifacts"
    state = CheckpointState.load_checkpoint(str(made / "checkpoint"))
    model = Module(str(made / "training_model.onnx"), state, str(made / "eval_model.onnx"), session_options=options)
    optimizer = Optimizer(str(made / "optimizer_model.onnx"), model)
    with np.load(folder / "inputs.npz") as file:
        given = [file[name] for name in model.input_names()]
        optimizer.set_learning_rate(float(file["learning_rate"]))
    model.train()

    def step(_: int) -> float:
        loss = model(*given)
        optimizer.step()
        model.lazy_reset_grad()
        return float(loss)

    return Trainer(step, lambda: {name: held.data for name, held in state.parameters if held.requires_grad})


if __name__ == "__main__":
    if sys.argv[1] == "prepare":
        prepare(Path(sys.argv[2]), sys.argv[3].split(","), sys.argv[4], float(sys.argv[5]), float(sys.argv[6]))
    else:
        serve(start, ["onnxruntime-training", "torch"])
