# Sourced by the job scripts: the environment, and a command that hears what Slurm tells the batch script.
# shellcheck shell=bash

# Slurm runs a copy of the script, so files are found from the folder in which sbatch was called.
read_environment() {
  local file="${PFORCE_ENV:-$SLURM_SUBMIT_DIR/cluster/slurm/env.sh}"
  if [ ! -r "$file" ]; then
    echo "$file: missing; copy env.sh.example beside it, or name another file: PFORCE_ENV=FILE sbatch …" >&2
    exit 2
  fi
  # shellcheck source=/dev/null
  . "$file"
}

# Seconds from Slurm's warning (#SBATCH --signal=B:USR1@300) until the command is told to end.
WARNED_SECONDS=${WARNED_SECONDS:-180}

# Run a command and wait until it has ended. Slurm's warning (SIGUSR1) is passed on to it, which makes a checkpoint at
# once; WARNED_SECONDS later it is told to end, at another one. The order to end (SIGTERM) is passed on at once. Sets CODE
# to its exit code, and CANCELLED where Slurm has ended the job.
run_and_pass_signals() {
  CODE=0 CANCELLED=""
  local pid timer=""
  "$@" &
  pid=$!
  trap 'kill -USR1 "$pid" 2>/dev/null || true; [ -n "$timer" ] || { (sleep "$WARNED_SECONDS"; kill -TERM "$pid") & timer=$!; }' USR1
  trap 'CANCELLED=yes; kill -TERM "$pid" 2>/dev/null || true' TERM
  while true; do # a trapped signal ends `wait`, but not the command
    wait "$pid" && CODE=0 || CODE=$?
    kill -0 "$pid" 2>/dev/null || break
  done
  trap - USR1 TERM
  [ -z "$timer" ] || kill "$timer" 2>/dev/null || true
}

# Exit code 4 of pforce: stopped at a checkpoint (143: by SIGTERM, before there was anything to save). Where that was at
# the time limit, the job goes back into the queue and the same command goes on; where Slurm preempts the job, it does so
# itself, and a cancelled job stays cancelled.
end_or_requeue() {
  if { [ "$CODE" = 4 ] || [ "$CODE" = 143 ]; } && [ -z "$CANCELLED" ]; then
    scontrol requeue "$SLURM_JOB_ID"
    sleep 60 # until Slurm ends this script
  fi
  exit "$CODE"
}
