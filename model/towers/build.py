"""The towers that a configuration asks for."""

from dataclasses import dataclass

from model.config import ModelConfig
from model.towers.open_clip import clip_towers
from model.towers.regions import PixelRegionTower, RegionTower
from model.towers.tower import Tower
from model.towers.transformer import ClipTransformerTower, transformer_tower


@dataclass(frozen=True)
class Towers:
    """One tower a modality, each with `pooled_width` and `token_width`."""

    image: Tower
    """(images, regions, region_mask) -> `Features`; what it does not read may be None."""
    text: Tower
    """(C, T) int64, as `model.caption_tokenizer` makes them -> `Features`."""
    notes: list[str]
    """What to know of weights loaded from a file or a folder: what was not there, how many were taken."""


def build_towers(config: ModelConfig, load: bool = True) -> Towers:
    """Build, fill and freeze them as configured.

    With `load=False` the weights stay random, for others to be loaded afterwards. Raises `ModelError`.
    """
    image: Tower = RegionTower(config.image.region_width)
    notes: list[str] = []
    clip_text = None
    if config.reads_pixels or config.text.towers != "transformer":
        clip_image, clip_text, notes = clip_towers(config.architecture, config.pretrained, load, config.image.size)
        clip_image.configure(config.image, "model.image")
        clip_text.configure(config.text, "model.text")
        if config.reads_pixels:
            image = PixelRegionTower(clip_image, config.image.region_width) if config.reads_regions else clip_image
    if config.text.towers == "clip":
        assert clip_text is not None
        return Towers(image, clip_text, notes)
    transformer, more = transformer_tower(config.text.transformer, load)
    if config.text.towers == "transformer":
        return Towers(image, transformer, notes + more)
    assert clip_text is not None
    return Towers(image, ClipTransformerTower(clip_text, transformer), notes + more)
