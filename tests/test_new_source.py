# SPDX-License-Identifier: Apache-2.0
"""A new source of priors takes a declaration and a class: a YAML file can then align with it.

Legend: B batch, C latent channels, H W latent side.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from data_sets import SIZE

from ahpa_scale.config.checks.data import check_data
from ahpa_scale.config.diagnosis import Diagnosis
from ahpa_scale.data.card import read_card
from ahpa_scale.level_names import SOURCES, LevelSource, declare
from ahpa_scale.models.prior_sources import PriorSource
from ahpa_scale.run.build import build_trainer


@pytest.fixture
def blur():
    """Declares levels ``blur.1`` and ``blur.2``: the latent mean on a half and a quarter of its
    side. The class keeps which levels it made.
    """
    declare(LevelSource("blur", lambda dit: dit.in_channels, "octave", 2, statistics=False))

    class Blur(PriorSource):
        name = "blur"
        made: list[str] = []  # noqa: RUF012

        def provide(self, levels, context):
            self.made.extend(levels)
            sizes = {level: 2 ** SOURCES["blur"].number(level) for level in levels}
            return {level: F.avg_pool2d(context.mean_BCHW, size) for level, size in sizes.items()}

    yield Blur
    del SOURCES["blur"], PriorSource.classes["blur"]


@pytest.fixture
def run(load, prepared, vae_path, tmp_path):
    def make(*overrides: str):
        text = f"""
run_name: blurred
max_duration: 2ba
output_dir: {tmp_path}/run
device: cpu
global_train_batch_size: 8
data: {{local: {prepared}, num_workers: 0}}
vae: {{path: {vae_path}}}
model: {{name: tiny/2, input_size: {SIZE // 4}, num_classes: 3, depth: 3, width: 48, heads: 4}}
alignment: {{kind: ahpa, levels: [encoder.mid_block, blur.1, blur.2]}}
logging: {{interval: 1ba}}
"""
        return load(*overrides, text=text)

    return make


def test_a_run_aligns_with_it_by_its_name_in_the_yaml(blur, run, prepared):
    config, card = run(), read_card(prepared)
    targets = check_data(config, card)
    assert list(targets.groups) == ["encoder.mid_block", "blur.1", "blur.2"]
    assert targets.stored == ("encoder.mid_block",)
    trainer = build_trainer(config, card, targets)
    heads = trainer.state.model.attachments["alignment"].heads
    before = [parameter.detach().clone() for parameter in heads[1].parameters()]
    trainer.fit()
    assert trainer.state.timestamp.batch.value == 2
    assert torch.isfinite(trainer.state.loss["total"])
    assert blur.made == ["blur.1", "blur.2"] * 2
    assert [list(head.parameters())[-1].numel() for head in heads] == [
        card.prior_channels["encoder.mid_block"],
        4,
        4,
    ]
    assert not any(map(torch.equal, before, heads[1].parameters()))
    trainer.close()


def test_mistakes_about_it_are_told_as_those_about_others(blur, run, complaint):
    with pytest.raises(ValueError, match=r"alignment.levels: 'blur.3' is no octave of 2; choose "):
        run("alignment.levels=[blur.3]")
    with pytest.raises(ValueError, match=r"fine to coarse: blur levels by their octave"):
        run("alignment.levels=[blur.2, blur.1]")
    with pytest.raises(ValueError, match=r"alignment.whiten: 'blur.1' has no statistics"):
        run("alignment.whiten=4")
    with pytest.raises(ValueError, match=r"alignment.groups.blur.1: .* is the name of a level"):
        run("alignment.levels=null", "alignment.groups={blur.1: [latent]}")
    assert Diagnosis("run", "data", source="blur").source == "blur"


def test_without_its_declaration_its_name_is_unknown(run):
    with pytest.raises(ValueError, match=r"alignment.levels: there is no 'blur.1'"):
        run()
