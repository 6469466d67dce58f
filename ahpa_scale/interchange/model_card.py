# SPDX-License-Identifier: Apache-2.0
"""The card of an exported model, as model hubs want it. What only people know is left open."""

from __future__ import annotations

from ahpa_scale import __version__
from ahpa_scale.models.description import ModelDescription

_CARD = """\
---
library_name: diffusers
pipeline_tag: unconditional-image-generation
license: other  # TODO: name the licence of the weights
---

# {name}

A class-conditional diffusion transformer that was {trained} with ahpa_scale {version}. TODO: say
what it is for, and what it should not be used for.

```python
from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained(FOLDER, trust_remote_code=True{vae_argument})
pipeline([0], num_inference_steps=50, guidance_scale=1.5).images[0].save("picture.png")
```

`trust_remote_code` runs `pipeline.py` and the two Python files in `transformer/`: read them first.
They need torch and diffusers only.{vae_note}

## Model

| | |
|---|---|
| blocks, width, heads | {depth}, {width}, {heads} |
| input | {channels} x {side} x {side} latents, patches of {patch} x {patch} |
| classes | {classes} |
| path | {path} |
| weights | {weights} |

## Data

TODO: name the data set and its licence.

Classes: {names}.

## Recipe

TODO: optimizer, batch size, alignment, evaluation.

## Licence

TODO: the licence of these weights. The code beside them is Apache-2.0. The VAE has its own.
"""
_VAE_NOTE = """ The VAE is not in this folder: `{vae}`, with

```python
from diffusers import AutoencoderKL

vae = AutoencoderKL.from_pretrained("{vae}")
```"""
_MOST_NAMES = 20


def model_card(told: ModelDescription, with_vae: bool) -> str:
    """The card's text.

    Args:
        told: the model.
        with_vae: whether the VAE lies beside it. If not, the card says where to get it.
    """
    vae = told.vae or "TODO: name it"
    names = [told.class_name(label) for label in range(min(told.num_classes, _MOST_NAMES))]
    more = told.num_classes - len(names)
    return _CARD.format(
        name=told.run_name or "A diffusion transformer",
        trained="trained" if told.batch is None else f"trained for {told.batch:,} batches",
        version=__version__,
        vae_argument="" if with_vae else ", vae=vae",
        vae_note="" if with_vae else _VAE_NOTE.format(vae=vae),
        depth=told.depth,
        width=told.width,
        heads=told.heads,
        channels=told.in_channels,
        side=told.input_size,
        patch=told.patch_size,
        classes=f"{told.num_classes}{' and a null class' if told.null_class else ''}",
        path=told.path,
        weights="averages" if told.kind == "ema" else "trained weights",
        names=", ".join(names) + (f" and {more:,} more" if more else ""),
    )
