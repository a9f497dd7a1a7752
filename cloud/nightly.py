"""The job of a night: prepare -> train -> evaluate -> export and sign -> propose.

Every night has a folder, WORK/NAME, with a record of the stages that are done (`run.json`); a job that was killed goes
on with the stage that it was in, and training with its last checkpoint. The newest events are kept from training and
from the choice of the epoch; on them the new model must not do worse than the one that is released now.
"""

from __future__ import annotations

import dataclasses
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from cloud.datasets import StreamedDataset, prepare
from cloud.distributed import team
from cloud.evaluation.statistics import Difference, bootstrap
from cloud.home import ServerHome, publish
from cloud.locking import alone
from cloud.released import ReleasedModel
from cloud.releases import Releases
from cloud.rollout import LADDER, Rung
from cloud.training import new_model, predict, train
from cloud.training_sets import HELD_OUT, newest_from, read_between
from device_runtime.bundle import RoundSettings, Training, WeightForm, write_atomically
from device_runtime.engines import open_engine
from device_runtime.errors import CodaError, InputError, StoreError, Unreachable
from device_runtime.identity import Signer
from device_runtime.messages import BundleRef
from device_runtime.metrics import auc
from device_runtime.samples import Float32, Float64, Int32
from export.checkpoint import TrainSettings, load
from export.package import Source, build

Show = Callable[[str, str], None]
"""Called with a stage and what it is doing."""
STAGES = ("prepare", "train", "evaluate", "export", "propose")
_FORMAT = 1
_RUN = "run.json"


class Declined(CodaError):
    """The new model is worse than the released one, or no better than chance; nothing was proposed."""

    exit_status = 8


class NightlySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """home, interactions, items, positive_at, negatives: as `coda data prepare` has them. held_out: share of the newest
    events that the models are compared on. margin: mean user AUC by which the new one may do worse. processes: that
    train together on this machine. then: what becomes of an accepted bundle: `leave` it in its folder, `plan` its
    release (the server takes it in; it stands on the first rung of its ladder), or `publish` it to everyone at once.
    named: devices that try it before any share does; without, the ladder has no such rung."""

    home: str
    interactions: str
    key: str
    items: str | None = None
    positive_at: float | None = None
    negatives: int = 1
    name: str = "nightly"
    held_out: float = 0.05
    margin: float = 0.005
    engines: tuple[str, ...] = ("onnx", "executorch")
    processes: int = 1
    named: tuple[str, ...] = ()
    then: Literal["leave", "plan", "publish"] = "leave"
    train: TrainSettings = TrainSettings(validation=0.05)


