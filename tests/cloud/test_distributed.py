"""Several processes, started by torchrun on this machine, train as one does."""

import os
import socket
import subprocess
import sys
import time

import msgspec
import pytest
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save

from cloud import training
from cloud.datasets import columnar, prepare, read
from device_runtime.cli import main
from device_runtime.errors import Unreachable
from export.checkpoint import Position, load
from tests.conftest import write_tastes

LOOPBACK = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
TRAIN = ("--history", "8", "--rate", "0.005", "--epochs", "2", "--seed", "1")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """In memory, and on disk."""
    folder = tmp_path_factory.mktemp("prepared")
    tastes = write_tastes(folder)
    read(*tastes).save(folder / "memory")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(columnar, "BLOCK", 100)
        prepare(str(tastes[0]), folder / "disk", tastes[1])
    return folder


def command(processes, data, out, *more):
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    words = ["-m", "device_runtime", "train", "--data", str(data), "--out", str(out), *TRAIN, *map(str, more)]
    return [*start, *words]


def torchrun(processes, data, out, *more):
    done = subprocess.run(
        command(processes, data, out, *more), env=LOOPBACK, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_two_processes_train_as_one_with_the_double_batch(prepared, tmp_path):
    """What is hidden from the model is drawn by each process for itself, so they agree, but not to the last digit."""
    said = torchrun(2, prepared / "memory", tmp_path / "two", "--batch", "32")
    assert "processes: 2, threads in each: 1" in said
    arguments = ["train", "--data", str(prepared / "memory"), "--out", str(tmp_path / "one"), *TRAIN, "--batch", "64"]
    assert main(arguments) == 0
    two, one = load(tmp_path / "two").state.history, load(tmp_path / "one").state.history
    for mine, other in zip(two, one, strict=True):
        assert mine.loss == pytest.approx(other.loss, rel=0.02)
        assert mine.auc == pytest.approx(other.auc, abs=0.03)


def test_their_gradient_is_that_of_all_their_samples(prepared, tmp_path):
    """With nothing hidden there is no chance left but the order of sums: the same weights as one process' after an
    epoch, of dense layers and of rows."""
    script = tmp_path / "script.py"
    script.write_text(
        "import sys; from pathlib import Path\n"
        "from cloud.datasets import Dataset; from cloud.distributed import team; from cloud.training import train\n"
        "from export.checkpoint import TrainSettings\n"
        "data, out, batch = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])\n"
        "settings = TrainSettings(epochs=1, batch=batch, history=8, item_dropout=0.0, threads=1, weight_decay=0.0)\n"
        "with team() as together: trained = train(Dataset.load(data), out, settings, team=together)\n"
        "import torch; torch.save(trained.model.state_dict(), f'{out}-{together.share.rank}')\n"
    )
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=3", str(script)]
    words = [str(prepared / "memory"), str(tmp_path / "three"), "20"]
    subprocess.run([*start, *words], env=LOOPBACK, check=True, capture_output=True, timeout=240)
    alone = [sys.executable, str(script), str(prepared / "memory"), str(tmp_path / "one"), "60"]
    subprocess.run(alone, env=LOOPBACK, check=True, capture_output=True, timeout=240)
    one = torch.load(tmp_path / "one-0")
    each = [torch.load(tmp_path / f"three-{rank}") for rank in range(3)]
    for name, value in one.items():
        for other in each:
            torch.testing.assert_close(other[name], value, atol=2e-4, rtol=1e-3)
            assert torch.equal(other[name], each[0][name]), f"{name} differs between processes"


def test_each_reads_blocks_of_its_own_from_disk(prepared, tmp_path):
    torchrun(2, prepared / "disk", tmp_path / "two", "--batch", "32")
    arguments = ["train", "--data", str(prepared / "disk"), "--out", str(tmp_path / "one"), *TRAIN, "--batch", "64"]
    assert main(arguments) == 0
    two, one = load(tmp_path / "two").state.history, load(tmp_path / "one").state.history
    assert two[-1].loss == pytest.approx(one[-1].loss, rel=0.05)
    assert two[-1].auc == pytest.approx(one[-1].auc, abs=0.05)


def member(rank, port, *words):
    """One of two processes, told who it is as by torchrun, without an agent that would end it with the other."""
    env = {**LOOPBACK, "RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return subprocess.Popen(
        [sys.executable, "-m", "device_runtime", "train", *words], env=env, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_a_process_that_dies_stops_the_others_with_a_reason_and_they_go_on_later(prepared, tmp_path):
    """As many go on from the middle of the epoch, and end with the weights of a run that nobody killed."""
    more = ("--batch", "16", "--save-every", "0.02")
    torchrun(2, prepared / "disk", tmp_path / "whole", *more)
    out, port = tmp_path / "out", free_port()
    words = ["--data", str(prepared / "disk"), "--out", str(out), *TRAIN, *more]
    first, second = (member(rank, port, *words) for rank in (0, 1))
    while not (out / "newest.safetensors").exists():
        assert first.poll() is None and second.poll() is None, first.stderr.read()
        time.sleep(0.005)
    second.kill()
    _, said = first.communicate(timeout=120)
    second.communicate()
    assert first.returncode == Unreachable.exit_status
    assert "another process of this training has ended" in said and "goes on from its last checkpoint" in said
    assert len(load_state(out).history) < 2
    torchrun(2, prepared / "disk", out, *more)
    one, other = load(tmp_path / "whole"), load(out)
    assert other.state.history == one.state.history
    for name, value in one.model.state_dict().items():
        assert torch.equal(other.model.state_dict()[name], value), name


def load_state(out):
    return training._opened((out / "newest.safetensors").read_bytes(), out)[0]


def test_another_number_of_processes_does_not_go_on_in_mid_epoch(prepared, tmp_path, capsys):
    out, data = tmp_path / "out", str(prepared / "disk")
    words = ["train", "--data", data, "--out", str(out), *TRAIN, "--batch", "64"]
    assert main(words) == 0
    saved = load_state(out)
    early = msgspec.structs.replace(saved, history=saved.history[:1], finished=False, position=Position(3, 1.0, 2, 4))
    tensors = load_tensors((out / "newest.safetensors").read_bytes())
    (out / "newest.safetensors").write_bytes(save(tensors, {"state": msgspec.json.encode(early).decode()}))
    assert main(words) == 2
    assert "mid-epoch by 4 processes" in capsys.readouterr().err
