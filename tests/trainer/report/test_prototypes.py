"""What prototypes stand for, on embeddings where that is plain."""

import pytest
import torch
import torch.nn.functional as F

from trainer.embed import Embeddings
from trainer.report.prototypes import describe_bank


def test_prototypes_on_axes_have_the_items_of_their_axis() -> None:
    axes = torch.eye(4)
    colours = ["red", "green", "blue"]
    # images 0-2 on axis 0, 3 and 4 on axis 1, 5 on axis 2; the captions of image 5 stand with prototype 1
    at = [0, 0, 0, 1, 1, 2]
    images = F.normalize(axes[at] + 0.01 * torch.arange(6)[:, None] * axes[3], dim=1)
    owner = torch.arange(6).repeat_interleave(10)
    texts = axes[[1 if image == 5 else at[image] for image in owner.tolist()]]
    captions = [f"a {colours[at[image]]} square" for image in owner.tolist()]
    found = describe_bank(axes, Embeddings(images, texts, owner, captions), dead=2, dead_after=200)
    first, second, third, last = found.prototypes
    assert [one.number for one in found.prototypes] == [0, 1, 2, 3]
    assert (first.images, first.captions) == (3, 30)
    assert (second.images, second.captions) == (2, 30)
    assert (third.images, third.captions) == (1, 0)
    assert (last.images, last.captions) == (0, 0)
    assert (found.unused, found.dead, found.dead_after) == (1, 2, 200)
    assert found.image_shares == pytest.approx([0.5, 1 / 3, 1 / 6, 0])
    assert found.caption_shares == pytest.approx([0.5, 0.5, 0, 0])
    assert [image for image, _ in first.nearest][:3] == [0, 1, 2]
    assert [image for image, _ in last.nearest] == [5, 4, 3, 2]
    assert first.nearest[0][1] == pytest.approx(1)
    assert [word.word for word in first.words] == ["red"]
    assert {word.word for word in second.words} == {"green", "blue"}
    assert third.words == last.words == []
    assert found.agree == pytest.approx(5 / 6)
    assert found.chance == pytest.approx(0.5 * 0.5 + 0.5 / 3)
    assert 2 < found.in_use < 3


def test_even_use_is_as_many_as_there_are_and_one_image_is_enough() -> None:
    axes = torch.eye(3)
    even = Embeddings(axes, axes, torch.arange(3), ["a", "b", "c"])
    assert describe_bank(axes, even, 0, 200).in_use == pytest.approx(3)
    one = Embeddings(axes[:1], axes[:1], torch.tensor([0]), ["a"])
    found = describe_bank(axes, one, 0, 200)
    assert (found.unused, found.in_use, found.agree) == (2, pytest.approx(1), 1)
    assert [len(prototype.nearest) for prototype in found.prototypes] == [1, 1, 1]
