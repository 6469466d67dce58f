# SPDX-License-Identifier: Apache-2.0
"""Samplers on Gaussian data, whose velocity is known in closed form; guidance; the picture grid."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import pytest
import torch
from PIL import Image

from ahpa_scale.models.dit import build_dit
from ahpa_scale.models.flow import get_path
from ahpa_scale.models.randomness import normal, sample_key
from ahpa_scale.sampling.grid import image_grid, save_image
from ahpa_scale.sampling.sampler import sample
from ahpa_scale.sampling.settings import PRESETS, SamplerOptions, SamplerSettings, settings_from

SHAPE = (4, 4, 4)
STD = 0.5


class GaussianField:
    """Exact velocity when class y is N(mean of y, std^2) in every pixel; class 2 is the null."""

    null_label = 2
    means = torch.tensor([-1.0, 2.0, 0.5])

    def __init__(self, path_name: str = "linear", std: float = STD) -> None:
        self.path, self.std = get_path(path_name), std
        self.calls: list[tuple[int, float]] = []

    def __call__(self, x, t, y):
        self.calls.append((len(x), t[0].item()))
        path, t = self.path, t[:, None, None, None]
        mean, alpha, sigma = self.means[y][:, None, None, None], path.alpha(t), path.sigma(t)
        residual = (x - alpha * mean) / (alpha**2 * self.std**2 + sigma**2)
        data = mean + alpha * self.std**2 * residual
        return path.d_alpha(t) * data + path.d_sigma(t) * sigma * residual


def draw(model, batch=8, first=0, labels_B=None, path=None, **options):
    index_B = torch.arange(first, first + batch)
    return sample(
        model,
        labels_B=index_B % 2 if labels_B is None else labels_B,
        index_B=index_B,
        shape=SHAPE,
        path=path or get_path("linear"),
        settings=SamplerSettings(**{"seed": 3, "steps": 20, **options}),
    )


def transported(batch: int) -> torch.Tensor:
    """Where the exact ODE ends: for Gaussians it is the affine map mean + STD * start."""
    index_B = torch.arange(batch)
    start = normal(sample_key(3, 0, index_B, "sampling.start"), SHAPE)
    return GaussianField.means[index_B % 2][:, None, None, None] + STD * start


def ode_error(method: str, steps: int, path_name: str) -> float:
    model = GaussianField(path_name)
    ends = draw(model, method=method, steps=steps, path=model.path)
    return (ends - transported(8)).abs().max().item()


@pytest.mark.parametrize("path_name", ["linear", "gvp"])
@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("heun", 2)])
def test_ode_converges_to_the_exact_map_at_its_order(method, order, path_name):
    coarse, fine = (ode_error(method, steps, path_name) for steps in (40, 80))
    assert fine < {1: 0.05, 2: 0.002}[order]
    assert coarse / fine == pytest.approx(2**order, rel=0.3)


@pytest.mark.parametrize("path_name", ["linear", "gvp"])
@pytest.mark.parametrize("method", ["euler", "heun", "sde"])
def test_samples_have_the_mean_and_deviation_of_the_data(method, path_name):
    model = GaussianField(path_name)
    ends = draw(model, batch=400, method=method, steps=250, path=model.path)
    for label in (0, 1):
        values = ends[label::2]
        # 12,800 values: one standard error is 0.0044 of the mean and 0.0031 of the deviation.
        assert values.mean().item() == pytest.approx(model.means[label].item(), abs=0.02)
        assert values.std().item() == pytest.approx(STD, abs=0.015)


def test_sde_forgets_where_it_started():
    ends = draw(GaussianField(), batch=200, method="sde", steps=250)
    start_part = transported(200) - GaussianField.means[torch.arange(200) % 2][:, None, None, None]
    both = torch.stack([(ends - ends.mean(0)).flatten(), start_part.flatten()])
    assert abs(torch.corrcoef(both)[0, 1]) < 0.9


def test_the_last_sde_step_is_short_and_adds_no_noise():
    field = GaussianField(std=0.0)
    ends = draw(field, batch=200, method="sde", steps=250)
    # For a single point the last step's mean leaves last_step * noise; a kick would make it 0.069.
    residue = ends - field.means[torch.arange(200) % 2][:, None, None, None]
    assert residue.std().item() == pytest.approx(0.04, abs=0.004)
    assert len(field.calls) == 250
    assert field.calls[-1][1] == pytest.approx(0.04)
    assert field.calls[-2][1] == pytest.approx(0.04 + 0.96 / 249)


@pytest.mark.parametrize("method", ["euler", "heun", "sde"])
def test_a_sample_does_not_depend_on_its_batch(method):
    whole = draw(GaussianField(), batch=6, method=method, guidance_scale=2.0)
    parts = [
        draw(GaussianField(), batch=2, first=i, method=method, guidance_scale=2.0) for i in (0, 2)
    ]
    assert torch.equal(whole[:4], torch.cat(parts))
    assert not torch.equal(whole[0], whole[2])
    assert not torch.equal(whole, draw(GaussianField(), batch=6, method=method, seed=4))


def test_a_transformers_sample_does_not_depend_on_its_batch():
    torch.manual_seed(0)
    model = build_dit("tiny/2", input_size=4, depth=2, width=32, heads=2, num_classes=2)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    options = {"method": "sde", "guidance_scale": 1.5, "steps": 5}
    whole = draw(model, batch=5, **options)
    alone = draw(model, batch=1, first=3, **options)
    assert whole.dtype == torch.float32
    assert whole.std() > 0.1
    assert not whole.requires_grad
    torch.testing.assert_close(whole[3:4], alone, atol=1e-5, rtol=1e-5)


def test_guidance_extrapolates_every_channel_in_one_call_per_step():
    class TwoLevels:
        null_label = 2

        def __init__(self):
            self.batches = []

        def __call__(self, x, t, y):
            self.batches.append(y.tolist())
            return torch.where(y == 2, 1.0, 3.0)[:, None, None, None].expand_as(x)

    model = TwoLevels()
    plain = draw(model, batch=2, steps=1)
    guided = draw(model, batch=2, steps=1, guidance_scale=4.0)
    # One step of length 1: plain subtracts 3, guided subtracts 1 + 4 * (3 - 1) = 9.
    torch.testing.assert_close(plain - guided, torch.full((2, *SHAPE), 6.0))
    assert model.batches == [[0, 1], [0, 1, 2, 2]]


def test_guidance_acts_within_its_interval_only():
    field = GaussianField()
    draw(field, batch=4, steps=10, guidance_scale=2.0, guidance_interval=(0.25, 0.75))
    guided = {round(time, 2) for size, time in field.calls if size == 8}
    plain = {round(time, 2) for size, time in field.calls if size == 4}
    assert guided == {0.3, 0.4, 0.5, 0.6, 0.7}
    assert plain == {1.0, 0.9, 0.8, 0.2, 0.1}


def test_guidance_moves_gaussian_classes_apart():
    plain = draw(GaussianField(), batch=64, steps=50)
    guided = draw(GaussianField(), batch=64, steps=50, guidance_scale=2.0)
    assert guided[1::2].mean() > plain[1::2].mean() + 0.5
    assert guided[0::2].mean() < plain[0::2].mean() - 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "huen"}, "did you mean 'heun'"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"guidance_interval": (0.8, 0.2)}, "guidance_interval"),
        ({"last_step": 0.0}, "last_step"),
        ({"labels_B": torch.zeros(3, dtype=torch.int64)}, "of one length"),
    ],
)
def test_users_mistakes_are_one_clear_line(options, message):
    with pytest.raises(ValueError, match=message):
        draw(GaussianField(), **options)


def test_guidance_needs_a_null_class():
    with pytest.raises(ValueError, match="null class"):
        draw(lambda x, t, y: x, guidance_scale=2.0)


@pytest.mark.parametrize("path_name", ["linear", "gvp"])
@pytest.mark.parametrize("method", ["dopri5", "dopri5_batch"])
def test_adaptive_steps_end_near_the_exact_map(method, path_name):
    # A step may err by 1e-3 of the state, and the state's own size is 2.
    assert ode_error(method, 50, path_name) < 0.05


def test_adaptive_steps_are_those_of_the_sample_alone():
    """Guided within an interval, so that every sample has its own time at each call."""
    options = {"method": "dopri5", "guidance_scale": 2.0, "guidance_interval": (0.2, 0.7)}
    narrow = GaussianField(std=0.01)
    whole = draw(narrow, batch=6, **options)
    alone = torch.cat([draw(narrow, batch=1, first=i, **options) for i in range(6)])
    torch.testing.assert_close(whole, alone, atol=1e-5, rtol=1e-5)
    fine = {**options, "method": "heun", "steps": 500}
    torch.testing.assert_close(whole, draw(narrow, batch=6, **fine), atol=0.06, rtol=0)


def test_a_weaker_model_guides_with_the_class():
    class Constant:
        def __init__(self, value):
            self.value, self.labels = value, []

        def __call__(self, x, t, y):
            self.labels.append(y.tolist())
            return torch.full_like(x, self.value)

    model, weaker = Constant(3.0), Constant(2.0)
    index_B = torch.arange(2)
    guided = sample(
        model,
        labels_B=index_B,
        index_B=index_B,
        shape=SHAPE,
        path=get_path("linear"),
        settings=SamplerSettings(steps=1, guidance_scale=4.0, guide="weaker", seed=3),
        guide=weaker,
    )
    plain = draw(model, batch=2, steps=1)
    # Plain subtracts 3, guided subtracts 2 + 4 * (3 - 2) = 6.
    torch.testing.assert_close(plain - guided, torch.full((2, *SHAPE), 3.0))
    assert model.labels[0] == weaker.labels[0] == [0, 1]


def test_guidance_of_some_channels_leaves_the_others_as_they_are():
    plain, guided = draw(GaussianField()), draw(GaussianField(), guidance_scale=2.0)
    some = draw(GaussianField(), guidance_scale=2.0, guidance_channels=3)
    assert torch.equal(some[:, :3], guided[:, :3])
    assert torch.equal(some[:, 3:], plain[:, 3:])


def test_time_shift_takes_smaller_steps_at_high_noise():
    field = GaussianField()
    ends = draw(field, steps=4, time_shift=3.0)
    # 3 t / (1 + 2 t) of 1, 0.75, 0.5 and 0.25.
    assert [time for _, time in field.calls] == pytest.approx([1.0, 0.9, 0.75, 0.5])
    fine = draw(GaussianField(), steps=4000, time_shift=3.0)
    assert (fine - transported(8)).abs().max() < 2e-3
    assert ends.isfinite().all()


def published_sde(steps, field, x, path, kicks, scale, high):
    """SiT's and REPA's published loops (transport/integrators.py, samplers.py) with their own
    formulas: score from the velocity, w = 2 t, last step of 0.04.
    """
    times = torch.linspace(1.0, 0.04, steps, dtype=torch.float64).tolist()
    x, labels = x.double(), torch.arange(len(x)) % 2
    last = torch.zeros_like(x)
    for now, then, kick in zip(times, [*times[1:], 0.0], [*kicks, last], strict=True):
        t = torch.full((len(x),), now, dtype=torch.float64)
        v = field(x, t, labels)
        if now <= high:
            v_null = field(x, t, torch.full_like(labels, 2))
            v = v_null + scale * (v - v_null)
        t_now = torch.tensor(now, dtype=torch.float64)
        ratio = path.alpha(t_now) / path.d_alpha(t_now)
        var = path.sigma(t_now) ** 2 - ratio * path.d_sigma(t_now) * path.sigma(t_now)
        score = (ratio * v - x) / var
        diffusion = 2 * path.sigma(t_now)
        drift = v - 0.5 * diffusion * score
        x = x + drift * (then - now) + diffusion.sqrt() * kick.double() * abs(then - now) ** 0.5
    return x


@pytest.mark.parametrize("path_name", ["linear", "gvp"])
def test_the_published_sde_loop_gives_the_same_trajectory(path_name):
    settings = SamplerSettings(seed=3).changed("repa-sde250-cfg1.8-interval0.7")
    field, index_B = GaussianField(path_name), torch.arange(8)
    kicks = [normal(sample_key(3, step, index_B, "sampling.step"), SHAPE) for step in range(249)]
    start = normal(sample_key(3, 0, index_B, "sampling.start"), SHAPE)
    ends = sample(
        field, labels_B=index_B % 2, index_B=index_B, shape=SHAPE, path=field.path,
        settings=settings,
    )  # fmt: skip
    same = published_sde(250, field, start, field.path, kicks, 1.8, 0.7)
    torch.testing.assert_close(ends, same.float(), atol=1e-5, rtol=1e-5)


def test_the_published_dopri5_is_sits():
    from torchdiffeq import odeint

    settings = SamplerSettings(seed=3).changed("sit-ode-dopri5")
    field, index_B = GaussianField(), torch.arange(8)
    ends = sample(
        field, labels_B=index_B % 2, index_B=index_B, shape=SHAPE, path=field.path,
        settings=settings,
    )  # fmt: skip
    start = normal(sample_key(3, 0, index_B, "sampling.start"), SHAPE)
    # Its time runs from noise at 0 to data at 1, and it asks for 250 points.
    points = odeint(
        lambda s, x: -field(x, (1 - s).expand(len(x)), index_B % 2),
        start, torch.linspace(0, 1, 250), method="dopri5", atol=1e-6, rtol=1e-3,
    )  # fmt: skip
    torch.testing.assert_close(ends, points[-1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_draws_and_survives_json(name):
    settings = SamplerSettings(seed=5, guidance_scale=2.0).changed(name)
    assert settings.seed == 5
    assert settings_from(json.loads(json.dumps({**settings.told(), "other": 1}))) == settings
    field, index_B = GaussianField(), torch.arange(2)
    short = settings if settings.adaptive else replace(settings, steps=3)
    ends = sample(
        field, labels_B=index_B, index_B=index_B, shape=SHAPE, path=field.path, settings=short
    )
    assert ends.isfinite().all()


def test_what_is_given_wins_over_the_preset_and_that_over_the_run():
    own = SamplerSettings(steps=7, guidance_scale=3.0)
    fast = SamplerOptions(preset="fast", steps=9, seed=4).applied(own)
    assert (fast.method, fast.steps, fast.guidance_scale, fast.seed) == ("heun", 9, 3.0, 4)
    assert SamplerOptions().applied(own) == own


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "sit-sde"}, "did you mean 'sit-sde250'"),
        ({"method": "huen"}, "did you mean 'heun'"),
        ({"guidance_scale": float("nan")}, "guidance_scale"),
        ({"time_shift": 0.0}, "time_shift"),
        ({"guidance_interval": (-0.1, 1.0)}, "guidance_interval"),
    ],
)
def test_a_wrong_option_is_refused_before_a_run_is_known(options, message):
    with pytest.raises(ValueError, match=message):
        SamplerOptions(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "dopri5", "steps": 30}, "chooses its steps by itself"),
        ({"method": "sde", "time_shift": 3.0}, "time_shift has no effect"),
        ({"guide": "x"}, "guides only with a guidance_scale above 1"),
    ],
)
def test_settings_without_effect_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SamplerSettings().changed(**options)


def test_one_step_works_for_every_method():
    for method in ("euler", "heun", "sde"):
        assert torch.isfinite(draw(GaussianField(), method=method, steps=1)).all()


def pictures(count: int, side: int) -> torch.Tensor:
    ramp = torch.arange(count * 3 * side * side) % 251
    return ramp.to(torch.uint8).reshape(count, 3, side, side)


def test_grid_enlarges_without_smoothing_and_keeps_the_order():
    images = pictures(5, 32)
    grid = image_grid(images, columns=3)
    assert grid.size == (3 * 98 - 2, 2 * 98 - 2)
    for number in range(5):
        row, column = divmod(number, 3)
        for y, x in ((0, 0), (31, 31), (7, 20)):
            pixel = grid.getpixel((column * 98 + 3 * x + 1, row * 98 + 3 * y + 1))
            assert list(pixel) == images[number, :, y, x].tolist()
    assert grid.getpixel((2 * 98 + 5, 98 + 5)) == (255, 255, 255)


def test_grid_writes_row_labels_beside_the_pictures():
    images = pictures(4, 128)
    plain, named = image_grid(images, 2), image_grid(images, 2, ["red circle", "dog"])
    left = named.width - plain.width
    assert left > 20
    assert named.crop((left, 0, *named.size)).tobytes() == plain.tobytes()
    for row in range(2):
        label = named.crop((0, row * 130, left, row * 130 + 128)).convert("L")
        assert label.getextrema()[0] < 100


@pytest.mark.parametrize(
    ("images", "columns", "labels", "message"),
    [
        (torch.zeros(2, 3, 8, 8), 2, None, "uint8"),
        (pictures(2, 8)[:, :1], 2, None, r"\[2, 1, 8, 8\]"),
        (pictures(2, 8)[:0], 2, None, "needs pictures"),
        (pictures(2, 8), 0, None, "needs pictures and columns"),
        (pictures(4, 8), 2, ["one"], "2 rows but 1 row labels"),
    ],
)
def test_grid_refuses_what_it_cannot_draw(images, columns, labels, message):
    with pytest.raises(ValueError, match=message):
        image_grid(images, columns, labels)


def test_a_failed_save_keeps_the_old_picture_and_leaves_nothing_behind(tmp_path, monkeypatch):
    target = tmp_path / "new" / "grid.png"
    grid = image_grid(pictures(1, 8), 1)
    mask = os.umask(0o027)
    try:
        save_image(grid, target)
    finally:
        os.umask(mask)
    assert Image.open(target).tobytes() == grid.tobytes()
    assert os.stat(target).st_mode & 0o777 == 0o640
    before = target.read_bytes()

    def break_off(path, target):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", break_off)
    with pytest.raises(OSError, match="disk full"):
        save_image(grid, target)
    assert target.read_bytes() == before
    assert [entry.name for entry in target.parent.iterdir()] == ["grid.png"]
