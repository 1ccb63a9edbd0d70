#!/usr/bin/env bash
# Lint, types and tests, in an environment of their own (.venv-test-<version>).
#
#   scripts/test.sh                        everything, on the newest Paddle: about 14 minutes on 2 cores
#   scripts/test.sh -m "not slow"          without whole runs, kills and compilers: under 2 minutes
#   scripts/test.sh tests/data -x          arguments go to pytest
#   scripts/test.sh -n 0 --pdb             tests in one process, where a debugger works
#   PADDLE=2.6.2 scripts/test.sh           another version of Paddle
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
venv=.venv-test-${PADDLE:-newest}
if [ ! -d "$venv" ]; then
    echo "Installing Paddle and the other packages: several minutes"
    "$python" -m venv "$venv"
fi
"$venv/bin/pip" install --quiet --disable-pip-version-check --editable \
    ".[detect,digits,hub,keras,onnx,openvino,parquet,remote,serve,video,dev]" \
    "paddlepaddle${PADDLE:+==$PADDLE}"
"$venv/bin/ruff" check .
"$venv/bin/ruff" format --check .
if [ -x "$venv/bin/mypy" ]; then  # they need Python 3.10
    "$venv/bin/lint-imports"
    "$venv/bin/mypy"
fi
# A worker that crashes ends the tests: started again, the others could wait for ever.
"$venv/bin/python" -m pytest -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0 "$@"
