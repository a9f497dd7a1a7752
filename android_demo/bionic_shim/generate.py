#!/usr/bin/env python3
"""Write what makes a host library look like Android's libc.so: generate.py ABI OUT LIBRARY...

OUT/stubs.S has a jump for every function of the C library that the given libraries import and that glibc has with the
same ABI; shim.c fills in the addresses when it is loaded. OUT/libc.map gives all of them bionic's symbol versions.
Functions that differ between the two are in shim.c (`ADAPTED`).
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

JUMPS = {
    "x86_64": "jmp *.Laddress_{name}(%rip)",
    "arm64-v8a": "adrp x16, .Laddress_{name}; ldr x16, [x16, :lo12:.Laddress_{name}]; br x16",
}
_ADAPTED = re.compile(r'\bBIONIC\("(\w+)"\)')


def imports(libraries: list[Path]) -> dict[str, set[str]]:
    """Symbol -> versions asked for, of those that none of the libraries defines and that are bionic's."""
    wanted: dict[str, set[str]] = {}
    defined: set[str] = set()
    for library in libraries:
        listed = subprocess.run(["nm", "-D", library], capture_output=True, text=True, check=True).stdout
        for line in listed.splitlines():
            kind, symbol = line.split()[-2:]
            name, _, version = symbol.replace("@@", "@").partition("@")
            if kind in "Uw":
                wanted.setdefault(name, set()).add(version)
            else:
                defined.add(name)
    return {n: v for n, v in wanted.items() if n not in defined and any(x.startswith("LIBC") for x in v)}


def main(abi: str, out: Path, libraries: list[Path]) -> None:
    needed = imports(libraries)
    adapted = set(_ADAPTED.findall((Path(__file__).parent / "shim.c").read_text()))
    forwarded = sorted(set(needed) - adapted)
    lines = [".text"]
    for name in forwarded:
        jump = JUMPS[abi].format(name=name)
        lines += [f".globl {name}", f".type {name}, %function", f"{name}: {jump}"]
    lines += [".data", ".globl forwarded", "forwarded:"]
    for name in forwarded:
        lines += [f".quad .Lname_{name}", f".Laddress_{name}: .quad 0"]
    lines += [".quad 0, 0", ".section .rodata"]
    lines += [f'.Lname_{name}: .asciz "{name}"' for name in forwarded]
    lines += ['.section .note.GNU-stack,"",%progbits', ""]
    (out / "stubs.S").write_text("\n".join(lines))
    versions: dict[str, list[str]] = {}
    for name, asked in needed.items():
        for version in sorted(v for v in asked if v):
            versions.setdefault(version, []).append(name)
    parts = []
    for version, names in sorted(versions.items()):
        local = " local: forwarded;" if version == "LIBC" else ""
        parts.append(f"{version} {{ global: {'; '.join(sorted(names))};{local} }};\n")
    (out / "libc.map").write_text("".join(parts))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), [Path(word) for word in sys.argv[3:]])
