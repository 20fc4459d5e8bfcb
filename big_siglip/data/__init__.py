"""From images and captions on disk to the batches that training reads."""
