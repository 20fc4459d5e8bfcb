#!/usr/bin/env bash
# Trains on TPU slices of Google Kubernetes Engine, as a JobSet.
#
#   tools/launch/gke.sh --name=NAME --image=IMAGE --accelerator=tpu-v5-lite-podslice \
#     --topology=16x16 [--chips_per_host=4] [--slices=1] [--namespace=default] \
#     [--service_account=NAME] [--restarts=100] [--dry_run] \
#     -- --config=configs/so400m.py --workdir=gs://BUCKET/RUN
#
# IMAGE holds the repository in /big_siglip, installed (tools/launch/Dockerfile
# builds it). The cluster needs the JobSet controller. When a host is lost all
# start again, and resume from the last checkpoint in --workdir. --dry_run prints
# the manifest and applies nothing.
set -euo pipefail

die() { echo "error: $1" >&2; exit 2; }

name='' image='' accelerator='' topology='' chips_per_host=4 slices=1
namespace=default service_account=default restarts=100 dry_run=false
while (($#)); do
  case $1 in
    --name=*) name=${1#*=} ;;
    --image=*) image=${1#*=} ;;
    --accelerator=*) accelerator=${1#*=} ;;
    --topology=*) topology=${1#*=} ;;
    --chips_per_host=*) chips_per_host=${1#*=} ;;
    --slices=*) slices=${1#*=} ;;
    --namespace=*) namespace=${1#*=} ;;
    --service_account=*) service_account=${1#*=} ;;
    --restarts=*) restarts=${1#*=} ;;
    --dry_run) dry_run=true ;;
    --) shift; break ;;
    *) die "$1: unknown; known: --name --image --accelerator --topology --chips_per_host --slices --namespace --service_account --restarts --dry_run, then -- and main.py's flags" ;;
  esac
  shift
done
for flag in name image accelerator topology; do
  [[ -n ${!flag} ]] || die "--$flag must be given"
done
for flag in chips_per_host slices restarts; do
  [[ ${!flag} =~ ^[0-9]+$ ]] || die "--$flag=${!flag}: must be a whole number"
done
[[ $name =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ ]] || die "--name=$name: must be lower-case letters, digits and hyphens"
[[ $topology =~ ^[0-9]+(x[0-9]+)+$ ]] || die "--topology=$topology: must be sizes joined by x, such as 16x16"
[[ " $* " == *" --workdir=gs://"* ]] || die "--workdir=gs://BUCKET/RUN must be among main.py's flags: a pod's own disk goes with it"

chips=$((${topology//x/*}))
hosts=$(((chips + chips_per_host - 1) / chips_per_host))
((chips_per_host <= chips)) || chips_per_host=$chips

quoted() {  # As a YAML string in single quotes.
  printf "'%s'" "${1//\'/\'\'}"
}
arguments() {
  local argument
  for argument in "$@" --config.distributed=True --config.mesh.slices="$slices"; do
    printf '              - %s\n' "$(quoted "$argument")"
  done
}
manifest() {
  cat <<YAML
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $name
  namespace: $namespace
  annotations:
    # A slice to each of the jobs alone.
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
spec:
  failurePolicy:
    maxRestarts: $restarts
  replicatedJobs:
  - name: slice
    replicas: $slices
    template:
      spec:
        parallelism: $hosts
        completions: $hosts
        completionMode: Indexed
        backoffLimit: 0
        template:
          spec:
            restartPolicy: Never
            serviceAccountName: $service_account
            hostNetwork: true
            dnsPolicy: ClusterFirstWithHostNet
            # SIGTERM saves; then the process ends by itself.
            terminationGracePeriodSeconds: 120
            nodeSelector:
              cloud.google.com/gke-tpu-accelerator: $accelerator
              cloud.google.com/gke-tpu-topology: $topology
            containers:
            - name: train
              image: $image
              workingDir: /big_siglip
              command: [python, main.py]
              args:
$(arguments "$@")
              resources:
                limits:
                  google.com/tpu: $chips_per_host
YAML
}

if $dry_run; then
  manifest "$@"
else
  manifest "$@" | kubectl apply -f -
fi
