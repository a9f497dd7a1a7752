"""When a round may run, and how much it may use: what the platform tells, and a policy that decides on it.

Linux tells through sysfs; an app that knows better (Android, or a desktop's session) writes `HOME/conditions.json`,
whose fields overrule it. A probe that cannot tell says None, "unknown", and the policy says for each condition whether
unknown is good enough. Nothing here imports NumPy or an engine: it is what the idle agent runs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TypeVar

import msgspec

from device_runtime.database import Database
from device_runtime.errors import InputError


class Conditions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """None: the platform does not tell. charging: mains power counts too. battery_percent: 0 to 100. temperature_c: of
    the hottest zone. foreground: the app is being used at this moment."""

    idle: bool | None = None
    charging: bool | None = None
    unmetered: bool | None = None
    battery_percent: float | None = None
    temperature_c: float | None = None
    foreground: bool | None = None


class Policy(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`HOME/policy.json`. idle, charging, unmetered: whether it is required. unknown: the conditions of which "unknown"
    is good enough. cpu_s, bytes: of all rounds of a day (UTC). memory_mib: resident, of the process that runs a round.
    disk_mib: of the device's whole folder. threads, nice: of that process. min_new: samples that have come since the
    last round, for the next to be worth it; every_s: seconds after which a round is run all the same. patience_s: for
    how long a round waits in memory while the app is in front, before it is put aside. keep_s, keep_bytes,
    keep_samples: how much of events and samples is kept."""

    idle: bool = True
    charging: bool = True
    unmetered: bool = True
    min_battery_percent: float = 30.0
    max_temperature_c: float = 60.0
    unknown: frozenset[str] = frozenset({"idle", "charging", "unmetered", "battery_percent", "temperature_c"})
    cpu_s: float = 120.0
    bytes: int = 20 << 20
    memory_mib: float = 256.0
    disk_mib: float = 256.0
    threads: int = 1
    nice: int = 10
    min_new: int = 20
    every_s: float = 86_400.0
    patience_s: float = 30.0
    keep_s: float = 400 * 86_400.0
    keep_bytes: int = 64 << 20
    keep_samples: int = 50_000

    def refusals(self, found: Conditions) -> list[str]:
        """Why a round may not run now; empty if it may."""
        checks = (
            ("idle", self.idle, found.idle, "the device is busy"),
            ("charging", self.charging, found.charging, "it is not charging"),
            ("unmetered", self.unmetered, found.unmetered, "the link is metered, or there is none"),
            ("battery_percent", True, _at_least(found.battery_percent, self.min_battery_percent),
             f"the battery is below {self.min_battery_percent:g} %"),
            ("temperature_c", True, _at_least(_minus(found.temperature_c), -self.max_temperature_c),
             f"it is hotter than {self.max_temperature_c:g} °C"),
        )  # fmt: skip
        reasons = ["the app is in front"] if found.foreground else []
        for name, required, met, reason in checks:
            if required and met is False:
                reasons.append(reason)
            elif required and met is None and name not in self.unknown:
                reasons.append(f"{name} is unknown here, and the policy wants to know it")
        return reasons


def _minus(value: float | None) -> float | None:
    return None if value is None else -value


def _at_least(value: float | None, least: float) -> bool | None:
    return None if value is None else value >= least


def load_policy(home: Path) -> Policy:
    """Raises: InputError: names the field that does not fit."""
    return _load(home / "policy.json", Policy)


def conditions(home: Path, root: Path = Path("/")) -> Conditions:
    """What the platform tells, overruled by what the app tells. root: where proc and sys are, for tests.

    Raises:
        InputError: conditions.json does not decode.
    """
    told = _load(home / "conditions.json", Conditions)
    probed = probe(root)
    fields = {name: getattr(probed, name) for name in Conditions.__struct_fields__}
    fields |= {name: value for name in fields if (value := getattr(told, name)) is not None}
    if (home / "foreground").exists():
        fields["foreground"] = True
    return Conditions(**fields)


_Settings = TypeVar("_Settings", Policy, Conditions)


def _load(path: Path, kind: type[_Settings]) -> _Settings:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        return kind()
    except (OSError, msgspec.DecodeError) as error:
        raise InputError(f"{path}: {error}; correct it, or remove it for the defaults") from None


# -- probes ---------------------------------------------------------------------------------------------------------


def probe(root: Path = Path("/")) -> Conditions:
    """What sysfs and procfs say."""
    charging, battery = _power(root)
    return Conditions(
        idle=_idle(root),
        charging=charging,
        unmetered=_unmetered(root),
        battery_percent=battery,
        temperature_c=temperature_c(root),
    )


