"""Self-distillation and masked prediction, against plain PyTorch; exactness."""

import functools
import re

import distillation_cases as cases
import jax
import model_cases
import numpy as np
from peers import torch
import pytest
import runs
import step_cases

from big_siglip import build, sharding
from big_siglip.config import find_problems
from big_siglip.models import SigLIP
from big_siglip.models.towers import Hidden
from big_siglip.objectives import make_terms, total
from big_siglip.objectives.cutting import Cut
from big_siglip.objectives.masked import draw_places
from big_siglip.objectives.term import Slice
from big_siglip.plan.operations import executed_flops

SIZE = 64
# Widths that every mesh axis divides.
TOWER = {"width": 16, "num_heads": 8, "mlp_dim": 16}
NAME = "self"


def _config(**changes):
  """Returns a config with the term; "__" in a name stands for "."."""
  section = changes.pop("section", {})
  config = runs.config(
    **{"optimizer__warmup_steps": 0, "model__image__patch_size": 4, **changes}
  ).unlock()
  config.terms = {NAME: cases.section(**section)}
  return config


def _model(mesh, remat="none"):
  image = TOWER | {"patch_size": 4}
  config = model_cases.model_config(image, TOWER, remat=remat)
  return SigLIP(config, mesh and sharding.batch_sharding(mesh))


def _carry(rng, carry):
  """Centres that are not zero, and a step in the midst of the warm-up."""
  centres = {
    half: (0.1 * rng.normal(size=np.shape(centre))).astype(np.float32)
    for half, centre in carry["centres"].items()
  }
  return {**carry, "centres": centres, "steps": np.int32(2)}


@functools.cache
def _two_steps(shape, count, limit=None, remat="none"):
  """Returns loss and gradient of a second step, and what it carries on."""
  axes = dict(zip(sharding.AXES, shape, strict=True))
  devices = jax.devices()[: int(np.prod(shape))]
  mesh = sharding.make_mesh(**axes, devices=devices)
  model = _model(mesh, remat)
  own = {"slice_examples": limit}
  config = _config(batch_size=SIZE, loss__name="ring_sigmoid", section=own)
  config.mesh.update(axes)
  config.model = model_cases.model_config(TOWER | {"patch_size": 4}, TOWER)
  terms = make_terms(config, mesh)
  image, text = model_cases.example_inputs(config.model, batch=SIZE)
  batch = {"image": image, "text": text, **cases.crops(SIZE)}
  state = step_cases.first_state(model, terms, batch)
  # At the second step teacher and student are no longer the same.
  rng = np.random.default_rng(0)
  state = state.replace(
    step=np.int32(1),
    params=jax.tree.map(
      lambda x: np.float32(x + 0.05 * rng.normal(size=x.shape)), state.params
    ),
    carry={NAME: _carry(rng, state.carry[NAME])},
  )
  metrics, gradient, after = step_cases.take(
    state, batch, model, terms, mesh, count
  )
  return metrics, gradient, runs.flatten(after.carry)


@step_cases.shapes_and_counts(8)
def test_slices_and_meshes_change_neither_loss_nor_gradient(shape, count):
  _assert_as_whole(*_two_steps(shape, count))


@step_cases.shapes_counts_and_limits
def test_taken_back_by_itself_it_is_the_same(shape, count, limit):
  _assert_as_whole(*_two_steps(shape, count, limit, "full"))


