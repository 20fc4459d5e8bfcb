"""Trains a SentencePiece model on captions, by SigLIP's rules.

Its ids are those of c4_en, with which SigLIP was trained: <pad> 0, </s> 1,
<unk> 2, no BOS; so `config.data.pad_id` may be 1 (SigLIP) or 0 (SigLIP 2).
"""

from collections.abc import Iterable, Iterator
import io
import pathlib
import re
import string

import sentencepiece

from big_siglip import progress
from big_siglip.data.cleaning import prepare
from big_siglip.data.sources import Source
from big_siglip.errors import BadExample, UserError

_MAX_BYTES = 16_384  # Of a caption; SentencePiece leaves longer ones out.


class Captions:
  """All captions of a source, one after the other; never all in memory.

  Attributes:
    count: how many were given out.
    skipped: examples that cannot be read, and captions that are empty or too
      long.
  """

  def __init__(self, source: Source, clean: str, lowercase: bool):
    """Reads nothing yet.

    Args:
      source: of examples.
      clean: see `cleaning.prepare`.
      lowercase: see `cleaning.prepare`.
    """
    self._source, self._rules = source, (clean, lowercase)
    self.count = self.skipped = 0

  def __iter__(self) -> Iterator[str]:
    with progress.Progress(len(self._source), "examples") as show:
      for index in range(len(self._source)):
        yield from self._of(index)
        show.add(1)

  def _of(self, index: int) -> Iterator[str]:
    try:
      texts = self._source[index].texts
    except BadExample:
      self.skipped += 1
      return
    for text in texts:
      prepared = " ".join(prepare(text, *self._rules).split())
      if not prepared or len(prepared.encode()) > _MAX_BYTES:
        self.skipped += 1
        continue
      self.count += 1
      yield prepared


def train(
  captions: Iterable[str],
  output: pathlib.Path,
  *,
  vocab_size: int,
  model_type: str = "unigram",
  byte_fallback: bool = True,
  character_coverage: float = 0.9995,
  max_captions: int = 2_000_000,
) -> None:
  """Writes a model; the same captions give the same file.

  Args:
    captions: as a tokenizer gets them; see `Captions`.
    output: the file, whose folder is made.
    vocab_size: pieces, with the special ones and the 256 bytes.
    model_type: unigram or bpe; c4_en is unigram, Gemma's bpe.
    byte_fallback: write characters that have no piece as bytes, so that there
      is no unknown one.
    character_coverage: share of all characters that get pieces of their own;
      a-z and 0-9 always do.
    max_captions: SentencePiece keeps a random sample of so many in memory,
      always the same one.

  Raises:
    UserError: there are no captions, or too few for such a vocabulary, or the
      file cannot be written.
  """
  model = io.BytesIO()
  sentencepiece.set_random_generator_seed(0)  # Of the sample.
  try:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(captions),
      model_writer=model,
      vocab_size=vocab_size,
      model_type=model_type,
      pad_id=0,
      eos_id=1,
      unk_id=2,
      bos_id=-1,
      byte_fallback=byte_fallback,
      character_coverage=character_coverage,
      required_chars=string.ascii_lowercase + string.digits,
      input_sentence_size=max_captions,
      shuffle_input_sentence=True,
      max_sentence_length=_MAX_BYTES,
      num_threads=8,  # Sums are split so; not a matter of the machine.
      minloglevel=2,
    )
  except RuntimeError as error:
    raise UserError(_reason(str(error), vocab_size)) from error
  try:
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(f".{output.name}.partial")
    partial.write_bytes(model.getvalue())
    partial.replace(output)
  except OSError as error:
    raise UserError(
      f"--output={output}: not writable ({error.strerror})"
    ) from error


def _reason(said: str, vocab_size: int) -> str:
  """Returns in our words what SentencePiece said."""
  most = re.search(r"value <= (\d+)", said)
  if most:
    return (
      f"--vocab_size={vocab_size}: these captions have pieces for {most[1]} at "
      "most"
    )
  least = re.search(r"smaller than required_chars\. \d+ vs (\d+)", said)
  if least:
    return (
      f"--vocab_size={vocab_size}: must be above {least[1]}, the single "
      "characters and special pieces"
    )
  return f"--vocab_size={vocab_size}: no vocabulary can be made ({said})"
