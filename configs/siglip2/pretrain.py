"""SigLIP 2, stage 1 of 2: captions and boxes beside the sigmoid loss.

big-siglip train --config=siglip2/pretrain --workdir=runs/siglip2/pretrain \
  --config.data.path=PAIRS

PAIRS says of an image what it shows and where (docs/data.md): texts, "boxes"
and "box_texts". The tokenizer is Gemma's: copy it to gemma/.

B/16 at 256 pixels; L/16, So400m/14, So400m/16 and g-opt/16 by
`config.model.image.size` and `config.model.text.size` (g-opt's is So400m). The
recipe is that of arXiv:2502.14786, sections 2.1 and 2.2; docs/siglip2.md tells
what the paper leaves open, and what is taken for it here.
"""

from ml_collections import config_dict, ConfigDict

from configs import b16, terms

EXAMPLES = 40_000_000_000
DISTIL, HIRES, NAFLEX = 80, 95, 90  # Percent of the steps at which they begin.


def get_config() -> ConfigDict:
  """Returns the experiment."""
  c = b16.get_config()
  examples = config_dict.FieldReference(EXAMPLES)
  steps = examples // c.get_ref("batch_size")
  c.total_steps = steps * DISTIL // 100
  # At once: 128 examples a chip on 256 chips. With fewer, set config.microbatch
  # to as many a chip as fit; what slices of 16 cost: docs/performance.md.
  c.model.image.image_size = 256
  c.model.text.vocab_size = 256_000  # Gemma's.
  c.model.remat = "full"
  c.model.scan = True
  c.model.slice_tokens = 8_192  # Of a device, which stay in its fast memory.

  c.optimizer.name = "adamw"
  c.optimizer.schedule_steps = steps
  c.optimizer.warmup_steps = 20_000
  c.optimizer.mu_dtype = "float32"

  # Captions, (box from text) and (text from box), of equal weight.
  # The decoder by itself, 64 examples of a chip at a time.
  c.terms.locca = terms.captioning(
    aref=1.0, gcap=1.0, slice_examples=64, chunk_size=2_048
  )

  c.data.tokenizer = "gemma/tokenizer.model"
  c.data.pad_id = 0
  c.data.fields = ("boxes", "box_texts")
  return c
