"""Evaluation: LiFT's reconstruction of features."""

from .reconstruction import ReconstructionEvaluator

__all__ = ["ReconstructionEvaluator"]
