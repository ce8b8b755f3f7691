"""TensorFlow's checkpoints: files that TensorFlow 2.21 wrote, the same files spoilt, and the names of its BERT."""

from __future__ import annotations

import random
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hydratune.models.foreign import read_weights
from hydratune.models.tensorflow_checkpoint import MAGIC, crc32c, tensorflow_tensors

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


def test_sums_are_castagnoli_s() -> None:
    """RFC 3720, B.4."""
    assert crc32c(bytes(32)) == 0x8A9136AA and crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E


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
    with pytest.raises(ValueError, match=r"claims \d+ bytes from \d+ on for \[.*\], in a file of 5"):
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


def varint(value: int) -> bytes:
    found = b""
    while value >= 0x80:
        found, value = found + bytes([value & 0x7F | 0x80]), value >> 7
    return found + bytes([value])


def block(*pairs: tuple[bytes, bytes]) -> bytes:
    """With its trailer."""
    body = b"".join(b"\0" + varint(len(k)) + varint(len(v)) + k + v for k, v in pairs) + bytes(4) + b"\1\0\0\0"
    value = crc32c(body + b"\0")
    return body + b"\0" + (((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF).to_bytes(4, "little")


def index_of(*pairs: tuple[bytes, bytes], kind: int | None = None) -> bytes:
    """A table whose sums are right, whatever it says."""
    data = block(*pairs)
    if kind is not None:
        data = data[:-5] + bytes([kind]) + data[-4:]
    top = block((b"zzz", varint(0) + varint(len(data) - 5)))
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
    index = index_of(HEADER, (b"w", b"\x08\x01" + SHAPE + b"\x28\x08"))
    assert read_weights(spoilt(tmp_path, "a", index))[0]["w"].tolist() == [1, 2]
    with pytest.raises(ValueError, match=r"compressed \(kind 1\)"):
        read_weights(spoilt(tmp_path, "a", index_of(HEADER, kind=1)))


# ---- BERT


def as_tensorflow_has_it(state: dict[str, Tensor]) -> dict[str, np.ndarray[Any, Any]]:
    """Google's names of the tensors of transformers' BertForPreTraining."""
    found = {}
    for name, tensor in state.items():
        if name.startswith("cls.predictions.decoder"):  # the word embeddings, and the bias under its other name
            continue
        theirs = name.replace(".", "/").replace("/layer/", "/layer_")
        if "LayerNorm" in name:
            theirs = theirs.replace("/weight", "/gamma").replace("/bias", "/beta")
        elif name == "cls.predictions.bias":
            theirs = "cls/predictions/output_bias"
        elif "seq_relationship" in name:
            theirs = theirs.replace("/weight", "/output_weights").replace("/bias", "/output_bias")
        elif name.endswith("_embeddings.weight"):
            theirs = theirs.removesuffix("/weight")
        elif name.endswith(".weight"):
            theirs, tensor = theirs.replace("/weight", "/kernel"), tensor.T
        found[theirs] = tensor.numpy()
    return found


def test_bert_of_tensorflow_is_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 16, "num_hidden_layers": 2}
    config = transformers.BertConfig(vocab_size=30, max_position_embeddings=16, **sizes)
    torch.manual_seed(0)
    own = transformers.BertForPreTraining(config).state_dict()
    own = {name: tensor for name, tensor in own.items() if not name.endswith("position_ids")}
    pairs, content = [HEADER], b""
    for name, array in sorted(as_tensorflow_has_it(own).items()):
        dims = b"".join(b"\x12" + varint(len(d)) + d for d in (b"\x08" + varint(n) for n in array.shape))
        told = (
            b"\x08\x01\x12" + varint(len(dims)) + dims + b"\x20" + varint(len(content)) + b"\x28" + varint(array.nbytes)
        )
        pairs.append((name.encode(), told))
        content += np.ascontiguousarray(array).tobytes()
    (tmp_path / "bert.data-00000-of-00001").write_bytes(content)
    found, said = read_weights(spoilt(tmp_path, "bert", index_of(*pairs)))
    assert said == "BERT's of TensorFlow, under transformers' names"
    wanted = {name for name in own if not name.startswith("cls.predictions.decoder")}
    assert set(found) == wanted and all(torch.equal(found[name], own[name]) for name in wanted)
