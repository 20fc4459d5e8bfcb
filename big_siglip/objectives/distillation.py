"""Self-distillation and masked prediction: an image tower teaches itself.

SigLIP 2 (arXiv:2502.14786, section 2.3). A teacher, the moving average of image
tower and heads, sees one large crop of each image. The student learns from it:
- of small crops to say what the teacher says of the large one (SILC,
  arXiv:2310.13355),
- of the large one with half of its patches hidden to say what the teacher says
  of these patches (TIPS, arXiv:2410.16512).
Both are one term, so that there is one teacher and it looks once. What the
papers leave open is told in docs/siglip2.md.

Shape letters: b examples of one slice, n local crops, s pixels along a side, L
patches, D width, K prototypes.
"""

from collections.abc import Mapping
import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import optax

from big_siglip import ema, sharding
from big_siglip.models.prototype_head import PrototypeHead
from big_siglip.models.towers import Hidden, Seen
from big_siglip.models.vision import normalize
from big_siglip.objectives.augmentation import Augmentation
from big_siglip.objectives.cutting import Cut
from big_siglip.objectives.masked import draw_places
from big_siglip.objectives.matching import Matching
from big_siglip.objectives.term import Alone, Carried, Metrics, Slice, Term
from big_siglip.schema.sizes import resolve_image

GLOBAL_CROPS, LOCAL_CROPS = "global_crops", "local_crops"
HALVES = ("local", "masked")  # Heads, centres and metrics are named so.
TOWERS = ("image", "lora")  # Parameters of the model that a teacher has, too.


def make(name: str, spec: Mapping[str, Any], config: Any, mesh: Mesh) -> Term:
  """Returns the term.

  Args:
    name: of the section, and of its parameters.
    spec: the section.
    config: the config.
    mesh: the devices that share a batch.
  """
  model = config.model
  head = PrototypeHead(
    spec["hidden"], spec["bottleneck"], spec["prototypes"], model.dtype
  )
  matching = Matching(
    head,
    spec["student_temperature"],
    tuple(spec["teacher_temperature"]),
    spec["warmup_steps"],
    spec["frozen_steps"],
    spec["centre_momentum"],
    spec["chunk_size"],
    sharding.replicated(mesh),
  )
  colours = functools.partial(
    Augmentation, spec["jitter"], tuple(spec["jitter_strength"]), spec["grey"]
  )
  cut = None
  if spec["local_from"] == "global":
    size, area = spec["local_size"], tuple(spec["local_area"])
    cut = Cut(spec["local_count"], size, area, spec["flip"])
  distillation = Distillation(
    name,
    matching,
    {half: spec[half] for half in HALVES if spec[half] > 0},
    colours(spec["global_blur"]),
    colours(spec["local_blur"]),
    model.image,
    spec["masked_share"],
    spec["momentum"],
    cut,
    limit=spec["slice_examples"],
  )
  return Term(
    name,
    each=distillation.each,
    weight=optax.constant_schedule(spec["weight"]),
    init=distillation.init,
    carried=Carried(distillation.first_carry, distillation.next_carry),
    summary=distillation.summary,
    alone=distillation.alone(mesh),
  )


class Lesson(NamedTuple):
  """What a teacher shows.

  Attributes:
    shown: large crops that it saw, bss3 float32.
    pooled: what it pools of them, bD.
    tokens: what it makes of their patches, bLD.
  """

  shown: jax.Array
  pooled: jax.Array
  tokens: jax.Array


