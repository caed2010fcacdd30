#!/usr/bin/env bash
# Help below. Scripts for the hosts are quoted on purpose: they are expanded there.
# shellcheck disable=SC2016,SC2153
set -euo pipefail

usage() {
  cat <<'EOF'
usage: NAME=... PROJECT=... ZONE=... ACCELERATOR=... launch/tpu_pod.sh COMMAND

Manages a Cloud TPU slice, or several that train together, from request to removal. It needs nothing
but gcloud.

  create          request the slice (a queued resource of the same name) and wait until it is ready
  setup           copy this repository's last commit to every host and install it there
  run -- CMD...   start CMD on every host, follow host 0, return CMD's exit code; a lost connection
                  does not stop it: `logs` follows again
  logs            follow the command's output on host 0 and return its exit code
  stop            send SIGTERM on every host, which makes training save and exit
  status          the slice, and what its hosts are doing
  state           the slice in one word: ABSENT, WAITING_FOR_RESOURCES, ..., READY, PREEMPTED
  delete          remove the slice and the request

  export NAME=maze PROJECT=my-project ZONE=us-central2-b ACCELERATOR=v4-32 SPOT=1
  launch/tpu_pod.sh create && launch/tpu_pod.sh setup
  launch/tpu_pod.sh run -- python -m wmpoe train --distributed=auto \
    --config=configs/cards.py:base --workdir=gs://my-bucket/cards

Required:
  NAME, PROJECT, ZONE   of the slice
  ACCELERATOR           v4-N, v5litepod-N, v5p-N or v6e-N (create only; v5e-N is v5litepod-N)
Optional:
  SLICES=2              as many slices of ACCELERATOR, one training (default: 1); the mesh axis
                        data then has to be a multiple of it. Set it for every command
  SPOT=1                cheaper, may be preempted: see launch/babysit.sh
  WAIT=3600             seconds to wait in the queue before giving up the request (default: no limit)
  POLL=20               seconds between two checks
  VERSION=...           runtime version (default: by accelerator)
  PYTHON_VERSION=3.12   of the environment that setup creates
  CREATE_FLAGS=...      more flags for gcloud, separated by spaces: --network=..., --reserved
  DRY_RUN=1             print the exact commands instead of running them
EOF
}

die() {
  printf 'tpu_pod.sh: %s\n' "$1" >&2
  exit "${2-2}"
}

say() {
  printf 'tpu_pod.sh: %s\n' "$1" >&2
}

# Runs a command, or prints it such that a shell would run it.
do_it() {
  if [[ ${DRY_RUN-} ]]; then
    local quoted
    printf -v quoted '%q ' "$@"
    printf '%s\n' "${quoted% }"
  else
    "$@"
  fi
}

require() {
  local name
  for name in "$@"; do
    [[ ${!name-} ]] || die "$name is not set. Required: NAME, PROJECT, ZONE, and ACCELERATOR to create; see --help."
  done
  [[ ${DRY_RUN-} ]] || command -v gcloud > /dev/null \
    || die 'There is no gcloud on PATH. Install it (cloud.google.com/sdk/docs/install) and run: gcloud auth login'
  where=("--project=$PROJECT" "--zone=$ZONE")
  [[ ${SLICES-1} =~ ^[1-9][0-9]*$ ]] || die "Expected a number of slices, got SLICES=$SLICES."
  nodes=("$NAME")
  ((${SLICES-1} == 1)) || read -ra nodes <<< "$(seq -s ' ' -f "$NAME-%g" 0 $((SLICES - 1)))"
}

queue() {  # queue VERB FLAGS...
  local verb=$1
  shift
  do_it gcloud compute tpus queued-resources "$verb" "$NAME" "${where[@]}" "$@"
}

on() {  # on all SCRIPT: every host; on 0 SCRIPT: the first one
  local node code=0
  for node in "${nodes[@]}"; do
    do_it gcloud compute tpus tpu-vm ssh "$node" "${where[@]}" "--worker=$1" \
      --ssh-flag=-oServerAliveInterval=15 --ssh-flag=-oServerAliveCountMax=4 "--command=$2" || code=1
    [[ $1 == all ]] || break
  done
  return "$code"
}

