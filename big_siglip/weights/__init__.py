"""Other projects' weights, in and out, without losing a bit.

`open_weights` says what a file or folder holds; `read_params` turns it into our
parameters; `huggingface`, `big_vision` and `open_clip` hold each one's names.
"""

from big_siglip.weights.formats import open_weights, Weights
from big_siglip.weights.rules import read_params, write_params

__all__ = ["open_weights", "read_params", "Weights", "write_params"]
