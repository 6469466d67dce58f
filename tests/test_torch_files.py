# SPDX-License-Identifier: Apache-2.0
"""Files of `torch.save` are read as `torch.load` reads them, and no pickle in them is executed."""

from __future__ import annotations

import argparse
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from hostile_pickles import Evil, pickle_of, planted, saved, with_pickle, zipped
from torch import nn

from ahpa_scale.errors import UserError
from ahpa_scale.interchange.pickle_machine import Dropped
from ahpa_scale.interchange.pickles import read_pickle
from ahpa_scale.interchange.torch_files import StoredTensor, open_torch_file

DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64),
    *(torch.complex128, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8),
    *(torch.bool, torch.uint16, torch.uint32, torch.uint64, torch.float8_e4m3fn),
    torch.float8_e5m2,
]


def read(path: Path):
    with open_torch_file(path, path.name) as file:
        return loaded(file.value), file.dropped


def loaded(value):
    if isinstance(value, StoredTensor):
        return value.load()
    if isinstance(value, dict):
        return {key: loaded(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(loaded, value))
    return value


def bits(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.contiguous().view(-1).view(torch.uint8).tolist())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_each_dtype_is_read_as_torch_reads_it(tmp_path, dtype):
    raw = torch.arange(48, dtype=torch.uint8)
    tensor = raw % 2 == 1 if dtype == torch.bool else raw.view(dtype)
    path = saved({"a": tensor.reshape(3, -1), "none": tensor[:0]}, tmp_path / "a.pt")
    expected, (found, dropped) = torch.load(path, weights_only=True), read(path)
    assert not dropped
    for name, value in expected.items():
        assert (found[name].dtype, found[name].shape) == (dtype, value.shape)
        assert bits(found[name]) == bits(value)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_views_and_what_surrounds_them_are_read_as_torch_reads_them(tmp_path, protocol):
    base = torch.randn(6, 8)
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    content = OrderedDict(
        base=base,
        view=base.t()[2:5, 1::2],
        row=base[3],
        expanded=torch.ones(2, 1).expand(2, 5),
        scalar=torch.tensor(3.5),
        parameter=nn.Parameter(torch.randn(2)),
        state=model.state_dict(),
        nested=[1, (2.5, "three", None, True), {"deep": {4: base[0]}}, -(2**70)],
    )
    path = tmp_path / "a.pt"
    torch.save(content, path, pickle_protocol=protocol)
    # Its ``weights_only`` reads protocol 2 alone.
    expected, (found, dropped) = torch.load(path, weights_only=False), read(path)
    assert not dropped
    assert found.keys() == expected.keys()
    for name in ("base", "view", "row", "expanded", "scalar", "parameter"):
        assert torch.equal(found[name], expected[name])
        assert found[name].stride() == expected[name].stride()
    for name, value in expected["state"].items():
        assert torch.equal(found["state"][name], value)
    assert found["nested"][:2] == content["nested"][:2]
    assert found["nested"][3:] == content["nested"][3:]
    found["base"][0, 0] = 77
    assert found["nested"][2]["deep"][4][0] == 77, "one storage, as when it was saved"


def test_what_official_checkpoints_hold_besides_tensors(tmp_path):
    model = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    args = argparse.Namespace(model="SiT-XL/2", lr=1e-4, resume=None)
    content = {"ema": model.state_dict(), "opt": optimizer.state_dict(), "args": args, "steps": 9}
    content |= {"strange": Path("/x"), "set": {1, 2}}
    found, dropped = read(saved(content, tmp_path / "a.pt"))
    assert found["args"] == {"model": "SiT-XL/2", "lr": 1e-4, "resume": None}
    assert found["steps"] == 9
    assert torch.equal(found["ema"]["weight"], model.weight)
    assert found["opt"]["param_groups"][0]["lr"] == 1e-3
    assert isinstance(found["strange"], Dropped)
    assert dict(dropped) == {"pathlib.PosixPath": 1, "__builtin__.set": 1}


def test_no_planted_pickle_is_executed_by_any_opcode_name_or_protocol(tmp_path):
    mark, honest = tmp_path / "mark", saved({"w": torch.ones(2)}, tmp_path / "honest.pt")
    ways = list(planted(mark))
    assert len(ways) > 40
    for name, content in ways:
        file = with_pickle(honest, content, tmp_path / "planted.pt")
        _, dropped = read(file)
        assert not mark.exists(), name
        assert dropped, name
        pickle.loads(content)
        assert mark.exists(), f"{name} would not have run anything at all"
        mark.unlink()


def test_no_pickle_within_a_real_checkpoint_is_executed(tmp_path):
    import os

    mark = tmp_path / "mark"
    evil = [Evil(os.system, f"touch {mark}") for _ in range(4)]
    state = OrderedDict(w=torch.ones(2), evil=evil[0])
    args = argparse.Namespace(a=evil[1])
    content = {"ema": state, "args": args, "opt": [evil[2], {"x": (evil[3],)}]}
    found, dropped = read(saved(content, tmp_path / "a.pt"))
    assert torch.equal(found["ema"]["w"], torch.ones(2))
    assert isinstance(found["ema"]["evil"], Dropped)
    assert dropped == {"posix.system": 4}
    # As the storage of a tensor, and as the id of a storage.
    honest = pickle_of(saved({"w": torch.ones(2)}, tmp_path / "honest.pt"))
    call = b"cposix\nsystem\n(V" + f"touch {mark}".encode() + b"\ntR"
    start = honest.index(b"((") + 1
    end = honest.index(b"Q") + 1
    for planted_content in (
        honest[:start] + call + honest[end:],
        honest[: end - 1] + b"0" + call + honest[end - 1 :],
    ):
        with pytest.raises(UserError, match=r"that torch\.save never writes"):
            read(with_pickle(tmp_path / "honest.pt", planted_content, tmp_path / "b.pt"))
    assert not mark.exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "pickle exhausted"),
        (b"garbage", "damaged pickle"),
        (b".", "empty stack"),
        (b"0.", "a mark that is not there"),
        (b"h\x05.", "recalls what it never remembered"),
        (b"]Na.", None),
        (b"NNa.", "appends to what is no list"),
        (b"NNNs.", "sets items of what is no dictionary"),
        (b"}(Nu.", "a key has no value"),
        (b"\x80\x09N.", "protocol 9 is not known"),
        (b"\x80\x04NN\x93.", "by what is no text"),
        (b"\x8e" + struct.pack("<Q", 1 << 60) + b"x.", "damaged pickle"),
        (b"I" + b"9" * 10_000 + b"\n.", "damaged pickle"),
        (b"(" * 200_000 + b"t" * 200_000 + b".", None),
    ],
)
def test_a_damaged_pickle_is_one_line(content, said):
    def call():
        return read_pickle(content, "w.pt", {}, lambda told: told)

    if said is None:
        call()
        return
    with pytest.raises(UserError, match=said) as caught:
        call()
    assert str(caught.value).startswith("w.pt")
    assert "\n" not in str(caught.value)


