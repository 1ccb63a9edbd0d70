#!/usr/bin/env bash
# BiT-M-R152x4 on ImageNet-2012 with four V100s of 32 GB. The same command resumes the run.
# More flags go to bit_paddle.train.
#
#   scripts/imagenet_r152x4_4xv100.sh /data/imagenet              needs train/<WordNet id>/* and val/
#   scripts/imagenet_r152x4_4xv100.sh /data/imagenet --dry-run
#
# Plan: configs/imagenet2012_R152x4.yaml. Each step, each GPU has 128 images:
# 19 per micro-batch, 7 micro-batches, in fp16.
# The time was not measured; this estimates it:
#   python -m bit_paddle.plan --config configs/imagenet2012_R152x4.yaml --gpus 4 --images_per_second X
set -euo pipefail
cd "$(dirname "$0")/.."
python=.venv/bin/python
[ -x "$python" ] || python=python3
datadir=${1:?usage: scripts/imagenet_r152x4_4xv100.sh DATADIR [flags of bit_paddle.train]}
shift
exec "$python" -m bit_paddle.train --config configs/imagenet2012_R152x4.yaml --datadir "$datadir" \
    --name imagenet2012-R152x4 --devices 0,1,2,3 --eval_every 2000 "$@"
