"""What a forward pass keeps for the backward pass."""

import jax

# Names of `config.model.remat`; what is not kept is computed again.
REMAT_POLICIES = {
  "none": jax.checkpoint_policies.everything_saveable,
  # But for the norms' moments, a thousandth of the input.
  "full": jax.checkpoint_policies.save_only_these_names("moments"),
  "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
  "projections": jax.checkpoint_policies.save_only_these_names(
    "query", "key", "value", "attention", "mlp_up"
  ),
  "attention": jax.checkpoint_policies.save_only_these_names(
    "query", "key", "value", "attention"
  ),
  "mlp": jax.checkpoint_policies.save_only_these_names("mlp_up"),
  # As "projections", in the host's memory: free, where the link to it is fast.
  "offload": jax.checkpoint_policies.save_and_offload_only_these_names(
    names_which_can_be_saved=[],
    names_which_can_be_offloaded=[
      "query",
      "key",
      "value",
      "attention",
      "mlp_up",
    ],
    offload_src="device",
    offload_dst="pinned_host",
  ),
}
