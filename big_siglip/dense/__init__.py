"""Pictures of what patches know: components, maps of labels, matches.

`pictures` turns numbers into colours, `matching` finds patches of one image in
another; both know arrays alone. `figure` puts pictures and words on a sheet.
"""