class Stage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """seconds: wall, of the attempt that succeeded."""

    name: str
    seconds: float
    facts: dict[str, Any]


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a night has done. reason: why it was declined, or put aside because another release came in between."""

    format: int
    run: str
    started: str
    settings: NightlySettings
    stages: tuple[Stage, ...] = ()
    outcome: Literal["", "proposed", "published", "declined", "overtaken"] = ""
    reason: str = ""

    def facts(self, stage: str) -> dict[str, Any]:
        return next((done.facts for done in self.stages if done.name == stage), {})


class Comparison(msgspec.Struct, frozen=True):
    """Of the new model and the released one on the same held-out events. unknown: share of the events whose item the
    released model does not know; they are left out. users: with events of both labels. auc, user_auc: by model;
    difference: of users' AUCs, new minus released, with its bootstrap interval. released: bundle version; None: there
    is no release yet, and then the new model is compared with nothing."""

    events: int
    users: int
    released: int | None
    unknown: float
    auc: dict[str, float]
    user_auc: dict[str, float]
    difference: Difference | None

    @property
    def told(self) -> str:
        """In words."""
        if self.difference is None:
            return f"AUC {self.auc['new']:.4f} on held-out events, and no release to compare with"
        interval = self.difference.ci95
        width = f" (95 % interval {interval[0]:+.4f} to {interval[1]:+.4f}, {self.users} users)" if interval else ""
        return f"mean user AUC {self.difference.mean:+.4f} against release {self.released}{width}"

    def verdict(self, margin: float) -> str:
        """Why the new model is not good enough; empty if it is."""
        if self.difference is None:
            return f"{self.told}: no better than chance" if self.auc["new"] <= 0.5 else ""
        if self.difference.mean < -margin:
            return f"{self.told}: worse by more than the margin of {margin:g}"
        if self.difference.ci95 is not None and self.difference.ci95[1] < 0:
            return f"{self.told}: worse beyond chance"
        return ""


def nightly(settings: NightlySettings, work: Path, show: Show = lambda stage, what: None) -> Record:
    """Do a night's job, or go on with the one that was cut off; once it is done, doing it again changes nothing.

    Raises:
        InputError: data, settings or server cannot be used, or another job works in this folder. StoreError: the disk.
    """
    with alone(work, "nightly job"):
        folder, record = _find(settings, work)
        for stage in STAGES:
            if record.outcome:
                break
            if any(done.name == stage for done in record.stages):
                continue
            begun = time.monotonic()
            facts, outcome, reason = _DO[stage](folder, record, partial(show, stage))
            done = Stage(stage, time.monotonic() - begun, facts)
            record = msgspec.structs.replace(record, stages=(*record.stages, done), outcome=outcome, reason=reason)
            _write(folder, record)
        if record.outcome:  # it can be prepared again, and is most of what there is
            shutil.rmtree(folder / "data", ignore_errors=True)
    return record


def _find(settings: NightlySettings, work: Path) -> tuple[Path, Record]:
    """The last run if it is not done, else today's, in a folder of its own."""
    runs = sorted((path.parent for path in work.glob(f"*/{_RUN}")), key=lambda path: path.stat().st_mtime_ns)
    if runs and (last := _read(runs[-1])).settings == settings and not last.outcome:
        return runs[-1], last
    today = time.strftime("%Y-%m-%d", time.gmtime())
    for name in (today, *(f"{today}.{number}" for number in range(2, 1000))):
        folder = work / name
        if not (folder / _RUN).exists():
            record = Record(_FORMAT, name, time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), settings)
            _write(folder, record)
            return folder, record
        if (found := _read(folder)).settings == settings and found.outcome:
            return folder, found
    raise InputError(f"{work} has a thousand runs of today; delete some")


def _read(folder: Path) -> Record:
    try:
        record = msgspec.json.decode((folder / _RUN).read_bytes(), type=Record)
    except (OSError, msgspec.DecodeError) as error:
        raise StoreError(f"{folder / _RUN} is damaged or of another version: {error}; move {folder} away") from None
    if record.format != _FORMAT:
        raise StoreError(f"{folder} was written in format {record.format}, not {_FORMAT}; move it away")
    return record


def _write(folder: Path, record: Record) -> None:
    write_atomically(folder / _RUN, msgspec.json.format(msgspec.json.encode(record)))


# -- stages: (folder, record, told) -> (facts, outcome, reason) ---------------------------------------------------

_Told = Callable[[str], None]
_Done = tuple[dict[str, Any], Any, str]


def _prepare(folder: Path, record: Record, told: _Told) -> _Done:
    wanted = record.settings
    _check(wanted)
    data = prepare(
        wanted.interactions,
        folder / "data",
        None if wanted.items is None else Path(wanted.items),
        positive_at=wanted.positive_at,
        negatives=wanted.negatives,
        seed=wanted.train.seed,
        name=wanted.name,
        show=lambda what, done, total: told(f"{what}: {done:,} rows"),
    )
    until = newest_from(data, wanted.held_out, data.report.last)
    return {
        "events": len(data), "contributors": data.contributors, "items": len(data.items) - 1, "until": until,
        "dropped": data.report.dropped, "negatives": data.report.negatives,
    }, "", ""  # fmt: skip


def _check(wanted: NightlySettings) -> None:
    """What would only be noticed hours later. Raises: CodaError."""
    if not 0 < wanted.held_out < 0.5:
        raise InputError(f"the share of held-out events must lie between 0 and 0.5, not {wanted.held_out:g}")
    Signer.open(Path(wanted.key))  # a new one would be a key that no device trusts
    for engine in wanted.engines:
        open_engine(engine)
    with ServerHome(Path(wanted.home), create=False):
        pass


