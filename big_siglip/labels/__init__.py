"""What labelled images teach a model that stays as it is.

`images` embeds them, `calibrating` fits scale and bias of the logits to them,
`probing` a linear classifier; `scores` says what a model makes of images.
"""
