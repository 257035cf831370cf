"""Orchestration of sweeps, searches, tables, evaluations and drawings: plans, the loop, and reports. Without Ray."""
