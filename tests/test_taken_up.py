# SPDX-License-Identifier: Apache-2.0
"""What a run takes up is its own: by name, by id, and of the data that it goes on with."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_run import SmallRun

from ahpa_scale.checkpoint.find import list_checkpoints
from ahpa_scale.checkpoint.manifest import Manifest
from ahpa_scale.config.errors import ConfigError
from ahpa_scale.data.card import DatasetCard, LevelInfo, VaeInfo
from ahpa_scale.data.identity import identity, labels_by_name
from ahpa_scale.models.vae_config import LatentScaling
from ahpa_scale.run import main
from ahpa_scale.run.checkpoints import build_saver, find_start
from ahpa_scale.run.taken_up import RUN_ID, note_id

CARD = DatasetCard(
    kind="latents",
    num_samples=64,
    classes=("ant", "bee", "cow"),
    image_size=32,
    latent_shape=(4, 4, 4),
    grid=2,
    vae=VaeInfo("demo", "a" * 16, 8, 4),
    scaling=LatentScaling("config", (0.0,) * 4, (0.5,) * 4),
    levels=(LevelInfo("encoder.mid_block", 8),),
    prior_dtype="float16",
    external_channels=None,
    source="pictures",
    fingerprint="f" * 16,
    version="0",
)
Save = Callable[..., None]


pytestmark = pytest.mark.usefixtures("alone")


@pytest.fixture
def take(load: SmallRun, tmp_path: Path):
    """What a run with these overrides would start from."""

    def look(*overrides: str, card: DatasetCard = CARD) -> Any:
        chosen = {
            "output_dir": str(tmp_path / "run"),
            "checkpoint.save_folder": str(tmp_path / "saved"),
            "checkpoint.autoresume": "true",
            **dict(item.split("=", 1) for item in overrides),
        }
        return find_start(load(*(f"{key}={value}" for key, value in chosen.items())), card)

    return look


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Puts a checkpoint of no files into the folder; None leaves a field out, as before."""

    def put(batch: int, run_name: str = "a", folder: str = "saved", **fields: Any) -> None:
        known = {"run_id": "one", "data_set": identity(CARD), **fields}
        manifest = Manifest(
            batch=batch, num_images=8 * batch, epoch=0, created="2026-01-01T00:00:00+00:00",
            run_name=run_name, engine="ddp", world_size=1, versions={}, config={}, loggers={},
            data={"epoch": 0, "sample_in_epoch": 8 * batch},
            **{name: value for name, value in known.items() if value is not None},
        )  # fmt: skip
        place = tmp_path / folder / f"ba{batch}"
        place.mkdir(parents=True)
        (place / "manifest.json").write_text(manifest.to_json())

    return put


def test_a_runs_own_id_is_taken_over_from_its_checkpoints(take, save):
    fresh = take()
    assert fresh.source is None
    assert len(fresh.run_id) == 16
    save(1, run_id=None, data_set=None)
    old = take()
    assert old.source.manifest.batch == 1, "older ones count by name"
    assert len(old.run_id) == 16
    save(2)
    assert take().run_id == "one"


def test_another_runs_checkpoints_are_refused_by_name(take, save):
    save(1, run_id=None, data_set=None)
    save(2, run_name="b")
    with pytest.raises(
        ConfigError, match=r"ba2 in .*of the run 'b'; set run_name=b .* or give 'a'"
    ):
        take()


def test_another_runs_checkpoints_are_refused_by_id(take, save, load, tmp_path: Path):
    save(1)
    note_id(str(tmp_path / "run"), "one")
    assert take().run_id == "one"
    save(2, run_id="two")
    with pytest.raises(ConfigError, match=r"ba2 in .* called 'a' too \(id two, and not one\)"):
        take()
    (tmp_path / "saved" / "ba1" / "manifest.json").unlink()
    with pytest.raises(ConfigError, match=r"id two, and not one"):
        take()
    (tmp_path / "run" / RUN_ID).unlink()
    assert take().run_id == "two", "a pod in another's place has no output_dir"


def test_the_id_and_the_data_reach_the_manifests(load, tmp_path: Path):
    from toy_trainer import toy_trainer

    places = [f"output_dir={tmp_path}/run", f"checkpoint.save_folder={tmp_path}/saved"]
    config = load(*places, "checkpoint.autoresume=true")
    start = find_start(config, CARD)
    trainer = toy_trainer("1ba", callbacks=build_saver(config, start, {}, None, None, CARD))
    trainer.fit()
    trainer.close()
    (one,) = list_checkpoints(f"{tmp_path}/saved")
    assert one.manifest is not None
    assert one.manifest.run_id == start.run_id
    assert one.manifest.data_set == identity(CARD)
    assert (tmp_path / "run" / RUN_ID).read_text() == f"{start.run_id}\n"
    assert find_start(config, CARD).run_id == start.run_id


