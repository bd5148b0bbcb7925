"""Files of tensors appear whole, or nothing is left of them."""

import errno
from pathlib import Path

import numpy as np
import pytest
from crdt_merge_node.errors import FullError
from crdt_merge_node.ports import SystemFs, SystemRng
from crdt_merge_node.resolve.files import read_header
from crdt_merge_node.tensor_writer import TensorWriter
from crdt_merge_protocol.blobs import TensorSpec

SPECS = [TensorSpec(name="w", dtype="F32", shape=(2, 3)), TensorSpec(name="zeros", dtype="F16", shape=(4,))]


class FullWhen(SystemFs):
    """A file system whose files find no room in one of their methods."""

    def __init__(self, method: str) -> None:
        self._method = method

    def create(self, *arguments, **options):
        file = super().create(*arguments, **options)

        def fail(*_arguments, **_options):
            raise OSError(errno.ENOSPC, "no space")

        setattr(file, self._method, fail)
        return file


def write(path: Path, fs) -> None:
    with TensorWriter(path, SPECS, fs=fs, rng=SystemRng()) as writer:
        writer.put("w", np.arange(6.0).reshape(2, 3))


def test_what_is_not_put_is_zero(tmp_path: Path):
    path = tmp_path / "a.safetensors"
    write(path, SystemFs())

    data = path.read_bytes()
    found = {e.spec.name: data[e.begin : e.end] for e in read_header(SystemFs(), path).entries}
    assert found == {"w": np.arange(6, dtype=np.float32).tobytes(), "zeros": bytes(8)}


@pytest.mark.parametrize("method", ["truncate", "write_at", "sync"])
def test_a_full_disk_leaves_nothing_and_harms_nothing(tmp_path: Path, method: str):
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"before")
    with pytest.raises(FullError):
        write(path, FullWhen(method))

    assert [each.name for each in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == b"before"