def _power(root: Path) -> tuple[bool | None, float | None]:
    charging, levels = None, []
    for supply in _entries(root / "sys/class/power_supply"):
        kind = _text(supply / "type")
        if kind == "Battery" and _text(supply / "scope") != "Device":  # not a mouse's
            level = _number(supply / "capacity")
            if level is not None:
                levels.append(level)
            status = _text(supply / "status")
            if status in ("Charging", "Full", "Not charging"):
                charging = True
            elif status == "Discharging":
                charging = bool(charging)
        elif kind in ("Mains", "USB", "Wireless"):
            online = _number(supply / "online")
            if online is not None:
                charging = bool(charging) or online > 0
    return charging, min(levels, default=None)


def _idle(root: Path) -> bool | None:
    """Tasks hardly waited for the CPU in the last ten seconds (PSI); without PSI, the load is below half a core."""
    pressure = _text(root / "proc/pressure/cpu")
    if pressure and "avg10=" in pressure:
        return float(pressure.split("avg10=")[1].split()[0]) < 10.0
    load = _text(root / "proc/loadavg")
    return float(load.split()[0]) < 0.5 if load else None


def _unmetered(root: Path) -> bool | None:
    """True over a cable, False over a modem or without any link; a Wi-Fi may be a phone's, so it is unknown."""
    up = [link for link in _entries(root / "sys/class/net") if _text(link / "operstate") == "up"]
    kinds = {_link_kind(link) for link in up}
    if not kinds:
        return False if _entries(root / "sys/class/net") else None
    if "modem" in kinds:
        return False
    return True if kinds == {"cable"} else None


def _link_kind(link: Path) -> str:
    if "DEVTYPE=wwan" in (_text(link / "uevent") or "") or _text(link / "type") == "512":  # PPP
        return "modem"
    if (link / "wireless").exists() or "DEVTYPE=wlan" in (_text(link / "uevent") or ""):
        return "wifi"
    return "cable" if _text(link / "type") == "1" and (link / "device").exists() else "other"


def temperature_c(root: Path = Path("/")) -> float | None:
    """Of the hottest thermal zone."""
    zones = (_number(zone / "temp") for zone in _entries(root / "sys/class/thermal") if "zone" in zone.name)
    return max((value / 1000 for value in zones if value is not None), default=None)


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None


def _number(path: Path) -> float | None:
    try:
        return float(_text(path) or "")
    except ValueError:
        return None


# -- budgets --------------------------------------------------------------------------------------------------------


class Usage:
    """What rounds have used, by day (UTC), in the device's database."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._db = database.connection

    def add(self, now: float, **amounts: float) -> None:
        """Raises: StoreError."""
        with self._database.transaction():
            day = self._day(now)
            for what, amount in amounts.items():
                self._db.execute(
                    "INSERT INTO usage VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET amount = amount + excluded.amount",
                    (day, what, amount),
                )
            oldest = (date.fromisoformat(day) - timedelta(days=31)).isoformat()
            self._db.execute("DELETE FROM usage WHERE day < ?", (oldest,))

    def today(self, now: float, what: str) -> float:
        with self._database.explained():
            row = self._db.execute(
                "SELECT amount FROM usage WHERE day = ? AND what = ?", (self._day(now), what)
            ).fetchone()
        return float(row[0]) if row else 0.0

    def _day(self, now: float) -> str:
        """The day to count for. A clock that is set back by up to two days opens no budget that was used up."""
        today = datetime.fromtimestamp(now, UTC).date()
        [latest] = self._db.execute("SELECT max(day) FROM usage").fetchone()
        if latest is not None and today < date.fromisoformat(latest) <= today + timedelta(days=2):
            return str(latest)
        return today.isoformat()


def over_budget(policy: Policy, usage: Usage, home: Path, now: float) -> list[str]:
    """Which budgets leave no room for a round."""
    reasons = []
    for what, most, unit in (("cpu_s", policy.cpu_s, "CPU seconds"), ("bytes", policy.bytes, "bytes")):
        if (used := usage.today(now, what)) >= most:
            reasons.append(f"today's {most:g} {unit} are used up ({used:.0f})")
    if (size := sum(folder_bytes(home)) / (1 << 20)) >= policy.disk_mib:
        reasons.append(f"{home} takes {size:.0f} MiB; the budget is {policy.disk_mib:g}")
    return reasons


def folder_bytes(folder: Path) -> Iterator[int]:
    """The size of each file below a folder; what vanishes meanwhile counts nothing."""
    for where, _, names in os.walk(folder):
        for name in names:
            try:
                yield (Path(where) / name).lstat().st_size
            except OSError:
                continue
