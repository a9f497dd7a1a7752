#!/usr/bin/env python3
"""Whether everything that an APK refers to is there: resolve.py APK ANDROID_JAR.

- every class that its dex mentions is in the dex or in the platform's android.jar;
- every class that its native libraries look up by name is in the dex or in android.jar;
- no lambda is left in the dex: dx does not desugar them, and the class that would make them is no Android's;
- every library that they need is in the APK or is one of the NDK's, and every symbol that is not versioned as the
  C library's is defined by a library of the same ABI or by liblog.

What it cannot see: whether a method of the platform exists (the compiler checks that for our own sources, against the
same android.jar) and what bionic of a certain Android version defines.
"""

from __future__ import annotations

import re
import struct
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

SYSTEM = {"libc.so", "libm.so", "libdl.so", "liblog.so", "libandroid.so"}
"""Libraries of the NDK that an app may link (API 26)."""
LOOKED_UP = re.compile(rb"\x00L?((?:com/facebook|org/pytorch|java|android)/[A-Za-z0-9_/$]+);?(?=\x00)")


_CALL_SITES = 7
"""The section of a dex that lambdas have."""


class Dex:
    """types: every class that is mentioned. defined: those that are in it. Names as in descriptors, without L and ;.
    has_lambdas: whether a call is bound when it is first made."""

    def __init__(self, data: bytes) -> None:
        strings = self._table(data, 0x38)
        types = self._table(data, 0x40)
        names = [
            self._string(data, offset) for (offset,) in struct.iter_unpack("<I", data[strings[1] :][: 4 * strings[0]])
        ]
        descriptors = [names[i] for (i,) in struct.iter_unpack("<I", data[types[1] :][: 4 * types[0]])]
        count, start = self._table(data, 0x60)
        defined = [struct.unpack_from("<I", data, start + 32 * i)[0] for i in range(count)]
        sections, at = self._table_at(data, 0x34)
        self.has_lambdas = any(struct.unpack_from("<H", data, at + 12 * i)[0] == _CALL_SITES for i in range(sections))
        self.types = {d.lstrip("[")[1:-1] for d in descriptors if d.lstrip("[").startswith("L")}
        self.defined = {descriptors[i][1:-1] for i in defined}

    @staticmethod
    def _table(data: bytes, at: int) -> tuple[int, int]:
        size, offset = struct.unpack_from("<II", data, at)
        return size, offset

    @staticmethod
    def _table_at(data: bytes, at: int) -> tuple[int, int]:
        """(entries, offset of the first) of a list that begins with its size."""
        (offset,) = struct.unpack_from("<I", data, at)
        (size,) = struct.unpack_from("<I", data, offset)
        return size, offset + 4

    @staticmethod
    def _string(data: bytes, at: int) -> str:
        while data[at] & 0x80:
            at += 1
        return data[at + 1 : data.index(0, at + 1)].decode("utf-8", "surrogateescape")


def lacking_classes(dex: Dex, platform: set[str]) -> list[str]:
    absent = {name for name in dex.types - dex.defined - platform if not name.startswith("dalvik/annotation/")}
    return sorted(f"class {name}, which the dex mentions" for name in absent)  # those annotations are the dex format's


def lacking_lookups(library: Path, known: set[str]) -> list[str]:
    found = {match.decode() for match in LOOKED_UP.findall(library.read_bytes())}
    return [f"class {name}, which {library.name} looks up" for name in sorted(found - known)]


def symbols(library: Path) -> tuple[set[str], set[str], set[str]]:
    """(needed libraries, undefined symbols that must be found elsewhere than in the C library, defined ones)."""
    dynamic = subprocess.run(["readelf", "-dW", library], capture_output=True, text=True, check=True).stdout
    listed = subprocess.run(["readelf", "--dyn-syms", "-W", library], capture_output=True, text=True, check=True).stdout
    undefined, defined = set(), set()
    for line in listed.splitlines():
        words = line.split()
        if len(words) < 8 or words[4] not in ("GLOBAL", "WEAK"):
            continue
        name, _, version = words[7].partition("@")
        if words[6] != "UND":
            defined.add(name)
        elif words[4] == "GLOBAL" and not version.startswith("LIBC"):
            undefined.add(name)
    return set(re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic)), undefined, defined


def lacking_symbols(folder: Path) -> list[str]:
    libraries = {path.name: symbols(path) for path in folder.iterdir()}
    given = {name for _, _, defined in libraries.values() for name in defined}
    lacking = []
    for name, (needed, undefined, _) in libraries.items():
        lacking += [f"library {each}, which {folder.name}/{name} needs" for each in needed - SYSTEM - set(libraries)]
        outside = {each for each in undefined - given if not each.startswith("__android_log_")}
        lacking += [f"symbol {each}, which {folder.name}/{name} needs" for each in outside]
    return sorted(lacking)


def lacking(apk: Path, android_jar: Path) -> list[str]:
    with zipfile.ZipFile(android_jar) as jar:
        platform = {name.removesuffix(".class") for name in jar.namelist() if name.endswith(".class")}
    with tempfile.TemporaryDirectory() as temporary, zipfile.ZipFile(apk) as archive:
        dex = Dex(archive.read("classes.dex"))
        found = lacking_classes(dex, platform)
        if dex.has_lambdas:
            found.append("java.lang.invoke.LambdaMetafactory, for a lambda: write an anonymous class")
        archive.extractall(temporary, [name for name in archive.namelist() if name.startswith("lib/")])
        for folder in sorted(Path(temporary, "lib").iterdir()):
            found += lacking_symbols(folder)
            for library in sorted(folder.iterdir()):
                found += lacking_lookups(library, dex.defined | platform)
    return found


if __name__ == "__main__":
    missing = lacking(Path(sys.argv[1]), Path(sys.argv[2]))
    for each in missing:
        print(f"lacking: {each}", file=sys.stderr)
    sys.exit(1 if missing else 0)
