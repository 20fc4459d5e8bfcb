"""One HTML page that shows what runs have done; see big-siglip report.

`runs` reads their folders, `curves` and `charts` draw what was logged, `tables`
and `resources` compare, `pool` and `samples` ask the models about held-out
examples, `page` puts it together.
"""

from big_siglip.report.page import write_report

__all__ = ["write_report"]
