"""Worker: ExecuTorch's training extension through its Python binding, which needs torch.

Arguments: threads, folder with `training.pte` (one graph of loss, gradients and parameters), `training.json` (names of
its inputs in order, the learning rate, the norm to clip at) and `inputs`. The extension knows SGD and no clipping, so
gradients are clipped by PyTorch, as its users must.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from benchmarks.peers.protocol import Trainer, serve


def start() -> Trainer:
    import torch
    from executorch.extension.training import _load_for_executorch_for_training, get_sgd_optimizer
    from safetensors.torch import load_file

    torch.set_num_threads(int(sys.argv[1]))
    folder = Path(sys.argv[2])
    declared = json.loads((folder / "training.json").read_text())
    inputs = load_file(folder / "inputs")
    given = [inputs[name] for name in declared["inputs"]]
    module = _load_for_executorch_for_training(str(folder / "training.pte"))
    optimizer = None

    def step(_: int) -> float:
        nonlocal optimizer
        [loss] = module.forward_backward("forward", given)
        gradients = module.named_gradients()
        if clip := declared["clip"]:
            norm = torch.nn.utils.get_total_norm(gradients.values())
            scale = (clip / (norm + 1e-6)).clamp(max=1.0)
            torch._foreach_mul_(list(gradients.values()), scale)
        if optimizer is None:  # the parameters are known only after a first call
            optimizer = get_sgd_optimizer(module.named_parameters(), declared["rate"])
        optimizer.step(gradients)
        return float(loss)

    def weights() -> dict[str, object]:
        return {name.removeprefix("module."): value.numpy() for name, value in module.named_parameters().items()}

    return Trainer(step, weights)


if __name__ == "__main__":
    serve(start, ["executorch", "torch"], no_deps=())
