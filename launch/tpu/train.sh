#!/usr/bin/env bash
# Trains on a Cloud TPU VM or a pod slice: the same `python -m launch.train` on every worker, over gcloud's ssh.
#
#   launch/tpu/train.sh --tpu=NAME --zone=ZONE --install        # once: copies HEAD to all workers, installs it
#   launch/tpu/train.sh --tpu=NAME --zone=ZONE -- --config=configs/fas/fas_aug.py:release --workdir=/mnt/runs/fas_aug
#
# Options:
#   --tpu=NAME, --zone=ZONE   the TPU
#   --project=PROJECT         if it is not gcloud's default
#   --directory=DIR           where the code lies on the workers (default: verax)
#   --install                 copy and install first; without launch.train's options after --, only that
#   --dry-run                 print the commands that would run
#
# The workers find each other (--distributed). The working folder must be seen by all of them: a bucket mounted with
# gcsfuse, or a Filestore. A TPU that is preempted is gone; once it is there again, the same command goes on from the
# last checkpoint.
set -euo pipefail

tpu='' zone='' project='' directory=verax install=false dry_run=false
while [ $# -gt 0 ]; do
  case $1 in
    --tpu=*) tpu=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --project=*) project=${1#*=} ;;
    --directory=*) directory=${1#*=} ;;
    --install) install=true ;;
    --dry-run) dry_run=true ;;
    --)
      shift
      break
      ;;
    *)
      echo "launch/tpu/train.sh: unknown option '$1'; those of launch.train come after --" >&2
      exit 2
      ;;
  esac
  shift
done
if [ -z "$tpu" ] || [ -z "$zone" ]; then
  echo 'launch/tpu/train.sh: expected --tpu=NAME --zone=ZONE' >&2
  exit 2
fi
where=("--zone=$zone" --worker=all ${project:+"--project=$project"})

run() { # runs a command here, or prints it
  if $dry_run; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

on_all_workers() { # runs a command, given word by word, in the code's folder of every worker
  run gcloud compute tpus tpu-vm ssh "$tpu" "${where[@]}" "--command=cd $(printf '%q' "$directory") && $*"
}

if $install; then
  archive=$(basename "$directory").tar.gz
  run git archive --format=tar.gz "--output=/tmp/$archive" HEAD
  run gcloud compute tpus tpu-vm scp "/tmp/$archive" "$tpu:" "${where[@]}"
  run gcloud compute tpus tpu-vm ssh "$tpu" "${where[@]}" \
    "--command=mkdir -p $(printf '%q' "$directory") && tar -xzf $archive -C $(printf '%q' "$directory")"
  on_all_workers "python3 -m venv .venv && .venv/bin/pip install --quiet --editable '.[tpu]'"
fi
if [ $# -gt 0 ]; then
  on_all_workers "$(printf '%q ' .venv/bin/python -m launch.train --distributed "$@")"
elif ! $install; then
  echo 'launch/tpu/train.sh: nothing to do: give the options of launch.train after --, or --install' >&2
  exit 2
fi
