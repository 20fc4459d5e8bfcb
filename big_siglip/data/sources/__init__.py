"""Where examples come from: random access by index, nothing decoded yet.

Each format has a module that gives records by number (`example.Records`);
`record_source.RecordSource` makes examples of them: which fields are image and
texts, filters, templates. All files are read through `storage`.
"""

from big_siglip.data.sources.example import Example, Filters, Options, Source
from big_siglip.data.sources.opening import open_source

__all__ = ["Example", "Filters", "open_source", "Options", "Source"]
