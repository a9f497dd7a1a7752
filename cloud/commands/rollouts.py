"""What the verbs of `coda release` do."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from cloud.home import ServerHome, add_document, publish
from cloud.releases import Releases
from cloud.rollout import LADDER, Course, Gate, Rule, Rung
from cloud.rollout.ladder import Action
from device_runtime.bundle import write_atomically
from device_runtime.errors import InputError

_Kind = TypeVar("_Kind")
_ACTIONS: dict[str, Action] = {"advance": "promote", "pause": "pause", "resume": "resume", "rollback": "stop"}


def keys(args: argparse.Namespace, home: ServerHome) -> None:
    print(home.answer_signer.public)


def take_in(args: argparse.Namespace, home: ServerHome) -> None:
    staged = args.verb == "add"
    manifest = publish(home, args.bundle, staged=staged)
    what = f"bundle {manifest.version}: {manifest.model} on {manifest.name}"
    if staged:
        print(f"{args.home} holds {what}; `coda release create NAME --bundle {manifest.version}` plans its release")
    else:
        print(f"{args.home} now serves {what}")


def listed(args: argparse.Namespace, home: ServerHome) -> None:
    found, current = home.catalog.releases(), home.catalog.current()
    for release in found:
        note = "  <- current" if current and release.ref.version == current.version else ""
        note = "  staged" if release.staged else note
        print(f"{release.ref.version:6}  {_day(release.published)}  {release.name}{note}")
    courses = home.catalog.rollouts.courses()
    for course in courses:
        print(_line(course))
    if args.json:
        rollouts = [_releases(home).shown(course) for course in courses]
        _write(args.json, {"command": "release list", "rows": found, "rollouts": rollouts})


def create(args: argparse.Namespace, home: ServerHome) -> None:
    rule = Rule(
        name=args.name,
        release=args.name,
        devices=frozenset(args.device),
        cohorts=frozenset(args.cohort),
        os=frozenset(args.os),
        engine=frozenset(args.engine),
        device_class=frozenset(args.device_class),
        locale=frozenset(args.locale),
        app_from=args.app_from,
        app_before=args.app_before,
    )
    course = _releases(home).create(
        args.name,
        args.bundle,
        who=args.who,
        why=args.why,
        rule=rule,
        named=args.named,
        ladder=_read(args.ladder, tuple[Rung, ...]) if args.ladder else LADDER,
        gate=_read(args.gate, Gate) if args.gate else None,
        automatic=args.automatic,
    )
    print(_line(course))


def act(args: argparse.Namespace, home: ServerHome) -> None:
    override = getattr(args, "override", False)
    action = _ACTIONS[args.verb]
    print(_line(_releases(home).act(args.name, action, who=args.who, why=args.why, override=override)))


def show(args: argparse.Namespace, home: ServerHome) -> None:
    releases = _releases(home)
    course = releases.course(args.name)
    shown = releases.shown(course)
    print(_line(course))
    means = ", ".join(f"{name} {_words(value)}" for name, value in shown["means"].items()) or "every device"
    print(f"means {means}; everyone else of these has bundle {course.rollout.previous}")
    for number, rung in enumerate(course.rollout.ladder):
        print(f"  {'->' if number == course.rollout.rung else '  '} {rung.name}")
    for group, heard in shown["heard"].items():
        print(
            f"{group}: {heard['devices']} devices spoke; {heard['late']} late reports and {heard['further']} further "
            "ones do not count"
        )
    if course.begun and not course.bounds:
        print(f"costs are not compared: too few reports of bundle {course.rollout.previous} came before it began")
    if (judgement := shown["judgement"]) is not None:
        finding = judgement["finding"]
        print(f"the gate says {finding['verdict']}: {'; '.join(finding['why'])}")
        if finding["failures"]:
            share, low, high = finding["failures"]
            print(f"failures: {share:.1%} of the treated devices, between {low:.1%} and {high:.1%}")
        for group in ("treatment", "control"):
            if (arm := judgement["evidence"][group])["watched"]:
                print(f"{group}: of {arm['watched']} devices watched, {arm['silent']} were not heard of again")
        if finding["quality"]:
            estimate, low, high = finding["quality"]
            print(f"quality: {estimate:+.4f} AUC, between {low:+.4f} and {high:+.4f}")
    if args.json:
        _write(args.json, {"command": "release show", "rows": [shown]})


def pin(args: argparse.Namespace, home: ServerHome) -> None:
    bundle = args.bundle if args.verb == "pin" else 0
    _releases(home).pin(args.device, bundle, who=args.who, why=args.why)
    print(f"device {args.device} {f'keeps bundle {bundle}' if bundle else 'has no pin any more'}")


def explain(args: argparse.Namespace, home: ServerHome) -> None:
    found = _releases(home).explain(args.device, args.runs)
    told = {
        name: _words(value) for name, value in msgspec.to_builtins(found.facts).items() if value and name != "device"
    }
    print(f"device {args.device}: {', '.join(f'{name} {value}' for name, value in told.items())}")
    for line in found.decision.why:
        print(f"  {line}")
    print(f"bundle {found.decision.bundle}")
    if args.json:
        row = {"facts": msgspec.to_builtins(found.facts), "decision": found.decision}
        _write(args.json, {"command": "release explain", "rows": [row]})


def audit(args: argparse.Namespace, home: ServerHome) -> None:
    lines = home.catalog.rollouts.audit(args.name)
    for line in lines:
        where = f", on {line.rung}, {line.state}" if line.rung else ""
        print(f"{_day(line.at)}  {line.who}  {line.subject}: {line.action}{where}  ({line.why})")
    if args.json:
        _write(args.json, {"command": "release audit", "rows": lines})


def cohort(args: argparse.Namespace, home: ServerHome) -> None:
    for device in args.devices:
        if home.catalog.device(device) is None:
            raise InputError(
                f"no device {device!r} is enrolled here; `coda devices list --home {args.home}` shows them"
            )
    home.catalog.rollouts.set_cohort(args.devices, args.cohort, not args.leave)
    print(f"{args.cohort}: {home.catalog.rollouts.cohorts().get(args.cohort, 0)} devices")


def trust(args: argparse.Namespace, home: ServerHome) -> None:
    for path in args.documents:
        try:
            data = path.read_bytes()
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}") from None
        role, version = add_document(home, data, time.time())
        print(f"{args.home} now tells devices of {role} {version}")


def operator(args: argparse.Namespace, home: ServerHome) -> None:
    if args.remove:
        if not home.catalog.operators.remove(args.name):
            raise InputError(f"there is no operator {args.name!r}")
        print(f"{args.name} is no operator any more")
        return
    print(home.catalog.operators.add(args.name, args.role, time.time()))


VERBS: dict[str, Callable[[argparse.Namespace, ServerHome], None]] = {
    "keys": keys,
    "publish": take_in,
    "add": take_in,
    "list": listed,
    "create": create,
    "show": show,
    "pin": pin,
    "unpin": pin,
    "explain": explain,
    "audit": audit,
    "cohort": cohort,
    "operator": operator,
    "trust": trust,
    **dict.fromkeys(_ACTIONS, act),
}


def _releases(home: ServerHome) -> Releases:
    return Releases(home.catalog, time.time)


def _line(course: Course) -> str:
    rollout = course.rollout
    ended = ", replaced by another" if course.retired else ""
    return (
        f"release {course.name}: bundle {rollout.bundle}, {rollout.state}{ended}, on {rollout.standing.name} since "
        f"{_day(rollout.since)}"
    )


def _read(path: Path, kind: type[_Kind]) -> _Kind:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, msgspec.DecodeError) as error:
        raise InputError(f"{path}: {error}") from None


def _words(value: Any) -> str:
    return " or ".join(map(str, value)) if isinstance(value, list) else str(value)


def _write(path: Path, value: object) -> None:
    write_atomically(path, msgspec.json.encode(value))


def _day(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(at))
