"""Puts configs/ into the package; setup.cfg has all the rest."""

from setuptools import find_packages, setup

setup(
  packages=[
    *find_packages(include=["big_siglip*"]),
    "big_siglip.configs",
    "big_siglip.configs.evals",
    "big_siglip.configs.siglip2",
  ],
  package_dir={"big_siglip.configs": "configs"},
  package_data={
    "big_siglip": ["py.typed"],
    "big_siglip.report": ["*.html", "*.css", "*.js"],
    "big_siglip.page": ["*.html", "*.css", "*.js", "*.json"],
    "big_siglip.configs": ["*.model", "classes/*.json", "prompts/*.txt"],
  },
)