def _train(folder: Path, record: Record, told: _Told) -> _Done:
    count = record.settings.processes
    if count > 1:
        start = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
        told(f"{count} processes")
        done = subprocess.run([*start, "-m", "cloud.nightly", str(folder)], stdout=subprocess.DEVNULL, check=False)
        if done.returncode:
            raise Unreachable(f"training ended with status {done.returncode}; it goes on when the job is started again")
    else:
        train_stage(folder, lambda epoch, done, loss: told(f"epoch {epoch}: {done / 10:.0f} %, loss {loss:.4f}"))
    trained = load(folder / "model")
    warm = msgspec.json.decode((folder / "start.json").read_bytes())
    return {**warm, "processes": count, "epochs": len(trained.state.history), **trained.metrics}, "", ""


def train_stage(folder: Path, progress: Callable[[int, int, float], None] = lambda *_: None) -> None:
    """Train the model of a night; under `torchrun` with the other processes."""
    record = _read(folder)
    wanted = record.settings
    data = dataclasses.replace(StreamedDataset.open(folder / "data"), until=record.facts("prepare")["until"])
    fresh = new_model(data, wanted.train)
    initial, start = None, {"start": "from scratch", "because": "there is no release yet"}
    with ServerHome(Path(wanted.home), create=False) as home:
        if home.catalog.current() is not None:
            _, manifest = home.release()
            try:
                initial = ReleasedModel(manifest, home.blobs, data.items).carried_into(fresh, wanted.train.model)
                start = {"start": f"from release {manifest.version}", "because": ""}
            except InputError as reason:
                start = {"start": "from scratch", "because": str(reason)}
    with team() as together:
        if together.leads and not (folder / "model" / "newest.safetensors").exists():
            write_atomically(folder / "start.json", msgspec.json.encode(start))
        train(data, folder / "model", wanted.train, progress, team=together, initial=initial)


def _evaluate(folder: Path, record: Record, told: _Told) -> _Done:
    wanted, until = record.settings, record.facts("prepare")["until"]
    data, trained = StreamedDataset.open(folder / "data"), load(folder / "model")
    last = data.report.last
    share = min(1.0, HELD_OUT / max(1.0, wanted.held_out * len(data)))
    told("the new model on held-out events")
    batch, users = read_between(data, trained.model.schema, until, last, share, wanted.train.seed)
    scores = {"new": predict(trained.model, batch)}
    known, version = np.ones(len(batch), bool), None
    with ServerHome(Path(wanted.home), create=False) as home:
        if home.catalog.current() is not None:
            told("the released model on the same events")
            ref, manifest = home.release()
            version, released = ref.version, ReleasedModel(manifest, home.blobs, data.items)
            theirs, _ = read_between(data, manifest.schema, until, last, share, wanted.train.seed)
            known = released.knows(theirs)
            scores["released"] = released.predict(theirs.take(known))
    scores["new"] = scores["new"][known]
    found = compare(users[known], batch.labels[known], scores, version, float(1 - known.mean()) if len(known) else 0.0)
    facts: dict[str, Any] = msgspec.to_builtins(found)
    reason = found.verdict(wanted.margin)
    return {**facts, "told": found.told}, "declined" if reason else "", reason


def compare(
    users: Int32, labels: Float32, scores: Mapping[str, Float32], released: int | None, unknown: float
) -> Comparison:
    """users: int32 [n], whose each event is. labels, and scores by model: float32 [n]. Raises: InputError: too few."""
    each = {name: _user_aucs(users, labels, values) for name, values in scores.items()}
    overall = {name: auc(labels, values) for name, values in scores.items()}
    counted = len(each["new"])
    if counted < 2 or None in overall.values():
        raise InputError(
            f"of the {len(labels)} held-out events, {counted} users have both labels: too few to compare models on; "
            "hold out more with --held-out"
        )
    difference = bootstrap(each["new"] - each["released"]) if "released" in each else None
    return Comparison(
        len(labels),
        counted,
        released,
        unknown,
        {name: float(value or 0.5) for name, value in overall.items()},
        {name: float(values.mean()) for name, values in each.items()},
        difference,
    )


def _user_aucs(users: Int32, labels: Float32, scores: Float32) -> Float64:
    """float64: the AUC of each user who has both labels, by user."""
    order = np.argsort(users, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(users[order])) + 1)
    found = [auc(labels[part], scores[part]) for part in parts]
    return np.array([value for value in found if value is not None], np.float64)


