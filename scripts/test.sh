#!/usr/bin/env bash
# Lint, types and tests, in an environment of their own (.venv-test-<version>).
#
#   scripts/test.sh                        on the newest Paddle: about 15 minutes on 2 cores
#   scripts/test.sh -m weekly              what .ci/weekly runs: many mutations, the stress test
#   scripts/test.sh -m "not slow"          without whole runs, kills and compilers: under 2 minutes
#   scripts/test.sh tests/data -x          arguments go to pytest
#   scripts/test.sh -n 0 --pdb             tests in one process, where a debugger works
#   PADDLE=2.6.2 scripts/test.sh           another version of Paddle
#   LOWEST=1 PYTHON=python3.9 scripts/test.sh   the lowest versions that pyproject.toml admits
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
venv=.venv-test-${PADDLE:-newest}
[ -z "${LOWEST:-}" ] || venv=.venv-test-lowest
extras=audit,cpu,detect,digits,heic,hub,keras,onnx,openvino,parquet,remote,serve,video,dev
if [ ! -d "$venv" ]; then
    echo "Installing Paddle and the other packages: several minutes"
    "$python" -m venv "$venv"
fi
if [ -n "${LOWEST:-}" ]; then  # pip cannot prefer low versions
    "$venv/bin/pip" install --quiet --disable-pip-version-check uv
    "$venv/bin/uv" pip install --quiet --python "$venv/bin/python" --resolution lowest-direct \
        --only-binary :all: --no-binary bit_paddle --editable ".[$extras]"
else
    "$venv/bin/pip" install --quiet --disable-pip-version-check --editable ".[$extras]" \
        "paddlepaddle${PADDLE:+==$PADDLE}"
fi
"$venv/bin/ruff" check .
"$venv/bin/ruff" format --check .
if [ -x "$venv/bin/mypy" ]; then  # they need Python 3.10
    "$venv/bin/lint-imports"
    "$venv/bin/mypy"
fi
# A worker that crashes ends the tests: started again, the others could wait for ever.
"$venv/bin/python" -m pytest -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0 "$@"
