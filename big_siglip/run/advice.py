"""What is legal and seldom meant, told in a line each before training."""

from collections.abc import Callable, Iterator

from ml_collections import ConfigDict

from big_siglip.data.mixture import epochs, Mixture
from big_siglip.data.sources import Source
from big_siglip.training_data import HELD_OUT, OTHER, trained_on

_MOST_EPOCHS = 100


def lines(config: ConfigDict, source: Source) -> Iterator[str]:
  """Yields a line for everything that a run of this config should know.

  Args:
    config: a whole one.
    source: what it draws from.
  """
  yield from _batches(config, source)
  yield from _epochs(config, source)
  yield from _schedule(config)
  for name, spec in config.evals.items():
    found = trained_on(config, spec)
    if found not in (HELD_OUT, OTHER):
      yield (
        f"config.evals.{name}: its images are {found}, so that its numbers say "
        "little of images that the model has not seen"
      )


def tell(
  config: ConfigDict, source: Source, say: Callable[[str], None]
) -> None:
  """Says `lines`, as notes."""
  for line in lines(config, source):
    say(f"note: {line}")


def _parts(source: Source) -> dict[str, tuple[Source, float]]:
  """Returns {name: (source, its share of a batch)}; "" for the only one."""
  if not isinstance(source, Mixture):
    return {"": (source, 1.0)}
  total = sum(source.weights)
  parts = [source.part(first)[:2] for first in source.starts]
  return {
    name: (part, weight / total)
    for (name, part), weight in zip(parts, source.weights, strict=True)
  }


def _batches(config: ConfigDict, source: Source) -> Iterator[str]:
  loss = config.loss
  if loss.duplicates != "negative" and loss.same != "text":
    return  # The loss knows pairs of one image.
  for name, (part, share) in _parts(source).items():
    images = getattr(part, "num_images", len(part))
    if share * config.batch_size > images:
      of = f" of {name}" if name else ""
      yield (
        f"config.batch_size={config.batch_size}: is more than the {images:,} "
        f"images{of}, so that an image stands twice in a batch, and counts as "
        "a wrong match of its own captions (config.loss.duplicates=ignore with "
        "config.loss.same=image leaves such pairs out)"
      )


def _epochs(config: ConfigDict, source: Source) -> Iterator[str]:
  drawn = config.total_steps * config.batch_size
  for name, number in epochs(source, drawn).items():
    if number > _MOST_EPOCHS:
      steps = max(int(config.total_steps * _MOST_EPOCHS / number), 1)
      of = name.partition("/")[2]
      yield (
        f"config.total_steps={config.total_steps}: goes {number:,.0f} times "
        f"through the data{f' of {of}' if of else ''}, which are likely to be "
        f"learnt by heart; {_MOST_EPOCHS} times would be {steps} steps"
      )


def _schedule(config: ConfigDict) -> Iterator[str]:
  optimizer, total = config.optimizer, config.total_steps
  if 2 * optimizer.warmup_steps > total:
    yield (
      f"config.optimizer.warmup_steps={optimizer.warmup_steps}: is more than "
      f"half of config.total_steps={total}, in which the learning rate rises"
    )
  if optimizer.schedule == "rsqrt" and optimizer.timescale >= total:
    yield (
      f"config.optimizer.timescale={optimizer.timescale}: is not less than "
      f"config.total_steps={total}, so that the learning rate hardly falls"
    )
