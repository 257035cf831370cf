"""Where tasks run: the only package that imports ray.

Ray reads some of its variables when it is imported, so they are set here: whatever imports ray lies in this package,
and runs this first.
"""

import os

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # Ray Train looks at its workers this often: with its own 2 s every group ends seconds late.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    # Processes of its own that nobody reads or needs here.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
}
"""Variables of Ray's, where they are not set otherwise."""
for _name, _value in ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)
