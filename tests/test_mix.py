# SPDX-License-Identifier: Apache-2.0
"""Several data sets in one run: the keys, what fits together, and what a checkpoint says of it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_sets import CARD, save_set

from ahpa_scale.config.brought import bring
from ahpa_scale.config.checks.data import read_data_card
from ahpa_scale.config.errors import ConfigError
from ahpa_scale.data.card import LevelInfo, VaeInfo, read_card
from ahpa_scale.data.identity import differences, identity
from ahpa_scale.data.mix import MixCard, Wanted, read_mix
from ahpa_scale.data.stream import build_loader
from ahpa_scale.data.whole import ShardError
from ahpa_scale.errors import UserError

SMALL, LARGE = 120, 720


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> tuple[str, str]:
    """Two sets. The second one's classes come in another order."""
    folder = tmp_path_factory.mktemp("sets")
    classes = ("cow", "ant")
    return save_set(folder / "large", LARGE), save_set(
        folder / "small", SMALL, value=1, classes=classes
    )


def mix(sets: tuple[str, str], **second: object) -> MixCard:
    return read_mix([Wanted(sets[0]), Wanted(sets[1], **second)])


def one_pass(card: MixCard, **options: object) -> dict[str, torch.Tensor]:
    batches = list(build_loader(card, **{"batch_size": 10, "levels": (), **options}))
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_pass_holds_all_samples_with_the_first_sets_labels(sets, num_workers):
    found = one_pass(mix(sets), num_workers=num_workers)
    index = found["index"].numpy()
    assert sorted(index.tolist()) == list(range(LARGE + SMALL))
    second = index >= LARGE
    own = index - LARGE * second
    # Its labels are cow 0 and ant 1; of the first set ant is 0, and cow is 2.
    expected = np.where(second, np.array([2, 0])[own % 2], own % 3)
    assert found["label"].tolist() == expected.tolist()
    values = found["moments"][:, 0, 0, 0].float().numpy()
    np.testing.assert_allclose(values, second + own / 1000, atol=1e-3)
    assert found["epoch"].tolist() == [0] * len(index)


