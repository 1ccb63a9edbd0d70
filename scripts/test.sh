#!/usr/bin/env bash
# Lint and tests in their own environment (.venv-test-<version>). Arguments go to pytest.
#
#   scripts/test.sh                        with the newest Paddle
#   PADDLE=2.6.2 scripts/test.sh -x        with another version of Paddle; stops at the first failure
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
