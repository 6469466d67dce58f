# SPDX-License-Identifier: Apache-2.0
"""Draws pictures with a diffusion transformer of ahpa_scale, as a pipeline of diffusers.

Exported folders hold this file as ``pipeline.py``:

    DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)

Shape legend: B batch, C channels, H W.
"""

import torch
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    ImagePipelineOutput,
    ModelMixin,
)
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor


class AhpaScalePipeline(DiffusionPipeline):
    """Class-conditional sampling along the probability-flow ODE, from noise at t = 1 to data at 0.

    Args:
        transformer: the velocity network.
        vae: decodes latents. None draws latents only.
        scheduler: integrates dx/dt = v; its sigma is the time t.
        id2label: class names by number, as text.
    """

    model_cpu_offload_seq = "transformer->vae"
    _optional_components = ("vae",)

    def __init__(
        self,
        transformer: ModelMixin,
        vae: AutoencoderKL,
        scheduler: FlowMatchEulerDiscreteScheduler,
        id2label: dict[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, vae=vae, scheduler=scheduler)
        self.register_to_config(id2label=id2label)
        self.labels = {name: int(label) for label, name in (id2label or {}).items()}

    @torch.no_grad()
    def __call__(
        self,
        class_labels: list[int | str],
        num_inference_steps: int = 50,
        guidance_scale: float = 1.0,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[object]:
        """Draws one picture for each label.

        Args:
            class_labels: numbers or names of classes.
            num_inference_steps: Euler steps, all of the same length.
            guidance_scale: v_null + scale * (v_class - v_null) on all channels; 1 is the plain
                model.
            guidance_interval: guide only at times within it.
            generator: draws the noise; one for all or one for each picture.
            latents: the noise itself [B, C, H, W].
            output_type: 'pil', 'np' and 'pt' (float in [0, 1]), or 'latent' (as the VAE reads it).
            return_dict: False returns a tuple.
        """
        if self.vae is None and output_type != "latent":
            raise ValueError(
                "this folder holds no VAE: give vae=AutoencoderKL.from_pretrained(...) to "
                "from_pretrained (README.md names it), or output_type='latent'"
            )
        device, config = self._execution_device, self.transformer.config
        numbers = [self.labels[one] if isinstance(one, str) else one for one in class_labels]
        labels_B = torch.tensor(numbers, device=device)
        shape = (len(numbers), config.in_channels, config.input_size, config.input_size)
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=device)
        x_BCHW = latents.to(device, torch.float32)
        times = [1.0 - step / num_inference_steps for step in range(num_inference_steps)]
        self.scheduler.set_timesteps(sigmas=times, device=device)
        self.scheduler.set_begin_index(0)
        for time, timestep in zip(self.progress_bar(times), self.scheduler.timesteps, strict=True):
            guided = guidance_interval[0] <= time <= guidance_interval[1]
            scale = guidance_scale if guided else 1.0
            v_BCHW = self._velocity(x_BCHW, time, labels_B, scale)
            x_BCHW = self.scheduler.step(v_BCHW, timestep, x_BCHW, return_dict=False)[0]
        pictures = self._pictures(x_BCHW, output_type)
        return ImagePipelineOutput(images=pictures) if return_dict else (pictures,)

    def _velocity(self, x_BCHW: Tensor, time: float, labels_B: Tensor, scale: float) -> Tensor:
        network, dtype = self.transformer, self.transformer.dtype
        t_B = torch.full((len(labels_B),), time, device=x_BCHW.device)
        if scale == 1.0:
            return network(x_BCHW.to(dtype), t_B, labels_B).float()
        if network.null_label is None:
            raise ValueError("guidance needs a model with a null class; use guidance_scale=1")
        both_2B = torch.cat([labels_B, torch.full_like(labels_B, network.null_label)])
        x_2BCHW = torch.cat([x_BCHW, x_BCHW]).to(dtype)
        v_class, v_null = network(x_2BCHW, torch.cat([t_B, t_B]), both_2B).float().chunk(2)
        return v_null + scale * (v_class - v_null)

    def _pictures(self, x_BCHW: Tensor, output_type: str) -> object:
        config = self.transformer.config
        shift, scale = (
            torch.tensor(values, device=x_BCHW.device)[:, None, None]
            for values in (config.latent_shift, config.latent_scale)
        )
        z_BCHW = x_BCHW / scale + shift
        if output_type == "latent":
            return z_BCHW
        image_BCHW = self.vae.decode(z_BCHW.to(self.vae.dtype)).sample.float()
        image_BCHW = image_BCHW.div(2).add(0.5).clamp(0, 1)
        if output_type == "pt":
            return image_BCHW
        array = image_BCHW.permute(0, 2, 3, 1).cpu().numpy()
        return array if output_type == "np" else self.numpy_to_pil(array)
