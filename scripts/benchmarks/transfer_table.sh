#!/usr/bin/env bash
# Compares few-shot transfer from BiT-Mini with training the same network from random weights: on
# scikit-learn's digits, 136 characters of Omniglot and photographs of clothes, with 1, 5, 10 and all
# images per class, five seeds each. Writes the runs into bit_logs/my-transfer/, with runs.csv (a line
# per run and seed), table.md and figure.png. The same command resumes after a stop. Each core makes
# one run at a time: half an hour on two cores.
#
#   scripts/benchmarks/transfer_table.sh FOLDER     # with omniglot136/ and clothing10/ in it: train/<class>/*, val/<class>/*
#   AMP=bf16 scripts/benchmarks/transfer_table.sh FOLDER     # on CPUs that multiply in bfloat16
set -euo pipefail
[ -d "${1:-}/omniglot136" ] && [ -d "$1/clothing10" ] || { echo "usage: $0 FOLDER, with omniglot136/ and clothing10/ in it" >&2; exit 2; }
data=$(cd "$1" && pwd)
cd "$(dirname "$0")/../.."
python=${PYTHON:-.venv/bin/python}
command -v "$python" > /dev/null || python=python3
logs=${LOGS:-bit_logs/my-transfer}

# The rule for small tasks in its proportions, at a size for two cores. The learning rate is the best
# of 0.03, 0.1 and 0.3 over all tasks, chosen with another seed (bit_logs/transfer/rates.md).
rule="--steps 100 --batch 64 --base_lr 0.1 --precrop 72 --crop 64 --repeats 5 --no-save --amp ${AMP:-auto}"

for task in digits omniglot136 clothing10; do
    where="--dataset folder --datadir '$data/$task'"
    case $task in
        digits) where="--dataset digits" ;;
        omniglot136) where="$where --no-flip" ;;
    esac
    for shots in 1 5 10 all; do
        few=""
        [ "$shots" = all ] || few="--examples_per_class $shots"
        echo "--model BiT-Mini --name $task-$shots-mini $where $few $rule"
        echo "--model R26x0.5 --from_scratch --name $task-$shots-scratch $where $few $rule"
    done
done | OMP_NUM_THREADS=1 xargs -P "$(nproc)" -L 1 "$python" -W ignore -m bit_paddle.train --logdir $logs
"$python" scripts/benchmarks/transfer_table.py $logs
