"""PixelSD3Pipeline, with all that it needs besides torch and diffusers.

Put together by Sparsight from the files below, of which each is run as a module of its own, from its text further down;
Sparsight's own ones are under the Apache License, version 2.0.

- sparsight/diffusion/pipelines/pixel_pipeline.py
- sparsight/diffusion/students/saved.py
"""

from __future__ import annotations

import ast
import hashlib
import linecache
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any


class CarriedFiles(MetaPathFinder, Loader):
    """Finds and runs carried files, as modules of a package that has a hash of the export's code in its name.

    So exports of several versions live side by side, and beside an installation of what they were made from.

    Args:
        sources: Text of every file by its path, whose parts are those of the module's name.
        code: The file of code that they came in.

    Attributes:
        classes: What the file of code has made of them, by name: it is run at every load, but its classes stay.
    """

    def __init__(self, sources: Mapping[str, str], code: Path) -> None:
        self.code = (code.name, code.read_bytes())  # the file may be gone when a model is saved
        self.stem = code.stem
        self.package = f"sparsight_export_{hashlib.sha256(self.code[1]).hexdigest()[:12]}"
        self.texts = {f"{self.package}/{path}": text for path, text in sources.items()}
        self.paths = {_module_name(path): path for path in self.texts}
        self.tops = {path.split("/")[0].removesuffix(".py") for path in sources}
        self.classes: dict[str, type] = {}

    def get(self, name: str) -> Any:
        """What a carried module calls by the last part of a dotted name."""
        module, _, attribute = name.rpartition(".")
        return vars(import_module(f"{self.package}.{module}"))[attribute]

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> Any:
        """A carried file, or a package that only holds such."""
        holds_others = any(name.startswith(f"{fullname}.") for name in self.paths)
        file = self.paths.get(fullname)
        if file is None and not holds_others:
            return None
        spec = ModuleSpec(fullname, self, origin=file, is_package=holds_others or str(file).endswith("/__init__.py"))
        spec.has_location = file is not None
        return spec

    def exec_module(self, module: ModuleType) -> None:
        """Run a file, with imports of carried modules led to these."""
        text = self.get_source(module.__name__)
        file = self.paths.get(module.__name__)
        if file is not None:
            linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
            tree = ast.fix_missing_locations(_LedToCarried(self).visit(ast.parse(text, file)))
            exec(compile(tree, file, "exec", dont_inherit=True), vars(module))

    def get_source(self, fullname: str) -> str:
        """Its text, which tracebacks, ``inspect`` and compilers ask for."""
        return self.texts.get(self.paths.get(fullname, ""), "")


class _LedToCarried(ast.NodeTransformer):
    """Imports by absolute names, of packages that are carried, get the carried package's name in front."""

    def __init__(self, files: CarriedFiles) -> None:
        self.files = files

    def _is_carried(self, name: str) -> bool:
        return name.split(".")[0] in self.files.tops

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST:
        if node.level == 0 and node.module and self._is_carried(node.module):
            node.module = f"{self.files.package}.{node.module}"
        return node

    def visit_Import(self, node: ast.Import) -> list[ast.stmt]:
        led: list[ast.stmt] = []
        for alias in node.names:
            if not self._is_carried(alias.name):
                led.append(ast.Import([alias]))
                continue
            led.append(ast.Import([ast.alias(f"{self.files.package}.{alias.name}", alias.asname)]))
            if alias.asname is None:  # binds the first part of the name
                led.append(ast.ImportFrom(self.files.package, [ast.alias(alias.name.split(".")[0])], 0))
        return [ast.copy_location(statement, node) for statement in led]


