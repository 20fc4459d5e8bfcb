"""A user's mistake is one clear line and exit status 2, without a trace."""

import os
import pathlib
import subprocess
import sys

from PIL import Image
import programs
import pytest
import runs

from big_siglip import command_line, loop
from big_siglip.errors import exit_on_error

TOO_MANY_STEPS = "at most config.total_steps=60"


def _error(capsys, workdir, arguments, config=runs.CONFIG):
  """Returns what the program says, as main.py calls its parts."""
  runs.scratch()
  with pytest.raises(SystemExit) as end, exit_on_error():
    loop.train(command_line.load_config(config, arguments), workdir)
  assert end.value.code == 2
  return _one_message(capsys.readouterr().err)


def _one_message(text):
  assert "Traceback" not in text
  assert text.count("error: ") == 1
  return text[text.index("error: ") :]


@pytest.fixture(autouse=True)
def _own_signals():
  import signal

  numbers = (signal.SIGINT, signal.SIGTERM)
  handlers = [signal.getsignal(number) for number in numbers]
  yield
  for number, handler in zip(numbers, handlers, strict=True):
    signal.signal(number, handler)


@pytest.mark.parametrize(
  ("field", "value", "said"),
  [
    ("batch_sise", 8, "did you mean 'batch_size'"),
    ("batch_size", "many", "config.batch_size"),
    ("batch_size", 12, "divisible by the 8 devices"),
    ("mesh.fsdp", 3, "must cover exactly the 8 devices"),
    ("model.image.image_size", 20, "multiple of the patch size, 8"),
    ("model.image.num_heads", 5, "must divide the width, 32"),
    ("model.text.vocab_size", 100, "must be at least 259"),
    ("optimizer.warmup_steps", 61, TOO_MANY_STEPS),
    ("optimizer.schedule", "step", "must be one of cosine"),
    ("data.name", "letters", "must be one of digits, scenes"),
    ("data.name", "folder", "data.path"),
    ("evals.test.data", "letters", "config.evals.test.data='letters': must be"),
    ("evals.test.path", "/dev/null", "config.evals.test.path='/dev/null'"),
    ("data.text_keys", "(('a',1e999),)", "above 0, and finite"),
    ("data.split", "dev", "must be one of train, test"),
    ("evals.test.split", "dev", "config.evals.test.split='dev': must be one"),
    ("data.tokenizer", "no/such.model", "no such file"),
    ("data.tokenizer", str(runs.ROOT / "main.py"), "not a SentencePiece"),
  ],
)
def test_a_wrong_value_is_named(capsys, tmp_path, field, value, said):
  arguments = [*runs.overrides(), f"--config.{field}={value}"]
  message = _error(capsys, str(tmp_path / "run"), arguments)
  assert said in message
  assert str(value) in message or field in message
  assert len(message.splitlines()) == 1
  assert not (tmp_path / "run").exists()


def test_several_mistakes_are_told_at_once(capsys, tmp_path):
  arguments = [
    *runs.overrides(model__image__num_heads=5, total_steps=0),
    "--config.batch_sise=8",
    "--config.log_every=soon",
  ]
  message = _error(capsys, str(tmp_path), arguments)
  for field in ("num_heads", "total_steps", "batch_sise", "log_every"):
    assert field in message
  assert "mistakes:" in message


def _folder_data(tmp_path, captions, image="a.png"):
  (tmp_path / "captions.csv").write_text(captions)
  Image.new("RGB", (8, 8)).save(tmp_path / image)
  return [
    *runs.overrides(data__name="folder", data__path=tmp_path),
    "--config.data.split=all",
  ]


@pytest.mark.parametrize(
  ("captions", "said"),
  [
    ("image,caption\n", "has no rows, so the data set is empty"),
    ("image,size\na.png,3\n", "missing column caption"),
    ("image,caption\na.png,one\nb.png,two\n", "line 3: no image 'b.png'"),
    ("image,caption\na.png,\n", "line 2: caption must be text"),
  ],
)
def test_a_wrong_caption_file_is_named(capsys, tmp_path, captions, said):
  arguments = _folder_data(tmp_path, captions)
  message = _error(capsys, str(tmp_path / "run"), arguments)
  assert said in message and "captions.csv" in message
  assert len(message.splitlines()) == 1


