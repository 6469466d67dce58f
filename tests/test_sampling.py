# SPDX-License-Identifier: Apache-2.0
"""Samplers on Gaussian data, whose velocity is known in closed form; guidance; the picture grid."""

from __future__ import annotations

import os

import pytest
import torch
from PIL import Image

from ahpa_scale.models.dit import build_dit
from ahpa_scale.models.flow import get_path
from ahpa_scale.models.randomness import normal, sample_key
from ahpa_scale.sampling import image_grid, sample, save_image

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


def draw(model, batch=8, first=0, **options):
    index_B = torch.arange(first, first + batch)
    settings = {"seed": 3, "shape": SHAPE, "steps": 20, "path": get_path("linear")}
    return sample(model, **{"labels_B": index_B % 2, "index_B": index_B, **settings, **options})


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
