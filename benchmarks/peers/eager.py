"""Worker: PyTorch's own training loop, eager or compiled. Arguments: eager or compile, threads, the model, history."""

from __future__ import annotations

import sys

from benchmarks.peers.protocol import Trainer, serve


def start() -> Trainer:
    import torch

    from benchmarks.subjects import subject
    from export.step import weighted_log_loss

    torch.set_num_threads(int(sys.argv[2]))
    chosen = subject(sys.argv[3], int(sys.argv[4]))
    examples = chosen.plan.examples
    model, optimizer, clip = chosen.module, chosen.torch_optimizer(), chosen.step.clip
    forward = torch.compile(chosen.forward) if sys.argv[1] == "compile" else chosen.forward

    def step(_: int) -> float:
        optimizer.zero_grad()
        loss = weighted_log_loss(forward(), examples["label"], examples["sample_weight"])
        loss.backward()  # type: ignore[no-untyped-call]
        if clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        return float(loss.detach())

    return Trainer(step, lambda: {name: value.detach().numpy() for name, value in model.named_parameters()})


if __name__ == "__main__":
    serve(start, ["torch"])
