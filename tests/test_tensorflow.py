"""TensorFlow's checkpoints: files that TensorFlow 2.21 wrote, and the same files spoilt."""

from __future__ import annotations

import random
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hydratune.models.crc32c import crc32c, masked
from hydratune.models.foreign import read_weights
from hydratune.models.tensorflow_checkpoint import MAGIC, tensorflow_tensors

HERE = Path(__file__).parent / "tensorflow"
# In the order that they were made, each with the numbers 0, 0.5, 1, ... from its place on, cut to its type
NAMES = {"net/dense/kernel": ("f4", (3, 4)), "net/dense/bias": ("f4", (4,)), "net/half": ("f2", (2, 2)),
         "net/double": ("f8", (5,)), "net/int32": ("i4", (3,)), "net/int64": ("i8", (2, 1)), "net/uint8": ("u1", (4,)),
         "net/bool": ("?", (3,)), "net/bfloat16": ("V2", (6,)), "net/scalar": ("f4", ())}  # fmt: skip


def made(start: int, shape: tuple[int, ...]) -> Any:
    return np.arange(int(np.prod(shape))).reshape(shape) * 0.5 + start


def test_numbers_of_every_type(tmp_path: Path) -> None:
    found = dict(tensorflow_tensors(HERE / "names.ckpt.index"))
    assert set(found) == set(NAMES)  # neither the optimizer's moments nor the step
    for place, (name, (dtype, shape)) in enumerate(NAMES.items()):
        assert found[name].dtype == np.dtype(dtype) and found[name].shape == shape, name
        if dtype != "V2":
            assert (found[name] == made(place, shape).astype(dtype)).all(), name
    tensors, said = read_weights(HERE / "names.ckpt.index")
    assert said == "of no family that is known here" and tensors["net.bfloat16"].dtype == torch.float32
    assert tensors["net.bfloat16"].tolist() == made(8, (6,)).tolist() and tensors["net.scalar"].item() == 9.0


def test_objects_go_by_the_names_of_their_attributes() -> None:
    found = dict(tensorflow_tensors(HERE / "objects.index"))
    assert set(found) == {"model/layer/kernel", "model/layer/bias", "step"}  # and not the graph of objects
    assert (found["model/layer/kernel"] == made(1, (2, 3))).all() and found["step"] == 7


def test_an_index_of_many_blocks() -> None:
    found = dict(tensorflow_tensors(HERE / "many.index"))
    assert len(found) == 300
    for i, (name, array) in enumerate(sorted(found.items())):
        assert name == f"block_{i:04d}/a_rather_long_name_of_a_layer/kernel" and (array == made(i, (2,))).all()


def test_several_data_files_and_words_among_them(tmp_path: Path) -> None:
    found = dict(tensorflow_tensors(HERE / "shards.index"))
    assert set(found) == {"a/kernel", "b/kernel"} and (found["b/kernel"] == made(4, (3,))).all()
    shutil.copy(HERE / "shards.index", tmp_path)
    shutil.copy(HERE / "shards.data-00000-of-00002", tmp_path)
    with pytest.raises(ValueError, match=r"shards\.data-00001-of-00002 is not there"):
        read_weights(tmp_path / "shards.index")


def test_a_variable_in_parts_is_refused() -> None:
    with pytest.raises(ValueError, match="w is kept in parts, which are not put together"):
        read_weights(HERE / "parts.index")


def test_what_lies_at_the_edges() -> None:
    """A number alone in bfloat16, none at all, more than a sum is made of at a time; what optimizers left."""
    tensors, _ = read_weights(HERE / "edges.ckpt.index")
    assert set(tensors) == {"scalar16", "empty", "flags", "large", "u32", "x", "y", "z"}
    assert tensors["scalar16"].shape == () and tensors["scalar16"].item() == 1.5 and tensors["empty"].shape == (0, 3)
    assert tensors["flags"].tolist() == [True, False, True] and tensors["u32"].tolist() == [2**31, 2**31 + 1, 2**31 + 2]
    assert tensors["large"].tolist() == list(range(3000))


def test_sums_are_castagnoli_s() -> None:
    """RFC 3720, B.4; those of long texts are those of their bytes one by one."""
    assert crc32c(bytes(32)) == 0x8A9136AA and crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E
    chance = random.Random(0)
    for length in (1, 8191, 8192, 8193, 9 * 1024, 17 * 1024 + 5, *(chance.randrange(100_000) for _ in range(5))):
        content, value = chance.randbytes(length), 0xFFFFFFFF
        for byte in content:
            value ^= byte
            for _ in range(8):
                value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
        assert crc32c(content) == value ^ 0xFFFFFFFF, length


def spoilt(home: Path, name: str, index: bytes) -> Path:
    (home / f"{name}.index").write_bytes(index)
    return home / f"{name}.index"


