import json
import re
import struct

import pytest
import torch
from safetensors.torch import save_file

from spqlm.checkpoint.headers import LARGEST_HEADER, TensorHeader, check_tensors, read_header
from spqlm.errors import CheckpointError

TENSORS = {
    "layer.codes": torch.arange(12, dtype=torch.int8).reshape(3, 4),
    "layer.scale": torch.ones(3, dtype=torch.bfloat16),
    "norm.weight": torch.ones(4),
}


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "model.safetensors"
    save_file(TENSORS, file, metadata={"format": "pt"})
    return file


def with_header(path, header: bytes, length: int | None = None, data: bytes = b""):
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + data)
    return path


def entry(**changes) -> bytes:
    return json.dumps(
        {"a": {"dtype": "I8", "shape": [2], "data_offsets": [0, 2], **changes}}
    ).encode()


def test_header_states_name_file_dtype_and_shape_of_every_tensor(path):
    headers = read_header(path)
    assert set(headers) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert headers[name].dtype == tensor.dtype
        assert headers[name].shape == tuple(tensor.shape)
        assert headers[name].file == path.name
    assert max(header.end for header in headers.values()) == path.stat().st_size


def test_a_tensor_of_size_zero_is_read(tmp_path):
    save_file({"guard.weight": torch.empty(0)}, tmp_path / "f.safetensors")
    assert read_header(tmp_path / "f.safetensors")["guard.weight"].shape == (0,)


def test_a_file_cut_anywhere_in_its_header_is_refused_by_name(path):
    whole = path.read_bytes()
    header_end = 8 + struct.unpack("<Q", whole[:8])[0]
    for size in (0, 1, 7, 8, 9, header_end // 2, header_end - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=r"^model\.safetensors .*(cut short|damaged)"):
            read_header(path)


def test_a_file_cut_in_its_data_is_refused_naming_the_first_tensor_that_is_cut(path):
    whole = path.read_bytes()
    ends = {name: header.end for name, header in read_header(path).items()}
    for name, end in ends.items():
        path.write_bytes(whole[: end - 1])
        with pytest.raises(
            CheckpointError, match=f"cut short: .*'{re.escape(name)}' ends at {end}"
        ):
            read_header(path)


def test_a_header_that_claims_to_be_huge_is_refused_without_reading_it(path):
    for length in (LARGEST_HEADER + 1, 2**63, 2**64 - 1):
        with_header(path, b"{}", length=length)
        with pytest.raises(CheckpointError, match="not a safetensors file or is cut short"):
            read_header(path)


@pytest.mark.parametrize(
    "header",
    [
        b"not json at all",
        b"\xff\xfe\x00\x01",
        b"[]",
        b"[1, 2]",
        b"null",
        b"7",
        b'"text"',
        b'{"a": 1}',
        b'{"a": null}',
        b'{"a": {}}',
        entry(dtype="COMPLEX"),
        entry(dtype=["I8"]),
        entry(dtype=None),
        entry(shape=None),
        entry(shape=3),
        entry(data_offsets=None),
        entry(data_offsets=[0]),
        entry(data_offsets=["0", "2"]),
        entry(data_offsets=[0, None]),
        b"[" * 100_000,
        b"9" * 10_000,
    ],
    ids=lambda header: header[:40].decode("latin-1"),
)
def test_a_header_of_garbage_is_refused(path, header):
    with_header(path, header, data=b"12")
    with pytest.raises(CheckpointError, match=r"^model\.safetensors has a damaged header"):
        read_header(path)


def test_a_pickle_is_refused_and_not_executed(tmp_path):
    file = tmp_path / "model.safetensors"
    torch.save(TENSORS, file)
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        read_header(file)


def stated(dtype: torch.dtype, shape: tuple[int, ...]) -> TensorHeader:
    return TensorHeader("f.safetensors", dtype, shape, bytes=0, end=0)


def found(**changes) -> dict[str, TensorHeader]:
    headers = {name: stated(tensor.dtype, tuple(tensor.shape)) for name, tensor in TENSORS.items()}
    for name, header in changes.items():
        headers[name.replace("_", ".")] = header
    return headers


def test_tensors_that_match_pass_and_floats_may_be_of_another_width():
    check_tensors(TENSORS, found(), set())
    check_tensors(TENSORS, found(layer_scale=stated(torch.float32, (3,))), allowed=set())


@pytest.mark.parametrize("name", TENSORS)
def test_a_missing_tensor_is_named(name):
    headers = found()
    del headers[name]
    with pytest.raises(CheckpointError, match=f"tensor '{name}' is missing"):
        check_tensors(TENSORS, headers, set())


def test_a_tensor_too_many_is_named_unless_it_is_allowed():
    extra = found(other_weight=stated(torch.float32, (1,)))
    with pytest.raises(CheckpointError, match=r"f\.safetensors holds an unknown tensor 'other\.w"):
        check_tensors(TENSORS, extra, set())
    check_tensors(TENSORS, extra, {"other.weight"})


@pytest.mark.parametrize("shape", [(4, 3), (3, 5), (12,), (), (3, 4, 1)])
def test_a_tensor_of_another_shape_is_named_with_both_shapes(shape):
    headers = found(layer_codes=stated(torch.int8, shape))
    message = f"tensor 'layer.codes' in f.safetensors has shape {list(shape)}"
    with pytest.raises(CheckpointError, match=re.escape(message) + r".* states \[3, 4\]"):
        check_tensors(TENSORS, headers, set())


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("layer_codes", torch.uint8),
        ("layer_codes", torch.float32),
        ("layer_codes", torch.int32),
        ("layer_scale", torch.int8),
        ("norm_weight", torch.bool),
    ],
)
def test_a_tensor_of_another_kind_is_named_with_both_kinds(name, dtype):
    name, tensor = name.replace("_", "."), TENSORS[name.replace("_", ".")]
    header = stated(dtype, tuple(tensor.shape))
    message = f"tensor '{name}' in f.safetensors is {dtype}, expected {tensor.dtype}"
    with pytest.raises(CheckpointError, match=re.escape(message)):
        check_tensors(TENSORS, {**found(), name: header}, set())