def test_taken_back_by_itself_it_computes_nothing_again():
  def flops(limit, remat):
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    config = _config(section={"slice_examples": limit})
    config.model = model_cases.model_config(
      TOWER | {"patch_size": 4}, TOWER, remat=remat
    )
    config.batch_size = 8
    (term,) = [t for t in make_terms(config, mesh) if t.name == NAME]
    model = _model(mesh, remat)
    image, text = model_cases.example_inputs(config.model, batch=8)
    batch = {"image": image, "text": text, **cases.crops(8)}
    state = step_cases.first_state(model, (term,), batch)
    forward = total.forward(
      (term,),
      model.look,
      carry=state.carry,
      step=state.step,
      seed=0,
      batch_size=8,
    )
    batch = total.with_rows((term,), batch)
    loss = jax.grad(lambda params: forward(params, batch)[1][0])
    return executed_flops(jax.jit(loss).trace(state.params))

  again, none = flops(None, "full"), flops(None, "none")
  assert again > 1.1 * none
  assert flops(8, "full") == none
  # Positions of small crops are resampled for each slice.
  assert none < flops(1, "full") < 1.005 * none


def _assert_as_whole(metrics, gradient, carry):
  """Checks a step against one in which all is taken back together."""
  expected, expected_gradient, expected_carry = _two_steps((2, 2, 2), 1)
  assert metrics.keys() == expected.keys()
  for name in expected:
    if name == "loss" or name.startswith(f"{NAME}/"):
      np.testing.assert_allclose(
        metrics[name], expected[name], rtol=1e-6, atol=1e-6, err_msg=name
      )
  own = metrics[f"{NAME}/local_loss"] + 0.25 * metrics[f"{NAME}/masked_loss"]
  np.testing.assert_allclose(metrics[f"{NAME}/loss"], own, rtol=1e-6)
  np.testing.assert_allclose(
    metrics["loss"], metrics["contrastive/loss"] + own, rtol=1e-6
  )
  # Of the largest: a key's bias has no gradient but its rounding.
  largest = max(np.abs(x).max() for x in expected_gradient.values())
  for path, wanted in expected_gradient.items():
    np.testing.assert_allclose(
      gradient[path], wanted, rtol=0, atol=1e-6 * largest, err_msg=path
    )
    if path.startswith(NAME):
      assert np.abs(wanted).max() > 1e-5, path
  for path, wanted in expected_carry.items():
    np.testing.assert_allclose(
      carry[path], wanted, rtol=1e-5, atol=1e-6, err_msg=path
    )


class _Case:
  """A term, a model with parameters, a carry of others, and eight examples."""

  def __init__(self, **section):
    config = _config(section={**cases.OFF, **section}, mesh__data=1)
    config.model = model_cases.model_config(
      image={"patch_size": 4}, text={"length": 6}
    )
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    self.spec = config.terms[NAME]
    self.model = SigLIP(config.model)
    _, self.term = make_terms(config, mesh)
    image, text = model_cases.example_inputs(config.model, batch=8)
    self.batch = {"image": image, "text": text, **cases.crops(8)}
    rng = np.random.default_rng(4)
    params = model_cases.random_params(self.model)
    example = {name: x[:1] for name, x in self.batch.items()}
    own = total.init_params(
      (self.term,), jax.random.key(0), params, example, self.model.look
    )
    spread = jax.tree.map(
      lambda x: np.float32(x + 0.2 * rng.normal(size=x.shape)), own
    )
    self.params = {**params, **spread}
    carry = jax.device_get(self.term.carried.init(self.params))
    teacher = jax.tree.map(
      lambda x: np.float32(x + 0.05 * rng.normal(size=x.shape)),
      carry["teacher"],
    )
    self.carry = _carry(rng, {**carry, "teacher": teacher})
    self.keys = jax.random.split(jax.random.key(1), 8)

    self._both = jax.jit(
      jax.value_and_grad(
        self._mean, argnums=(0, 1), has_aux=True, allow_int=True
      )
    )

  def _mean(self, params, carry):
    look = self.model.look
    part = Slice(params, carry, self.batch, None, look, self.keys)
    losses, observed = self.term.each(part)
    return losses.mean(), (losses, observed)

  def each(self, params=None, carry=None):
    """Returns losses, what is observed, and gradients of their mean."""
    (_, found), gradients = self._both(
      params or self.params, carry or self.carry
    )
    return jax.device_get((*found, *gradients))


