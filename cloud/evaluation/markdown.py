"""Tables for documents, from the JSON of finished runs: `python -m cloud.evaluation.markdown docs/accuracy/*.json`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from cloud.evaluation.result import Result
from cloud.evaluation.statistics import Difference, MethodResult, bootstrap
from cloud.report import words
from device_runtime.errors import CodaError, InputError

_OWN = "coda"
_HEAD = (
    *("method", "user AUC", "GAUC", "minus cloud [95 %]", "minus local [95 %]", "better / worse", "worse, expected"),
    *("CPU s", "KB down"),
)


def read(path: Path) -> Result:
    """Raises: InputError: no such file, or no result of `coda evaluate` of this version."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Result)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    except msgspec.DecodeError as error:
        raise InputError(f"{path} is no result of this version of `coda evaluate`: {error}") from None


def table(result: Result) -> str:
    """A heading, a row a method, what CoDA's parts are worth where some were left out, and what the judge did."""
    period = ", validation period" if result.validation else ""
    title = f"{result.dataset.name}, `{result.protocol}`{period}, {result.model}"
    cloud = f", training seed {result.training_seed}" if result.training_seed else ""
    lines = [f"**{title}**: {result.users} users, {result.seeds} seeds{cloud}", ""]
    lines += ["| " + " | ".join(_HEAD) + " |", "|" + "---|" * len(_HEAD)]
    lines += ["| " + " | ".join(_cells(m)) + " |" for m in result.methods]
    names = [m.name for m in result.methods if not m.reference]
    left_out = [name for name in names if name not in ("cloud", "local", _OWN)]
    if _OWN in names and left_out:
        lines += ["", "| CoDA minus, by pairs over the same users | user AUC [95 %] |", "|---|---|"]
        lines += [f"| {name} | {_interval(difference(result, name))} |" for name in left_out]
    if (judge := result.judge) is not None:
        lines += ["", f"The judge let {words.percent(judge.kept)} of {judge.updates} updates serve, "]
        lines[-1] += f"{words.percent(judge.partly)} in part."
        if judge.harmful_kept is not None and judge.helpful_refused is not None:
            lines[-1] += (
                f" By the test rows, {words.percent(judge.harmful)} of all harm and "
                f"{words.percent(judge.helpful)} help; it kept {words.percent(judge.harmful_kept)} of the former "
                f"and refused {words.percent(judge.helpful_refused)} of the latter."
            )
    return "\n".join(lines)


def difference(result: Result, method: str) -> Difference:
    """User AUC of CoDA minus that of another method, with its bootstrap interval over users."""
    return bootstrap(np.array([user.aucs[_OWN] - user.aucs[method] for user in result.examined]))


def _cells(m: MethodResult) -> list[str]:
    return [
        f"{m.name} (bound)" if m.reference else m.name,
        words.auc(m.mean_user_auc),
        words.auc(m.gauc),
        _interval(m.vs_cloud),
        _interval(m.vs_local),
        f"{words.percent(m.better)} / {words.percent(m.worse)}",
        words.percent(m.expected.worse) if m.expected else "–",
        f"{m.cost.cpu_s:.2f}",
        f"{m.cost.bytes_down / 1e3:.1f}",
    ]


def _interval(found: Difference) -> str:
    if found.ci95 is None:
        return words.signed(found.mean)
    low, high = (words.signed(end) for end in found.ci95)
    return f"{words.signed(found.mean)} [{low}, {high}]"


def main(paths: Sequence[str]) -> int:
    if not paths:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        print("\n\n".join(table(read(Path(path))) for path in paths))
    except CodaError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
