# SPDX-License-Identifier: Apache-2.0
"""Callbacks through a real Trainer: progress, sample grids, router figure, the last line."""

from __future__ import annotations

import io
import re

import numpy as np
import pytest
import torch
from composer.loggers import LoggerDestination
from PIL import Image
from toy_trainer import SUMMARY, ToyGenerator, clone_weights, read_rows, toy_grid, toy_trainer

from ahpa_scale.algorithms.ema import EMA
from ahpa_scale.callbacks import MetricsFile, RouterFigure, RunSummary, TrainingBar
from ahpa_scale.callbacks.router_figure import draw_router, mean_weights
from ahpa_scale.models.vae_config import LatentScaling
from ahpa_scale.preemption import Requests
from ahpa_scale.sampling.settings import SamplerSettings


class TestProgressBar:
    @staticmethod
    def lines(duration: str, seconds: float = 0.0, **options) -> list[str]:
        stream = io.StringIO()
        toy_trainer(duration, loggers=TrainingBar(seconds, stream), **options).fit()
        return stream.getvalue().splitlines()

    @pytest.mark.parametrize("duration", ["8ba", "2ep", "32sp"])
    def test_lines_name_batch_loss_speed_and_time_left(self, duration):
        lines = self.lines(duration)
        total = {"8ba": 8, "2ep": 12, "32sp": 8}[duration]
        pattern = rf"batch (\d+)/{total} \([\d.]+ %\) loss -?[\d.]+, [\d.]+ images/s, left \d+:\d\d"
        numbers = [re.fullmatch(pattern, line) for line in lines]
        assert all(numbers), lines
        assert [int(n[1]) for n in numbers] == [*range(1, total + 1), total]
        assert "(100.0 %)" in lines[-1]

    def test_few_lines_but_always_the_last(self):
        (line,) = self.lines("5ba", seconds=1000)
        assert line.startswith("batch 5/5 (100.0 %)")

    def test_loss_is_that_of_the_batch(self, tmp_path):
        stream = io.StringIO()
        toy_trainer("4ba", loggers=[MetricsFile(tmp_path), TrainingBar(0, stream)]).fit()
        for row, line in zip(read_rows(tmp_path), stream.getvalue().splitlines(), strict=False):
            assert f"loss {row['loss/train/total']:.4f}" in line

    def test_a_terminal_gets_a_bar(self):
        class Terminal(io.StringIO):
            def isatty(self):
                return True

        stream = Terminal()
        toy_trainer("5ba", loggers=TrainingBar(0, stream)).fit()
        last = stream.getvalue().split("\r")[-1]
        assert "100.0%" in last
        assert "5/5 batches" in last
        assert "loss" in last

    def test_negative_seconds_are_refused(self):
        with pytest.raises(ValueError, match="-1"):
            TrainingBar(-1)


class TestSampleGrid:
    def test_grids_at_the_interval_and_the_end(self, tmp_path):
        seen = []

        class Images(LoggerDestination):
            def log_images(self, images, name="", channels_last=False, step=None, *masks):
                seen.append((name, images.shape, images.dtype, step))

        toy_trainer("5ba", callbacks=toy_grid(tmp_path), loggers=Images()).fit()
        names = ["step-00000002.png", "step-00000004.png", "step-00000005.png"]
        assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == names
        picture = np.asarray(Image.open(tmp_path / "samples" / names[0]))
        assert picture.std() > 1
        assert [one[0] for one in seen] == ["samples"] * 3
        assert seen[0][1:] == (picture.shape, np.uint8, 2)

    def test_training_is_untouched(self, tmp_path):
        plain = toy_trainer("4ba", algorithms=EMA(decay=0.5))
        plain.fit()
        after_plain = torch.get_rng_state()
        drawn = toy_trainer("4ba", algorithms=EMA(decay=0.5), callbacks=toy_grid(tmp_path))
        drawn.fit()
        assert torch.equal(torch.get_rng_state(), after_plain)
        assert drawn.state.model.training
        one, other = clone_weights(plain.state.model), clone_weights(drawn.state.model)
        for name in one:
            torch.testing.assert_close(one[name], other[name], rtol=0, atol=0)

    def test_uses_the_average_when_there_is_one(self, tmp_path):
        # With decay 0 the average is the weights; with a slow one it is nearly the first weights.
        pictures = {}
        for name, algorithms in {
            "none": [],
            "fast": [EMA(decay=0.0)],
            "slow": [EMA(decay=0.999)],
        }.items():
            grid = toy_grid(tmp_path / name, interval="100ba")
            trainer = toy_trainer("6ba", algorithms=algorithms, callbacks=grid, lr=1.0)
            trainer.fit()
            pictures[name] = grid.draw(trainer.state)
        assert torch.equal(pictures["none"], pictures["fast"])
        assert not torch.equal(pictures["none"], pictures["slow"])

    def test_a_classs_row_depends_on_nothing_but_class_and_seed(self, tmp_path):
        trainer = toy_trainer("1ba")
        trainer.fit()
        every = toy_grid(tmp_path).draw(trainer.state)
        assert every.shape == (9, 3, 4, 4)
        for options in ({"batch_size": 100}, {"batch_size": 1}):
            assert torch.equal(toy_grid(tmp_path, **options).draw(trainer.state), every)
        one = toy_grid(tmp_path, classes=[2], num_per_class=2).draw(trainer.state)
        assert torch.equal(one, every[6:8])
        assert not torch.equal(
            toy_grid(tmp_path, settings=SamplerSettings(steps=4, seed=1)).draw(trainer.state), every
        )

    def test_latents_are_unscaled_before_decoding(self, tmp_path):
        trainer = toy_trainer("1ba")
        trainer.fit()
        plain = LatentScaling(kind="config", shift=(0.0, 0.0), scale=(1.0, 1.0))
        scaled = toy_grid(tmp_path).draw(trainer.state).float()
        unscaled = toy_grid(tmp_path, scaling=plain).draw(trainer.state).float()
        # shift 1 and scale 0.5: z = 2 x + 1, in grey values of 20 around 128.
        expected = (2 * (unscaled - 128) + 20 + 128).clamp(0, 255)
        assert (scaled - expected).abs().max() <= 3

    @pytest.mark.parametrize(
        "options", [{"classes": [0, 3]}, {"classes": []}, {"num_per_class": 0}]
    )
    def test_impossible_grids_are_refused(self, tmp_path, options):
        with pytest.raises(ValueError, match=r"sample grids"):
            toy_grid(tmp_path, **options)