@pytest.fixture(scope="module")
def case():
  return _Case()


def _dino_head(params, double=True):
  """DINOHead of facebookresearch/dino in torch, with our numbers."""
  width, hidden = np.shape(params["first"]["kernel"])
  bottleneck, prototypes = np.shape(params["prototypes"])
  nn = torch.nn
  layers = [
    nn.Linear(width, hidden),
    nn.GELU(),
    nn.Linear(hidden, hidden),
    nn.GELU(),
    nn.Linear(hidden, bottleneck),
  ]
  for layer, name in zip(
    layers[::2], ("first", "second", "bottleneck"), strict=True
  ):
    kernel, bias = (params[name][k] for k in ("kernel", "bias"))
    layer.weight.data = torch.from_numpy(np.array(kernel).T.copy())
    layer.bias.data = torch.from_numpy(np.array(bias))
  last = nn.Linear(bottleneck, prototypes, bias=False)
  last.weight.data = torch.from_numpy(np.array(params["prototypes"]).T.copy())
  last = nn.utils.parametrizations.weight_norm(last)
  last.parametrizations.weight.original0.data.fill_(1)
  mlp = nn.Sequential(*layers)

  def apply(x):
    return last(nn.functional.normalize(mlp(x), dim=-1, p=2))

  return apply, mlp, last


def _dino_loss(student, teacher, centre, temperature):
  """The mean of -P_teacher log P_student, as DINOLoss and iBOTLoss have it."""
  wanted = ((teacher - centre) / temperature).softmax(-1).detach()
  return (-wanted * (student / 0.1).log_softmax(-1)).sum(-1)


def _towers(case):
  """What teacher and student see, as the plain tower says: [8, n, D] each."""
  look, params = jax.jit(case.model.look), case.params
  taught = {**params, **case.carry["teacher"]}
  shown = case.batch["global_crops"][:, 0]
  local = case.batch["local_crops"].reshape(-1, 8, 8, 3)
  whole = look(taught, {"image": shown})
  pooled = look(params, {"image": local}).image_pooled.reshape(8, 3, -1)
  keys = jax.vmap(lambda key: jax.random.split(key, 3)[2])(case.keys)
  places = draw_places(keys, 16, 0.5)
  hidden = Hidden(places.patches, params[NAME]["mask_token"])
  tokens = look(params, {"image": shown}, hidden).image_tokens
  patches = np.asarray(places.patches)
  return {
    "local": (pooled, whole.image_pooled[:, None]),
    "masked": tuple(
      np.asarray(x)[patches].reshape(8, 8, -1)
      for x in (tokens, whole.image_tokens)
    ),
  }


