"""Soft negatives that the model confuses: captions of other pictures that it ranks above all of a picture's own."""

from dataclasses import dataclass

from trainer.report.contest import Contest

SHOWN = 8


@dataclass(frozen=True)
class Confusion:
    """A picture, its best caption, and the best of the captions that are another's."""

    image: int
    own: int
    own_score: float
    other: int
    other_score: float
    above: int
    """Captions of others that stand above its own."""


@dataclass(frozen=True)
class Confused:
    """What a split's pictures are confused with."""

    images: int
    """Pictures with a caption."""
    count: int
    """Of these, pictures where another's caption comes first."""
    shown: list[Confusion]


def confused(i2t: Contest, caption_image: list[int], shown: int = SHOWN) -> Confused:
    """The confusions that the model is surest of: the largest lead of a wrong caption (ours).

    `i2t` has the images as queries. Each picture is shown once, as the query or as the other's.
    """
    lead = -i2t.margin
    lost = i2t.rank > 1
    chosen: list[Confusion] = []
    seen: set[int] = set()
    for place in lead.argsort(descending=True, stable=True).tolist():
        if len(chosen) == shown:
            break
        image, other = int(i2t.query[place]), int(i2t.wrong[place])
        if not lost[place] or seen & {image, caption_image[other]}:
            continue
        seen |= {image, caption_image[other]}
        own, own_score, other_score = (one[place].item() for one in (i2t.right, i2t.right_score, i2t.wrong_score))
        chosen.append(Confusion(image, int(own), own_score, other, other_score, int(i2t.rank[place]) - 1))
    return Confused(len(i2t.query), int(lost.sum()), chosen)
