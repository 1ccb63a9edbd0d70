#!/usr/bin/env bash
# Install and try out. Makes a virtual environment in .venv with the Paddle that fits this machine.
# Fine-tunes BiT-Mini, which comes with this package, on 10 images per class of scikit-learn's
# handwritten digits. Trains the same network on them from random weights. Makes a page that shows
# both side by side. Takes about 5 to 10 minutes on two cores.
#
#   scripts/quickstart.sh             PYTHON=python3.11 scripts/quickstart.sh
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 9))' ||
    { echo "$python is older than 3.9; name a newer one: PYTHON=python3.11 $0" >&2; exit 2; }

paddle=cpu
if capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | sort -n | tail -1) &&
    [ -n "$capability" ]; then
    if [ "${capability%%.*}" -lt 9 ]; then
        paddle=gpu
    else
        echo "This GPU (compute capability $capability) is newer than the paddlepaddle-gpu of the main" \
             "package index, so the CPU build is installed. docs/several-gpus.md names the build that you need." >&2
    fi
fi

[ -d .venv ] || "$python" -m venv .venv
echo "Installing Paddle and the other packages: several minutes"
.venv/bin/pip install --quiet --disable-pip-version-check --editable ".[$paddle,digits]"
train=".venv/bin/python -W ignore -m bit_paddle.train --config configs/digits.yaml"
newest() { ls -td bit_logs/"$1"* | head -n 1; }
$train
$train --model R26x0.5 --from_scratch
.venv/bin/python -W ignore -m bit_paddle.report "$(newest BiT-Mini-digits)" "$(newest R26x0.5-digits)" \
    --output bit_logs/quickstart.html
echo "Next: .venv/bin/python -m bit_paddle.train --help"
