#!/usr/bin/env bash
# The environment of MNN 3.6.1, whose Python wheel has optimizers. Usage: mnn.sh FOLDER [PYTHON]; then
# `coda bench engines --mnn FOLDER`.
set -euo pipefail
"${2:-python3}" -m venv "$1"
"$1/bin/pip" install --quiet --disable-pip-version-check 'MNN==3.6.1' 'numpy>=2,<3'
