"""Checks of this machine's software: Python, packages, torch, and the devices that torch finds."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from packaging.requirements import Requirement

from pforce.models.attention import FLASH_PACKAGES, AttentionError, flash_attention, flash_package
from pforce.orchestration.doctor.check import Check


def python() -> Check:
    """Report the versions of Python and pforce."""
    version = importlib.metadata.version("pforce")
    return Check("Python", "ok", f"Python {platform.python_version()} ({sys.prefix}), pforce {version}")


def packages() -> Check:
    """Check that the packages that pforce requires are installed in suitable versions."""
    wrong = []
    for text in importlib.metadata.requires("pforce") or []:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            there = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(there, prereleases=True):
            wrong.append(f"{requirement.name} {there} is not {requirement.specifier}")
    if wrong:
        return Check("packages", "problem", "; ".join(wrong), "Install pforce again: pip install --upgrade pforce")
    return Check("packages", "ok", "all that pforce requires")


def gpus() -> Check:
    """Check driver, CUDA, devices and bfloat16."""
    built = f"torch {torch.__version__}, " + (f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA")
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        listed = ", ".join(f"{names.count(name)} × {name}" for name in dict.fromkeys(names))
        memory = torch.cuda.get_device_properties(0).total_memory / 2**30
        bf16 = "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no bfloat16: float32 is used"
        return Check("GPU", "ok", f"{built}, driver {_driver()}: {listed} with {memory:.0f} GiB, {bf16}")
    if Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi"):
        cure = ("Install the NVIDIA driver for torch's CUDA (or a torch built for the driver's), and start containers "
                "with --gpus all.")  # fmt: skip
        return Check("GPU", "problem", f"{built}: an NVIDIA driver ({_driver()}), but torch sees no device", cure)
    return Check("GPU", "ok", f"{built}: none here; training runs on the CPU, in float32")


def _driver() -> str:
    if shutil.which("nvidia-smi") is None:
        return "version unknown"
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
    return (done.stdout if done.returncode == 0 else done.stdout + done.stderr).strip().split("\n")[0]


def communication() -> Check:
    """Check NCCL, for workers with GPUs, and gloo, for those without."""
    name, devices = "NCCL", torch.cuda.device_count()
    if torch.distributed.is_nccl_available():
        version = ".".join(map(str, torch.cuda.nccl.version()))
        used = "is used by workers with GPUs" if devices else "is not used without a GPU: workers talk by gloo"
        return Check(name, "ok", f"{version}; {used}")
    if devices > 1:
        cure = "Install a torch that is built with CUDA (pip install torch)."
        return Check(name, "problem", f"{devices} GPUs, but this torch has no NCCL", cure)
    return Check(name, "ok", "not in this torch; workers on CPUs talk by gloo")


def attention() -> Check:
    """Check the attention backends that a model's `attention` field can choose."""
    kinds = {
        "flash": torch.backends.cuda.flash_sdp_enabled(),
        "memory-efficient": torch.backends.cuda.mem_efficient_sdp_enabled(),
        "cuDNN": torch.backends.cuda.cudnn_sdp_enabled(),
        "math": torch.backends.cuda.math_sdp_enabled(),
    }
    text = f"model.attention=sdpa (the default): torch's, with {', '.join(k for k, on in kinds.items() if on)}"
    if importlib.util.find_spec("flash_attn") is None:
        return Check("attention", "ok", f"{text}; =flash is not there ({' or '.join(FLASH_PACKAGES)} is not installed)")
    try:
        flash_attention()
    except AttentionError as error:
        return Check("attention", "warning", f"{text}; {error}", "Leave model.attention at sdpa.")
    return Check("attention", "ok", f"{text}; =flash: {flash_package()}, agrees with it on this device")


def torchvision() -> Check:
    """Check that torchvision's compiled part fits this torch; torch-fidelity and timm need it."""
    versions = f"torchvision {importlib.metadata.version('torchvision')} with torch {torch.__version__}"
    try:
        from torchvision.ops import nms

        nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.ones(1), 0.5)
    except Exception as error:  # ImportError, RuntimeError or OSError, depending on what does not fit
        cure = "Install both from one source: pip install --upgrade torch torchvision"
        return Check("torchvision", "problem", f"{versions}: {type(error).__name__}: {error}", cure)
    return Check("torchvision", "ok", f"{versions}: its operators work")


def process_starts() -> Check:
    """Check whether an installed package slows the start of Ray's processes."""
    # jsonschema, which Ray imports, imports it where it is installed, and it builds a grammar at import.
    if importlib.util.find_spec("rfc3987_syntax") is None:
        return Check("process starts", "ok", "nothing known to slow them is installed")
    text = "rfc3987-syntax is installed (JupyterLab brings it): each process of Ray starts about 0.75 s later"
    cure = "pip uninstall rfc3987-syntax here, and keep JupyterLab in an environment of its own."
    return Check("process starts", "warning", text, cure)
