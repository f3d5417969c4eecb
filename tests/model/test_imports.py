"""What importing brings in, each in a fresh interpreter."""

import subprocess
import sys

import pytest


def run(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


@pytest.mark.parametrize("module", ["model", "model.config", "model.errors", "trainer.cli"])
def test_importing_it_imports_neither_torch_nor_torchvision(module: str) -> None:
    heavy = run(
        f"import sys, {module}; print({{'torch', 'torchvision', 'open_clip'}} & set(sys.modules) or 'none')"
    )
    assert heavy == "none"


def test_torchvision_imports_after_model_and_its_transforms_work() -> None:
    code = """
import model
import torchvision
from PIL import Image
from torchvision.transforms import v2
print(tuple(v2.Resize((4, 5))(v2.PILToTensor()(Image.new("RGB", (9, 9)))).shape))
"""
    assert run(code) == "(3, 4, 5)"


def test_the_import_hook_is_installed_once() -> None:
    code = """
import sys
from model import torchvision_ops
torchvision_ops.install()
print(sum(type(finder).__module__ == torchvision_ops.__name__ for finder in sys.meta_path))
"""
    assert run(code) == "1"


def test_the_tokenizer_alone_knows_our_architectures() -> None:
    code = """
from model.tokenizer import build_tokenizer
print(tuple(build_tokenizer("itm-small")(["a dog", "two dogs"]).shape))
"""
    assert run(code) == "(2, 24)"
