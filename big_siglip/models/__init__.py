"""Two-tower models; they know neither losses nor data."""

from big_siglip.models.lora import make_model, merged
from big_siglip.models.remat import REMAT_POLICIES
from big_siglip.models.siglip import SigLIP
from big_siglip.models.stacking import restack

__all__ = ["make_model", "merged", "REMAT_POLICIES", "restack", "SigLIP"]
