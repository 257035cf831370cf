"""Executors, which run tasks: the only package that imports ray.

Ray reads some of its environment variables when it is imported, so they are set here: all modules that import ray are
in this package and run this first.
"""

import os

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # Seconds between Ray Train's looks at its workers: with its default of 2 s every group ends seconds late.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    # Processes of Ray's own that are not needed here.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
}
"""Environment variables of Ray → values, where they are not set already."""
for _name, _value in ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)
