"""What takes long says so."""

import io
import json
import re
import threading
import types

import jax
import jax.numpy as jnp
import pytest

from big_siglip import bars, durations, progress
from big_siglip.data import vocabulary


class _Stream(io.StringIO):
  """Notes that a second word came, which only the thread can have said."""

  def __init__(self, terminal=False):
    super().__init__()
    self.terminal, self.words, self.spoken = terminal, 0, threading.Event()

  def isatty(self):
    return self.terminal

  def write(self, text):
    self.words += 1
    if self.words > 2:
      self.spoken.set()
    return super().write(text)


@pytest.fixture
def stream(monkeypatch):
  """Standard error; a program speaks there, as often as it can."""
  stream = _Stream()
  _listen(monkeypatch, stream)
  monkeypatch.setattr(progress, "_QUICK", 0.0)
  monkeypatch.setattr(progress, "_SILENCE", 0.001)
  monkeypatch.setattr(progress, "_REFRESH", 0.001)
  with progress.speaking():
    yield stream


def _listen(monkeypatch, stream):
  # Between a fixture and its test pytest puts its own stream into `sys`.
  for module in (bars, progress):
    monkeypatch.setattr(module, "sys", types.SimpleNamespace(stderr=stream))


def test_a_line_now_and_then(stream):
  with progress.waiting("compiling"):
    assert stream.spoken.wait(60)
  first, *between = stream.getvalue().splitlines()
  assert first.startswith("compiling ...")
  assert between and all(x.startswith("compiling ... ") for x in between)


def test_a_terminal_keeps_one_line(stream):
  stream.terminal = True
  with progress.waiting("compiling"):
    assert stream.spoken.wait(60)
  assert "\n" not in stream.getvalue()
  assert stream.getvalue().lstrip().startswith("compiling ... 0 s")


def test_what_is_over_at_once_needs_no_word(stream, monkeypatch):
  monkeypatch.setattr(progress, "_QUICK", 1000.0)
  with progress.waiting("compiling", key="unknown"):
    pass
  assert not stream.getvalue()


def test_what_fails_took_nothing_to_an_end(stream, monkeypatch):
  now = iter(range(0, 10**6, 10))
  monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
  with pytest.raises(RuntimeError), progress.waiting("compiling"):
    raise RuntimeError
  assert "compiling: stopped after " in stream.getvalue().splitlines()[-1]
  assert "progress" not in {thread.name for thread in threading.enumerate()}


def test_it_says_how_long_it_took_last_time(stream, monkeypatch, tmp_path):
  monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", "true")
  monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "cache"))
  with pytest.raises(RuntimeError), progress.waiting("compiling", key="b16"):
    raise RuntimeError
  assert durations.last("b16") is None, "it was not done"
  with progress.waiting("compiling", key="b16"):
    pass
  assert durations.last("b16") == 0.0
  durations.note("b16", 30.4)
  with progress.waiting("compiling", key="b16"):
    stream.spoken.wait(60)
  assert "compiling (30 s last time) ..." in stream.getvalue()
  (tmp_path / "cache" / "durations.json").write_text("[")
  assert durations.last("b16") is None, "of a damaged file nothing"


def test_the_newest_durations_are_kept(monkeypatch, tmp_path):
  monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", "true")
  monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))
  monkeypatch.setattr(durations, "_KEPT", 2)
  for key in ("a", "b", "a", "c"):
    durations.note(key, 1.0)
  assert list(json.loads((tmp_path / "durations.json").read_text())) == [
    "a",
    "c",
  ]


def test_a_cache_that_cannot_be_written_ends_nothing(monkeypatch, tmp_path):
  monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", "true")
  (tmp_path / "file").touch()
  monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "file" / "a"))
  durations.note("b16", 30.0)
  assert durations.last("b16") is None


def test_where_the_cache_lies(monkeypatch):
  for name in ("JAX_ENABLE_COMPILATION_CACHE", "XDG_CACHE_HOME"):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setenv("HOME", "/home/ada")
  folder = str(durations.cache_folder())
  assert folder.startswith("/home/ada/.cache/big_siglip/compiled/")
  monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
  folder = str(durations.cache_folder())
  assert folder.startswith("/caches/big_siglip/compiled/")
  monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/elsewhere")
  assert str(durations.cache_folder()) == "/elsewhere"
  monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", "0")
  assert durations.cache_folder() is None