@pytest.mark.torch
def test_losses_and_gradients_of_heads_are_those_of_dino(case):
  losses, observed, gradient, _ = case.each()
  gradient = gradient[NAME]
  temperature = 0.04 + 0.03 * 2 / 4  # Half of the warm-up is over.
  summed = 0
  for half, (student, teacher) in _towers(case).items():
    apply, mlp, last = _dino_head(case.params[NAME][half])
    of_teacher, *_ = _dino_head(case.carry["teacher"][NAME][half])
    centre = torch.from_numpy(case.carry["centres"][half])
    student, teacher = (
      torch.from_numpy(np.array(x)) for x in (student, teacher)
    )
    scores = of_teacher(teacher)
    loss = _dino_loss(apply(student), scores, centre, temperature).mean(-1)
    np.testing.assert_allclose(
      observed[f"{half}_loss"], loss.detach(), rtol=2e-5, err_msg=half
    )
    weight = case.spec[half]
    summed = summed + weight * loss.detach().numpy()
    (weight * loss.mean()).backward()
    for name, layer in zip(
      ("first", "second", "bottleneck"), mlp[::2], strict=True
    ):
      wanted = layer.weight.grad.T
      np.testing.assert_allclose(
        gradient[half][name]["kernel"],
        wanted,
        atol=2e-5 * wanted.abs().max().item(),
        rtol=0,
      )
    wanted = last.parametrizations.weight.original1.grad.T
    np.testing.assert_allclose(
      gradient[half]["prototypes"],
      wanted,
      atol=2e-5 * wanted.abs().max().item(),
      rtol=0,
    )
    probabilities = ((scores - centre) / temperature).softmax(-1)
    mean = probabilities[:, 0].mean(0).detach().numpy()
    means = jax.tree.map(lambda x: x.sum(axis=0) / 8, observed)
    logged = case.term.summary({**means, "loss": losses.mean()})
    entropy = -(mean * np.log(mean)).sum() if half == "local" else None
    if entropy is not None:
      np.testing.assert_allclose(
        logged["local_batch_entropy"], entropy, rtol=1e-5
      )
    each = -(probabilities * probabilities.log()).sum(-1).mean()
    np.testing.assert_allclose(
      logged[f"{half}_entropy"], each.item(), rtol=1e-4
    )
    np.testing.assert_allclose(
      logged[f"{half}_kl"], loss.mean().item() - each.item(), rtol=1e-4
    )
    assert -1 <= logged[f"{half}_cosine"] <= 1
  np.testing.assert_allclose(losses, summed, rtol=2e-5)


@pytest.mark.torch
def test_the_centre_is_the_mean_of_all_scores(case):
  _, observed, *_ = case.each()
  means = jax.tree.map(lambda x: x.sum(axis=0) / 8, observed)
  after = case.term.carried.advance(case.carry, case.params, means)
  for half, (_, teacher) in _towers(case).items():
    of_teacher, *_ = _dino_head(case.carry["teacher"][NAME][half])
    scores = of_teacher(torch.from_numpy(np.array(teacher)))
    mean = scores.reshape(-1, 40).mean(0).detach().numpy()
    expected = 0.9 * case.carry["centres"][half] + 0.1 * mean
    np.testing.assert_allclose(after["centres"][half], expected, atol=1e-6)
  assert after["steps"] == 3
  taught, student = (
    runs.flatten(tree) for tree in (after["teacher"], case.params)
  )
  for path, old in runs.flatten(case.carry["teacher"]).items():
    expected = 0.99 * old + 0.01 * student[path]
    np.testing.assert_allclose(taught[path], expected, rtol=1e-5, atol=1e-7)


def test_the_teacher_gets_no_gradient_and_hears_no_text(case):
  *_, of_student, of_carry = case.each()
  for part in ("teacher", "centres"):
    for path, gradient in runs.flatten(of_carry[part]).items():
      assert not gradient.any(), path
  for path, gradient in runs.flatten(of_student).items():
    learns = path.startswith(("image/", NAME))
    assert gradient.any() == learns or path.endswith("key/bias"), path
  assert set(case.carry["teacher"]) == {"image", NAME}
  assert set(case.carry["teacher"][NAME]) == {"local", "masked"}


def test_prototypes_are_frozen_at_first():
  frozen = _Case(frozen_steps=3, masked=0.0)
  later = {**frozen.carry, "steps": np.int32(3)}
  before, after = (
    frozen.each(carry=carry)[2][NAME]["local"]
    for carry in (frozen.carry, later)
  )
  assert not before["prototypes"].any() and after["prototypes"].any()
  assert before["first"]["kernel"].any()


def test_a_half_alone_is_what_it_is_beside_the_other(case):
  alone = _Case(local=0.0)
  assert set(alone.params[NAME]) == {"masked", "mask_token"}
  params = {k: case.params[NAME][k] for k in alone.params[NAME]}
  teacher = case.carry["teacher"]
  carry = {
    "teacher": {
      "image": teacher["image"],
      NAME: {"masked": teacher[NAME]["masked"]},
    },
    "centres": {"masked": case.carry["centres"]["masked"]},
    "steps": case.carry["steps"],
  }
  losses, observed, *_ = alone.each({**case.params, NAME: params}, carry)
  _, both, *_ = case.each()
  for found in (observed["masked_loss"], losses / case.spec["masked"]):
    np.testing.assert_allclose(found, both["masked_loss"], rtol=1e-6)
  assert "local_loss" not in observed


