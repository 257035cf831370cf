"""Metrics: Fréchet distance, difficulty correlation, and the evaluation of a trial."""

from pforce.metrics.difficulty import DifficultyCorrelation, difficulty_correlation
from pforce.metrics.evaluate import EvaluationConfig, TrialEvaluation, evaluate
from pforce.metrics.frechet import Moments, distance_of_moments, frechet_distance, moments

__all__ = [
    "DifficultyCorrelation",
    "EvaluationConfig",
    "Moments",
    "TrialEvaluation",
    "difficulty_correlation",
    "distance_of_moments",
    "evaluate",
    "frechet_distance",
    "moments",
]
