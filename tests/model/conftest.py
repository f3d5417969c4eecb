import pytest

import model  # noqa: F401  (lets torchvision, and so open_clip, import beside a CPU build of torch)


@pytest.fixture(params=[(2, 3), (3, 1), (1024, 2048)], ids=["small tiles", "one key a tile", "one tile"])
def tile(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests that ask for it run with each of these shapes of tiles, anchors x keys."""
    for module in ("tiles", "negatives"):
        monkeypatch.setattr(f"model.losses.{module}.tile_shape", lambda _device: request.param)
