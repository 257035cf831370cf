"""PFT and SiT: configurations, sizes, and the transformer."""

from pforce.flow import Prediction
from pforce.models.config import SIZES, ModelConfig, sized
from pforce.models.transformer import PatchForcingTransformer, TimestepLevels, build

__all__ = ["SIZES", "ModelConfig", "PatchForcingTransformer", "Prediction", "TimestepLevels", "build", "sized"]
