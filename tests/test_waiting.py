"""What takes long says so."""

import io
import threading

import jax
import jax.numpy as jnp
import pytest

from big_siglip.run.waiting import told


class _Stream(io.StringIO):
  """Notes that a second word came, which only the thread can have said."""

  def __init__(self, terminal=False):
    super().__init__()
    self.terminal, self.words, self.spoken = terminal, 0, threading.Event()

  def isatty(self):
    return self.terminal

  def write(self, text):
    self.words += 1
    if self.words > 1:
      self.spoken.set()
    return super().write(text)


def test_a_line_now_and_then_and_how_long_it_took():
  stream = _Stream()
  with told("compiling", every=0.001, stream=stream):
    assert stream.spoken.wait(60)
  first, *between, last = stream.getvalue().splitlines()
  assert first == "compiling ..."
  assert between and all(x.startswith("compiling ... ") for x in between)
  assert last.startswith("compiling: took ")


def test_a_terminal_keeps_one_line():
  stream = _Stream(terminal=True)
  with told("compiling", stream=stream):
    assert stream.spoken.wait(60)
  assert stream.getvalue().count("\n") == 1
  assert stream.getvalue().startswith("\rcompiling ...\rcompiling ... 1 s")


def test_what_fails_took_nothing_to_an_end():
  stream = _Stream()
  with pytest.raises(RuntimeError), told("compiling", stream=stream):
    raise RuntimeError
  assert "compiling: stopped after " in stream.getvalue().splitlines()[-1]
  assert "told" not in {thread.name for thread in threading.enumerate()}


def test_a_stream_that_is_closed_ends_nothing():
  class Closed(io.StringIO):
    def write(self, text):
      raise BrokenPipeError

  with told("compiling", stream=Closed()):
    pass


def test_the_compiler_lets_it_speak():
  def deep(x):
    for _ in range(60):
      x = jnp.sin(x) @ x
    return x

  stream = _Stream()
  lowered = jax.jit(jax.grad(lambda x: deep(x).sum())).lower(jnp.ones((8, 8)))
  with told("compiling", every=0.001, stream=stream):
    lowered.compile()
    assert stream.spoken.is_set(), "the compiler held the interpreter"
