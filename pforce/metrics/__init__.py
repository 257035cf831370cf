"""Metrics: Fréchet distance, difficulty correlation, calibration, context ablations. No image is drawn here."""

from pforce.metrics.calibration import Calibration, calibration, calibration_of
from pforce.metrics.config import EvaluationConfig
from pforce.metrics.context import ContextHelps, ContextUncertainty, context_helps, context_uncertainty
from pforce.metrics.difficulty import (
    TIMESTEPS,
    DifficultyCorrelation,
    PatchErrors,
    correlation_by_class,
    correlation_of,
    difficulty_correlation,
    patch_errors,
)
from pforce.metrics.frechet import Moments, distance_of_moments, frechet_distance, moments

__all__ = [
    "TIMESTEPS",
    "Calibration",
    "ContextHelps",
    "ContextUncertainty",
    "DifficultyCorrelation",
    "EvaluationConfig",
    "Moments",
    "PatchErrors",
    "calibration",
    "calibration_of",
    "context_helps",
    "context_uncertainty",
    "correlation_by_class",
    "correlation_of",
    "difficulty_correlation",
    "distance_of_moments",
    "frechet_distance",
    "moments",
    "patch_errors",
]
