"""Hardware, time and cost: what `WORKDIR/starts.jsonl` tells of a run."""

from collections.abc import Sequence
from typing import Any

from big_siglip.report.runs import Run, seconds
from big_siglip.report.tables import MISSING, number, Row, row, worth_showing


def cost(runs: Sequence[Run], price: float | None) -> list[Row]:
  """Returns hardware, time and cost.

  Args:
    runs: the runs.
    price: of an hour of one device; None leaves cost out.
  """
  rows = [
    row("Devices", runs, _devices),
    row("Processes", runs, lambda run: _of_starts(run, "processes")),
    row("CPUs of a process", runs, lambda run: _of_starts(run, "cpus")),
    row("Wall time", runs, lambda run: duration(run.seconds)),
    row("Starts", runs, lambda run: str(len(run.starts)) if run.starts else ""),
    row("Device-hours", runs, lambda run: number(run.device_hours)),
    row("Examples a second, median", runs, _median_speed),
    row("Versions", runs, _versions),
    row("Commit", runs, lambda run: _of_starts(run, "commit")),
  ]
  if price is not None:
    label = f"Cost, at {price:g} a device-hour"
    rows.insert(
      6,
      row(
        label,
        runs,
        lambda run: (
          f"{run.device_hours * price:,.2f}"
          if run.device_hours is not None
          else ""
        ),
      ),
    )
  return worth_showing(rows)


def starts(run: Run) -> list[list[str]]:
  """Returns a line for each start: when, how long, steps, devices, commit."""
  lines = []
  for start in run.starts:
    first, last = (start.get(f"{x}_step", MISSING) for x in ("first", "last"))
    when = str(start.get("start", MISSING)).removesuffix("+00:00")
    lines.append(
      [
        when.replace("T", " "),
        duration(seconds(start)),
        f"{first} to {last}",
        _device(start),
        str(start.get("commit") or MISSING)[:12],
      ]
    )
  return lines


def duration(time: float | None) -> str:
  """Returns "2 h 05 min", "3 min 20 s", "12 s", or "" if not known."""
  if time is None:
    return ""
  minutes, rest = divmod(round(time), 60)
  hours, minutes = divmod(minutes, 60)
  if hours:
    return f"{hours:,} h {minutes:02} min"
  return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def _devices(run: Run) -> str:
  return ", then ".join(dict.fromkeys(_device(start) for start in run.starts))


def _device(start: dict[str, Any]) -> str:
  return f"{start.get('devices', '?')} x {start.get('device_kind', '?')}"


def _of_starts(run: Run, key: str) -> str:
  values = [str(s[key]) for s in run.starts if s.get(key) is not None]
  return ", then ".join(dict.fromkeys(values))


def _versions(run: Run) -> str:
  told = []
  for start in run.starts:
    versions = start.get("versions")
    if isinstance(versions, dict):
      told.append(", ".join(f"{k} {v}" for k, v in versions.items()))
  return "; then ".join(dict.fromkeys(told))


def _median_speed(run: Run) -> str:
  speeds = [v for _, v in run.points("examples_per_second") if v is not None]
  return number(sorted(speeds)[len(speeds) // 2]) if speeds else ""
