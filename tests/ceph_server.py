"""A private Ceph cluster of one monitor, one in-memory disk and one S3 gateway, on loopback.

Unlike moto it checks signatures, splits objects as a real store does, and can be killed. Start one
by hand with `python -m tests.ceph_server`.
"""

import argparse
import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from pathlib import Path
from typing import Any

import boto3

from tests.ports import free_ports

BUCKET = "blemish"
ACCESS_KEY = "BLEMISHACCESSKEY"
SECRET_KEY = "blemish/secret+key/of/the/test/server"

PROGRAMS = ("ceph", "ceph-mon", "ceph-osd", "monmaptool", "radosgw", "radosgw-admin")
INSTALL = "tests/system-packages.sh"

_UP_TIMEOUT_S = 60
_STOP_TIMEOUT_S = 5
# `ceph` is a Python program that needs the system's python, not a virtual environment's.
_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# `paxos propose interval` waits for more changes to bundle: with its default of 1 s each of the
# gateway's eight pools takes that much longer. A watch is what a killed gateway leaves behind: the
# next one waits for it. The garbage collector must return memory while tests run, not hours later.
_CONFIG = """\
[global]
fsid = {fsid}
mon host = v2:127.0.0.1:{mon_port}
public addr = 127.0.0.1
cluster addr = 127.0.0.1
auth cluster required = none
auth service required = none
auth client required = none
ms bind ipv6 = false
ms bind msgr1 = false
ms cluster mode = crc
ms service mode = crc
ms client mode = crc
ms mon cluster mode = crc
ms mon service mode = crc
ms mon client mode = crc
run dir = {folder}
admin socket =
log file = {folder}/$name.log
log to stderr = false
err to stderr = true
keyring = {folder}/keyring
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 2
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0

[mon]
mon data = {folder}/mon
mon cluster log file = {folder}/cluster.log
mon allow pool size one = true
mon max pg per osd = 2000
mon data avail warn = 1
mon data avail crit = 1
paxos propose interval = 0.05
paxos min wait = 0.01

[osd]
osd data = {folder}/osd
osd objectstore = memstore
memstore device bytes = 8589934592
osd memory target = 939524096
osd client watch timeout = 2

[client]
rgw frontends = beast endpoint=127.0.0.1:{port}
rgw data = {folder}/rgw
rgw thread pool size = 64
rgw num control oids = 1
rgw enable lc threads = false
rgw run sync thread = false
rgw gc obj min wait = 1
rgw gc processor period = 2
rgw gc processor max time = 2
"""


def missing_programs() -> list[str]:
    """The programs of Ceph that this machine lacks."""
    return [name for name in PROGRAMS if shutil.which(name, path=_SYSTEM_PATH) is None]


