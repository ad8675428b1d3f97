"""A server on this machine that speaks S3, for tests: moto's, whose objects are in its memory."""

import os
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from importlib.util import find_spec

import pytest

needs_s3 = pytest.mark.skipif(
    find_spec("s3fs") is None or find_spec("moto") is None, reason="s3fs and moto are not installed"
)


class Server:
    """A server that can be killed, and started again, empty, at the same port."""

    def __init__(self):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.environment = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ACCESS_KEY_ID": "any",
            "AWS_SECRET_ACCESS_KEY": "any",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        self.start()

    def start(self):
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(600):
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                time.sleep(0.05)
        raise TimeoutError("the server did not start")

    def kill(self):
        self.process.kill()
        self.process.wait()

    def put(self, objects):
        """Makes a bucket of objects, by name."""
        import fsspec

        system = fsspec.filesystem("s3")
        system.invalidate_cache()
        for name, content in objects.items():
            bucket = name.partition("/")[0]
            if not system.exists(bucket):
                system.mkdir(bucket)
            system.pipe(name, content)


@contextmanager
def running():
    """A server that this process and its children use."""
    import s3fs

    # File systems are kept by their settings, and with them the address of another server.
    s3fs.S3FileSystem.clear_instance_cache()
    server = Server()
    before = {name: os.environ.get(name) for name in server.environment}
    os.environ.update(server.environment)
    try:
        yield server
    finally:
        server.kill()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
