"""An engine for a JVM: runs the graphs of a bundle, by ExecuTorch if no other is named. Asked over standard input,
answered over standard output.

A call is a byte, a length and so many bytes. `L`: the path of an unpacked graph, named by its blob's sha256; the answer
is its number. `R`: a number and a safetensors file of the inputs; the answer is one of the outputs. An answer is 0, a
length and the bytes, or 1, a length and what went wrong.
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import msgspec
from safetensors.numpy import load, save

from device_runtime.bundle import BlobStore, FileRef, Manifest, open_manifest
from device_runtime.engines import Graph, open_engine
from device_runtime.engines.spec import GraphSpec
from device_runtime.errors import CodaError
from device_runtime.messages import BundleRef


def manifest_of(bundle: Path, trust: str) -> Manifest:
    ref = msgspec.json.decode((bundle / "bundle.json").read_bytes(), type=BundleRef)
    return open_manifest(ref, BlobStore(bundle / "blobs").path(ref.manifest).read_bytes(), trust)


def main(bundle: Path, trust: str, name: str = "executorch") -> None:
    manifest = manifest_of(bundle, trust)
    specs: dict[str, GraphSpec] = {}
    for entry in manifest.graphs.values():
        ref: FileRef = entry.files[name].file
        specs[ref.sha256] = entry.spec_of(name) if name == "onnx" else entry.spec  # as the app's adapter
    engine = open_engine(name)
    graphs: list[Graph] = []
    read, write = sys.stdin.buffer, sys.stdout.buffer
    while head := read.read(5):
        kind, size = struct.unpack(">ci", head)
        body = read.read(size)
        try:
            if kind == b"L":
                path = Path(body.decode())
                graphs.append(engine.load(path, specs[path.name]))
                answer = struct.pack(">i", len(graphs) - 1)
            else:
                answer = save(graphs[struct.unpack(">i", body[:4])[0]](load(body[4:])))
            write.write(struct.pack(">bi", 0, len(answer)) + answer)
        except CodaError as error:
            told = str(error).encode()
            write.write(struct.pack(">bi", 1, len(told)) + told)
        write.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
