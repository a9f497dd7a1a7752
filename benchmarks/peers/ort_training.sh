#!/usr/bin/env bash
# The environment of onnxruntime-training 1.19.2, the last release: CPython 3.11 on x86-64 only. It needs older onnx and
# NumPy than CoDA, and torch, which its Python package imports. Usage: ort_training.sh FOLDER [PYTHON]; then
# `coda bench engines --ort-training FOLDER`.
set -euo pipefail
"${2:-python3.11}" -m venv "$1"
"$1/bin/pip" install --quiet --disable-pip-version-check \
  'onnxruntime-training==1.19.2' 'onnx==1.16.2' 'numpy<2' 'torch==2.13.0' cerberus h5py
