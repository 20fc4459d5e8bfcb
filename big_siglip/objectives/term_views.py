"""What terms of the loss want of the examples: views beside the plain ones.

They are apart from the terms, whose program knows no data.
"""

from collections.abc import Mapping
import functools
from typing import Any

from big_siglip.data.box_reading import Reader
from big_siglip.data.targets import Writer
from big_siglip.data.text import Tokenizer
from big_siglip.data.views import Crops, CutTargets, Patches, Pixels, Targets
from big_siglip.objectives import captioning, distillation


def make_writer(
  spec: Mapping[str, Any], model: Any, tokenizer: Tokenizer
) -> Writer:
  """Returns what writes the sequences of a section, and reads them."""
  return Writer(
    tokenizer,
    model.text.vocab_size,
    captioning.length_of(spec, model),
    spec["boxes"],
    spec["bins"],
    tuple(spec["prefixes"]),
  )


def of_captioning(
  name: str,
  spec: Mapping[str, Any],
  config: Any,
  tokenizer: Tokenizer | None,
  pixels: Pixels | Patches | None,
) -> Targets:
  """Returns the view that a section needs.

  Args:
    name: of the section.
    spec: the section.
    config: the config.
    tokenizer: of the run; None where the view's fields alone are wanted.
    pixels: the view of the images; None as well.

  Raises:
    UserError: the tokenizer or the length do not suffice for its tasks, or
      `config.data.fields` has no boxes for them.
  """
  tasks, length = (
    captioning.tasks_of(spec),
    captioning.length_of(spec, config.model),
  )
  if tokenizer is None:
    return Targets(None, tasks, length)
  writer, section = make_writer(spec, config.model, tokenizer), f"terms.{name}"
  writer.check(tasks, f"config.{section}")
  boxed = [task for task in tasks if task != "caption"]
  if not boxed or pixels is None:
    return Targets(writer, tasks, length)
  asked = f"config.{section}.{boxed[0]}={spec[boxed[0]]}"
  reader = Reader.of(config.data, asked)
  if pixels.is_whole and reader.format == "yxyx":
    return Targets(writer, tasks, length, pixels, reader)
  return CutTargets(writer, tasks, length, pixels, reader)


def of_distillation(spec: Mapping[str, Any], model: Any) -> list[Crops]:
  """Returns the crops that a section asks for.

  Args:
    spec: the section, of kind "distillation".
    model: `config.model`.
  """
  make = functools.partial(Crops, flip=spec["flip"], resize=spec["resize"])
  size, area = model.image.image_size, tuple(spec["global_area"])
  views = [make(distillation.GLOBAL_CROPS, 1, size, area)]
  if spec["local"] and spec["local_from"] == "image":
    size, area = spec["local_size"], tuple(spec["local_area"])
    count = spec["local_count"]
    views.append(make(distillation.LOCAL_CROPS, count, size, area))
  return views
