"""One model from end to end, in any process: training, drawing, measuring, and the folder of a training; no Ray, no
MLflow.

Imports nothing itself, so that a process that only names a folder need not load torch and the data packages.
"""
