"""The templates of pages, which escape what others wrote."""

import pathlib

import jinja2

FOLDER = pathlib.Path(__file__).parent


def environment() -> jinja2.Environment:
  """Returns what finds the templates of this folder."""
  return jinja2.Environment(
    loader=jinja2.FileSystemLoader(FOLDER),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
