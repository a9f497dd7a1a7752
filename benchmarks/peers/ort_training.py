"""Worker: onnxruntime-training, in the environment that `ort_training.sh` makes. It imports nothing of CoDA.

Arguments: threads, folder with `forward.onnx` (logits of the model, weights as initializers), `inputs.npz`. The loss is
the unweighted log loss, as a block that differentiates; gradients are not clipped: a little less work than ours.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from protocol import serve  # type: ignore[import-not-found]


def prepare(folder: Path, trained: list[str], optimizer: str) -> None:
    import onnx
    from onnxruntime.training import artifacts

    kind = {"sgd": artifacts.OptimType.SGD, "adamw": artifacts.OptimType.AdamW}[optimizer]
    artifacts.generate_artifacts(
        onnx.load(str(folder / "forward.onnx")),
        requires_grad=trained,
        loss=artifacts.LossType.BCEWithLogitsLoss,
        optimizer=kind,
        artifact_directory=str(folder / "artifacts"),
    )


def start() -> Callable[[], float]:
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
    model.train()

    def step() -> float:
        loss = model(*given)
        optimizer.step()
        model.lazy_reset_grad()
        return float(loss)

    return step


if __name__ == "__main__":
    if sys.argv[1] == "prepare":
        prepare(Path(sys.argv[2]), sys.argv[3].split(","), sys.argv[4])
    else:
        serve(start, ["onnxruntime-training", "torch"])
