"""Writes WIT and others as TFDS ArrayRecord through Apache Beam.

`inputs` says what is read and how, `pipelines` what Beam does with it, and
`folder` what lies on disk meanwhile; big-siglip prepare joins them. Only
`pipelines` imports Beam, so that all the rest is tested without it.
"""
