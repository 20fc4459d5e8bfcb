#!/usr/bin/env bash
# Trains on the GPUs of a SLURM cluster.
#
#   tools/launch/slurm.sh --name=NAME --nodes=4 --gpus_per_node=8 --time=24:00:00 \
#     [--partition=P] [--account=A] [--cpus_per_gpu=12] [--chain=1] [--python=.venv/bin/python] \
#     [--dry_run] -- --config=configs/so400m.py --workdir=/shared/runs/RUN
#
# One process for each GPU; they find each other through SLURM. Two minutes
# before the time is over SLURM sends SIGTERM: the run saves and ends. --chain=N
# queues N such jobs, one after the other, each of which resumes; so does a job
# that SLURM queues again after a lost node. --dry_run prints the job and submits
# nothing.
set -euo pipefail

die() { echo "error: $1" >&2; exit 2; }

name='' nodes='' gpus_per_node='' time='' partition='' account=''
cpus_per_gpu=12 chain=1 python=.venv/bin/python dry_run=false
while (($#)); do
  case $1 in
    --name=*) name=${1#*=} ;;
    --nodes=*) nodes=${1#*=} ;;
    --gpus_per_node=*) gpus_per_node=${1#*=} ;;
    --time=*) time=${1#*=} ;;
    --partition=*) partition=${1#*=} ;;
    --account=*) account=${1#*=} ;;
    --cpus_per_gpu=*) cpus_per_gpu=${1#*=} ;;
    --chain=*) chain=${1#*=} ;;
    --python=*) python=${1#*=} ;;
    --dry_run) dry_run=true ;;
    --) shift; break ;;
    *) die "$1: unknown; known: --name --nodes --gpus_per_node --time --partition --account --cpus_per_gpu --chain --python --dry_run, then -- and main.py's flags" ;;
  esac
  shift
done
for flag in name nodes gpus_per_node time; do
  [[ -n ${!flag} ]] || die "--$flag must be given"
done
for flag in nodes gpus_per_node cpus_per_gpu chain; do
  [[ ${!flag} =~ ^[1-9][0-9]*$ ]] || die "--$flag=${!flag}: must be a whole number from 1"
done
[[ " $* " == *" --workdir="* ]] || die "--workdir=DIR, which all nodes share, must be among main.py's flags"

printf -v train '%q ' "$python" main.py "$@" --config.distributed=True
job() {
  cat <<JOB
#!/usr/bin/env bash
#SBATCH --job-name=$name
#SBATCH --nodes=$nodes
#SBATCH --ntasks-per-node=$gpus_per_node
#SBATCH --gpus-per-node=$gpus_per_node
#SBATCH --cpus-per-task=$cpus_per_gpu
#SBATCH --time=$time
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=$name-%j.log
JOB
  [[ -z $partition ]] || echo "#SBATCH --partition=$partition"
  [[ -z $account ]] || echo "#SBATCH --account=$account"
  # Jobs of one name run one after the other.
  ((chain == 1)) || echo "#SBATCH --dependency=singleton"
  cat <<JOB
srun --kill-on-bad-exit=1 $train
status=\$?
# A lost process: the same job again, on other nodes where need be.
[[ \$status -ne 75 ]] || scontrol requeue "\$SLURM_JOB_ID"
exit \$status
JOB
}

if $dry_run; then
  job "$@"
  echo "# submitted $chain times, with: sbatch" >&2
else
  for ((i = 0; i < chain; i++)); do job "$@" | sbatch; done
fi
