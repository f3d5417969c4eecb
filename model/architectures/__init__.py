"""Our own small architectures, one JSON file each, made known to open_clip beside its named ones."""

from pathlib import Path

import open_clip

open_clip.add_model_config(Path(__file__).parent)
