"""An S3 server of this process (moto), which fsspec and the children of this process use."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import fsspec
import pytest
from moto.server import ThreadedMotoServer


@contextmanager
def served() -> Iterator[Any]:
    """A file system with an empty bucket `bucket`."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        system, _ = fsspec.url_to_fs("s3://bucket", skip_instance_cache=True)
        system.mkdir("bucket")
        yield system
        system.rm("bucket", recursive=True)  # moto keeps it beyond its server
        server.stop()
        fsspec.get_filesystem_class("s3").clear_instance_cache()
