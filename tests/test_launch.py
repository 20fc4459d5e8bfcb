"""The launchers, by what they would run."""

import pathlib
import shlex
import subprocess

import pytest
import runs
import yaml

TRAIN = ["--config=configs/so400m.py", "--config.data.path=it's here"]
BUCKET = [*TRAIN, "--workdir=gs://bucket/run"]
FLAGS = {
  "tpu_vm": ["--name=run", "--zone=us-west4-a", "--type=v5litepod-256"],
  "gke": [
    "--name=run",
    "--image=registry/big_siglip:1",
    "--accelerator=tpu-v5-lite-podslice",
    "--topology=16x16",
  ],
  "slurm": ["--name=run", "--nodes=2", "--gpus_per_node=8", "--time=1:00:00"],
}


def _launch(name, *flags, train=BUCKET, env=None):
  done = subprocess.run(
    [runs.ROOT / "tools" / "launch" / f"{name}.sh", *flags, "--", *train],
    capture_output=True,
    text=True,
    env=env,
    timeout=60,
  )
  return done.returncode, done.stdout, done.stderr


def _dry(name, *flags, **options):
  status, output, message = _launch(
    name, *FLAGS[name], *flags, "--dry_run", **options
  )
  assert status == 0, message
  return output


def test_tpu_vm_makes_a_slice_trains_and_deletes_it():
  commands = [
    shlex.split(line) for line in _dry("tpu_vm", "--spot").splitlines()
  ]
  verbs = [c[4] if c[0] == "gcloud" else c[0] for c in commands]
  assert verbs == ["create", "git", "scp", "ssh", "ssh", "delete"]
  assert "--spot" in commands[0]
  for command in commands[2:5]:
    assert "--worker=all" in command
  (train,) = (x for x in commands[4] if x.startswith("--command="))
  # What the workers' shell makes of it.
  words = shlex.split(train.split("&&")[1])
  assert words[:2] == [".venv/bin/python", "main.py"]
  assert words[2:] == [*BUCKET, "--config.distributed=True"]


def test_tpu_vm_starts_again_until_the_program_ends_well(tmp_path):
  # gcloud as a script: the slice is there, the first two tries fail.
  log = tmp_path / "log"
  gcloud = tmp_path / "gcloud"
  gcloud.write_text(
    "#!/usr/bin/env bash\n"
    f'echo "$4" >> {log}\n'
    'case "$4" in\n'
    "  describe) echo READY ;;\n"
    f"  ssh) (($(grep -c ssh {log}) > 2)) || exit 75 ;;\n"
    "esac\n"
  )
  gcloud.chmod(0o755)
  env = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
  status, _, message = _launch("tpu_vm", *FLAGS["tpu_vm"], env=env)
  assert status == 0, message
  assert message.count("starting again") == 2
  assert log.read_text().split() == ["describe", "ssh"] * 3 + ["delete"]


def test_gke_prints_a_job_set():
  made = yaml.safe_load(_dry("gke", "--slices=2"))
  assert made["kind"] == "JobSet"
  (jobs,) = made["spec"]["replicatedJobs"]
  assert jobs["replicas"] == 2
  job = jobs["template"]["spec"]
  assert job["parallelism"] == job["completions"] == 64
  pod = job["template"]["spec"]
  (container,) = pod["containers"]
  assert container["command"] == ["python", "main.py"]
  assert container["args"] == [
    *BUCKET,
    "--config.distributed=True",
    "--config.mesh.slices=2",
  ]
  assert container["resources"]["limits"]["google.com/tpu"] == 4
  assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "16x16"


def test_slurm_prints_a_job_that_bash_can_read():
  job = _dry("slurm", "--chain=3", "--partition=gpu")
  assert "#SBATCH --ntasks-per-node=8" in job
  assert "#SBATCH --dependency=singleton" in job
  assert "#SBATCH --partition=gpu" in job
  subprocess.run(["bash", "-n"], input=job, text=True, check=True)
  (line,) = (x for x in job.splitlines() if x.startswith("srun"))
  assert shlex.split(line)[2:] == [
    ".venv/bin/python",
    "main.py",
    *BUCKET,
    "--config.distributed=True",
  ]


@pytest.mark.parametrize("name", sorted(FLAGS))
def test_a_mistake_is_one_line(name):
  for flags, train, said in [
    ([], BUCKET, "--name must be given"),
    ([*FLAGS[name], "--colour=red"], BUCKET, "--colour=red: unknown; known:"),
    (FLAGS[name], TRAIN, "must be among main.py's flags"),
  ]:
    status, output, message = _launch(name, *flags, train=train)
    assert (status, output) == (2, "")
    assert said in message
    assert len(message.splitlines()) == 1


def test_every_launcher_is_tested():
  folder = pathlib.Path(runs.ROOT, "tools", "launch")
  assert {path.stem for path in folder.glob("*.sh")} == set(FLAGS)