def test_whatever_is_cut_off_is_refused(tmp_path: Path) -> None:
    shutil.copy(HERE / "names.ckpt.data-00000-of-00001", tmp_path)
    whole = (HERE / "names.ckpt.index").read_bytes()
    for length in range(len(whole)):
        with pytest.raises(ValueError, match=r"names\.ckpt\.index"):
            read_weights(spoilt(tmp_path, "names.ckpt", whole[:length]))
    (tmp_path / "names.ckpt.data-00000-of-00001").write_bytes(b"short")
    with pytest.raises(ValueError, match=r"its tensors claim \d+ bytes, and its data files have 5"):
        read_weights(spoilt(tmp_path, "names.ckpt", whole))


def test_no_byte_of_the_index_can_be_another_unnoticed(tmp_path: Path) -> None:
    """Sums cover the blocks; what points to them is looked at."""
    shutil.copy(HERE / "names.ckpt.data-00000-of-00001", tmp_path)
    whole, chance = (HERE / "names.ckpt.index").read_bytes(), random.Random(0)
    expected = read_weights(HERE / "names.ckpt.index")[0]
    for place in range(len(whole)):
        other = bytearray(whole)
        other[place] ^= 1 << chance.randrange(8)
        began = time.monotonic()
        try:
            found = read_weights(spoilt(tmp_path, "names.ckpt", bytes(other)))[0]
        except ValueError:
            found = expected  # what is padding, and the block that nothing is in, may be as it likes
        assert found.keys() == expected.keys() and all(torch.equal(found[k], expected[k]) for k in expected), place
        assert time.monotonic() - began < 1.0


def test_no_byte_of_the_numbers_can_be_another_unnoticed(tmp_path: Path) -> None:
    whole, chance = (HERE / "names.ckpt.data-00000-of-00001").read_bytes(), random.Random(0)
    shutil.copy(HERE / "names.ckpt.index", tmp_path)
    expected = read_weights(HERE / "names.ckpt.index")[0]
    unread = 0
    for place in range(len(whole)):
        other = bytearray(whole)
        other[place] ^= 1 << chance.randrange(8)
        (tmp_path / "names.ckpt.data-00000-of-00001").write_bytes(other)
        try:
            found = read_weights(tmp_path / "names.ckpt.index")[0]
        except ValueError as error:
            assert "is not as it was written (its sum is another); fetch names.ckpt.data" in str(error)
            continue
        assert all(torch.equal(found[k], expected[k]) for k in expected)
        unread += 1
    assert unread == 3 * 4 * 4 + 8  # a moment of the optimizer's, and the step


def varint(value: int) -> bytes:
    found = b""
    while value >= 0x80:
        found, value = found + bytes([value & 0x7F | 0x80]), value >> 7
    return found + bytes([value])


def sum_of(content: bytes) -> bytes:
    return masked(crc32c(content)).to_bytes(4, "little")


def record(key: bytes, value: bytes, shared: int = 0) -> bytes:
    return varint(shared) + varint(len(key)) + varint(len(value)) + key + value


def sealed(body: bytes, restarts: bytes = bytes(4) + b"\1\0\0\0") -> bytes:
    """A block with its trailer."""
    return body + restarts + b"\0" + sum_of(body + restarts + b"\0")


def block(*pairs: tuple[bytes, bytes]) -> bytes:
    return sealed(b"".join(record(*pair) for pair in pairs))


def index_of(*pairs: tuple[bytes, bytes], kind: int | None = None) -> bytes:
    """A table whose sums are right, whatever it says."""
    data = block(*pairs)
    if kind is not None:
        data = data[:-5] + bytes([kind]) + data[-4:]
    return table_of(data)


def table_of(data: bytes, times: int = 1) -> bytes:
    """times: how often it is said that the block is there."""
    top = block(*[(b"%06d" % i, varint(0) + varint(len(data) - 5)) for i in range(times)])
    footer = varint(0) + varint(0) + varint(len(data)) + varint(len(top) - 5)
    return data + top + footer.ljust(40, b"\0") + MAGIC.to_bytes(8, "little")


