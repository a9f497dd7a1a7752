"""The ground floor of CoDA: everything a device runs, and the formats that cross the wire.

Needs numpy and one engine; never torch, faiss or a web framework. The cloud and the exporter write
bundles, batches and messages with the code in this package, because the device is the strictest reader.
"""

import os

# onnxruntime wheels from 1.29 on report telemetry unless this is set before their import; we also pin below 1.29.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

__version__ = "0.1.0"