# An error of gcloud (no login, no rights, no network) is none of the states.
state() {
  local found error node
  error=$(mktemp)
  if found=$(gcloud compute tpus queued-resources describe "$NAME" "${where[@]}" \
    '--format=value(state.state)' 2> "$error"); then
    if [[ $found == ACTIVE ]]; then
      # The request stays active for a while after a node of it was preempted.
      for node in "${nodes[@]}"; do
        found=$(gcloud compute tpus tpu-vm describe "$node" "${where[@]}" '--format=value(state)' \
          2> "$error") || found=UNKNOWN
        [[ $found == READY ]] || break
      done
    fi
  elif grep -qiE 'not_?found|not found' "$error"; then
    found=ABSENT
  else
    cat "$error" >&2
    rm -f "$error"
    die "gcloud could not describe $NAME; see above." 1
  fi
  rm -f "$error"
  printf '%s\n' "${found:-UNKNOWN}"
}

runtime_version() {
  case $1 in
    v4-*) echo tpu-ubuntu2204-base ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
  esac
}

create() {
  require NAME PROJECT ZONE ACCELERATOR
  local accelerator=${ACCELERATOR/#v5e-/v5litepod-} poll=${POLL-20} found last='' begun=$SECONDS
  [[ $accelerator =~ ^(v4|v5litepod|v5p|v6e)-[1-9][0-9]*$ ]] \
    || die "Unknown accelerator '$ACCELERATOR'; expected v4-N, v5litepod-N (or v5e-N), v5p-N or v6e-N, for instance v5litepod-16."
  [[ ${WAIT-0} =~ ^[0-9]+$ && $poll =~ ^[0-9.]+$ ]] || die "Expected seconds, got WAIT=${WAIT-} POLL=$poll."
  local flags=("--node-id=$NAME")
  ((${#nodes[@]} == 1)) || flags=("--node-count=$SLICES" "--node-prefix=$NAME")
  flags+=("--accelerator-type=$accelerator" "--runtime-version=${VERSION-$(runtime_version "$accelerator")}")
  [[ -z ${SPOT-} ]] || flags+=(--spot)
  # shellcheck disable=SC2206  # Separated by spaces, as the help says.
  flags+=(${CREATE_FLAGS-})
  if [[ ${DRY_RUN-} ]]; then
    queue create "${flags[@]}"
    return
  fi
  found=$(state)
  case $found in
    READY) say "$NAME already exists; next: launch/tpu_pod.sh setup"; return ;;
    PREEMPTED | FAILED | SUSPENDED | TERMINATED) delete; found=ABSENT ;;
  esac
  if [[ $found == ABSENT ]]; then
    queue create "${flags[@]}" \
      || die "The request was refused; see gcloud's message above. Nothing was created." 1
  fi
  while true; do
    found=$(state)
    [[ $found == "$last" ]] || say "$NAME: $found"
    last=$found
    case $found in
      READY) say 'next: launch/tpu_pod.sh setup'; return ;;
      FAILED | SUSPENDED | PREEMPTED | ABSENT)
        queue delete --force --quiet || true
        die "The request ended as $found and was removed. Try another zone, a smaller slice, or SPOT=1." 1
        ;;
    esac
    if [[ ${WAIT-} ]] && ((SECONDS - begun >= WAIT)); then
      queue delete --force --quiet || true
      die "No slice within WAIT=$WAIT s (last state: $found); the request was removed. Wait longer, or try another zone." 1
    fi
    sleep "$poll"
  done
}

setup() {
  require NAME PROJECT ZONE
  local root archive node python=${PYTHON_VERSION-3.12}
  root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
  archive=wmpoe.tar
  if [[ -z ${DRY_RUN-} ]]; then
    scratch=$(mktemp -d)
    trap 'rm -rf "$scratch"' EXIT
    archive=$scratch/wmpoe.tar
  fi
  [[ -z $(git -C "$root" status --porcelain 2> /dev/null) ]] \
    || say 'There are uncommitted changes; only the last commit is copied.'
  do_it git -C "$root" archive --format=tar "--output=$archive" HEAD \
    || die 'Needs a git checkout with a commit.'
  for node in "${nodes[@]}"; do
    do_it gcloud compute tpus tpu-vm scp "$archive" "$node:wmpoe.tar" "${where[@]}" --worker=all \
      || die 'Copying failed on some host, see above. You can run setup again.' 1
  done
  on all "set -e
mkdir -p ~/wmpoe && cd ~/wmpoe && rm -rf .venv .ready && tar -xf ~/wmpoe.tar
[ -x ~/.local/bin/uv ] || python3 -m pip install --quiet --user uv
~/.local/bin/uv venv --quiet --python $(printf %q "$python") .venv
~/.local/bin/uv pip install --quiet --python .venv/bin/python -e '.[gcs]' 'jax[tpu]'
touch .ready" \
    || die 'Setup failed on some host, see above. The slice stays; run setup again, or delete it.' 1
  say 'next: launch/tpu_pod.sh run -- python -m wmpoe train --distributed=auto ...'
}

