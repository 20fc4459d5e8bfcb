"""Which compiled programs are kept, and where."""

import jax
import pytest

from big_siglip import platforms


@pytest.fixture
def as_it_was():
  """JAX's settings are put back."""
  before = {k: v for k, v in jax.config.values.items() if "cache" in k}
  yield
  for name, value in before.items():
    jax.config.update(name, value)


@pytest.fixture
def switched_on(as_it_was, monkeypatch, tmp_path):
  monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", "true")
  monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "a" / "b"))
  return tmp_path / "a" / "b"


def test_several_cpu_devices_read_no_programs(switched_on):
  """They would wait for each other for ever."""
  jax.config.update("jax_enable_compilation_cache", True)
  platforms.keep_programs()
  assert not jax.config.jax_enable_compilation_cache
  assert not switched_on.exists()


def test_one_device_keeps_its_programs(switched_on, monkeypatch):
  monkeypatch.setattr(jax, "device_count", lambda: 1)
  platforms.keep_programs()
  assert jax.config.jax_compilation_cache_dir == str(switched_on)
  assert jax.config.jax_compilation_cache_max_size == 2 * 2**30
  assert switched_on.is_dir()


def test_nothing_is_kept_where_it_cannot_be(switched_on, monkeypatch):
  monkeypatch.setattr(jax, "device_count", lambda: 1)
  switched_on.parent.touch()
  platforms.keep_programs()
  assert jax.config.jax_compilation_cache_dir is None
  switched_on.parent.unlink()
  monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", "false")
  platforms.keep_programs()
  assert jax.config.jax_compilation_cache_dir is None
  assert not switched_on.exists()
