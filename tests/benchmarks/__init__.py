"""Benchmarks: scripts that print tables, run by hand. Timings are never asserted in tests.

python -m tests.benchmarks.timesteps      drawing timesteps, every sampler
python -m tests.benchmarks.modulation     one PFT forward: per token, one level, two levels, SiT
python -m tests.benchmarks.fixed_cost     Ray's start, and a trial's time outside training and evaluation
"""
