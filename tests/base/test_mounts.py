"""File systems by real tables of mounts, as clusters, pods and laptops have them."""

from __future__ import annotations

from pathlib import Path

import pytest

from pforce.base.mounts import Mount, mount_of, on_network

CLUSTER = r"""22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime shared:1 - xfs /dev/mapper/rhel-root rw,seclabel,attr2,inode64
40 27 0:44 / /home rw,relatime shared:20 - nfs4 nas.cluster:/export/home rw,vers=4.2,rsize=1048576,local_lock=none
41 27 0:45 / /lustre/scratch rw,nosuid shared:21 - lustre 10.0.0.1@o2ib:10.0.0.2@o2ib:/scratch rw,flock,lazystatfs
42 27 0:46 / /gpfs/work rw,relatime shared:22 - gpfs work rw
43 27 0:47 / /mnt/beegfs rw,relatime shared:23 - beegfs beegfs_nodev rw,cfgFile=/etc/beegfs/beegfs-client.conf
44 27 0:48 / /tmp rw,nosuid,nodev,noexec shared:24 - tmpfs tmpfs rw,size=10G
45 27 0:49 / /mnt/my\040share rw,relatime shared:25 - cifs //server/my\040share rw,vers=3.1.1
46 27 0:50 / /auto rw,relatime shared:26 - autofs /etc/auto.data rw,fd=7,direct
47 46 0:51 / /auto rw,relatime shared:27 - nfs filer:/data rw,vers=3
48 40 8:17 / /home/me/scratch rw,relatime shared:28 - ext4 /dev/sdb1 rw
"""
POD = """1523 1400 0:301 / / rw,relatime master:3 - overlay overlay rw,lowerdir=/var/lib/containerd/1,upperdir=/x
1524 1523 0:304 / /proc rw,nosuid,nodev,noexec,relatime - proc proc rw
1530 1523 0:52 / /dev/shm rw,relatime - tmpfs tmpfs rw,size=8388608k
1540 1523 0:60 / /shared rw,relatime - ceph 10.2.0.4:6789:/volumes/csi/csi-vol-1 rw,name=admin,secret=<hidden>,acl
1541 1523 0:61 / /bucket rw,nosuid,nodev,relatime - fuse.gcsfuse my-bucket rw,user_id=0,group_id=0
1542 1523 0:62 / /s3 ro,nosuid,nodev,noatime - fuse mountpoint-s3 rw,user_id=0,group_id=0
1543 1523 259:1 /var/lib/kubelet/pods/1/volumes/empty /scratch rw,relatime - ext4 /dev/nvme0n1p1 rw
1544 1523 0:63 / /remote rw,nosuid,nodev,relatime - fuse.sshfs me@server:/home/me rw,user_id=1000,group_id=1000
"""


@pytest.fixture
def table(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    path = tmp_path / "mountinfo"
    path.write_text(request.param)
    return path


@pytest.mark.parametrize(
    ("table", "folder", "kind", "network"),
    [
        (CLUSTER, "/home/me/runs", "nfs4", True),
        (CLUSTER, "/homework/runs", "xfs", False),
        (CLUSTER, "/home/me/scratch/runs", "ext4", False),
        (CLUSTER, "/lustre/scratch/me/runs", "lustre", True),
        (CLUSTER, "/gpfs/work", "gpfs", True),
        (CLUSTER, "/mnt/beegfs/a/b", "beegfs", True),
        (CLUSTER, "/mnt/my share/runs", "cifs", True),
        (CLUSTER, "/auto/set", "nfs", True),
        (CLUSTER, "/tmp/me", "tmpfs", False),
        (POD, "/runs", "overlay", False),
        (POD, "/shared/runs", "ceph", True),
        (POD, "/bucket/runs", "fuse.gcsfuse", True),
        (POD, "/s3/runs", "fuse", True),
        (POD, "/remote/runs", "fuse.sshfs", True),
        (POD, "/scratch/runs", "ext4", False),
    ],
    indirect=["table"],
)
def test_the_file_system_of_a_folder(table, folder, kind, network):
    mount = mount_of(folder, table)
    assert mount is not None
    assert (mount.kind, mount.network) == (kind, network)
    assert on_network(folder, table) == (mount if network else None)


@pytest.mark.parametrize("table", [CLUSTER], indirect=True)
def test_options_and_names_with_blanks(table):
    mount = mount_of("/mnt/my share", table)
    assert mount == Mount("/mnt/my share", "cifs", "//server/my share", ("rw", "relatime"))
    assert "noexec" in mount_of("/tmp", table).options


def test_this_machine_s_own_table_and_one_that_is_missing(tmp_path):
    assert mount_of("/proc").kind == "proc"
    assert mount_of(tmp_path) == mount_of(tmp_path / "not" / "there" / "yet")
    assert mount_of(tmp_path, tmp_path / "none") is None