HEADER = (b"", b"\x08\x01")  # one data file
SHAPE = b"\x12\x04\x12\x02\x08\x02"  # [2]
HOSTILE = {
    "offset": (HEADER, (b"w", b"\x08\x01" + SHAPE + b"\x20" + varint(2**40) + b"\x28\x08")),
    "size": (HEADER, (b"w", b"\x08\x01" + SHAPE + b"\x28" + varint(2**40))),
    "shape": (HEADER, (b"w", b"\x08\x01\x12\x0b\x12\x09\x08" + varint(2**50) + b"\x28\x08")),
    "negative": (HEADER, (b"w", b"\x08\x01\x12\x0d\x12\x0b\x08" + varint(2**64 - 1) + b"\x28\x08")),
    "endless": (HEADER, (b"w", b"\x08" + b"\xff" * 12)),
    "shard": (HEADER, (b"w", b"\x08\x01" + SHAPE + b"\x18\x07\x28\x08")),
    "kind": (HEADER, (b"w", b"\x0b\x01")),
    "no shape": (HEADER, (b"w", b"\x08\x01\x10\x01\x28\x08")),
    "beyond": (HEADER, (b"w", b"\x08\x01\x12\x7f")),
    "order of bytes": ((b"", b"\x08\x01\x10\x01"),),
    "files": ((b"", b"\x08" + varint(2**31)),),
    "none": ((b"", b"\x08\x00"),),
    "no header": ((b"w", b"\x08\x01" + SHAPE + b"\x28\x08"),),
    "twice": (HEADER, (b"w", b"\x08\x01" + SHAPE + b"\x28\x08"), (b"w", b"\x08\x01" + SHAPE + b"\x28\x08")),
    "no text": (HEADER, (b"\xff\xfe", b"\x08\x01" + SHAPE + b"\x28\x08")),
}


@pytest.mark.parametrize("name", list(HOSTILE))
def test_what_an_index_cannot_mean_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.data-00000-of-00001").write_bytes(bytes(8))
    with pytest.raises(ValueError, match=r"a\.index"):
        read_weights(spoilt(tmp_path, "a", index_of(*HOSTILE[name])))


def test_the_writer_of_this_test_writes_what_is_read(tmp_path: Path) -> None:
    """Else the hostile ones would be refused for another reason."""
    (tmp_path / "a.data-00000-of-00001").write_bytes(np.array([1, 2], dtype="f4").tobytes())
    told = b"\x08\x01" + SHAPE + b"\x28\x08\x35" + sum_of(np.array([1, 2], dtype="f4").tobytes())
    index = index_of(HEADER, (b"w", told))
    assert read_weights(spoilt(tmp_path, "a", index))[0]["w"].tolist() == [1, 2]
    with pytest.raises(ValueError, match=r"compressed \(kind 1\)"):
        read_weights(spoilt(tmp_path, "a", index_of(HEADER, kind=1)))


def test_whatever_a_sealed_index_says_is_read_or_refused(tmp_path: Path) -> None:
    """Bytes changed, and their sums made again, as whoever means harm would."""
    whole, chance = (HERE / "names.ckpt.index").read_bytes(), random.Random(0)
    (tmp_path / "names.ckpt.data-00000-of-00001").write_bytes((HERE / "names.ckpt.data-00000-of-00001").read_bytes())
    size = whole.index(sum_of_first(whole)) - 1
    for _ in range(600):
        body = bytearray(whole[: size + 1])
        for _ in range(chance.randint(1, 3)):
            body[chance.randrange(size)] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
        path = spoilt(tmp_path, "names.ckpt", bytes(body) + sum_of(body) + whole[size + 5 :])
        began = time.process_time()
        try:
            assert all(isinstance(tensor, torch.Tensor) for tensor in read_weights(path)[0].values())
        except ValueError as error:
            assert "names.ckpt.index" in str(error)
        assert time.process_time() - began < 1.0


def sum_of_first(index: bytes) -> bytes:
    """The sum of a table's first block, at the only place where what is before it has it."""
    return next(index[i : i + 4] for i in range(5, len(index)) if sum_of(index[:i]) == index[i : i + 4])


ENTRY = b"\x08\x01" + SHAPE + b"\x28\x08"
COSTLY = {
    "names in its index have more than": lambda: table_of(
        sealed(
            record(*HEADER) + record(b"k" * 200_000, ENTRY)
            + b"".join(record(b"%06d" % i, ENTRY, 200_000) for i in range(5000))
        )
    ),
    "blocks of its index lie one upon another": lambda: table_of(
        sealed(bytes(200_000), (50_000).to_bytes(4, "little")), times=500
    ),
    "has no room for what it claims": lambda: table_of(sealed(record(*HEADER), b"\xff\xff\xff\0")),
    "its tensors claim 16,000 bytes": lambda: index_of(HEADER, *[(b"%06d" % i, ENTRY) for i in range(2000)]),
    "claims 99999 data files": lambda: index_of((b"", b"\x08" + varint(99_999))),
}  # fmt: skip


@pytest.mark.parametrize("said", list(COSTLY))
def test_a_small_index_cannot_cost_much(tmp_path: Path, said: str) -> None:
    (tmp_path / "a.data-00000-of-00001").write_bytes(bytes(8))
    path = spoilt(tmp_path, "a", COSTLY[said]())
    began = time.process_time()
    with pytest.raises(ValueError, match=said):
        read_weights(path)
    assert time.process_time() - began < 2.0
