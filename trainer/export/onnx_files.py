"""Both encoders as ONNX, whole: from pixels and token ids to embeddings. Needs the extra `onnx`."""

import json
import logging
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import nn

from model.encoders import DualEncoder
from trainer.errors import RunError
from trainer.export.model_folder import Trained
from trainer.inputs import caption_tokenizer, image_side

OPSET = 20
TOLERANCE = 1e-4
"""Largest difference of an embedding's entry between PyTorch and onnxruntime, in float32."""


class _Images(nn.Module):
    def __init__(self, encoders: DualEncoder) -> None:
        super().__init__()
        self.encoders = encoders

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.encoders.encode_image(images)


class _Texts(nn.Module):
    def __init__(self, encoders: DualEncoder) -> None:
        super().__init__()
        self.encoders = encoders

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.encoders.encode_text(tokens)


def write_onnx(trained: Trained, out: Path) -> list[str]:
    """Write `image.onnx`, `text.onnx` and `itm_onnx.json` into an empty folder; any batch size may be fed.

    Each is run once by onnxruntime and must give PyTorch's embeddings. Raises `RunError` when the packages are not
    installed, for a model that reads regions, and where onnxruntime gives something else.
    """
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise RunError(f"--format onnx: {error.name} is not installed; pip install 'itm-scale[onnx]'") from None
    config = trained.config
    if config.image.inputs != "pixels":
        raise RunError(f"{trained.source}: reads regions; --format onnx is for models that read pixels alone")
    side = image_side(config)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, side, side, 3), dtype=torch.uint8, generator=generator)
    tokens = caption_tokenizer(config, cut=False)(["two dogs play in the snow", "a man"])
    more_images, more_tokens = images.repeat(2, 1, 1, 1)[:3], tokens.repeat(2, 1)[:3]
    gaps = {
        "image": _write(_Images(trained.encoders), "images", images, more_images, out / "image.onnx"),
        "text": _write(_Texts(trained.encoders), "tokens", tokens, more_tokens, out / "text.onnx"),
    }
    said = {
        "images": f"(B, {side}, {side}, 3) uint8, RGB; the largest centred square, resized",
        "tokens": f"(C, {tokens.shape[1]}) int64, as `trainer.load_model(...).tokenize` makes them of captions",
        "embeddings": f"(B, {trained.encoders.embed_dim}) float32 of length 1",
        "source": trained.source,
    }
    (out / "itm_onnx.json").write_text(json.dumps(said, indent=2) + "\n")
    return [f"{name}: onnxruntime differs from PyTorch by {gap:.1e} at most" for name, gap in gaps.items()]


def _write(module: nn.Module, name: str, example: torch.Tensor, other: torch.Tensor, path: Path) -> float:
    """Export one encoder, run it on `example` and on `other`, of another batch size -> the largest difference."""
    import onnxruntime

    module.eval()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    # the fused kernels of attention, which have no counterpart in ONNX, are for inference alone
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporter about itself
            program = torch.onnx.export(
                module,
                (example,),
                input_names=[name],
                output_names=["embeddings"],
                dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    assert program is not None
    program.save(str(path), external_data=False)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    gap = 0.0
    for inputs in (example, other):
        with torch.inference_mode():
            ours = module(inputs).numpy()
        theirs = session.run(None, {name: inputs.numpy()})[0]
        gap = max(gap, float(np.abs(ours - theirs).max()))
    if gap > TOLERANCE:
        raise RunError(f"{path.name}: onnxruntime's embeddings differ by {gap:.1e}; this model does not fit ONNX")
    return gap
