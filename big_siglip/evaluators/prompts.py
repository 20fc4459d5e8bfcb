"""Prompts of a zero-shot classifier: templates, filled with classes' names."""

from collections.abc import Mapping, Sequence
import json
from typing import Any

from big_siglip import shipped
from big_siglip.data.cleaning import canonicalize
from big_siglip.errors import raise_problems, UserError


def read_templates(
  templates: Sequence[str], file: str | None
) -> tuple[str, ...]:
  """Returns the prompt templates, checked.

  Args:
    templates: such as "a photo of the digit {}."; empty where a file is given.
    file: one a line, or a .json list.

  Raises:
    UserError: none or both are given, or a template has not exactly one "{}".
  """
  if file is None and (isinstance(templates, str) or not templates):
    raise UserError(
      f"config.evals: templates={templates!r}: must be a tuple of at least one "
      "(or set templates_file)"
    )
  if file is not None:
    if templates:
      raise UserError(
        f"config.evals: templates_file={file!r}: templates must be empty beside"
      )
    templates = read_content(file, "templates_file")
  field = "templates" if file is None else f"templates_file={file!r}"
  raise_problems(
    [
      f"config.evals: {field} has {template!r}: must have '{{}}' exactly once"
      for template in templates
      if not isinstance(template, str) or template.count("{}") != 1
    ]
  )
  return tuple(templates)


def fill_templates(
  templates: Sequence[str],
  names: Sequence[Sequence[str]],
  canonical: bool = False,
) -> list[list[str]]:
  """Returns each class's prompts: every template with each of its names.

  Args:
    templates: with "{}" once each.
    names: of each class.
    canonical: lowercase without punctuation (`canonicalize`).
  """
  if canonical:
    templates = [
      canonicalize(template, keep_punctuation="{}") for template in templates
    ]
    names = [[canonicalize(n) for n in of_class] for of_class in names]
  return [
    [
      template.replace("{}", name)
      for name in of_class
      for template in templates
    ]
    for of_class in names
  ]


def read_content(file: str, field: str) -> Any:
  """Returns the lines of a text file, or what a JSON file holds.

  Raises:
    UserError: it cannot be read, or holds nothing.
  """
  path = shipped.find(file)
  try:
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix != ".json":
      content = [line.strip() for line in text.splitlines() if line.strip()]
    else:
      content = json.loads(text)
  except OSError as error:
    raise UserError(
      f"config.evals: {field}={file!r}: {error.strerror}"
    ) from error
  except ValueError as error:
    raise UserError(
      f"config.evals: {field}={file!r}: cannot be read ({error})"
    ) from error
  if not isinstance(content, list | Mapping) or not content:
    raise UserError(f"config.evals: {field}={file!r}: the list is empty")
  return content
