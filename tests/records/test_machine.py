"""What a record says of the machine. Oracle: the system's own files and the environment."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from pforce.records.provenance import DRIVER, machine, made_on


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    machine.cache_clear()
    yield
    machine.cache_clear()


def test_the_host_is_named_by_its_kind(monkeypatch):
    monkeypatch.delenv("PFORCE_IMAGE", raising=False)
    found = machine()
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert f", {os.cpu_count()} cores, {pages / 2**30:.0f} GiB" in found["host_type"]
    assert made_on(torch.device("cpu"))["host_type"] == found["host_type"]


def test_a_container_is_named_by_its_image(monkeypatch):
    monkeypatch.setenv("PFORCE_IMAGE", "registry.example/pforce@sha256:0123")
    assert machine()["container"] == "registry.example/pforce@sha256:0123"


def test_a_driver_s_version_is_read_from_its_line():
    line = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024"
    found = DRIVER.search(line)
    assert found is not None
    assert found[0] == "550.54.15"