def test_a_key_that_is_nested_deep_does_not_crash(tmp_path):
    deep = b"}" + b"(" * 200_000 + b"t" * 200_000 + b"Ns."
    plain = read_pickle(deep, "w.pt", {}, lambda told: told)
    assert plain.value == {}
    assert sum(plain.dropped.values()) == 1


def changed(honest: Path, out: Path, old: bytes, new: bytes) -> Path:
    content = pickle_of(honest)
    assert content.count(old) == 1
    return with_pickle(honest, content.replace(old, new), out)


def test_tensors_that_reach_beyond_their_storage_are_refused(tmp_path):
    honest = saved(torch.arange(10.0).reshape(2, 5), tmp_path / "a.pt")
    shape, steps = b"K\x02K\x05\x86", b"K\x05K\x01\x86"
    assert pickle_of(honest).count(shape) == 1
    for old, new in (
        (shape, b"K\x02K\x06\x86"),
        (shape, b"J\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x86"),
        (shape, b"J\xff\xff\xff\xffK\x05\x86"),
        (shape, b"K\x02\x85"),
        (shape, b"K\x02X\x01\x00\x00\x005\x86"),
        (steps, b"K\x06K\x01\x86"),
        (steps, b"J\xfb\xff\xff\xffK\x01\x86"),
        (b"QK\x00", b"QK\x01"),
        (b"QK\x00", b"QJ\xff\xff\xff\xff"),
        (b"K\x0at", b"K\x0bt"),
        (b"FloatStorage", b"DoubleStorage"),
    ):
        with pytest.raises(UserError, match="is damaged") as caught:
            read(changed(honest, tmp_path / "b.pt", old, new))
        assert "\n" not in str(caught.value)


