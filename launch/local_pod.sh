#!/usr/bin/env bash
# Help below.
set -euo pipefail

usage() {
  cat <<'EOF'
usage: launch/local_pod.sh N [--port=PORT] -- COMMAND...

Runs COMMAND N times on this machine, as the N processes of one pod. Each process gets its place from
WMPOE_COORDINATOR, WMPOE_NUM_PROCESSES and WMPOE_PROCESS_ID, which wmpoe reads by itself. Each line
of output begins with the index of its process. If one process fails, the script ends the others and
returns its exit code. It forwards SIGINT and SIGTERM to all processes.

  launch/local_pod.sh 2 -- python -m wmpoe train --config=configs/cards.py:base --workdir=runs/base

  --port=PORT   port on which process 0 listens (default: a free one)

Environment:
  GRACE=10      seconds between SIGTERM and SIGKILL for processes that do not exit
EOF
}

die() {
  printf 'local_pod.sh: %s\n' "$1" >&2
  exit 2
}

# Python is there anyway, and asks the system instead of guessing.
free_port() {
  local python
  python=$(command -v python3 || command -v python) \
    || die 'Neither python3 nor python is on PATH; give --port=PORT.'
  "$python" -c 'import socket
with socket.create_server(("127.0.0.1", 0)) as s: print(s.getsockname()[1])'
}

start() {
  local index=$1 out err
  shift
  exec {out}> >(prefix "$index")
  prefixes+=("$!")
  exec {err}> >(prefix "$index" >&2)
  prefixes+=("$!")
  # Not a pipeline: the process itself is what is waited for and signalled.
  WMPOE_COORDINATOR="127.0.0.1:$port" WMPOE_NUM_PROCESSES=$processes WMPOE_PROCESS_ID=$index \
    "$@" >&"$out" 2>&"$err" {out}>&- {err}>&- < /dev/null &
  alive[index]=$!
  exec {out}>&- {err}>&-
}

prefix() {
  trap '' INT TERM  # It ends when its process does, and not before the last line.
  local line
  while IFS= read -r line || [[ -n $line ]]; do
    printf '[%s] %s\n' "$1" "$line"
  done
}

hand_on() {
  told=yes
  signal_all "$1"
}

signal_all() {
  local pid
  for pid in "${alive[@]}"; do
    kill -s "$1" "$pid" 2> /dev/null || true
  done
}

# Politely first, but not twice: a second signal means 'at once' to many programs.
end_all() {
  local pid deadline=$((SECONDS + grace))
  [[ -n $told ]] || hand_on TERM
  for pid in "${alive[@]}"; do
    while kill -0 "$pid" 2> /dev/null && ((SECONDS < deadline)); do
      sleep 0.1
    done
  done
  signal_all KILL
}

main() {
  ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] >= 404)) \
    || die "Needs bash 4.4 or newer, this is $BASH_VERSION (macOS: brew install bash)."
  case ${1-} in
    -h | --help) usage; exit 0 ;;
    '') usage >&2; exit 2 ;;
  esac
  processes=$1 port='' grace=${GRACE-10}
  shift
  [[ $processes =~ ^[1-9][0-9]*$ ]] || die "Expected a number of processes, got '$processes'."
  [[ $grace =~ ^[0-9]+$ ]] || die "Expected whole seconds, got GRACE=$grace."
  while (($#)); do
    case $1 in
      --) shift; break ;;
      --port=*) port=${1#--port=} ;;
      *) die "Unknown argument '$1'; a command comes after --." ;;
    esac
    shift
  done
  (($#)) || die 'Give a command after --, for instance -- python -m wmpoe train ...'
  command -v "$1" > /dev/null || die "There is no command '$1'."
  [[ -n $port ]] || port=$(free_port)
  [[ $port =~ ^[0-9]+$ ]] || die "Expected a port, got '$port'."

  alive=() prefixes=() told=''
  trap 'hand_on TERM' TERM
  trap 'hand_on INT' INT
  local index code first=0
  for ((index = 0; index < processes; index++)); do
    start "$index" "$@"
  done
  while ((${#alive[@]})); do
    for index in "${!alive[@]}"; do
      ! kill -0 "${alive[index]}" 2> /dev/null || continue
      code=0
      wait "${alive[index]}" 2> /dev/null || code=$?
      unset "alive[$index]"
      if ((code && !first)); then
        first=$code
        printf 'local_pod.sh: process %s ended with exit code %s\n' "$index" "$code" >&2
        end_all
      fi
    done
    sleep 0.05
  done
  wait "${prefixes[@]}" 2> /dev/null || true  # Until the last line is out.
  exit "$first"
}

main "$@"
