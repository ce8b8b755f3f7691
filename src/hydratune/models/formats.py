"""Tensors by name out of the files of other libraries: NumPy's .npz, Keras' HDF5, Flax's msgpack, TensorFlow's.

Nothing in them is executed, and no other file is followed: pickled objects, links, external and virtual data are
refused by name, and so is what claims to be far larger than it is.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from hydratune.models.tensorflow_checkpoint import tensorflow_tensors

LARGEST = 64 * 2**30  # bytes of all tensors
DENSEST = 100  # weights do not compress that much; a file that unpacks to more is none
INSTALL = "pip install 'hydratune[weights]'"
HDF5 = (".h5", ".hdf5", ".keras")
SUFFIXES = (".npz", *HDF5, ".msgpack", ".index")


def read_foreign(path: Path) -> dict[str, Tensor]:
    """Names are paths with slashes, as the libraries have them.

    Raises ValueError for whatever holds more than numbers.
    """
    suffix = path.suffix.lower()
    try:
        if suffix == ".npz":
            return {name: _tensor(array, name) for name, array in _npz(path)}
        if suffix == ".index":
            return {name: _tensor(array, name) for name, array in tensorflow_tensors(path)}
        if suffix == ".msgpack":
            return {name: _tensor(array, name) for name, array in _msgpack(path)}
        return {name: _tensor(array, name) for name, array in _hdf5(path)}
    except (OSError, EOFError, KeyError, zipfile.BadZipFile, RuntimeError) as error:
        raise ValueError(f"{path} is no whole {suffix} file ({error})") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _tensor(array: Any, name: str) -> Tensor:
    if array.dtype.kind == "V" and array.dtype.itemsize == 2:  # bfloat16, of which NumPy knows nothing
        return torch.from_numpy(np.array(array.view(np.uint16), np.int32)).bitwise_left_shift(16).view(torch.float32)
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{name} holds {array.dtype}, which are no numbers")
    return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("="), order="C"))


def _room(wanted: int, there: int, name: str) -> None:
    if wanted > LARGEST or wanted > DENSEST * max(there, 2**20):
        raise ValueError(f"{name} claims {wanted:,} bytes, in a file of {there:,}")


# ---- NumPy


def _npz(path: Path) -> Iterator[tuple[str, Any]]:
    with zipfile.ZipFile(path) as archive:
        there = path.stat().st_size
        _room(sum(member.file_size for member in archive.infolist()), there, "it")
        for member in archive.infolist():
            with archive.open(member) as file:
                yield member.filename.removesuffix(".npy"), _npy(file, member.file_size, member.filename)


def _npy(file: IO[bytes], size: int, name: str) -> Any:
    version = np.lib.format.read_magic(file)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
    if read is None:
        raise ValueError(f"{name} is of a version of NumPy's format that is not read ({version})")
    shape, fortran, dtype = read(file)
    if dtype.hasobject:
        raise ValueError(f"{name} holds pickled objects, which are not read")
    wanted = math.prod(shape) * dtype.itemsize
    if wanted > size:
        raise ValueError(f"{name} claims {wanted:,} bytes and has {size:,}")
    content = file.read(wanted)
    array = np.frombuffer(content, dtype=dtype)
    return array.reshape(shape[::-1]).T if fortran else array.reshape(shape)


# ---- Keras


def group_names(path: Path) -> dict[str, str]:
    """Of an HDF5 file that was read already: every group, with what it says to be called, '' where it does not."""
    found: dict[str, str] = {}

    def look(name: str, node: Any) -> None:
        if not hasattr(node, "dtype"):
            said = node.attrs.get("name", "")
            found[name] = said if isinstance(said, str) else ""

    with _opened(path) as (_, file, _there):
        file.visititems(look)
    return found


def _hdf5(path: Path) -> Iterator[tuple[str, Any]]:
    with _opened(path) as (h5py, file, there):
        yield from _group(h5py, file, "", there, set())


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any, int]]:
    """(h5py, the open file, how many bytes it has)"""
    try:
        import h5py
    except ImportError:
        raise ValueError(f"h5py reads it and is not installed; {INSTALL}") from None
    source: Any = path
    there = path.stat().st_size
    if path.suffix.lower() == ".keras":  # an archive: the weights, and a description that nobody here executes
        with zipfile.ZipFile(path) as archive:
            member = archive.getinfo("model.weights.h5")
            _room(member.file_size, there, member.filename)
            source = io.BytesIO(archive.read(member))
            there = member.file_size
    with h5py.File(source, "r") as file:
        yield h5py, file, there


def _group(h5py: Any, group: Any, prefix: str, there: int, seen: set[Any]) -> Iterator[tuple[str, Any]]:
    """Hard links alone: others lead out of the file, or to what is not meant to be read."""
    for name in group:
        link, path = group.get(name, getlink=True), f"{prefix}{name}"
        if not isinstance(link, h5py.HardLink):
            raise ValueError(f"{path} is a {type(link).__name__} to something else, which is not followed")
        node = group.get(name)
        address = h5py.h5o.get_info(node.id).addr
        if isinstance(node, h5py.Group):
            if address in seen:
                raise ValueError(f"{path} leads back to where it came from")
            yield from _group(h5py, node, f"{path}/", there, seen | {address})
        elif isinstance(node, h5py.Dataset):
            if node.external or node.is_virtual:
                raise ValueError(f"{path} takes its numbers from other files, which are not read")
            if node.dtype.kind in "fiub":
                _room(node.size * node.dtype.itemsize, there, path)
                yield path, node[()] if node.shape else np.array(node[()])


# ---- Flax


def _msgpack(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        import msgpack
    except ImportError:
        raise ValueError(f"msgpack reads it and is not installed; {INSTALL}") from None
    try:
        content = msgpack.unpackb(path.read_bytes(), ext_hook=_extension, raw=False, strict_map_key=True)
    except (msgpack.exceptions.UnpackException, msgpack.exceptions.ExtraData) as error:
        raise ValueError(f"is no msgpack of tensors ({error})") from None
    yield from _flat(content, "")


def _extension(code: int, data: bytes) -> Any:
    """Flax's: 1 is an array, 3 a single number; (shape, dtype, bytes)."""
    import msgpack

    if code not in (1, 3):
        raise ValueError(f"holds an extension of kind {code}, which are no numbers")
    shape, name, content = msgpack.unpackb(data, raw=False)
    dtype = np.dtype("V2") if name == "bfloat16" else np.dtype(str(name))
    if dtype.hasobject:
        raise ValueError("holds pickled objects, which are not read")
    return np.frombuffer(content, dtype=dtype).reshape(tuple(shape))


def _flat(node: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _flat(value, f"{prefix}/{key}" if prefix else str(key))
    elif isinstance(node, np.ndarray):
        yield prefix, node
