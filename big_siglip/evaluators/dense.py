"""Makes the evaluators of patches from their sections of `config.evals`."""

from collections.abc import Callable
import functools
from typing import Any

from big_siglip.data import class_files
from big_siglip.data.class_names import (
  ClassNames,
  is_number,
  merge_same,
  to_number,
)
from big_siglip.data.sources import Source
from big_siglip.errors import UserError
from big_siglip.evaluators.correspondence import Correspondence, show_twice
from big_siglip.evaluators.embed import Embedders
from big_siglip.evaluators.grids import Grid
from big_siglip.evaluators.loading import Loader, owners
from big_siglip.evaluators.masked import MaskClasses, Masked, read_masked
from big_siglip.evaluators.patches import Sight
from big_siglip.evaluators.prompts import fill_templates, read_templates
from big_siglip.evaluators.segmentation import Segmentation
from big_siglip.evaluators.segmentation_probe import (
  linear,
  nearest,
  SegmentationProbe,
)
from big_siglip.models.patches import Patches

KINDS = (
  "segmentation",
  "segmentation_probe",
  "patch_retrieval",
  "correspondence",
)
Open = Callable[[str], Source]


def make_dense(
  spec: Any,
  open_split: Open,
  loader: Loader,
  embedders: Embedders,
  sight: Sight,
) -> Segmentation | SegmentationProbe | Correspondence:
  """Returns an evaluator of one of `KINDS`.

  Args:
    spec: a section of `config.evals`.
    open_split: opens a split of its data set, with the field of the masks.
    loader: of images, as `sight` sees them, and texts.
    embedders: of the model.
    sight: how its patches are seen.

  Raises:
    UserError: what is asked for does not fit the model or the data.
  """
  grid, preprocess = sight.grid, sight.preprocess
  patches = Patches(spec.patches, spec.layer)
  if spec.kind == "correspondence":
    source = open_split(spec.split)
    photos = loader.images(
      source,
      lambda example: show_twice(example, preprocess, grid, spec.min_area),
    )
    return Correspondence(photos, grid, sight, patches, spec.baselines)
  classes = mask_classes(spec)
  masked = _masked(spec, open_split(spec.split), loader, grid, classes)
  if spec.kind == "segmentation":
    return _segmentation(spec, masked, classes, loader, embedders, sight)
  if spec.kind == "segmentation_probe":
    learn = functools.partial(linear, spec.shrinkage)
  else:
    learn = functools.partial(nearest, spec.memory, spec.neighbours)
  return SegmentationProbe(
    _masked(spec, open_split(spec.train_split), loader, grid, classes),
    masked,
    sight,
    patches,
    learn,
    spec.baselines,
  )


def _segmentation(
  spec, masked: Masked, classes: MaskClasses, loader, embedders, sight: Sight
) -> Segmentation:
  background = None
  if spec.background is not None:
    firsts = [own[0] for own in classes.names]
    if spec.background not in firsts:
      raise UserError(
        f"config.evals: background={spec.background!r}: must be a class of "
        f"classes_file={spec.classes_file!r}, or None: {', '.join(firsts[:8])}"
      )
    background = firsts.index(spec.background)
    if len(firsts) < 2:
      raise UserError(
        f"config.evals: classes_file={spec.classes_file!r}: must name a class "
        "beside the background"
      )
  templates = read_templates(spec.templates, spec.templates_file)
  # The background gets prompts, too, which nobody asks: so numbers stay equal.
  prompts = fill_templates(templates, classes.names, False)
  return Segmentation(
    masked,
    background,
    loader.texts([text for group in prompts for text in group]),
    owners(prompts),
    sight,
    embedders,
    Patches(spec.patches or sight.of_texts, spec.layer, pool_mlp=spec.pool_mlp),
    spec.centered,
    spec.threshold,
    spec.baselines,
  )


def _masked(
  spec, source: Source, loader: Loader, grid: Grid, classes
) -> Masked:
  return read_masked(source, loader, spec.mask_key, grid, classes)


def mask_classes(spec: Any) -> MaskClasses:
  """Returns what the values of masks mean.

  `classes_file` (docs/formats.md) says it: a JSON object {value: name}, or
  names in the order of the values, from 0 on. Values of one name are one class.

  Args:
    spec: a section of `config.evals`: classes_file and ignore.

  Raises:
    UserError: the file is missing, or names something that is no value.
  """
  if spec.classes_file is None:
    raise UserError(
      f"config.evals: classes_file=None: must name the values of the masks for "
      f"kind={spec.kind!r}: a JSON object {{value: name}}, or a list of names"
    )
  where = f"config.evals: classes_file={spec.classes_file!r}"
  content = class_files.read(spec.classes_file, where)
  for value in spec.ignore:
    if not isinstance(value, int) or not 0 <= value <= 255:
      raise UserError(
        f"config.evals: ignore={tuple(spec.ignore)}: must be values of masks, "
        "0 to 255"
      )
  pairs = zip(_values(content, where), content.names, strict=True)
  asked = [pair for pair in pairs if pair[0] not in spec.ignore]
  if not asked:
    raise UserError(f"{where}: ignore={tuple(spec.ignore)}: leaves no class")
  values, own = zip(*asked, strict=True)
  names, numbers, _ = merge_same(own)
  of_value = dict(zip(values, numbers, strict=True))
  return MaskClasses(names, of_value, tuple(spec.ignore))


def _values(content: ClassNames, where: str) -> list[int]:
  values = list(range(len(content.names)))
  for column in content.labels:
    if all(map(is_number, column)):
      values = list(map(to_number, column))
  for value in values:
    if not 0 <= value < 255:
      raise UserError(
        f"{where}: the value {value} of a mask: must be 0 to 254 (255 is what "
        "no class is said of)"
      )
  return values