def test_proportions_hold_and_a_repeated_sample_never_has_the_same_epoch(sets):
    card = read_mix([Wanted(sets[0], proportion=1), Wanted(sets[1], proportion=3)])
    loader = build_loader(card, batch_size=10, levels=())
    seen = set()
    for _ in range(2):
        found = [(b["index"].tolist(), b["epoch"].tolist()) for b in loader]
        index = [each for indices, _ in found for each in indices]
        assert len(index) == LARGE + SMALL
        assert sum(each >= LARGE for each in index) == 3 * (LARGE + SMALL) // 4
        pairs = {pair for batch in found for pair in zip(*batch, strict=True)}
        assert len(pairs) == len(index)
        assert not seen & pairs
        seen |= pairs
    assert one_pass(mix(sets, repeat=0.5))["index"].shape == (LARGE + SMALL // 2,)


def test_skipped_samples_never_come_and_keep_the_others_indices(sets, tmp_path):
    skip = tmp_path / "skip.txt"
    skip.write_text("# broken\n3\n\n119 # dark\n" + "\n".join(map(str, range(40, 110))))
    left = sorted(set(range(LARGE + SMALL)) - {LARGE + i for i in (3, 119, *range(40, 110))})
    card = mix(sets, skip=str(skip))
    assert card.num_samples == len(left)
    found = one_pass(card, drop_last=False, batch_size=7)
    assert sorted(found["index"].tolist()) == left


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("1\n120\n", r"skip.txt, line 2: '120' is no index of a sample of .*small; those are 0 to"),
        ("-1", "line 1: '-1' is no index"),
        ("one", "line 1: 'one' is no index"),
        ("\n".join(map(str, range(SMALL))), f"leaves out all {SMALL} samples of"),
        (b"\xff\xfe\x00", "is no text"),
        (None, "there is no file"),
    ],
)
def test_a_wrong_skip_list_earns_one_line(sets, tmp_path, load, text, problem):
    skip = tmp_path / "skip.txt"
    if text is not None:
        skip.write_bytes(text if isinstance(text, bytes) else text.encode())
    config = load(
        f"data.streams=[{{url: {sets[0]}}}, {{url: {sets[1]}, skip: {skip}}}]", "data.local=null"
    )
    with pytest.raises(ConfigError, match=problem) as caught:
        read_data_card(config)
    assert caught.value.key == "data.streams[1].skip"
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("facts", "problem"),
    [
        ({"vae": VaeInfo("/vae", "1" * 16, 4, 4)}, "its VAE is 1111"),
        ({"grid": 4}, "its token grid is 4"),
        ({"latent_shape": (4, 8, 8), "image_size": 32}, "its size of pictures is 32"),
        ({"kind": "images"}, "its kind is images"),
        ({"classes": ("ant", "yak")}, "has the class 'yak', which is none of the 3 classes that"),
    ],
)
def test_a_set_that_does_not_fit_is_named(sets, tmp_path, load, facts, problem):
    folder = save_set(tmp_path / "other", 4) if "kind" in facts else None
    folder = folder or save_set(tmp_path / "other", 4, **facts)
    if "kind" in facts:
        told = json.loads(Path(folder, "dataset.json").read_text())
        Path(folder, "dataset.json").write_text(json.dumps({**told, **facts}))
    config = load(f"data.streams=[{{url: {sets[0]}}}, {{url: {folder}}}]", "data.local=null")
    with pytest.raises(ConfigError, match=problem) as caught:
        read_data_card(config)
    assert caught.value.key == "data.streams[1].url"
    assert folder in str(caught.value)
    unlabelled = load(
        f"data.streams=[{{url: {sets[0]}}}, {{url: {folder}}}]", "data.local=null",
        "model.num_classes=1",
    )  # fmt: skip
    if "classes" in facts:
        assert read_data_card(unlabelled).num_samples == LARGE + 4


def test_levels_that_a_set_lacks_are_no_levels_of_the_mixture(sets, tmp_path):
    poor = save_set(tmp_path / "poor", 40, levels=(LevelInfo("encoder.b", 3),))
    card = read_mix([Wanted(sets[0]), Wanted(poor)])
    assert card.level_names == ("encoder.b",)
    assert {"moments", "prior.encoder.b"} <= one_pass(card, levels=None).keys()
    with pytest.raises(UserError, match=r"does not hold level 'encoder\.a'"):
        build_loader(card, batch_size=4, levels=("encoder.a",))
    with pytest.raises(UserError, match="is the same data set as"):
        read_mix([Wanted(sets[0]), Wanted(sets[1]), Wanted(sets[0])])


@pytest.mark.parametrize(
    ("streams", "others", "problem"),
    [
        ("[]", [], r"data.streams: .*must not be empty"),
        ("[{}]", [], r"data.streams\[0\].url: this key is required"),
        ("[{url: a, repaet: 2}]", [], r"data.streams\[0\].repaet: unknown key; .* 'repeat'"),
        ("[{url: a, repeat: 0}]", [], r"data.streams\[0\].repeat: 0 must be above 0"),
        ("[{url: 's3:/b/a'}]", [], r"data.streams\[0\].url: .* did you mean s3://b/a"),
        ("[{url: a, skip: ''}]", [], r"data.streams\[0\].skip: "),
        ("[{url: a, repeat: 2, proportion: 1}]", [], "a proportion or a repeat, not both"),
        ("[{url: a, proportion: 2}, {url: b}]", [], "all sets have a proportion, or none"),
        ("[{url: s3://b/a}]", ["data.local=null"], "data.local: name the cache of data.streams"),
        ("[{url: a}]", ["data.local=set"], "data.local: 'set' would have no effect"),
        ("[{url: a}]", ["data.remote=b"], "data.remote: 'b' would have no effect"),
        ("[{url: a}]", ["data.cache_limit=1gb"], "data.cache_limit: '1gb' would have no effect"),
    ],
)
def test_wrong_keys_earn_one_line(complaint, streams, others, problem):
    said = complaint(f"data.streams={streams}", *others)
    assert re.search(problem, said), said


