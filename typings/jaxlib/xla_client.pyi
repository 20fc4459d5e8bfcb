# jaxlib says no types of its compiled part, where jax.Device comes from.
from typing import Any

def __getattr__(name: str) -> Any: ...

class Device:
  id: int
  process_index: int
  platform: str
  device_kind: str
  client: Any
  def __getattr__(self, name: str) -> Any: ...