def test_a_folder_of_logs_of_another_run_is_refused(load, tmp_path: Path):
    (tmp_path / "config.yaml").write_text("run_name: b\n")
    places = [f"output_dir={tmp_path}", f"checkpoint.save_folder={tmp_path}/saved"]
    with pytest.raises(ConfigError, match=r"output_dir: .*holds the run 'b'; give 'a' a folder"):
        main.check_output(load(*places, "checkpoint.autoresume=true"))


OTHERS = {
    "fingerprint": "0" * 16,
    "scaling": LatentScaling("channel", (0.1,) * 4, (0.5,) * 4),
    "VAE": VaeInfo("demo", "b" * 16, 8, 4),
    "classes": ("bee", "ant", "cow"),
    "number format of priors": "bfloat16",
    "number of pictures": 20,
    "levels": (),
}
FIELDS = {
    "VAE": "vae",
    "number format of priors": "prior_dtype",
    "number of pictures": "num_samples",
}


@pytest.mark.parametrize("what", OTHERS)
def test_other_data_are_refused_by_what_differs_or_accepted_with_a_new_pass(
    what, take, save, caplog
):
    save(2)
    other = replace(CARD, **{FIELDS.get(what, what): OTHERS[what]})
    with pytest.raises(ConfigError) as caught:
        take(card=other)
    (line,) = str(caught.value).splitlines()
    assert f"{what}" in line
    assert "then" in line
    assert "checkpoint.accept_other_data=true" in line
    start = take("checkpoint.accept_other_data=true", card=other)
    assert start.same_run
    assert start.new_pass
    assert "going on with other data from the beginning of a pass" in caplog.text
    assert not take(card=CARD).new_pass


def test_data_that_another_torch_encoded_are_told_as_such(take, save):
    before, now = replace(CARD, torch="2.7.0"), replace(CARD, torch="2.14.1")
    save(2, data_set=identity(before))
    assert not take(card=now).new_pass, "the same bytes are the same set"
    with pytest.raises(ConfigError, match=r"now\), encoded with torch 2\.7\.0 then, 2\.14\.1 now"):
        take(card=replace(now, fingerprint="0" * 16))
    with pytest.raises(ConfigError) as caught:
        take(card=replace(CARD, fingerprint="0" * 16))
    assert "encoded with" not in str(caught.value), "a set of an earlier version"


def test_an_older_checkpoint_tells_only_of_a_set_that_is_too_small(take, save):
    save(60, data_set=None)
    large = replace(CARD, num_samples=1000)
    assert not take(card=large).new_pass
    with pytest.raises(ConfigError, match="number of pictures"):
        take("global_train_batch_size=8", card=CARD)


def test_another_run_starts_from_a_checkpoint_in_a_pass_of_its_own(take, save, tmp_path, caplog):
    save(2, run_name="b", folder="other")
    load_path = f"checkpoint.load_path={tmp_path}/other"
    start = take(load_path, card=replace(CARD, fingerprint="0" * 16, num_samples=9))
    assert (start.same_run, start.new_pass) == (False, True)
    assert start.run_id != "one"
    with pytest.raises(ConfigError, match="max_duration=2ba leaves nothing to train; ask for more"):
        take(load_path, "max_duration=2ba")
    swapped = replace(CARD, classes=("bee", "ant", "cow"))
    moved = r"class 'bee' is number 1 in the one and 0 in the other"
    with pytest.raises(ConfigError, match=moved):
        take(load_path, card=swapped)
    assert take(load_path, "checkpoint.accept_other_data=true", card=swapped).new_pass
    assert take(load_path, card=replace(CARD, classes=("dog", "elk", "fox"))).new_pass
    caplog.clear()
    take(load_path, card=replace(CARD, scaling=OTHERS["scaling"]))
    assert "starting from a model of other data: scaling of latents" in caplog.text


def test_a_manifest_of_before_still_counts(tmp_path: Path, save):
    save(1, run_id=None, data_set=None)
    path = tmp_path / "saved" / "ba1" / "manifest.json"
    told = json.loads(path.read_text())
    del told["run_id"], told["data_set"], told["sha256"]
    from ahpa_scale.checkpoint.manifest import _digest

    path.write_text(json.dumps({**told, "sha256": _digest(told)}))
    (one,) = list_checkpoints(str(tmp_path / "saved"))
    assert one.problem is None
    assert one.manifest is not None
    assert (one.manifest.run_id, one.manifest.data_set) == ("", None)


def test_the_switch_belongs_to_what_takes_a_checkpoint_up(complaint):
    line = complaint("checkpoint.accept_other_data=true")
    assert "neither checkpoint.autoresume nor checkpoint.load_path" in line


def test_labels_are_those_of_the_same_name():
    assert labels_by_name("abc", "abc", "there") is None
    assert labels_by_name("abc", "bca", "there") == [1, 2, 0]
    assert labels_by_name("abc", "c", "there") == [2]
    with pytest.raises(ValueError, match=r"there has the class 'd', .* of the 3 classes"):
        labels_by_name("abc", "abd", "there")