def test_a_folder_that_does_not_exist_is_named(capsys, tmp_path):
  arguments = runs.overrides(data__name="folder", data__path=tmp_path / "no")
  assert "no such folder" in _error(capsys, str(tmp_path / "run"), arguments)


def _config_with(tmp_path, line):
  text = pathlib.Path(runs.CONFIG).read_text()
  file = tmp_path / "changed.py"
  file.write_text(text.replace("  return c\n", f"  {line}\n  return c\n"))
  return str(file)


@pytest.mark.parametrize(
  ("rules", "said"),
  [
    ('(("imaje/.*", {"freeze": True}),)', "matches no parameter"),
    ('(("image/.*", {"freez": True}),)', "unknown option freez"),
    ('((".*", {"freeze": True}),)', "freeze every parameter"),
  ],
)
def test_a_rule_that_cannot_be_meant_is_named(capsys, tmp_path, rules, said):
  config = _config_with(tmp_path, f"c.optimizer.rules = {rules}")
  arguments = runs.overrides()
  assert said in _error(capsys, str(tmp_path / "run"), arguments, config)


def test_a_workdir_of_another_config_names_the_fields(capsys, tmp_path):
  from big_siglip.run import workdir

  workdir.claim(str(tmp_path), runs.config())
  (tmp_path / "checkpoints" / "5").mkdir(parents=True)  # It has trained.
  arguments = runs.overrides(seed=1, optimizer__learning_rate=0.5)
  message = _error(capsys, str(tmp_path), arguments)
  assert "config.seed: 0 -> 1" in message
  assert "config.optimizer.learning_rate: 0.001 -> 0.5" in message


def test_a_workdir_that_cannot_be_written_is_named(capsys, tmp_path):
  # A file in its place: even root cannot write below that.
  (tmp_path / "file").write_text("")
  message = _error(capsys, str(tmp_path / "file" / "run"), runs.overrides())
  assert "--workdir=" in message


@pytest.mark.parametrize(
  ("arguments", "said"),
  [
    (["--config=configs/no.py"], "--config=configs/no.py: no such file"),
    ([], "--config=NAME or --config=FILE.py must be given (by name: b16,"),
    (["--config=configs/digits.py", "--workdri=x"], "workdri"),
    (["--config=configs/digits.py:seed=x"], "config.seed"),
    (["--config=configs/digits.py", "runs"], "unexpected argument 'runs'"),
  ],
)
def test_the_program_itself_ends_with_a_line(arguments, said):
  assert said in programs.said_in_one_line("main.py", *arguments)


def test_a_forgotten_workdir_is_named():
  status, text = programs.train("")
  assert status == 2
  assert "--workdir=DIR must be given" in _one_message(text)


def test_a_pipe_that_broke_elsewhere_is_no_end_of_output():
  """A worker process that died must not look like a run that is done."""
  with pytest.raises(BrokenPipeError), exit_on_error():
    raise BrokenPipeError


def test_a_reader_who_has_seen_enough_is_no_failure(monkeypatch):
  reader, writer = os.pipe()
  os.close(reader)
  with os.fdopen(writer, "w") as output:
    monkeypatch.setattr(sys, "stdout", output)
    with pytest.raises(SystemExit) as end, exit_on_error():
      print("Buffered until the end.")
  assert end.value.code == 0


@pytest.mark.parametrize(
  ("last", "status"), [("", 0), ("raise errors.UserError('wrong')", 2)]
)
def test_messages_that_nobody_reads_change_no_status(last, status):
  """Python would try to write them once more at its end, and return 120."""
  program = f"""
import sys
from big_siglip import errors, progress
sys.stdin.read()
with errors.exit_on_error(), progress.speaking():
  progress.say("compiling ...")
  {last}
"""
  process = subprocess.Popen(
    [sys.executable, "-c", program],
    stdin=subprocess.PIPE,
    stderr=subprocess.PIPE,
  )
  process.stderr.close()
  process.stdin.close()
  assert process.wait(timeout=60) == status