def _export(folder: Path, record: Record, told: _Told) -> _Done:
    wanted, out = record.settings, folder / "bundle"
    signer = Signer.open(Path(wanted.key))
    settings, training = RoundSettings(), Training()
    form: WeightForm = "fp32"
    with ServerHome(Path(wanted.home), create=False) as home:
        versions = [release.ref.version for release in home.catalog.releases()]
        if versions:  # devices go on to train as they do
            _, manifest = home.release()
            settings, training, form = manifest.settings, manifest.training, manifest.rank_weights.form
        answer_key = home.answer_signer.public
    if not (out / "bundle.json").exists():
        shutil.rmtree(out, ignore_errors=True)
        build(
            Source.of(load(folder / "model"), settings, training, form),
            out,
            version=max(versions, default=0) + 1,
            signer=signer,
            answer_key=answer_key,
            engines=[open_engine(name) for name in wanted.engines],
            progress=told,
        )
    ref = msgspec.json.decode((out / "bundle.json").read_bytes(), type=BundleRef)
    return {"bundle": str(out), "version": ref.version, "manifest": ref.manifest, "signed_by": ref.key}, "", ""


def _propose(folder: Path, record: Record, told: _Told) -> _Done:
    made, against = record.facts("export"), record.facts("evaluate")["released"]
    with ServerHome(Path(record.settings.home), create=False) as home:
        held = {release.ref.manifest: release.ref.version for release in home.catalog.releases()}
        now = home.catalog.current()
        if made["manifest"] not in held:  # else a run that was cut off has brought it there
            if now is not None and now.version != against:
                reason = f"release {now.version} came after the comparison with {against}"
                return {}, "overtaken", reason
            if max(held.values(), default=0) >= made["version"]:
                return {}, "overtaken", f"the server holds another bundle {made['version']} by now"
        return propose(home, folder / "bundle", record, made["manifest"] in held)


def propose(home: ServerHome, bundle: Path, record: Record, held: bool) -> _Done:
    """Hand a bundle that has passed to those who release: `proposal.json` beside it and, if wanted, to the server.

    held: the server has it already. Raises: CodaError: the server does not take it in.
    """
    made, then = record.facts("export"), record.settings.then
    name, why = f"{record.settings.name}-{record.run}", record.facts("evaluate")["told"]
    named = record.settings.named
    ladder: tuple[Rung, ...] = LADDER
    create = f"coda release create {name} --bundle {made['version']} --home {home.path} --why {shlex.quote(why)}"
    if named:
        create += "".join(f" --named {device}" for device in named)
    else:  # nobody tries it before a share of all does
        ladder = tuple(rung for rung in LADDER if rung.share or not rung.named)
        write_atomically(bundle.parent / "ladder.json", msgspec.json.encode(ladder))
        create += f" --ladder {bundle.parent / 'ladder.json'}"
    commands = [
        f"coda release add {bundle} --home {home.path}",
        create,
        f"coda release advance {name} --home {home.path} --why REASON",
    ]
    proposal = {**made, "commands": commands, "comparison": record.facts("evaluate")}
    write_atomically(bundle.parent / "proposal.json", msgspec.json.format(msgspec.json.encode(proposal)))
    if then == "leave":
        return {"commands": commands}, "proposed", ""
    if not held:
        publish(home, bundle, staged=then == "plan")
    if then == "publish":
        return {"commands": []}, "published", ""
    if home.catalog.rollouts.course(name) is None:
        try:
            Releases(home.catalog, time.time).create(
                name, made["version"], who="coda nightly", why=why, named=named, ladder=ladder
            )  # fmt: skip
        except InputError as refusal:  # such as a release to the same devices that is on its way
            return (
                {"commands": commands[1:]},
                "proposed",
                f"the server has it, but its release is not planned: {refusal}",
            )
    return {"commands": commands[2:], "release": name}, "proposed", ""


_DO = {"prepare": _prepare, "train": _train, "evaluate": _evaluate, "export": _export, "propose": _propose}


def _main(folder: Path) -> int:
    """What `torchrun` starts in each process."""
    try:
        train_stage(folder)
    except CodaError as error:
        print(f"coda: {error}", file=sys.stderr)
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(_main(Path(sys.argv[1])))
