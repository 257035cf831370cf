"""One model from end to end, in any process: train, draw, measure, and the folder that it leaves; no Ray, no MLflow.

Imports nothing itself: a process that only names a folder need not load torch's and the data's machinery.
"""