def test_what_is_mixed_is_part_of_what_a_checkpoint_was_trained_on(sets, tmp_path):
    skip = tmp_path / "skip.txt"
    skip.write_text("5\n")
    plain = read_card(sets[0])
    alone = read_mix([Wanted(sets[0])])
    assert differences(identity(plain), alone) is None
    assert differences(identity(alone), plain) is None
    base = read_mix([Wanted(sets[0]), Wanted(sets[1])])
    told = identity(base)
    assert json.loads(json.dumps(told)) == told
    assert differences(told, base) is None
    for others, word in (
        ([Wanted(sets[0], repeat=2), Wanted(sets[1])], "shares of the sets"),
        ([Wanted(sets[0]), Wanted(sets[1], skip=str(skip))], "skipped pictures"),
        ([Wanted(sets[0])], "sets that are mixed"),
    ):
        assert word in str(differences(told, read_mix(others)))
    older = {n: v for n, v in identity(plain).items() if n not in ("sets", "shares", "skipped")}
    assert differences(older, plain) is None
    skipping = read_mix([Wanted(sets[0], skip=str(skip))])
    assert "skipped pictures" in str(differences(older, skipping))
    same = [
        read_mix([Wanted(sets[0], proportion=3 * times), Wanted(sets[1], proportion=times)])
        for times in (1, 2)
    ]
    assert differences(identity(same[0]), same[1]) is None


def test_a_set_of_the_mixture_is_known_when_it_is_measured(sets, load):
    told = identity(mix(sets))
    card = read_card(sets[1])
    brought = bring(load("model.num_classes=3"), card, sets[1], told, pytest.fail)
    assert brought.known
    assert brought.labels == [2, 0]


@pytest.fixture
def in_memory(sets, tmp_path):
    """A URL of the first set's copy, and its file system."""
    import fsspec

    memory = fsspec.filesystem("memory")
    url = f"memory://{tmp_path.name}"
    memory.put(sets[0], f"/{tmp_path.name}", recursive=True)
    yield url, memory
    memory.rm(f"/{tmp_path.name}", recursive=True)


def test_a_cache_limit_never_removes_what_is_read_in_place(sets, in_memory, tmp_path):
    url, _ = in_memory
    folder = shutil.copytree(sets[1], tmp_path / "folder")
    before = sorted(path.name for path in folder.iterdir())
    card = read_mix([Wanted(url), Wanted(str(folder))])
    cache = tmp_path / "cache"
    loader = build_loader(card, batch_size=10, local=str(cache), cache_limit=125_000)
    for _ in range(2):
        assert sum(len(batch["index"]) for batch in loader) == LARGE + SMALL
    assert sorted(path.name for path in folder.iterdir()) == before
    assert 0 < len(list(cache.rglob("*.mds"))) < len(list(Path(sets[0]).glob("*.mds")))


def test_a_damaged_shard_of_any_set_is_named_with_its_url(sets, in_memory, tmp_path):
    url, memory = in_memory
    name = f"/{tmp_path.name}/shard.00001.mds"
    content = memory.cat_file(name)
    memory.pipe_file(name, content[:-1] + b"\x01")
    card = read_mix([Wanted(url), Wanted(sets[1])])
    with pytest.raises(ShardError, match=f"^{url}/shard.00001.mds isn't what the index says"):
        one_pass(card, local=str(tmp_path / "cache"))
    memory.pipe_file(name, content)
    found = one_pass(card, local=str(tmp_path / "cache"))
    assert len(found["index"]) == LARGE + SMALL
    assert CARD.classes == card.classes