# A job is a folder: command, pid, log, and its exit code when it has ended.
running='[ -e ~/wmpoe-job/pid ] && [ ! -e ~/wmpoe-job/exit ] && kill -0 "$(cat ~/wmpoe-job/pid)" 2> /dev/null'

run() {
  require NAME PROJECT ZONE
  [[ ${1-} == -- ]] && shift
  (($#)) || die 'Give a command, for instance: run -- python -m wmpoe train ...'
  local quoted
  printf -v quoted '%q ' "$@"
  printf -v quoted %q "exec ${quoted% }"
  on all "if $running; then echo \"\$(hostname) is running \$(cat ~/wmpoe-job/command)\" >&2; exit 3; fi
[ -e ~/wmpoe/.ready ] || { echo \"\$(hostname) is not set up\" >&2; exit 3; }" \
    || die 'Nothing was started, see above: `logs` follows what is running, `stop` ends it; `setup` installs.' 1
  # gcloud repeats what it lost the connection to: a second start has to find the first.
  on all "set -e
if $running; then exit 0; fi
rm -rf ~/wmpoe-job && mkdir ~/wmpoe-job && cd ~/wmpoe
printf '%s\\n' $quoted > ~/wmpoe-job/command
export PATH=~/wmpoe/.venv/bin:\"\$PATH\" PYTHONUNBUFFERED=1
setsid nohup bash -c 'trap : TERM; echo \$\$ > ~/wmpoe-job/pid; bash ~/wmpoe-job/command; echo \$? > ~/wmpoe-job/exit' > ~/wmpoe-job/log 2>&1 < /dev/null &
while [ ! -s ~/wmpoe-job/pid ]; do sleep 0.1; done" || {
    say 'The command did not start on every host; stopping it where it did.'
    stop || true
    die 'Nothing runs now; see above for the reason.' 1
  }
  logs
}

logs() {
  require NAME PROJECT ZONE
  on 0 'tail -n +1 -F --pid="$(cat ~/wmpoe-job/pid)" ~/wmpoe-job/log' || say 'Lost the connection to host 0.'
  # Others end with host 0, or within the minutes after which jax gives a lost one up.
  local ended
  ended=$(on all "for i in \$(seq 180); do $running || break; sleep 1; done
if $running; then echo \"\$(hostname) is still running; 'logs' follows it\" >&2; fi
echo wmpoe-exit=\$(cat ~/wmpoe-job/exit 2> /dev/null || echo 75)") || ended+=$'\nwmpoe-exit=75'
  if [[ ${DRY_RUN-} ]]; then
    printf '%s\n' "$ended"
    return
  fi
  local line code worst=0
  while read -r line; do
    [[ $line =~ ^wmpoe-exit=([0-9]+)$ ]] || continue
    code=${BASH_REMATCH[1]}
    # What the command itself objects to says more than that others had to end with it.
    if ((code && (!worst || worst == 75))); then worst=$code; fi
  done <<< "$ended"
  ((!worst)) || say "The command ended with exit code $worst."
  return "$worst"
}

stop() {
  require NAME PROJECT ZONE
  on all "if $running; then pkill -TERM -P \"\$(cat ~/wmpoe-job/pid)\"; fi
for i in \$(seq 120); do $running || exit 0; sleep 1; done
echo 'Still running after 2 minutes: killed.' >&2; pkill -KILL -P \"\$(cat ~/wmpoe-job/pid)\""
}

status() {
  require NAME PROJECT ZONE
  queue describe || return 1
  on all "if $running; then echo \"\$(hostname): running \$(cat ~/wmpoe-job/command)\"
elif [ -e ~/wmpoe-job/exit ]; then echo \"\$(hostname): ended with exit code \$(cat ~/wmpoe-job/exit)\"
elif [ -e ~/wmpoe/.ready ]; then echo \"\$(hostname): set up, nothing was run\"
else echo \"\$(hostname): not set up\"; fi"
}

delete() {
  require NAME PROJECT ZONE
  if [[ -z ${DRY_RUN-} && $(state) == ABSENT ]]; then
    say "There is no $NAME in $ZONE of $PROJECT: nothing to delete."
    return
  fi
  queue delete --force --quiet || die "$NAME could not be deleted; see above. It may still cost money." 1
}

case ${1-} in
  create | setup | run | logs | stop | status | delete) "$@" ;;
  state) require NAME PROJECT ZONE; if [[ ${DRY_RUN-} ]]; then queue describe; else state; fi ;;
  -h | --help) usage ;;
  '') usage >&2; exit 2 ;;
  *) die "Unknown command '$1'; expected create, setup, run, logs, stop, status, state or delete." ;;
esac