@dataclasses.dataclass(frozen=True)
class Distillation:
  """The functions of the term.

  Its parameters are a head for each half, and the vector of hidden patches. It
  carries "teacher", parameters under the names that they have in the student;
  "centres", K of each half; and "steps", how many it was trained for.

  Attributes:
    name: of the term.
    matching: of both halves.
    weights: of the halves that there are.
    global_colours: what is done to the large crop, for both.
    local_colours: what is done to small ones.
    image: `config.model.image`.
    masked_share: of patches that are hidden.
    momentum: of the teacher, the same at every step: one that grows towards 1
      would no longer learn what texts teach the student (SILC, section 3).
    cut: makes small crops of the large one; None: they are in the batch.
    limit: examples of a device that are taken back at once, and then keep all
      activations; None: with the rest.
  """

  name: str
  matching: Matching
  weights: Mapping[str, float]
  global_colours: Augmentation
  local_colours: Augmentation
  image: Any
  masked_share: float
  momentum: float
  cut: Cut | None
  limit: int | None = None

  def init(self, key: jax.Array, part: Slice) -> Any:
    """See `Term`."""
    del part
    width = resolve_image(self.image).width
    heads, token = jax.random.split(key)
    params = {}
    for half, own in zip(HALVES, jax.random.split(heads), strict=True):
      if half in self.weights:
        params[half] = self.matching.init(own, width)
    if "masked" in self.weights:  # As BEiT's (arXiv:2106.08254).
      params["mask_token"] = 0.02 * jax.random.normal(token, (width,))
    return params

  def first_carry(self, params: Any) -> Any:
    """See `Carried`."""
    return {
      "teacher": self._taught(params),
      "centres": {half: self.matching.first_centre() for half in self.weights},
      "steps": jnp.zeros((), jnp.int32),
    }

  def next_carry(self, carry: Any, params: Any, means: Metrics) -> Any:
    """See `Carried`: the teacher follows the student after its step."""
    heads = carry["teacher"][self.name]
    return {
      "teacher": ema.update(
        carry["teacher"], self._taught(params), self.momentum
      ),
      "centres": {
        half: self.matching.next_centre(
          centre, heads[half], _of_half(means, half)
        )
        for half, centre in carry["centres"].items()
      },
      "steps": carry["steps"] + 1,
    }

  def each(self, part: Slice) -> tuple[jax.Array, Metrics]:
    """See `Term`."""
    lesson = self.teach(part)
    losses, observed = jnp.zeros(len(part.keys)), {}
    for half in self.weights:
      loss, found = self.learn(half, part, lesson)
      losses += loss
      observed |= found
    return losses, observed

  def teach(self, part: Slice) -> Lesson:
    """Returns what the teacher makes of large crops."""
    shown = self.global_colours(part.batch[GLOBAL_CROPS], _keys(part)["shown"])
    shown = self._normalized(shown[:, 0])
    seen = part.look(self._teacher(part), {"image": shown})
    pooled, tokens = map(_there, (seen.image_pooled, seen.image_tokens))
    return jax.lax.stop_gradient(Lesson(shown, pooled, tokens))

  def learn(
    self, half: str, part: Slice, lesson: Lesson
  ) -> tuple[jax.Array, Metrics]:
    """Returns losses of a half, and what it observes; as `Term.each`."""
    see = {"local": self._local, "masked": self._masked}[half]
    student, wanted = see(part, _keys(part)[half], lesson)
    loss, found = self.matching(
      student,
      wanted,
      part.params[self.name][half],
      self._teacher(part)[self.name][half],
      part.carry["centres"][half],
      part.carry["steps"],
    )
    named = {f"{half}_{key}": value for key, value in found.items()}
    return self.weights[half] * loss, named

  def alone(self, mesh: Mesh) -> Alone | None:
    """Returns how the term is taken back by itself; None: with the rest."""
    if self.limit is None:
      return None
    losses = tuple(functools.partial(self.learn, half) for half in self.weights)
    return Alone(self.teach, losses, (*TOWERS, self.name), mesh, self.limit)

  def summary(self, means: Metrics) -> dict[str, jax.Array]:
    """See `Term`."""
    logged = {"loss": means["loss"]}
    for half in self.weights:
      found = self.matching.metrics(_of_half(means, half))
      logged |= {f"{half}_{key}": value for key, value in found.items()}
    return logged

  def _local(
    self, part: Slice, keys: jax.Array, lesson: Lesson
  ) -> tuple[jax.Array, jax.Array]:
    """Returns what is pooled of small crops and of the large one; bnD, b1D."""
    if self.cut is None:
      crops = part.batch[LOCAL_CROPS]
    else:
      own = jax.vmap(jax.random.fold_in, (0, None))(keys, 1)
      crops = self.cut(part.batch[GLOBAL_CROPS][:, 0], own)
    crops = self.local_colours(crops, keys)
    shape = crops.shape
    crops = self._normalized(crops.reshape(-1, *shape[2:]))
    student = self._student(part, crops)
    pooled = _there(student.image_pooled)
    return pooled.reshape(*shape[:2], -1), lesson.pooled[:, None]

  def _masked(
    self, part: Slice, keys: jax.Array, lesson: Lesson
  ) -> tuple[jax.Array, jax.Array]:
    """Returns the tokens of hidden patches, student's and teacher's; bMD."""
    places = draw_places(keys, lesson.tokens.shape[1], self.masked_share)
    hidden = Hidden(places.patches, part.params[self.name]["mask_token"])
    student = self._student(part, lesson.shown, hidden)
    tokens = _there(student.image_tokens)
    return places.of(tokens), places.of(lesson.tokens)

  def _student(
    self, part: Slice, image: jax.Array, hidden: Hidden | None = None
  ) -> Seen:
    """Returns what the towers that learn make of images, as `Slice.look`."""
    keep = self.limit is not None
    return part.look(part.params, {"image": image}, hidden, keep=keep)

  def _teacher(self, part: Slice) -> dict[str, Any]:
    """Returns all parameters, the teacher's where it has its own."""
    return jax.lax.stop_gradient({**part.params, **part.carry["teacher"]})

  def _normalized(self, image: jax.Array) -> jax.Array:
    return normalize(image, self.image.mean, self.image.std)

  def _taught(self, params: Any) -> dict[str, Any]:
    """Returns what the teacher has: no texts, and no hidden patches."""
    towers = {k: params[k] for k in TOWERS if k in params}
    heads = {half: params[self.name][half] for half in self.weights}
    return {**towers, self.name: heads}


def _keys(part: Slice) -> dict[str, jax.Array]:
  """Returns the keys of each thing that is drawn of an example."""
  split = jax.vmap(functools.partial(jax.random.split, num=3))(part.keys)
  return dict(zip(("shown", *HALVES), split.T, strict=True))


def _there(x: jax.Array | None) -> jax.Array:
  """Returns what a tower gives; `schema.terms` refuses to have none."""
  if x is None:
    raise TypeError("self-distillation needs an image tower that pools")
  return x


def _of_half(means: Metrics, half: str) -> dict[str, jax.Array]:
  start = f"{half}_"
  return {
    name.removeprefix(start): value
    for name, value in means.items()
    if name.startswith(start)
  }