def test_a_tensor_that_repeats_little_memory_endlessly_is_refused(tmp_path):
    path = saved(torch.ones(1).expand(10**6, 10**6), tmp_path / "a.pt")
    with pytest.raises(UserError, match="reaches beyond its storage"):
        read(path)


def test_archives_that_lie_are_refused(tmp_path):
    honest = saved({"w": torch.arange(1000.0)}, tmp_path / "a.pt")
    with zipfile.ZipFile(honest) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    path = tmp_path / "b.pt"

    def refused(content: bytes, said: str) -> None:
        path.write_bytes(content)
        with pytest.raises(UserError, match=said) as caught:
            read(path)
        assert "\n" not in str(caught.value)

    refused(zipped(entries, compression=zipfile.ZIP_DEFLATED), "compressed")
    short = {**entries, "a/data/0": entries["a/data/0"][:-4]}
    refused(zipped(short), "has 3996 bytes instead of 4000")
    away = {name: each for name, each in entries.items() if name != "a/data/0"}
    refused(zipped(away), "lacks the storage '0'")
    refused(zipped({**away, "../data/0": b"", "/a/data/0": b""}), "lacks the storage '0'")
    refused(zipped({**entries, "b/data.pkl": b"N."}), "no data.pkl")
    refused(zipped({"x": b""}), "no data.pkl")
    refused(zipped({**entries, "a/byteorder": b"big"}), "another byte order")
    whole = bytearray(zipped(entries))
    flipped = whole.index(entries["a/data/0"]) + 100
    whole[flipped] ^= 1
    refused(bytes(whole), "damaged zip archive: Bad CRC-32")
    # Sizes in the central directory that are larger than the file, or than what lies there.
    for size, said in ((1 << 30, "larger than the file"), (5000, "damaged zip|larger than|two")):
        lied = bytearray(zipped(entries))
        place = lied.rindex(b"a/data/0") - 46
        assert lied[place : place + 4] == b"PK\x01\x02"
        lied[place + 20 : place + 28] = struct.pack("<II", size, size)
        refused(bytes(lied), said)
    refused(zipped(entries)[:-40], "damaged zip archive")


def test_a_key_cannot_lead_out_of_the_archive(tmp_path):
    honest = saved({"w": torch.arange(4.0)}, tmp_path / "a.pt")
    (tmp_path / "secret").write_bytes(bytes(16))
    told = b"X\x01\x00\x00\x000"
    for key in (b"../../secret", str(tmp_path / "secret").encode()):
        new = b"X" + struct.pack("<I", len(key)) + key
        with pytest.raises(UserError, match="lacks the storage"):
            read(changed(honest, tmp_path / "b.pt", told, new))


@pytest.mark.parametrize("zipped_format", [False, None])
def test_other_formats_are_one_line(tmp_path, zipped_format):
    path = tmp_path / "a.pt"
    if zipped_format is None:
        path.write_bytes(pickle.dumps({"w": 1}))
    else:
        torch.save({"w": torch.ones(1)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(UserError, match=r"from before torch 1\.6: save it again") as caught:
        read(path)
    assert "\n" not in str(caught.value)
