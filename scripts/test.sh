#!/usr/bin/env bash
# Lint and tests, in an environment of their own (.venv-test-<version>): minutes on two cores.
#
#   scripts/test.sh                        the newest Paddle; arguments go to pytest
#   PADDLE=2.6.2 scripts/test.sh -x        another version of Paddle, and pytest -x
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
venv=.venv-test-${PADDLE:-newest}
[ -d "$venv" ] || "$python" -m venv "$venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check --editable ".[digits,export,onnx,native,dev]" \
    "paddlepaddle${PADDLE:+==$PADDLE}"
"$venv/bin/ruff" check .
"$venv/bin/ruff" format --check .
"$venv/bin/python" -m pytest "$@"