def test_small_crops_may_be_cut_of_the_large_one():
  short, plain = _Case(masked=0.0, local_from="global"), _Case(masked=0.0)
  keys = jax.vmap(lambda key: jax.random.split(key, 3)[1])(short.keys)
  keys = jax.vmap(jax.random.fold_in, (0, None))(keys, 1)
  cut = Cut(3, 8, (0.05, 0.4), flip=True)
  large = short.batch["global_crops"][:, 0]
  plain.batch["local_crops"] = np.asarray(cut(large, keys))
  del short.batch["local_crops"]
  found, expected = short.each()[0], plain.each()[0]
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  config = _config(section={"local_from": "global"})
  assert "local_crops" not in build.step_fields(config)
  assert "global_crops" in build.step_fields(config)


def test_places_are_drawn_evenly_and_exactly_so_many():
  keys = jax.random.split(jax.random.key(0), 2000)
  places = draw_places(keys, 16, 0.5)
  chosen, patches = (np.asarray(x) for x in places)
  assert chosen.shape == (2000, 8) and (patches.sum(axis=1) == 8).all()
  for row, mask in zip(chosen[:20], patches, strict=False):
    assert sorted(row) == np.flatnonzero(mask).tolist()
  assert np.abs(patches.mean(axis=0) - 0.5).max() < 0.045
  assert len(np.unique(patches, axis=0)) > 1500  # Of 12,870 sets.
  tokens = np.arange(16)[None, :, None].repeat(2000, axis=0)
  np.testing.assert_array_equal(places.of(tokens)[..., 0], chosen)
  np.testing.assert_array_equal(
    draw_places(keys[7:9], 16, 0.5).patches, patches[7:9]
  )


@pytest.mark.parametrize(
  "changes,said",
  [
    (dict(local=0.0, masked=0.0), "self.local=0.0: must be above 0, or masked"),
    (dict(momentum=1.0), r"self.momentum=1.0: must lie in \[0, 1\)"),
    (
      dict(local_size=10),
      "self.local_size=10: must be a multiple of the patch",
    ),
    (
      dict(local_area=(0.4, 0.1)),
      "self.local_area=.*: must be the least share",
    ),
    (dict(global_area=(0.4, 1.2)), r"self.global_area=.*: must be 2 numbers"),
    (dict(masked_share=0.01), "self.masked_share=0.01: must hide at least one"),
    (dict(resize="nearest"), "self.resize='nearest': must be one of bilinear"),
    (
      dict(prototypes=41),
      "self.prototypes=41: must be a multiple of config.te",
    ),
    (dict(prototypes=1), "self.prototypes=1: must be at least 2"),
    (
      dict(student_temperature=0.0),
      "self.student_temperature=0.0: must be abo",
    ),
    (dict(loca=1.0), "config.terms.self.loca: unknown"),
  ],
)
def test_mistakes_of_the_section_are_told_in_one_line(changes, said):
  (problem,) = find_problems(_config(section=changes))
  assert re.search(said, problem), problem


def test_embeddings_have_no_crops_and_a_second_teacher_no_place():
  config = _config()
  config.data.name = "embeddings"
  config.init.path = "somewhere"
  found = [p for p in find_problems(config) if "terms" in p]
  assert found == [
    "config.data.name='embeddings': must not be embeddings: config.terms.self "
    "looks at patches, and there is no image tower"
  ]
  config = _config()
  config.terms["third"] = dict(config.terms[NAME])
  (problem,) = find_problems(config)
  assert problem.startswith(
    "config.terms.third.kind='distillation': must be one"
  )
