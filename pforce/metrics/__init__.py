"""Metrics: Fréchet distance, difficulty correlation, calibration, and the evaluation of a trial."""

from pforce.metrics.calibration import Calibration, calibration, calibration_of
from pforce.metrics.difficulty import (
    DifficultyCorrelation,
    PatchErrors,
    correlation_of,
    difficulty_correlation,
    patch_errors,
)
from pforce.metrics.evaluate import EvaluationConfig, TrialEvaluation, evaluate
from pforce.metrics.frechet import Moments, distance_of_moments, frechet_distance, moments

__all__ = [
    "Calibration",
    "DifficultyCorrelation",
    "EvaluationConfig",
    "Moments",
    "PatchErrors",
    "TrialEvaluation",
    "calibration",
    "calibration_of",
    "correlation_of",
    "difficulty_correlation",
    "distance_of_moments",
    "evaluate",
    "frechet_distance",
    "moments",
    "patch_errors",
]
