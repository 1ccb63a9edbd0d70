#!/usr/bin/env bash
# Train on several machines: starts Paddle's launcher on each by ssh. All have this folder and the
# data at the same paths, and ssh needs no password. More flags go to bit_paddle.train.
#
#   scripts/launch_ssh.sh "gpu1 gpu2" --config configs/imagenet2012_R50x1.yaml --datadir /imagenet
#
# The first machine has rank 0, which writes the run's folder. NPROC=2 starts two processes on each
# machine; without it there is one per GPU. PORT is a free port of the first machine (8090), and all
# ports above 35100 are used between the machines. Ctrl-C saves the run and ends it.
set -euo pipefail
cd "$(dirname "$0")/.."
read -ra hosts <<<"${1:?usage: scripts/launch_ssh.sh \"HOST1 HOST2\" FLAGS}"
python=$PWD/.venv/bin/python
[ -x "$python" ] || python=$(command -v python3)
port=${PORT:-8090} logs=/tmp/bit_paddle-${PORT:-8090}
on() { ssh -o BatchMode=yes -o ServerAliveInterval=10 "$@"; }

address=$(on "${hosts[0]}" hostname -i)
case $address in 127.*)
    echo "error: ${hosts[0]}: its own name means $address there, which the others cannot reach." \
        "Give it its address on the network, in /etc/hosts of every machine" >&2
    exit 2 ;;
esac
trap 'on "${hosts[0]}" "kill -TERM \$(cat $logs/pid)"' INT TERM

pids=() status=0
for place in "${!hosts[@]}"; do
    launcher=("$python" -m paddle.distributed.launch --nnodes "${#hosts[@]}" --rank "$place"
        --master "${address%% *}:$port" --log_dir "$logs" ${NPROC:+--nproc_per_node "$NPROC"})
    command=$(printf '%q ' "${launcher[@]}" bit_paddle/train.py "${@:2}")
    on "${hosts[place]}" "mkdir -p $logs && echo \$\$ >$logs/pid && cd $(printf %q "$PWD") &&
        PYTHONPATH=$(printf %q "$PWD") exec $command" 2>&1 | sed "s/^/${hosts[place]}: /" &
    pids+=($!)
done
for pid in "${pids[@]}"; do
    until wait "$pid"; code=$?; [ "$code" -le 128 ] || ! kill -0 "$pid" 2>/dev/null; do :; done
    [ "$code" = 0 ] || status=$code
done
exit "$status"
