"""A real Slurm of two nodes on this machine: its daemons, with a folder and ports of their own."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.support.ports import free_port

CONFIGURATION = """ClusterName=test
SlurmctldHost={host}
SlurmctldPort={controller}
AuthType=auth/none
AuthInfo=cred_expire=5
CredType=cred/none
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=bf_interval=1,sched_interval=1,batch_sched_delay=1
ReturnToService=2
SlurmdParameters=config_overrides
JobRequeue=1
KillWait=30
MpiDefault=none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
NodeName=n1 NodeHostname={host} Port={first} CPUs={cpus} RealMemory=16000
NodeName=n2 NodeHostname={host} Port={second} CPUs={cpus} RealMemory=16000
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""
DAEMONS = ("slurmctld", "slurmd", "sbatch")


def missing() -> str:
    """The reason why Slurm cannot run here; empty where it can."""
    lacks = [name for name in DAEMONS if shutil.which(name) is None]
    if lacks:
        return f"Slurm is needed ({', '.join(lacks)}): apt-get install slurm-wlm"
    return "" if os.geteuid() == 0 else "Slurm's daemons need root"


class Slurm:
    """Two nodes of some cores each."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.environment = folder, {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}

    def call(self, *words: str | Path, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> str:
        """Output of a Slurm command."""
        done = subprocess.run(
            [str(word) for word in words], env={**self.environment, **(env or {})}, cwd=cwd, capture_output=True,
            text=True, check=False, timeout=60,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{words}: {done.stdout}{done.stderr}")
        return done.stdout

    def submit(self, *words: str | Path, cwd: Path, env: Mapping[str, str] | None = None) -> str:
        """Submit a job, and return its number."""
        return self.call("sbatch", "--parsable", *words, cwd=cwd, env=env).strip()

    def states(self, job: str) -> list[str]:
        """States of a job, or of the jobs of an array; they are forgotten five minutes after the end."""
        return [line.split()[0] for line in self.call("squeue", "-h", "-t", "all", "-r", "-j", job, "-o", "%T").split()]

    def wait(self, job: str, seconds: float) -> list[str]:
        """Wait until a job has ended, and return the states."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            states = self.states(job)
            if not set(states) & {"PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "REQUEUED", "SUSPENDED"}:
                return states
            time.sleep(0.5)
        raise TimeoutError(f"job {job}: {self.call('scontrol', 'show', 'job', job)}")

    def logs(self) -> str:
        """What the daemons have logged last."""
        return "\n".join(f"{path.name}: {path.read_text()[-3000:]}" for path in sorted(self.folder.glob("*.log")))


@contextmanager
def slurm(folder: Path, *, cpus: int) -> Iterator[Slurm]:
    """Run Slurm's daemons during the block.

    Args:
        cpus: cores that each node has, as far as Slurm knows.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("state", "spool-n1", "spool-n2"):
        (folder / name).mkdir()
    controller, first, second = free_port(), free_port(), free_port()
    text = CONFIGURATION.format(
        host=socket.gethostname(), folder=folder, controller=controller, first=first, second=second, cpus=cpus
    )
    (folder / "slurm.conf").write_text(text)
    found = Slurm(folder)
    daemons: list[subprocess.Popen[bytes]] = []
    try:
        for words in (["slurmctld", "-D"], ["slurmd", "-D", "-N", "n1"], ["slurmd", "-D", "-N", "n2"]):
            log = (folder / f"{words[-1]}.out").open("wb")
            daemons.append(subprocess.Popen(words, env=found.environment, stdout=log, stderr=log))
            log.close()
        until = time.monotonic() + 60
        while time.monotonic() < until:
            with suppress(RuntimeError):
                if found.call("sinfo", "-h", "-N", "-o", "%T").split() == ["idle", "idle"]:
                    break
            time.sleep(0.3)
        else:
            raise RuntimeError(f"Slurm did not start\n{found.logs()}")
        yield found
    finally:
        with suppress(RuntimeError, subprocess.TimeoutExpired):
            found.call("scancel", "--full", "--user", "root")
            time.sleep(1)
        for each in reversed(daemons):
            each.terminate()
        for each in daemons:
            try:
                each.wait(20)
            except subprocess.TimeoutExpired:
                each.kill()
                each.wait()
