#!/usr/bin/env bash
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
# Train on several machines by Slurm. Flags before the script go to sbatch, those after it to
# bit_paddle.train:
#
#   sbatch --gpus-per-node=4 scripts/slurm.sh --config configs/imagenet2012_R50x1.yaml --name run
#
# Start it in this folder, which all machines share. NPROC=2 starts two processes on each machine;
# without it there is one per GPU. Five minutes before the time limit the run saves and ends, and
# the job is queued again; then it resumes.
set -euo pipefail
python=$PWD/.venv/bin/python
[ -x "$python" ] || python=$(command -v python3)
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address=$(srun --nodes=1 --ntasks=1 --nodelist="$first" hostname -i)
export PYTHONPATH=$PWD python
export master=${address%% *}:$((20000 + SLURM_JOB_ID % 10000)) logs=/tmp/bit_paddle-$SLURM_JOB_ID

srun --kill-on-bad-exit=0 bash -c 'exec "$python" -m paddle.distributed.launch --log_dir "$logs" \
    --nnodes "$SLURM_NNODES" --rank "$SLURM_NODEID" --master "$master" \
    ${NPROC:+--nproc_per_node "$NPROC"} bit_paddle/train.py "$@"' bash "$@" &
srun=$! again=
trap 'again=yes; scancel --signal=TERM "$SLURM_JOB_ID.1"' USR1
status=0
wait "$srun" || status=$?
if [ "$again" ]; then
    wait "$srun" || true # the trap has ended the first wait
    exec scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
