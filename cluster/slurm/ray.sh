# Sourced by the job scripts that need Ray: one Ray cluster for the job, which other jobs on the same nodes do not see.
# shellcheck shell=bash

# A block of 200 ports of this job's own, below the ports that the system gives out: a hundred for the head, a hundred
# for the other nodes.
BLOCK=$((10000 + SLURM_JOB_ID % 100 * 200))

# Options of `ray start` for the ports from a first one on.
ports_from() {
  local first=$1
  echo "--node-manager-port=$((first + 1)) --object-manager-port=$((first + 2))" \
    "--dashboard-agent-listen-port=$((first + 5)) --dashboard-agent-grpc-port=$((first + 6))" \
    "--runtime-env-agent-port=$((first + 7)) --metrics-export-port=$((first + 8))" \
    "--min-worker-port=$((first + 10)) --max-worker-port=$((first + 99))"
}

# Start Ray on the job's nodes, and end it with the script. Sets RAY_ADDRESS.
start_ray() {
  local first others=$((SLURM_JOB_NUM_NODES - 1)) cores=${SLURM_CPUS_ON_NODE} address head_step
  first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
  # The path of Ray's sockets may have 107 characters, which a folder below $TMPDIR often exceeds.
  RAY_TMP=$(mktemp -d "/tmp/r${SLURM_JOB_ID}-XXXX")
  # Who has the token may run code as you: only you may read the file, which all nodes must see.
  export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$PFORCE_STORAGE/.ray-token-$SLURM_JOB_ID"
  export RAY_USAGE_STATS_ENABLED=0
  mkdir -p "$PFORCE_STORAGE"
  (umask 077 && python -c 'import secrets; print(secrets.token_hex(32), end="")' >"$RAY_AUTH_TOKEN_PATH")
  trap 'stop_ray' EXIT
  address=$(srun --nodes=1 --ntasks=1 --nodelist="$first" hostname -I | awk '{print $1}')
  # shellcheck disable=SC2046  # several words are meant
  srun --nodes=1 --ntasks=1 --nodelist="$first" --overlap \
    ray start --head --block --node-ip-address="$address" --port="$BLOCK" --temp-dir="$RAY_TMP" --num-cpus="$cores" \
    --ray-client-server-port=$((BLOCK + 3)) --dashboard-port=$((BLOCK + 4)) $(ports_from "$BLOCK") &
  head_step=$!
  export RAY_ADDRESS="$address:$BLOCK"
  until ray health-check --address "$RAY_ADDRESS" >/dev/null 2>&1; do
    kill -0 "$head_step" 2>/dev/null || { echo "Ray's head did not start on $first; see above" >&2; exit 3; }
    sleep 1
  done
  if [ "$others" -gt 0 ]; then
    # shellcheck disable=SC2046
    srun --nodes="$others" --ntasks="$others" --exclude="$first" --overlap \
      ray start --block --address="$RAY_ADDRESS" --num-cpus="$cores" $(ports_from $((BLOCK + 100))) &
  fi
}

# End Ray. Slurm would give its processes half a minute to end by themselves, which nothing waits for. Step 0 has asked for
# the address; 1 and 2 are Ray's.
stop_ray() {
  scancel --quiet --signal=KILL "$SLURM_JOB_ID.1" "$SLURM_JOB_ID.2" 2>/dev/null || true
  wait 2>/dev/null || true
  rm -rf "$RAY_TMP" "$RAY_AUTH_TOKEN_PATH"
}
