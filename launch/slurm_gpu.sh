#!/usr/bin/env bash
#SBATCH --job-name=wmpoe
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=TERM@120
set -euo pipefail

usage() {
  cat <<'EOF'
usage: sbatch --nodes=N --gpus-per-node=G launch/slurm_gpu.sh COMMAND...

Runs COMMAND on a Slurm cluster as one pod with one process per GPU. Each process gets its place from
WMPOE_COORDINATOR, WMPOE_NUM_PROCESSES and WMPOE_PROCESS_ID, which wmpoe reads by itself. Two minutes
before the time limit, and when the job is preempted, Slurm sends SIGTERM: training saves and exits,
and the job is requeued to resume.

  sbatch --nodes=2 --gpus-per-node=8 --time=24:00:00 launch/slurm_gpu.sh \
    .venv/bin/python -m wmpoe train --config=configs/cards.py:base --workdir=/shared/runs/base

The working folder and --workdir must be on storage that all nodes share, and the environment must
have JAX for GPUs (pip install 'jax[cuda12]').

Environment:
  PORT   port on which process 0 listens (default: derived from the job ID)
EOF
}

die() {
  printf 'slurm_gpu.sh: %s\n' "$1" >&2
  exit 2
}

main() {
  case ${1-} in
    -h | --help) usage; exit 0 ;;
    '') usage >&2; exit 2 ;;
  esac
  [[ ${SLURM_JOB_ID-} ]] || die 'Not in a Slurm job: start it with sbatch, see --help.'
  [[ ${SLURM_GPUS_ON_NODE-} ]] || die 'The job has no GPUs: give --gpus-per-node=G to sbatch.'
  local first port code=0
  first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
  port=${PORT-$((20000 + SLURM_JOB_ID % 10000))}
  export WMPOE_COORDINATOR=$first:$port
  # jax gives the process with local index i the i-th GPU: each has to see all of its node.
  # shellcheck disable=SC2016  # Expanded by each task.
  srun --ntasks-per-node="$SLURM_GPUS_ON_NODE" --ntasks="$((SLURM_JOB_NUM_NODES * SLURM_GPUS_ON_NODE))" \
    --gpu-bind=none --kill-on-bad-exit=1 --label bash -c '
      export WMPOE_NUM_PROCESSES=$SLURM_NTASKS WMPOE_PROCESS_ID=$SLURM_PROCID
      exec "$@"' _ "$@" || code=$?
  if ((code == 75)); then
    printf 'slurm_gpu.sh: interrupted; requeueing the job to resume\n' >&2
    scontrol requeue "$SLURM_JOB_ID"
  fi
  exit "$code"
}

main "$@"
