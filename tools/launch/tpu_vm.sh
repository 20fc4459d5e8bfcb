#!/usr/bin/env bash
# Trains on a TPU pod slice of Google Cloud, and goes on after preemptions.
#
#   tools/launch/tpu_vm.sh --name=NAME --zone=ZONE --type=v5litepod-256 \
#     [--project=ID] [--version=v2-alpha-tpuv5-lite] [--spot] [--restarts=100] \
#     [--keep] [--dry_run] -- --config=configs/so400m.py --workdir=gs://BUCKET/RUN
#
# Makes the slice where it does not exist, copies the committed code to every
# worker, installs it and starts main.py on all of them. When the slice is
# preempted it is made anew; when a worker fails the program starts again, and
# resumes from the last checkpoint in --workdir. The slice is deleted at the end
# unless --keep is given. --dry_run prints the commands and runs none.
set -euo pipefail

die() { echo "error: $1" >&2; exit 2; }

name='' zone='' type='' project='' version=v2-alpha-tpuv5-lite
spot=false restarts=100 keep=false dry_run=false
while (($#)); do
  case $1 in
    --name=*) name=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --type=*) type=${1#*=} ;;
    --project=*) project=${1#*=} ;;
    --version=*) version=${1#*=} ;;
    --restarts=*) restarts=${1#*=} ;;
    --spot) spot=true ;;
    --keep) keep=true ;;
    --dry_run) dry_run=true ;;
    --) shift; break ;;
    *) die "$1: unknown; known: --name --zone --type --project --version --restarts --spot --keep --dry_run, then -- and main.py's flags" ;;
  esac
  shift
done
for flag in name zone type; do
  [[ -n ${!flag} ]] || die "--$flag must be given"
done
[[ $restarts =~ ^[0-9]+$ ]] || die "--restarts=$restarts: must be a whole number"
[[ " $* " == *" --workdir=gs://"* ]] || die "--workdir=gs://BUCKET/RUN must be among main.py's flags: the slice's own disks go with it"

place=(--zone="$zone")
[[ -z $project ]] || place+=(--project="$project")
printf -v train '%q ' .venv/bin/python main.py "$@" --config.distributed=True
archive=big_siglip.tar.gz
install="rm -rf big_siglip && mkdir big_siglip && tar -xzf $archive -C big_siglip \
&& cd big_siglip && python3 -m venv .venv \
&& .venv/bin/pip install --quiet -c constraints.txt -e '.[fast,gs,parquet,tfds,tpu]'"

run() {
  if $dry_run; then printf '%q ' "$@"; echo; else "$@"; fi
}
tpu() { run gcloud compute tpus tpu-vm "$@" "${place[@]}"; }
state() {
  $dry_run && return
  gcloud compute tpus tpu-vm describe "$name" "${place[@]}" \
    --format='value(state)' 2>/dev/null || true
}
create() {
  local flags=(--accelerator-type="$type" --version="$version")
  if $spot; then flags+=(--spot); fi
  tpu create "$name" "${flags[@]}"
  run git archive --format=tar.gz --output="$archive" HEAD
  tpu scp "$archive" "$name:" --worker=all
  tpu ssh "$name" --worker=all --command="$install"
}

for ((try = 0; try <= restarts; try++)); do
  now=$(state)
  if [[ $now != READY ]]; then
    if [[ -n $now ]]; then tpu delete "$name" --quiet; fi
    create || { sleep 60; continue; }  # No capacity: ask again.
  fi
  status=0
  # What may be left of an earlier try holds the chips.
  tpu ssh "$name" --worker=all \
    --command="pkill -x python; cd big_siglip && $train" || status=$?
  if ((status == 0)); then
    if ! $keep; then tpu delete "$name" --quiet; fi
    exit 0
  fi
  ((status != 2)) || die "main.py names a mistake above; the slice $name is kept"
  echo "try $try ended with status $status; starting again" >&2
done
echo "error: gave up after $restarts restarts; the slice $name is kept" >&2
exit 1
