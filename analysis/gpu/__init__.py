"""Jobs of `analysis/gpu_queue.py`."""
