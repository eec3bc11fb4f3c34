from pathlib import Path

import pytest

from pcls.checkpoint.filesystem import commit_for

MOUNTS = """\
proc /proc proc rw 0 0
/dev/vda / ext4 rw,relatime 0 0
bucket /mnt/bucket fuse.gcsfuse rw,nosuid 0 0
bucket /mnt/my\\040bucket fuse rw 0 0
/dev/sdb /mnt/disk fuseblk rw 0 0
nfs:/home /home nfs4 rw 0 0
tmpfs /mnt/bucket/local tmpfs rw 0 0
broken
"""


@pytest.mark.parametrize(
    ("folder", "commit"),
    [
        ("/srv/runs", "rename"),
        ("/home/me/runs", "rename"),
        ("/mnt/bucket/runs/checkpoints", "marker"),
        ("/mnt/bucket", "marker"),
        ("/mnt/bucket2", "rename"),
        ("/mnt/my bucket/runs", "marker"),
        ("/mnt/disk/runs", "rename"),
        ("/mnt/bucket/local/runs", "rename"),
    ],
)
def test_saves_are_committed_as_the_innermost_mount_can(folder, commit):
    assert commit_for(Path(folder), MOUNTS) == commit


def test_a_later_mount_hides_an_earlier_one():
    assert commit_for(Path("/a/b"), "x /a ext4 rw 0 0\ny /a fuse.s3fs rw 0 0\n") == "marker"
    assert commit_for(Path("/a/b"), "y / fuse.overlay rw 0 0\nx / ext4 rw 0 0\n") == "rename"


def test_without_a_list_of_mounts_saves_are_renamed(monkeypatch, tmp_path):
    monkeypatch.setattr("pcls.checkpoint.filesystem.MOUNTS", tmp_path / "missing")
    assert commit_for(tmp_path) == "rename"
