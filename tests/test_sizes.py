"""Names and overrides resolve to the numbers of a tower."""

from model_cases import model_config
import pytest

from big_siglip.schema import sizes


def test_named_sizes_and_overrides():
  config = model_config(dict(size="So400m/14", depth=2), dict(size="L"))
  assert sizes.resolve_image(config.image) == sizes.TowerSize(
    width=1152, depth=2, mlp_dim=4304, num_heads=16, patch_size=14
  )
  config.image.patch_size = 16
  assert sizes.resolve_image(config.image).patch_size == 16
  assert sizes.resolve_text(config.text).num_heads == 16


@pytest.mark.parametrize(
  "tower,field,value,message",
  [
    ("image", "size", "XL/16", "mu, Ti, S, B, L, So400m, g-opt"),
    ("image", "size", "B", "TOWER/PATCH"),
    ("text", "size", "B/16", "mu, Ti, S, B, L, So400m, g-opt"),
    ("image", "size", "B/0", "patch_size=0: must be at least 1"),
    ("image", "patch_size", 0, "patch_size=0: must be at least 1"),
    ("text", "num_heads", 0, "config.model.text.num_heads=0"),
  ],
)
def test_wrong_sizes_are_refused_by_name(tower, field, value, message):
  config = model_config()
  config[tower][field] = value
  resolve = dict(image=sizes.resolve_image, text=sizes.resolve_text)[tower]
  with pytest.raises(ValueError, match=message) as error:
    resolve(config[tower])
  assert "\n" not in str(error.value)
