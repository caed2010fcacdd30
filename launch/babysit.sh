#!/usr/bin/env bash
# Help below.
set -euo pipefail

usage() {
  cat <<'EOF'
usage: NAME=... PROJECT=... ZONE=... ACCELERATOR=... launch/babysit.sh -- COMMAND...

Keeps COMMAND running on a TPU slice (with SLICES=2 on two) until it is done: creates it, sets it up,
runs COMMAND, and does all of it again after a preemption or a lost host. COMMAND must resume where it stopped, as
`python -m wmpoe train` does when its --workdir is a gs:// folder.

  export NAME=maze PROJECT=my-project ZONE=us-central2-b ACCELERATOR=v4-32 SPOT=1
  launch/babysit.sh -- python -m wmpoe train --distributed=auto \
    --config=configs/cards.py:base --workdir=gs://my-bucket/cards

It exits with 0 when COMMAND is done, and with COMMAND's exit code when COMMAND itself fails (a wrong
flag, a diverged loss) on a healthy slice. The slice stays; KEEP= deletes it when COMMAND is done.

Optional, in addition to the variables of launch/tpu_pod.sh:
  KEEP=1           (default) keep the slice at the end; KEEP= deletes it after success
  MAX_FAILURES=5   give up after this many interruptions in a row
  STEADY=600       seconds of running that reset the count of interruptions
  PAUSE=30         seconds before the next attempt
  DRY_RUN=1        print the commands of one round
EOF
}

die() {
  printf 'babysit.sh: %s\n' "$1" >&2
  exit "${2-2}"
}

say() {
  printf 'babysit.sh: %s\n' "$1" >&2
}

main() {
  case ${1-} in
    -h | --help) usage; exit 0 ;;
    '') usage >&2; exit 2 ;;
    --) shift ;;
    *) die "Unknown argument '$1'; the command comes after --." ;;
  esac
  (($#)) || die 'Give a command after --.'
  local pod
  pod=$(dirname "${BASH_SOURCE[0]}")/tpu_pod.sh
  if [[ ${DRY_RUN-} ]]; then
    "$pod" create && "$pod" setup && "$pod" run -- "$@"
    exit
  fi
  local failures=0 begun code state hosts
  while true; do
    begun=$SECONDS code=0 hosts=''
    # Not under errexit: what gcloud cannot do now it may do in a minute, what it does not understand
    # never.
    ready || code=$?
    ((code != 2)) || exit 2
    if ((code)); then
      say 'The slice could not be made ready, see above.'
      again "$(here)"
      continue
    fi
    if [[ $hosts == *': running '* ]]; then  # By an earlier babysitter.
      "$pod" logs || code=$?
    else
      "$pod" run -- "$@" || code=$?
    fi
    if ((!code)); then
      say 'The command is done.'
      [[ ${KEEP-1} ]] || "$pod" delete
      exit 0
    fi
    state=$(here)
    # 75: interrupted, go on. 134, 137, 143: aborted by jax, killed, terminated.
    case $state:$code in
      READY:75 | READY:134 | READY:137 | READY:143) say "Interrupted (exit code $code) on a healthy slice." ;;
      READY:*) die "The command ended with exit code $code on a healthy slice: it is not repeated. $NAME stays." "$code" ;;
      *) say "The slice is $state." ;;
    esac
    again "$state"
  done
}

# The slice exists and is set up; sets `hosts` to what they are doing if it was there before.
ready() {
  local found
  found=$("$pod" state) || return
  if [[ $found != READY ]]; then
    "$pod" create && "$pod" setup
  elif ! hosts=$("$pod" status) || [[ $hosts == *': not set up'* ]]; then
    "$pod" setup
  fi
}

here() {
  "$pod" state || echo UNKNOWN
}

# Waits for the next round, or gives up.
again() {
  ((SECONDS - begun < ${STEADY-600})) || failures=0
  failures=$((failures + 1))
  ((failures < ${MAX_FAILURES-5})) || die "Interrupted $failures times in a row; $NAME stays as it is ($1)." 1
  sleep "${PAUSE-30}"
}

main "$@"
