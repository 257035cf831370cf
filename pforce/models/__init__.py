"""PFT and SiT: configurations, sizes, the transformer, and its files, ours and published ones."""

from pforce.flow import Prediction
from pforce.models.config import SIZES, ModelConfig, sized
from pforce.models.published import PublishedError, load_published, save_published
from pforce.models.store import ModelFileError, load_model, save_model
from pforce.models.transformer import PatchForcingTransformer, TimestepLevels, build

__all__ = [
    "SIZES", "ModelConfig", "ModelFileError", "PatchForcingTransformer", "Prediction", "PublishedError",
    "TimestepLevels", "build", "load_model", "load_published", "save_model", "save_published", "sized",
]  # fmt: skip
