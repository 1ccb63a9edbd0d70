#!/usr/bin/env bash
# BiT-M-R152x4 on ImageNet-2012 with several machines: the same command on each, by Paddle's own launcher.
# Data, checkpoint and bit_logs on a file system that all share; NODES machines of four cards. Not measured.
#
#   NODES=2 MASTER=host:8090 scripts/imagenet_multinode.sh /data/imagenet
#
# Plan for two machines: python -m bit_paddle.plan --config configs/imagenet2012_R152x4.yaml --gpus 8
# (64 images of a batch on each GPU). Expected accuracy: configs/imagenet2012_R152x4.yaml.
set -euo pipefail
cd "$(dirname "$0")/.."
python=.venv/bin/python
[ -x "$python" ] || python=python3
datadir=${1:?usage: NODES=2 MASTER=host:port scripts/imagenet_multinode.sh DATADIR [flags]}
shift
exec "$python" -m paddle.distributed.launch --nnodes "${NODES:?how many machines}" \
    --master "${MASTER:?host:port of one of them}" --devices 0,1,2,3 bit_paddle/train.py \
    --config configs/imagenet2012_R152x4.yaml --datadir "$datadir" --name imagenet2012-R152x4 "$@"
