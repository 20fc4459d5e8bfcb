"""Times one train step of transformers' SigLIP in PyTorch.

python -m benchmarks.gpu.torch_step --model=b16 --batch_size=512 [--compile]

Of `benchmarks.gpu`, which starts it in a process of its own. The sizes are
those of our config: bfloat16 by autocast, PyTorch's own fused attention, blocks
computed again for the gradient, the model's own sigmoid loss, fused AdamW.
Nothing is clipped.
"""

import argparse
import time
from typing import Any

from benchmarks.gpu import child, models, parts


def make_model(torch: Any, transformers: Any, model: Any) -> Any:
  """Returns transformers' model of a `config.model`, in float32.

  Args:
    torch: the module.
    transformers: the module.
    model: whose sizes it takes.
  """
  image, text = models.towers(model)

  def section(size, **rest):
    return {
      "hidden_size": size.width,
      "intermediate_size": size.mlp_dim,
      "num_hidden_layers": size.depth,
      "num_attention_heads": size.num_heads,
      **rest,
    }

  config = transformers.SiglipConfig(
    vision_config=section(
      image,
      image_size=model.image.image_size,
      patch_size=image.patch_size,
    ),
    text_config=section(
      text,
      vocab_size=model.text.vocab_size,
      max_position_embeddings=model.text.length,
      projection_size=image.width,
    ),
    attn_implementation="sdpa",
  )
  torch.manual_seed(0)
  return transformers.SiglipModel(config)


def make_step(torch: Any, net: Any, device: Any, batch: Any) -> Any:
  """Returns () -> the loss, which takes one step.

  Args:
    torch: the module.
    net: the model, on the device.
    device: to wait for.
    batch: "image" uint8 B3HW and "text" BL.
  """
  on_gpu = device.type == "cuda"
  optimizer = torch.optim.AdamW(
    net.parameters(), 1e-3, (0.9, 0.95), weight_decay=0.1, fused=on_gpu
  )

  def step():
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast(device.type, torch.bfloat16):
      pixels = batch["image"].to(torch.bfloat16) / 127.5 - 1
      loss = net(
        input_ids=batch["text"], pixel_values=pixels, return_loss=True
      ).loss
    loss.backward()
    optimizer.step()
    if on_gpu:
      torch.cuda.synchronize()
    return loss

  return step


def timed(torch: Any, transformers: Any, given: Any, size: int) -> Any:
  """Returns the figures of a row; None: it needs more memory than there is.

  Args:
    torch: the module.
    transformers: the module.
    given: the flags.
    size: examples a step.
  """
  device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
  model = models.config(given.model, size, given.tiny, {}).model
  try:
    net = make_model(torch, transformers, model).to(device).train()
    net.gradient_checkpointing_enable({"use_reentrant": False})
    side, length = model.image.image_size, model.text.length
    vocab = model.text.vocab_size
    batch = {
      "image": torch.randint(
        0, 256, (size, 3, side, side), dtype=torch.uint8, device=device
      ),
      "text": torch.randint(0, vocab, (size, length), device=device),
    }
    if given.compile:
      net.compile()
    step = make_step(torch, net, device, batch)
    before = time.perf_counter()
    loss = float(step().detach())
    took = time.perf_counter() - before
    taken = child.times(step, given.seconds)
  except torch.OutOfMemoryError:
    return None
  peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
  return {
    **child.summary(taken),
    "compile_seconds": took,
    "peak_bytes": peak,
    "loss": loss,
  }


def main() -> None:
  """Says one row."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--model", choices=parts.NAMES, required=True)
  parser.add_argument("--batch_size", type=int, required=True)
  parser.add_argument("--compile", action="store_true", help="torch.compile")
  parser.add_argument("--seconds", type=float, default=10.0)
  parser.add_argument("--tiny", action="store_true", help="on a CPU too")
  given = parser.parse_args()
  title = models.title(models.config(given.model, 1, given.tiny, {}).model)
  who = "torch, compiled" if given.compile else "torch"
  row = {"model": title, "who": who}
  try:
    import torch
    import transformers
  except ImportError as error:
    child.say(**row, skipped=f"{error.name} is not installed")
    return
  if not (torch.cuda.is_available() or given.tiny):
    child.say(**row, skipped=f"torch {torch.__version__} sees no GPU")
    return
  transformers.logging.set_verbosity_error()
  versions = {
    "torch": torch.__version__,
    "transformers": transformers.__version__,
  }
  with child.refusals(**row):
    for size in child.halves(given.batch_size):
      found = timed(torch, transformers, given, size)
      if found:
        child.say(**row, batch_size=size, **found, **versions)
        return
      torch.cuda.empty_cache()
    child.say(**row, skipped="one example does not fit into the memory")


if __name__ == "__main__":
  main()
