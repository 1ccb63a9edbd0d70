#!/usr/bin/env bash
# BiT-M-R152x4 on ImageNet-2012 with NODES machines of four GPUs, by Paddle's own launcher. Start the
# same command on each machine. All machines share the file system of the data, of the checkpoint and
# of bit_logs. The time was not measured.
#
#   NODES=2 MASTER=host:8090 scripts/imagenet_multinode.sh /data/imagenet
#
# Plan for two machines: python -m bit_paddle.plan --config configs/imagenet2012_R152x4.yaml --gpus 8
# (each step, each GPU has 64 images). Claims: configs/claims/imagenet.yaml.
set -euo pipefail
cd "$(dirname "$0")/.."
python=.venv/bin/python
[ -x "$python" ] || python=python3
datadir=${1:?usage: NODES=2 MASTER=host:port scripts/imagenet_multinode.sh DATADIR [flags]}
shift
exec "$python" -m paddle.distributed.launch --nnodes "${NODES:?how many machines}" \
    --master "${MASTER:?host:port of one of them}" --devices 0,1,2,3 bit_paddle/train.py \
    --config configs/imagenet2012_R152x4.yaml --datadir "$datadir" --name imagenet2012-R152x4 "$@"
