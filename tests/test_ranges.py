# SPDX-License-Identifier: Apache-2.0
"""Parts of large files: the same bytes from a disk and from a store, in any order."""

from __future__ import annotations

import io
import tarfile

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ahpa_scale import storage
from ahpa_scale.data.sources.tar_index import members
from ahpa_scale.storage import ranges

CONTENT = bytes(range(256)) * 9


@pytest.fixture(scope="module", params=["disk", "store"])
def place(request, tmp_path_factory) -> str:
    url = "memory://ranges/file"
    if request.param == "disk":
        url = str(tmp_path_factory.mktemp("disk") / "file")
    with fsspec.open(url, "wb") as file:
        file.write(CONTENT)
    return url


@given(start=st.integers(0, 2500), size=st.integers(0, 700))
@settings(max_examples=50)
def test_a_range_is_that_of_the_whole(place, start, size):
    found = storage.read_range(place, start, min(start + size, len(CONTENT)))
    assert found == CONTENT[start : start + size]


@given(steps=st.lists(st.tuples(st.integers(0, 2400), st.integers(0, 600)), max_size=8))
@settings(max_examples=40)
def test_a_file_that_is_read_in_blocks_is_the_same(place, steps):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranges, "_BLOCK", 100)
        with storage.open_forwards(place) as file:
            assert file.seek(0, io.SEEK_END) == len(CONTENT)
            for start, size in steps:
                file.seek(start)
                assert file.read(size) == CONTENT[start : start + size]
                assert file.tell() == start + len(CONTENT[start : start + size])


NAMES = st.text("abé猫. /", min_size=1, max_size=130).filter(
    lambda name: name.strip("/. ") and not name.endswith("/") and "//" not in name
)


@given(files=st.dictionaries(NAMES, st.binary(max_size=1300), max_size=6), data=st.data())
@settings(max_examples=60)
def test_members_lie_where_the_index_says(tmp_path_factory, files, data):
    path = tmp_path_factory.getbasetemp() / "indexed.tar"
    kind = data.draw(st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]))
    with tarfile.open(path, "w", format=kind) as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    whole = path.read_bytes()
    found = list(members(str(path), (".a",)))
    assert {m.name: whole[m.offset : m.offset + m.size] for m in found} == files
    for member in found:
        assert member.text == (files[member.name] if member.name.endswith(".a") else None)
