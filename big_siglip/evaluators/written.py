"""What a decoder writes of images, measured: captions, boxes, their texts."""

from collections.abc import Sequence
import dataclasses
import functools
from typing import Any

import numpy as np

from big_siglip.data.box_reading import Reader
from big_siglip.data.preprocessing import Preprocess
from big_siglip.data.sources import Source
from big_siglip.data.views import Pixels
from big_siglip.errors import UserError
from big_siglip.evaluators import caption_metrics, tables
from big_siglip.evaluators.caption_tokens import tokenize
from big_siglip.evaluators.embed import Rows
from big_siglip.evaluators.grounding import Grounding, read_regions
from big_siglip.evaluators.result import Result, Table
from big_siglip.evaluators.scores import plain
from big_siglip.evaluators.scribe import passes, perplexity, Scribe, Search

KINDS = ("caption", "grounding")
_RESAMPLES = 1_000
_SEED = 0


def make_written(
  spec: Any,
  source: Source,
  texts: Sequence[tuple[str, ...]] | None,
  images: Rows,
  preprocess: Preprocess,
  scribe: Scribe,
) -> "WrittenCaptions | Grounding":
  """Returns an evaluator of one of `KINDS`.

  Args:
    spec: a section of `config.evals`.
    source: the examples.
    texts: the captions of each, for captions alone.
    images: passes over them.
    preprocess: what comes before the image tower.
    scribe: the decoder.

  Raises:
    UserError: the data set has no captions, or no boxes.
  """
  search = Search(spec.beams, spec.max_length)
  if texts is not None:
    if not any(texts):
      raise UserError(f"config.evals: data={spec.data!r}: has no captions")
    return WrittenCaptions(images, texts, scribe, search)
  reader = Reader(spec.box_key, spec.box_text_key, spec.box_format)
  pixels = Pixels(**vars(preprocess.value.square()))
  regions = read_regions(source, reader, pixels, spec.max_boxes)
  if not any(regions):
    raise UserError(
      f"config.evals: data={spec.data!r}: no image has a box that can be used"
    )
  return Grounding(images, regions, pixels.is_whole, scribe, search)


@dataclasses.dataclass(frozen=True)
class WrittenCaptions:
  """Captions of images, against those that people wrote.

  Attributes:
    images: padded batches with "image", "index" and "mask".
    texts: the captions of each image.
    scribe: writes.
    search: how.
  """

  images: Rows
  texts: Sequence[tuple[str, ...]]
  scribe: Scribe
  search: Search

  def __call__(self, params: Any) -> Result:
    """Returns figures of the whole set.

    "cider" and "bleu4" (`caption_metrics`), "exact_match" (word for word one of
    an image's captions), "shuffled_cider" and "shuffled_exact" (the captions of
    the next image in place of its own: what needs no look at the image),
    "mean_length" and "true_length" in words, "perplexity" of a token of each
    image's first caption, which is given, and "skipped".
    """
    found, scored = {}, np.zeros(2)
    writer = self.scribe.writer
    start = writer.start("caption")
    targets = functools.cache(lambda text: writer.write("caption", text))
    for part in passes(self.images, self.scribe, params):
      starts = [start] * len(part.own)
      ids, likely = self.scribe.write(
        params, part.context, starts, "caption", self.search
      )
      firsts = [targets((self.texts[i] or ("",))[0]) for i in part.own]
      rows, weights = (np.stack(x)[:, None] for x in zip(*firsts, strict=True))
      scores = self.scribe.score(params, part.context, rows, weights)[:, 0]
      for row in np.flatnonzero(part.mask):
        number = int(part.number[row])
        if self.texts[number]:
          text = writer.read_text(ids[row, len(start) :].tolist())
          found[number] = text, float(likely[row])
          tokens = targets(self.texts[number][0])[1].sum()
          scored += float(scores[row]), float(tokens)
    if not found:
      raise UserError("evaluation: none of its examples can be read")
    return self._result(dict(sorted(found.items())), scored)

  def _result(
    self, found: dict[int, tuple[str, float]], scored: np.ndarray
  ) -> Result:
    words = [tokenize(text) for text, _ in found.values()]
    true = [[tokenize(t) for t in self.texts[number]] for number in found]
    cider = caption_metrics.cider(words, true)
    counts = caption_metrics.bleu_counts(words, true)
    exact = caption_metrics.exact(words, true)
    rng = np.random.default_rng(_SEED)
    share = np.full(len(words), 1 / len(words))
    drawn = rng.multinomial(len(words), share, size=_RESAMPLES)
    metrics = {
      "cider": float(cider.mean()),
      "bleu4": float(caption_metrics.bleu(counts.sum(axis=0))),
      "exact_match": float(exact.mean()),
      **_of_others(words, true),
      "mean_length": float(counts[:, 0].mean()),
      "true_length": float(np.mean([len(t) for own in true for t in own])),
      "perplexity": perplexity(*scored.tolist()),
      "skipped": float(self.images.count - len(found)),
    }
    intervals = {
      "cider": drawn @ cider / len(words),
      "bleu4": caption_metrics.bleu(drawn @ counts),
    }
    return Result(
      metrics,
      {"settings": self.search._asdict(), "cider_by_image": _shares(cider)},
      images=len(found),
      scores={"exact_match": plain(exact)},
      rows=lambda: self._rows(found, cider, exact),
      intervals={k: _percentiles(v) for k, v in intervals.items()},
    )

  def _rows(self, found, cider: np.ndarray, exact: np.ndarray) -> Table:
    """Returns a row for each image."""
    return {
      "key": [self.images.name(number) for number in found],
      "row": list(found),
      "written": [text for text, _ in found.values()],
      "captions": [tables.BETWEEN.join(self.texts[i]) for i in found],
      "exact": exact.tolist(),
      "cider": cider.tolist(),
      "log_probability": [likely for _, likely in found.values()],
    }


def _of_others(words, true) -> dict[str, float]:
  """Returns what each image's caption is worth for the next image."""
  others = [*true[1:], *true[:1]]
  cider = caption_metrics.cider(words, others).mean()
  exact = caption_metrics.exact(words, others).mean()
  return {"shuffled_cider": float(cider), "shuffled_exact": float(exact)}


def _shares(cider: np.ndarray) -> dict[str, list[float]]:
  counts, edges = np.histogram(cider, 20, (0.0, max(1.0, float(cider.max()))))
  return {"edges": edges.tolist(), "share": (counts / len(cider)).tolist()}


def _percentiles(values: np.ndarray) -> tuple[float, float]:
  low, high = np.percentile(values, (2.5, 97.5))
  return float(low), float(high)