class CephServer:
    """One S3 server of this process's own; use it as a context manager.

    All its files lie in one folder, its ports are chosen at the start and on loopback, its objects
    are in memory. It needs no root. Should this process be killed, the daemons end too.

    Attributes:
        port: the gateway's; it stays over `stop_gateway` and `start_gateway`.
        env: the environment variables that lead to the server; the caller sets them.
    """

    def __init__(self, folder: Path) -> None:
        """Choose the ports; nothing runs yet.

        Args:
            folder: an existing folder for nothing else. Configuration and logs are left in it.
        """
        self._folder = folder.resolve()
        self._mon_port, self.port = free_ports(2)
        self._fsid = str(uuid.uuid4())
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        self._guard: subprocess.Popen[bytes] | None = None
        self.env = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def __enter__(self) -> "CephServer":
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    @property
    def gateway_pid(self) -> int:
        """The gateway's process, for tests that suspend it with SIGSTOP and SIGCONT."""
        return self._daemons["radosgw"].pid

    def cpu_s(self) -> float:
        """Processor time that all daemons have taken so far, seconds."""
        stats = [Path(f"/proc/{d.pid}/stat").read_text() for d in self._daemons.values()]
        ticks = sum(int(t) for stat in stats for t in stat.rpartition(")")[2].split()[11:13])
        return ticks / os.sysconf("SC_CLK_TCK")

    def client(self) -> Any:
        """A boto3 client of the server that needs no environment variables."""
        return boto3.client(
            "s3",
            endpoint_url=self.env["AWS_ENDPOINT_URL"],
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
            region_name=self.env["AWS_DEFAULT_REGION"],
        )

    def empty(self) -> None:
        """Delete all objects of `BUCKET`; their memory, twice their size, is free soon after."""
        client = self.client()
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET):
            if keys := [{"Key": item["Key"]} for item in page.get("Contents", ())]:
                client.delete_objects(Bucket=BUCKET, Delete={"Objects": keys})

    def stop_gateway(self) -> None:
        """Kill the gateway with SIGKILL; connections break, the objects stay."""
        self._stop_daemon("radosgw", signal.SIGKILL)

    def start_gateway(self) -> None:
        """Start the gateway on its port, unless it runs, and wait until it answers."""
        daemon = self._daemons.get("radosgw")
        if daemon is None or daemon.poll() is not None:
            self._start_daemon("radosgw", "-n", "client.rgw")
        deadline = time.monotonic() + _UP_TIMEOUT_S
        while time.monotonic() < deadline and self._daemons["radosgw"].poll() is None:
            try:
                with urllib.request.urlopen(self.env["AWS_ENDPOINT_URL"], timeout=2):
                    return
            except OSError:
                time.sleep(0.05)
        raise RuntimeError(f"the gateway did not come up; its logs are in {self._folder}")

    def _start(self) -> None:
        folder, fsid, port = self._folder, self._fsid, self._mon_port
        for name in ("mon", "osd", "rgw"):
            (folder / name).mkdir()
        config = _CONFIG.format(fsid=fsid, folder=folder, mon_port=port, port=self.port)
        (folder / "ceph.conf").write_text(config)
        self._start_guard()
        monitor, monmap = f"[v2:127.0.0.1:{port}]", str(folder / "monmap")
        self._call("monmaptool", "--create", "--fsid", fsid, "--addv", "a", monitor, monmap)
        self._call("ceph-mon", "--mkfs", "-i", "a", "--monmap", monmap)
        self._start_daemon("ceph-mon", "-i", "a")
        self._call("ceph", "osd", "new", fsid)
        self._call("ceph-osd", "--mkfs", "-i", "0", "--osd-uuid", fsid)
        self._start_daemon("ceph-osd", "-i", "0")
        keys = (f"--access-key={ACCESS_KEY}", f"--secret-key={SECRET_KEY}")
        self._call("radosgw-admin", "user", "create", "--uid=blemish", "--display-name=b", *keys)
        self.start_gateway()
        self.client().create_bucket(Bucket=BUCKET)

    def _stop(self) -> None:
        for name in reversed(list(self._daemons)):
            self._stop_daemon(name, signal.SIGTERM)
        if self._guard is not None:
            self._guard.kill()
            self._guard.communicate()

    def _start_guard(self) -> None:
        """Start a process that kills the daemons when this one ends without `_stop`.

        It waits for the end of a pipe that the kernel closes however this process dies.
        """
        script = 'cat >/dev/null; cat "$1"/*.pid | xargs -r kill -KILL'
        self._guard = subprocess.Popen(
            ["sh", "-c", script, "guard", str(self._folder)],
            stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _start_daemon(self, name: str, *words: str) -> None:
        with (self._folder / f"{name}.out").open("ab") as output:
            daemon = subprocess.Popen(
                [name, "-f", *words],
                env=self._environment(),
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self._daemons[name] = daemon
        (self._folder / f"{name}.pid").write_text(f"{daemon.pid}\n")

    def _stop_daemon(self, name: str, how: signal.Signals) -> None:
        daemon = self._daemons.pop(name, None)
        if daemon is None:
            return
        for signal_number in (how, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(daemon.pid, signal_number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                daemon.wait(_STOP_TIMEOUT_S)
                break
        (self._folder / f"{name}.pid").unlink()

    def _call(self, *words: str) -> None:
        done = subprocess.run(
            words,
            env=self._environment(),
            cwd=self._folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_UP_TIMEOUT_S,
        )
        if done.returncode:
            raise RuntimeError(f"{shlex.join(words)} failed: {done.stdout}{done.stderr}")

    def _environment(self) -> dict[str, str]:
        return {
            "PATH": _SYSTEM_PATH,
            "HOME": str(self._folder),
            "CEPH_CONF": str(self._folder / "ceph.conf"),
            "LC_ALL": "C.UTF-8",
        }


def main() -> int:
    """Run a server until Ctrl-C or SIGTERM; returns the exit status."""
    argparse.ArgumentParser(description=f"Run an S3 server with a bucket {BUCKET!r}.").parse_args()
    if missing := missing_programs():
        print(f"error: {', '.join(missing)} not found; run {INSTALL}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with (
        contextlib.suppress(KeyboardInterrupt),
        tempfile.TemporaryDirectory(prefix="ceph-", ignore_cleanup_errors=True) as folder,
        CephServer(Path(folder)) as server,
    ):
        for name, value in server.env.items():
            print(f"export {name}={shlex.quote(value)}")
        print(f"# s3://{BUCKET} is empty and in memory; Ctrl-C stops the server", flush=True)
        signal.pause()
    return 0


if __name__ == "__main__":
    sys.exit(main())
