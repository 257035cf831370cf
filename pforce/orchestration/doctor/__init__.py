"""`pforce doctor`: small checks of a machine, its stores and a cluster, each with a remedy for problems."""

from pforce.orchestration.doctor.check import SIGNS, Check, State
from pforce.orchestration.doctor.diagnose import diagnose

__all__ = ["SIGNS", "Check", "State", "diagnose"]
