#!/usr/bin/env bash
# The published CIFAR-10 recipe. The first call downloads CIFAR-10 and the checkpoint. More flags go
# to bit_paddle.train. Published accuracies: configs/claims/cifar10.yaml
#
#   scripts/cifar10.sh                                   BiT-M-R50x1, all images
#   scripts/cifar10.sh R152x2 --examples_per_class 5     BiT-M-R152x2, few-shot
set -euo pipefail
cd "$(dirname "$0")/.."
model=R50x1
case "${1:-}" in R*) model=$1; shift ;; esac
python=.venv/bin/python
[ -x "$python" ] || python=python3
exec "$python" -m bit_paddle.train --config "configs/cifar10_$model.yaml" "$@"