class TestRouterFigure:
    def test_mean_weights_count_pictures(self):
        assert mean_weights(SUMMARY) == pytest.approx([0.65, 0.35])

    def test_figure_shows_every_level_over_t(self):
        figure = draw_router(SUMMARY, [(1, [0.5, 0.5]), (2, [0.6, 0.4])])
        weight, loss, course = figure.axes[:3]
        for axes, key in ((weight, "weight_GT"), (loss, "loss_GT")):
            lines = {line.get_label(): line for line in axes.get_lines()}
            for level, values in zip(SUMMARY["levels"], SUMMARY[key], strict=True):
                assert lines[level].get_xdata() == pytest.approx([1 / 6, 0.5, 5 / 6])
                drawn = lines[level].get_ydata()
                assert drawn[[0, 2]] == pytest.approx([values[0], values[2]])
                assert np.isnan(drawn[1])
            assert axes.get_xlabel().endswith("(0 = data, 1 = noise)")
        assert [tick.get_text() for tick in course.get_yticklabels()] == ["fine", "coarse"]
        assert len({line.get_color() for line in weight.get_lines()}) == 3
        assert len(draw_router(SUMMARY).axes) == 2

    def test_drawn_at_interval_and_end_and_remembered_over_resumes(self, tmp_path):
        model = ToyGenerator()
        model.attachments["alignment"].last = SUMMARY
        figure = RouterFigure(tmp_path, "2ba")
        toy_trainer("5ba", model=model, callbacks=figure, save_folder=str(tmp_path / "saved")).fit()
        assert [batch for batch, _ in figure.history] == [2, 4, 5]
        with Image.open(tmp_path / "router.png") as picture:
            assert picture.width > 1000
        resumed = RouterFigure(tmp_path, "2ba")
        again = ToyGenerator()
        again.attachments["alignment"].last = SUMMARY
        path = str(tmp_path / "saved" / "latest-rank0.pt")
        toy_trainer("6ba", model=again, callbacks=resumed, load_path=path).fit()
        assert [batch for batch, _ in resumed.history] == [2, 4, 6]

    @pytest.mark.parametrize("last", [None, {}, {"gap": [1.0]}, SUMMARY | {"count_T": [0, 0, 0]}])
    def test_nothing_to_draw_draws_nothing(self, tmp_path, last):
        model = ToyGenerator(aligned=last is not None)
        if last is not None:
            model.attachments["alignment"].last = last
        toy_trainer("2ba", model=model, callbacks=RouterFigure(tmp_path, "1ba")).fit()
        assert not (tmp_path / "router.png").exists()

    def test_a_long_course_is_thinned_not_cut(self):
        figure = RouterFigure(".", "1ba")
        for batch in range(2000):
            figure._record(batch, SUMMARY)
        batches = [batch for batch, _ in figure.history]
        assert len(batches) <= 513
        assert batches[0] == 0
        assert batches[-1] == 1999
        assert batches == sorted(set(batches))


def test_last_line_names_what_is_there(tmp_path):
    stream = io.StringIO()
    summary = RunSummary(tmp_path, "s3://bucket/run", stream)
    callbacks = [toy_grid(tmp_path), RouterFigure(tmp_path), summary]
    trainer = toy_trainer("1ba", callbacks=callbacks, loggers=MetricsFile(tmp_path))
    trainer.fit()
    assert stream.getvalue() == "", "the loggers are not done yet"
    trainer.close()
    expected = (
        f"metrics {tmp_path}/metrics.jsonl, samples {tmp_path}/samples, checkpoints s3://bucket/run"
    )
    assert stream.getvalue() == f"done: {expected}\n"
    toy_trainer("1ba", callbacks=[RunSummary(tmp_path, stream=stream)]).close()
    assert stream.getvalue().count("done:") == 1, "a run that did not end well is not done"
    assert RunSummary(tmp_path / "empty").line() == "done: nothing was written"


def test_a_run_that_was_asked_to_leave_is_not_done(tmp_path):
    stream, requests = io.StringIO(), Requests()
    trainer = toy_trainer("1ba", callbacks=[RunSummary(tmp_path, "saved", stream, requests)])
    trainer.fit()
    requests.agree(leave=True, save=False)
    trainer.close()
    assert stream.getvalue() == "so far: checkpoints saved\n"
