"""PyTorch and transformers, which the first test that needs one loads.

They take seconds and half a gigabyte, so that one process of several is enough
to have them: tests that load either, also by webdataset, are marked with
`torch`, and conftest.py puts these first.
"""

import importlib
import importlib.util

import pytest


class _Later:
  """A module that is imported when something of it is asked for."""

  def __init__(self, name):
    if importlib.util.find_spec(name) is None:
      pytest.skip(f"{name} is not installed", allow_module_level=True)
    self._name = name

  def __getattr__(self, name):
    if name.startswith("_"):  # pytest asks every name of a module for such.
      raise AttributeError(name)
    return getattr(importlib.import_module(self._name), name)


torch = _Later("torch")
transformers = _Later("transformers")
