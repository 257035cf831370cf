"""The storage of sweeps: a folder, or a bucket with a mirror on every machine."""

from pforce.storage.errors import StorageError
from pforce.storage.place import Storage
from pforce.storage.uri import default_storage, in_ray_job

__all__ = ["Storage", "StorageError", "default_storage", "in_ray_job"]
