"""A disk that is really small, for tests to fill."""

from __future__ import annotations

import subprocess
from contextlib import suppress

MOUNT = 'mount -t tmpfs -o size="$1",mode=700 tmpfs "$2" && shift 2 && exec "$@"'


def on_a_small_disk(command, disk, size="256k"):
    """Return what runs a command in a mount namespace with a disk of its own; ``None`` if that is refused here."""
    for space in ("-rm", "-m"):
        mounted = ["unshare", space, "sh", "-c", MOUNT, "sh", size, str(disk)]
        with suppress(FileNotFoundError):
            if subprocess.run([*mounted, "true"], capture_output=True).returncode == 0:
                return [*mounted, *command]
    return None
