"""A folder of images with what is said of them, in whatever way it is laid out.

`layouts` finds out which way that is. `tables`, `annotations` and `loose` give
the rows of one family each: a table, a JSON file of annotations, files beside
the images or folders of classes. `gathering` chooses the columns, checks the
rows and puts those of an image together, for `records`.
"""

from big_siglip.data.sources.folder.gathering import Gathered
from big_siglip.data.sources.folder.listing import Listing
from big_siglip.data.sources.folder.records import (
  chosen_images,
  FolderRecords,
  read_folder,
)

__all__ = [
  "chosen_images",
  "FolderRecords",
  "Gathered",
  "Listing",
  "read_folder",
]