def test_a_stream_that_is_closed_ends_nothing(stream, monkeypatch):
  class Closed(io.StringIO):
    def write(self, text):
      raise BrokenPipeError

  for closed in (Closed(), None):
    _listen(monkeypatch, closed)
    progress.say("hello")
    with progress.waiting("compiling"), progress.Progress(2, "images") as show:
      show.add(1)


def test_progress_says_how_fast_and_how_long(stream, monkeypatch):
  now = [0.0]
  monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
  show = progress.Progress(2000, "images", done=100)
  assert show.line() == "100 of 2000 images"
  now[0] = 50.0  # Of these most went into compiling.
  show.add(64)
  assert show.line() == "164 of 2000 images"
  now[0] = 60.0
  show.add(320)
  assert show.line() == "484 of 2000 images, 32.0 a second, 47 s left"
  show.add(1516)
  assert show.line() == "2000 of 2000 images, 183.6 a second"
  show.close()


def test_progress_speaks_though_nothing_moves(stream):
  with progress.Progress(None, "images") as show:
    show.add(3)
    stream.spoken.wait(60)
  assert "3 images\n" in stream.getvalue()


def test_the_innermost_alone_speaks(stream):
  with progress.Progress(7, "images"), progress.waiting("compiling"):
    stream.spoken.wait(60)
    said = stream.getvalue()[stream.getvalue().index("compiling") :]
  assert "of 7 images" not in said


def test_a_bar_on_a_terminal_makes_room_for_lines(stream):
  stream.terminal = True
  with progress.Progress(4, "images") as show:
    show.add(3)
    stream.spoken.wait(60)
    progress.say("skipped: a.jpg")
  text = stream.getvalue()
  assert re.search(r"(^|\r) *\rskipped: a.jpg\n", text), repr(text)
  assert "75%" in text and "3/4" in text and text.endswith("\n")


def test_nobody_asked(stream):
  with progress.speaking(False):
    progress.say("hello")
    with progress.waiting("compiling"):
      pass
    with progress.Progress(2, "images") as show:
      show.add(1)
  assert not stream.getvalue()


def test_durations_in_words():
  assert progress.in_words(0.4) == "0 s"
  assert progress.in_words(99.6) == "2 min"
  assert progress.in_words(12_000) == "3 h 20 min"


def test_the_compiler_lets_it_speak(stream):
  def deep(x):
    for _ in range(60):
      x = jnp.sin(x) @ x
    return x

  lowered = jax.jit(jax.grad(lambda x: deep(x).sum())).lower(jnp.ones((8, 8)))
  with progress.waiting("compiling"):
    lowered.compile()
    assert stream.spoken.is_set(), "the compiler held the interpreter"


def test_what_lasts_for_long_speaks_seldom(stream, monkeypatch):
  monkeypatch.setattr(progress, "_LONG", -1.0)
  monkeypatch.setattr(progress, "_SELDOM", 1000.0)
  with progress.waiting("training"):
    assert not stream.spoken.wait(0.05)
  assert stream.getvalue().startswith("training ...")


def test_libraries_that_load_at_once_need_no_word(stream, monkeypatch):
  monkeypatch.setattr(progress, "_SILENCE", 1000.0)
  with progress.loading():
    assert not stream.spoken.wait(0.05)
  assert not stream.getvalue()


def test_a_pass_over_captions_says_how_far_it_is(stream):
  source = [types.SimpleNamespace(texts=["a dog", ""])] * 3
  captions = vocabulary.Captions(source, "none", True)
  for _ in captions:
    stream.spoken.wait(60)
  assert "of 3 examples" in stream.getvalue()
  assert (captions.count, captions.skipped) == (3, 3)


def test_a_key_holds_all_that_a_duration_depends_on():
  keys = {durations.key("step", {"b": 1, "a": n}) for n in (1, 2)}
  assert len(keys) == 2 and all(key.startswith("step ") for key in keys)
  assert durations.key("step", {"a": 1, "b": 1}) in keys
