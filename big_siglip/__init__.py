"""Train, fine-tune, evaluate and export SigLIP models in JAX and Flax."""