def _module_name(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def carry(sources: Mapping[str, str], code: Path) -> CarriedFiles:
    """Make carried files importable, once in a process for each content of the file of code."""
    files = CarriedFiles(sources, code)
    if files.package not in sys.modules:
        sys.meta_path.append(files)
    spec = import_module(files.package).__spec__
    return spec.loader if spec is not None else files  # type: ignore[return-value]

SOURCES = {
    'sparsight/diffusion/pipelines/pixel_pipeline.py': (
        '"""Pipelines for denoisers that work on pixels: a DiT on classes, a U-Net or a joint transformer on captions.\n'
        '\n'
        'Diffusers has such pipelines for latents only. This file imports torch and diffusers alone and travels inside exported\n'
        'folders, where plain diffusers loads it with ``DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)``.\n'
        '"""\n'
        '\n'
        'from __future__ import annotations\n'
        '\n'
        'import inspect\n'
        'from collections.abc import Mapping, Sequence\n'
        'from typing import Any, Protocol, runtime_checkable\n'
        '\n'
        'import torch\n'
        'from diffusers import DiffusionPipeline, ImagePipelineOutput\n'
        'from diffusers.image_processor import VaeImageProcessor\n'
        'from diffusers.utils.torch_utils import randn_tensor\n'
        '\n'
        '\n'
        '@runtime_checkable\n'
        'class ScalesNoise(Protocol):\n'
        '    """A scheduler whose samples begin with another deviation than 1."""\n'
        '\n'
        '    init_noise_sigma: Any\n'
        '\n'
        '\n'
        '@runtime_checkable\n'
        'class ScalesInputs(Protocol):\n'
        '    """A scheduler whose denoisers take other inputs than its samples."""\n'
        '\n'
        '    def scale_model_input(self, sample: torch.Tensor, timestep: Any) -> torch.Tensor:\n'
        '        """What a denoiser takes at a step."""\n'
        '        ...\n'
        '\n'
        '\n'
        'class PixelPipeline(DiffusionPipeline):\n'
        '    """What the pipelines below share: sampling with classifier-free guidance (Ho and Salimans, arXiv 2207.12598)."""\n'
        '\n'
        '    @torch.no_grad()\n'
        '    def _draw(\n'
        '        self,\n'
        '        denoiser: Any,\n'
        '        conditions: Mapping[str, torch.Tensor],\n'
        '        *,\n'
        '        guidance_scale: float,\n'
        '        num_inference_steps: int,\n'
        '        generator: torch.Generator | list[torch.Generator] | None,\n'
        '        latents: torch.Tensor | None,\n'
        '        output_type: str,\n'
        '        return_dict: bool,\n'
        '    ) -> ImagePipelineOutput | tuple[Any]:\n'
        '        """Draw an image for every row of ``conditions``; with guidance, their second half says what to keep away from.\n'
        '\n'
        '        Args:\n'
        '            denoiser: Predicts from a sample (B, C, H, W), ``timestep`` (B,) and ``conditions``.\n'
        '            conditions: Keyword arguments of the denoiser, B rows each, or 2 B with guidance.\n'
        '            guidance_scale: 1 is no guidance.\n'
        '            num_inference_steps: Sampler steps.\n'
        '            generator: Source of the starting noise.\n'
        '            latents: Starting noise (B, C, H, W) to use instead.\n'
        '            output_type: ``pil``, ``np`` (B, H, W, C) or ``pt`` (B, C, H, W), values in [0, 1].\n'
        '            return_dict: Return an ImagePipelineOutput rather than a tuple.\n'
        '        """\n'
        '        device, config = self._execution_device, denoiser.config\n'
        '        rows = len(next(iter(conditions.values())))\n'
        '        guided = guidance_scale != 1.0\n'
        '        size = config.sample_size\n'
        '        height, width = size if isinstance(size, (tuple, list)) else (size, size)\n'
        '        shape = (rows // 2 if guided else rows, config.in_channels, height, width)\n'
        '        if latents is None:\n'
        '            latents = randn_tensor(shape, generator, device, denoiser.dtype)\n'
        '        self.scheduler.set_timesteps(num_inference_steps, device=device)\n'
        '        noise = self.scheduler.init_noise_sigma if isinstance(self.scheduler, ScalesNoise) else 1.0\n'
        '        sample = latents.to(device, denoiser.dtype) * noise\n'
        '        accepts = inspect.signature(self.scheduler.step).parameters  # some samplers draw noise of their own\n'
        '        noise_source = {"generator": generator} if "generator" in accepts else {}\n'
        '        for timestep in self.progress_bar(self.scheduler.timesteps):\n'
        '            inputs = torch.cat([sample, sample]) if guided else sample\n'
        '            if isinstance(self.scheduler, ScalesInputs):\n'
        '                inputs = self.scheduler.scale_model_input(inputs, timestep)\n'
        '            prediction = denoiser(inputs, timestep=timestep.expand(rows), **conditions).sample\n'
        '            prediction = prediction[:, : sample.shape[1]]  # a learned variance, if any, comes second\n'
        '            if guided:\n'
        '                with_condition, without = prediction.chunk(2)\n'
        '                prediction = without + guidance_scale * (with_condition - without)\n'
        '            sample = self.scheduler.step(prediction, timestep, sample, **noise_source).prev_sample\n'
        '        images = VaeImageProcessor(do_normalize=True).postprocess(sample.float(), output_type=output_type)\n'
        '        return ImagePipelineOutput(images=images) if return_dict else (images,)\n'
        '\n'
        '\n'
        'class PixelDiTPipeline(PixelPipeline):\n'
        '    """Draws images of given classes.\n'
        '\n'
        '    Args:\n'
        '        transformer: A DiTTransformer2DModel, or a student with its signature, over pixels in [-1, 1].\n'
        '        scheduler: Any diffusers scheduler with ``scale_model_input`` or without.\n'
        '        id2label: Class names by class id (as strings, as JSON keeps them).\n'
        '    """\n'
        '\n'
        '    model_cpu_offload_seq = "transformer"\n'
        '\n'
        '    def __init__(self, transformer: Any, scheduler: Any, id2label: dict[str, str] | None = None) -> None:\n'
        '        super().__init__()\n'
        '        self.register_modules(transformer=transformer, scheduler=scheduler)\n'
        '        self.register_to_config(id2label=id2label)\n'
        '\n'
        '    def __call__(\n'
        '        self,\n'
        '        class_labels: Sequence[int | str],\n'
        '        guidance_scale: float = 2.0,\n'
        '        num_inference_steps: int = 25,\n'
        '        generator: torch.Generator | list[torch.Generator] | None = None,\n'
        '        latents: torch.Tensor | None = None,\n'
        '        output_type: str = "pil",\n'
        '        return_dict: bool = True,\n'
        '    ) -> ImagePipelineOutput | tuple[Any]:\n'
        '        """Draw one image for every label.\n'
        '\n'
        '        Args:\n'
        '            class_labels: Class ids, or names found in ``id2label``.\n'
        '            guidance_scale: 1 follows the class alone; larger values push away from the class-free prediction.\n'
        '            num_inference_steps: Sampler steps.\n'
        '            generator: Source of the starting noise.\n'
        '            latents: Starting noise (B, C, H, W) to use instead.\n'
        '            output_type: ``pil``, ``np`` (B, H, W, C) or ``pt`` (B, C, H, W), values in [0, 1].\n'
        '            return_dict: Return an ImagePipelineOutput rather than a tuple.\n'
        '\n'
        '        Raises:\n'
        '            ValueError: A class is unknown.\n'
        '        """\n'
        '        labels = torch.tensor([self._class_id(label) for label in class_labels], device=self._execution_device)\n'
        '        if guidance_scale != 1.0:\n'
        '            labels = torch.cat([labels, torch.full_like(labels, self.transformer.config.num_embeds_ada_norm)])\n'
        '        return self._draw(\n'
        '            self.transformer,\n'
        '            {"class_labels": labels},\n'
        '            guidance_scale=guidance_scale,\n'
        '            num_inference_steps=num_inference_steps,\n'
        '            generator=generator,\n'
        '            latents=latents,\n'
        '            output_type=output_type,\n'
        '            return_dict=return_dict,\n'
        '        )\n'
        '\n'
        '    def _class_id(self, label: int | str) -> int:\n'
        '        names = self.config.id2label or {}\n'
        '        ids = {name: int(key) for key, name in names.items()}\n'
        '        if isinstance(label, str) and label in ids:\n'
        '            return ids[label]\n'
        '        if not isinstance(label, str) and 0 <= int(label) < self.transformer.config.num_embeds_ada_norm:\n'
        '            return int(label)\n'
        '        known = ", ".join(ids) or f"0 to {self.transformer.config.num_embeds_ada_norm - 1}"\n'
        '        raise ValueError(f"unknown class {label!r}; known are {known}")\n'
        '\n'
        '\n'
        'class PixelCaptionPipeline(PixelPipeline):\n'
        '    """What the pipelines below share: drawing images for given captions."""\n'
        '\n'
        '    def __call__(\n'
        '        self,\n'
        '        prompt: str | Sequence[str],\n'
        '        guidance_scale: float = 3.0,\n'
        '        num_inference_steps: int = 25,\n'
        '        generator: torch.Generator | list[torch.Generator] | None = None,\n'
        '        latents: torch.Tensor | None = None,\n'
        '        output_type: str = "pil",\n'
        '        return_dict: bool = True,\n'
        '    ) -> ImagePipelineOutput | tuple[Any]:\n'
        '        """Draw one image for every caption.\n'
        '\n'
        '        Args:\n'
        '            prompt: Captions.\n'
        '            guidance_scale: 1 follows the caption alone; larger values push away from the prediction for none.\n'
        '            num_inference_steps: Sampler steps.\n'
        '            generator: Source of the starting noise.\n'
        '            latents: Starting noise (B, C, H, W) to use instead.\n'
        '            output_type: ``pil``, ``np`` (B, H, W, C) or ``pt`` (B, C, H, W), values in [0, 1].\n'
        '            return_dict: Return an ImagePipelineOutput rather than a tuple.\n'
        '        """\n'
        '        captions = [prompt] if isinstance(prompt, str) else list(prompt)\n'
        '        if guidance_scale != 1.0:\n'
        '            captions = captions + [""] * len(captions)\n'
        '        return self._draw(\n'
        '            self.denoiser,\n'
        '            self.conditions(captions),\n'
        '            guidance_scale=guidance_scale,\n'
        '            num_inference_steps=num_inference_steps,\n'
        '            generator=generator,\n'
        '            latents=latents,\n'
        '            output_type=output_type,\n'
        '            return_dict=return_dict,\n'
        '        )\n'
        '\n'
        '    @property\n'
        '    def denoiser(self) -> Any:\n'
        '        """The part that is asked at every sampler step."""\n'
        '        raise NotImplementedError\n'
        '\n'
        '    def conditions(self, captions: Sequence[str]) -> dict[str, torch.Tensor]:\n'
        '        """Keyword arguments of the denoiser, a row for every caption; "" means no caption."""\n'
        '        raise NotImplementedError\n'
        '\n'
        '    @torch.no_grad()\n'
        '    def encode_prompt(self, captions: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:\n'
        '        """Token embeddings (B, L, C) and their mask (B, L), 1 for tokens and 0 for padding; "" means no caption."""\n'
        '        tokens = self.tokenizer(\n'
        '            list(captions),\n'
        '            padding="max_length",\n'
        '            max_length=self.tokenizer.model_max_length,\n'
        '            truncation=True,\n'
        '            return_tensors="pt",\n'
        '        ).to(self._execution_device)\n'
        '        embeds = self.text_encoder(tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state\n'
        '        return embeds.to(self.denoiser.dtype), tokens.attention_mask\n'
        '\n'
        '\n'
        'class PixelUNetPipeline(PixelCaptionPipeline):\n'
        '    """Draws images for given captions with a U-Net.\n'
        '\n'
        '    Args:\n'
        '        tokenizer: Of the text encoder; its ``model_max_length`` is the number of tokens of every caption.\n'
        "        text_encoder: A transformers model with ``last_hidden_state``, as wide as the U-Net's ``cross_attention_dim``.\n"
        '        unet: A UNet2DConditionModel, or a student with its signature, over pixels in [-1, 1].\n'
        '        scheduler: Any diffusers scheduler with ``scale_model_input`` or without.\n'
        '    """\n'
        '\n'
        '    model_cpu_offload_seq = "text_encoder->unet"\n'
        '\n'
        '    def __init__(self, tokenizer: Any, text_encoder: Any, unet: Any, scheduler: Any) -> None:\n'
        '        super().__init__()\n'
        '        self.register_modules(tokenizer=tokenizer, text_encoder=text_encoder, unet=unet, scheduler=scheduler)\n'
        '\n'
        '    @property\n'
        '    def denoiser(self) -> Any:\n'
        '        """The U-Net."""\n'
        '        return self.unet\n'
        '\n'
        '    def conditions(self, captions: Sequence[str]) -> dict[str, torch.Tensor]:\n'
        '        """Token embeddings and their mask."""\n'
        '        embeds, mask = self.encode_prompt(captions)\n'
        '        return {"encoder_hidden_states": embeds, "encoder_attention_mask": mask}\n'
        '\n'
        '\n'
        'class PixelSD3Pipeline(PixelCaptionPipeline):\n'
        '    """Draws images for given captions with a joint transformer, in which text and image attend to each other.\n'
        '\n'
        '    Args:\n'
        '        tokenizer: Of the text encoder; its ``model_max_length`` is the number of tokens of every caption.\n'
        "        text_encoder: A transformers model with ``last_hidden_state``, as wide as the transformer's\n"
        '            ``joint_attention_dim`` and ``pooled_projection_dim``.\n'
        '        transformer: An SD3Transformer2DModel over pixels in [-1, 1].\n'
        '        scheduler: A flow-matching scheduler.\n'
        '    """\n'
        '\n'
        '    model_cpu_offload_seq = "text_encoder->transformer"\n'
        '\n'
        '    def __init__(self, tokenizer: Any, text_encoder: Any, transformer: Any, scheduler: Any) -> None:\n'
        '        super().__init__()\n'
        '        self.register_modules(\n'
        '            tokenizer=tokenizer, text_encoder=text_encoder, transformer=transformer, scheduler=scheduler\n'
        '        )\n'
        '\n'
        '    @property\n'
        '    def denoiser(self) -> Any:\n'
        '        """The transformer."""\n'
        '        return self.transformer\n'
        '\n'
        '    def conditions(self, captions: Sequence[str]) -> dict[str, torch.Tensor]:\n'
        '        """Token embeddings (B, L, C) and their mean (B, C).\n'
        '\n'
        '        The transformer takes no mask of text, as in Stable Diffusion 3, so padding holds zeros whatever the encoder\n'
        '        says there.\n'
        '        """\n'
        '        embeds, mask = self.encode_prompt(captions)\n'
        '        embeds = embeds * mask[..., None].to(embeds.dtype)\n'
        '        return {"encoder_hidden_states": embeds, "pooled_projections": embeds.sum(1) / mask.sum(1, keepdim=True)}\n'
        '\n'
        '\n'
        'PIXEL_PIPELINES = {kind.__name__: kind for kind in (PixelDiTPipeline, PixelUNetPipeline, PixelSD3Pipeline)}\n'
    ),
    'sparsight/diffusion/students/saved.py': (
        '"""What an exported class does when it is saved and read; this file\'s text travels inside the exports."""\n'
        '\n'
        'from __future__ import annotations\n'
        '\n'
        'import json\n'
        'from collections.abc import Mapping\n'
        'from pathlib import Path\n'
        'from typing import Any, ClassVar\n'
        '\n'
        '\n'
        'class SavedWithCode:\n'
        '    """First base of an exported class: whoever saves the object saves its file of code beside its configuration."""\n'
        '\n'
        '    code: ClassVar[tuple[str, bytes]]\n'
        '    """Name and content of the file of code, kept since it was run: its place in a cache may be gone."""\n'
        '\n'
        '    def save_config(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:\n'
        '        """Write the configuration, and the file of code."""\n'
        '        super().save_config(save_directory, *args, **kwargs)  # type: ignore[misc]\n'
        '        name, content = self.code\n'
        '        Path(save_directory, name).write_bytes(content)\n'
        '\n'
        '    @classmethod\n'
        '    def extract_init_dict(cls, config_dict: Mapping[str, Any], **kwargs: Any) -> Any:\n'
        '        """Read a configuration; the address of the file of code is no option, and none to warn about."""\n'
        '        options = {key: value for key, value in config_dict.items() if key != "auto_map"}\n'
        '        return super().extract_init_dict(options, **kwargs)  # type: ignore[misc]\n'
        '\n'
        '\n'
        'class ExportedPipeline(SavedWithCode):\n'
        '    """Mixed into a pipeline class that diffusers does not have."""\n'
        '\n'
        '    def to_json_string(self) -> str:\n'
        '        """The pipeline\'s index; it names the file of code, and where ``AutoModel`` finds that of a student in it."""\n'
        '        index = json.loads(super().to_json_string())  # type: ignore[misc]\n'
        '        index["_class_name"] = [Path(self.code[0]).stem, type(self).__name__]\n'
        '        for part in self.components.values():  # type: ignore[attr-defined]\n'
        '            if getattr(part, "_auto_class", None) is not None:  # of a file of its own, or a part of any library\n'
        '                index["auto_map"] = {"AutoModel": f"{type(part).__module__}.{type(part).__name__}"}\n'
        '        return json.dumps(index, indent=2, sort_keys=True) + "\\n"\n'
    ),
}



FILES = carry(SOURCES, Path(__file__))

if 'PixelSD3Pipeline' not in FILES.classes:  # this file may be run again at every load

    class PixelSD3Pipeline(FILES.get("sparsight.diffusion.students.saved.ExportedPipeline"), FILES.get("sparsight.diffusion.pipelines.pixel_pipeline.PixelSD3Pipeline")):
        """The pipeline of that name, which takes this file along when it is saved."""

        __module__ = FILES.stem
        code = FILES.code

    FILES.classes['PixelSD3Pipeline'] = PixelSD3Pipeline

PixelSD3Pipeline = FILES.classes['PixelSD3Pipeline']
# exported classes go by the file's name, so that saved pipelines name a file and not a place in a cache
sys.modules[FILES.stem] = sys.modules[__name__]
