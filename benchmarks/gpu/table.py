"""Rows as lines that are read, and where the figures of a row come from."""

from typing import Any

HEADS = {
  "steps": (
    f"{'model':11}{'step':34}{'batch':>7}{'s a step':>10}{'spread':>8}"
    f"{'examples/s':>12}{'TFLOP/s':>9}{'MFU':>8}{'GiB':>7}{'compiled':>10}"
  ),
  "attention": (
    f"{'shape':24}{'tokens':>7}{'heads':>9}  {'backend':13}{'ms':>9}"
    f"{'TFLOP/s':>9}{'error':>10}"
  ),
  "ring": f"{'loss':28}{'n':>8}{'ms':>9}{'GiB':>7}{'error':>10}",
}


def derive(part: str, row: dict[str, Any], chip: dict[str, Any]) -> None:
  """Adds the rates of a step to its row.

  MFU is of the model's own operations, without what is computed again.

  Args:
    part: of the row.
    row: with "seconds" and "batch_size".
    chip: what `benchmarks.gpu.chip` said.
  """
  each = chip.get("flops_per_example", {}).get(row.get("config"))
  if part in ("attention", "ring", "chip") or "seconds" not in row or not each:
    return
  row["examples_per_second"] = row["batch_size"] / row["seconds"]
  row["flops_per_second"] = row["examples_per_second"] * each
  peak = chip.get("peak_flops")
  devices = row.get("devices", 1)
  row["mfu"] = row["flops_per_second"] / (peak * devices) if peak else None


def chip_lines(chip: dict[str, Any]) -> list[str]:
  """Returns what is said of the GPU."""
  lines = [f"{chip['device']}, {chip['devices']} attached, jax {chip['jax']}"]
  if chip["peak_flops"]:
    peak = f"peak {chip['peak_flops'] / 1e12:,.0f} TFLOP/s by its sheet"
  else:
    peak = "no peak is known of it (models/flops.py), so there is no MFU"
  lines.append(
    f"{peak}; reached in a bfloat16 product "
    f"{chip['product_flops'] / 1e12:,.1f} TFLOP/s, in a copy "
    f"{chip['copy_bytes'] / 1e9:,.0f} GB/s"
  )
  if chip["xla_flags"]:
    lines.append(f"XLA_FLAGS={chip['xla_flags']}")
  return lines


def head(part: str) -> str:
  """Returns the names of the columns of a part."""
  return HEADS.get(part, HEADS["steps"])


def line(part: str, row: dict[str, Any]) -> str:
  """Returns a row of a part."""
  if part == "attention":
    return _attention_line(row)
  if part == "ring":
    return _ring_line(row)
  start = f"{row.get('model', ''):11}{row['who']:34}"
  if "skipped" in row:
    return f"{start}  {row['skipped']}"
  spread = (row["slowest"] - row["fastest"]) / row["seconds"]
  mfu = f"{row['mfu']:.1%}" if row.get("mfu") is not None else "-"
  rate, work = row.get("examples_per_second"), row.get("flops_per_second")
  return (
    f"{start}{row['batch_size']:7,}{row['seconds']:10.4f}{spread:8.1%}"
    f"{rate or 0:12,.1f}{(work or 0) / 1e12:9.1f}{mfu:>8}"
    f"{row['peak_bytes'] / 2**30:7.1f}{row['compile_seconds']:8.0f} s"
  )


def _attention_line(row: dict[str, Any]) -> str:
  heads = f"{row['heads']}x{row['size']}"
  start = f"{row['shape']:24}{row['tokens']:7}{heads:>9}  {row['backend']:13}"
  if "skipped" in row:
    return f"{start}  {row['skipped']}"
  return (
    f"{start}{row['seconds'] * 1e3:9.3f}"
    f"{row['flops_per_second'] / 1e12:9.1f}{row['error']:10.1e}"
  )


def _ring_line(row: dict[str, Any]) -> str:
  start = f"{row['loss']:28}{row['n']:8,}"
  if "skipped" in row:
    return f"{start}  {row['skipped']}"
  return (
    f"{start}{row['seconds'] * 1e3:9.2f}{row['peak_bytes'] / 2**30:7.2f}"
    f"{row['gradient_error']:10.1e}"
  )
