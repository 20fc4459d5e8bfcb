"""SigLIP 2's first stage on drawn scenes: minutes on a laptop.

big-siglip train --config=siglip2/scenes_pretrain --workdir=runs/scenes_pretrain

The terms and the stages of configs/siglip2/pretrain.py; scenes know their true
boxes. The tokenizer of the captions has no digits, so places are tokens of
their own, one for each pixel of a side.
"""

from ml_collections import ConfigDict

from configs import scenes, terms, written


def get_config() -> ConfigDict:
  """Returns the experiment."""
  c = scenes.get_config()
  # What this stage trains of the schedule; the second one trains the rest.
  c.total_steps = 4_000
  c.batch_size = 32
  c.model.logit_bias_init = -3.4  # log(1 / 31): one pair in 32 matches.
  # As large as they are drawn. Most pixels are the same dark grey: with a mean
  # of 0, what differs from it is learnt in two thirds of the steps.
  c.model.image.image_size = 64
  c.model.image.patch_size = 16
  c.model.image.mean = (0.18, 0.18, 0.18)
  c.model.image.std = (0.125, 0.125, 0.125)
  c.optimizer.schedule_steps = c.get_ref("total_steps") * 5 // 4
  c.optimizer.warmup_steps = c.optimizer.get_ref("schedule_steps") // 8
  # Positions begin far smaller than patches. The decoder learns more at higher
  # rates; towers, whose retrieval they harm, do not.
  c.optimizer.rules = (
    ("image/position_embedding", {"learning_rate": 10.0}),
    ("locca/.*", {"learning_rate": 4.0}),
  )
  c.terms.locca = terms.captioning(
    # A caption is the hardest of the three: it has two things to find.
    caption=2.0,
    aref=1.0,
    gcap=1.0,
    parallel=0.25,
    depth=2,
    boxes="tokens",
    bins=64,
    length=12,
  )
  c.data.fields = ("boxes", "box_texts")
  c.data.num_threads = 1  # More take the cores from the model, which is small.
  c.evals.test.every = 2_500
  # What is written, at the end: either of the two ways to say it is right.
  own = {"data": "scenes/100000", "batch_size": 100}
  own["every"] = c.get_ref("total_steps")
  c.evals.captions = written.caption(**own, text_keys=("phrasings",))
  c.evals.boxes = written.grounding(**own)
  return c
