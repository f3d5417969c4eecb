"""What open_clip is asked for by a tag, and how it is told what it has not."""

import logging
from typing import Any

import open_clip
import pytest

from model.errors import ModelError
from model.towers.open_clip_weights import new_clip


@pytest.mark.parametrize(
    ("architecture", "wrong", "known"),
    [
        ("ViT-B-32", "laion2b_s34b_b79", r"nearest: laion2b_s34b_b79k"),
        ("itm-tiny", "weights/none.pt", "it has none"),
        ("ViT-H-14", "/", "it has .*laion2b_s32b_b79k"),
    ],
)
def test_a_slip_is_told_once_with_the_nearest_tag(
    architecture: str, wrong: str, known: str, caplog: pytest.LogCaptureFixture
) -> None:
    wrong = wrong.replace("/", "no/", 1)
    line = rf"model\.pretrained {wrong!r}: no such file, nor a tag of open_clip for {architecture}; {known}"
    with pytest.raises(ModelError, match=line):
        new_clip(architecture, wrong)
    assert not caplog.records


def test_a_tag_that_cannot_be_fetched_is_one_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fetch(*_: Any, **__: Any) -> None:
        logging.getLogger("huggingface_hub.utils._http").warning("Retrying in 1s [Retry 1/5].")
        raise FileNotFoundError("Failed to download file (x.bin) for a/b. Last error: no connection.\nTry later")

    monkeypatch.setattr("open_clip.factory.download_pretrained", fetch)
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "itm-tiny", {"tag": {"hf_hub": "a/b/"}})
    with pytest.raises(ModelError) as raised:
        new_clip("itm-tiny", "tag")
    assert str(raised.value) == (
        "model.pretrained 'tag' for itm-tiny: could not be fetched: no connection; give a file"
    )
    assert not caplog.records
    logging.getLogger("huggingface_hub.utils._http").warning("later")
    logging.getLogger().error("later")
    assert len(caplog.records) == 2
