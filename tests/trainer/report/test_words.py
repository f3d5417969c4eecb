"""Words that tell a group of captions from the others."""

from trainer.report.words import telling_words

DOGS = ["A dog runs on the grass", "The dog sleeps", "a brown dog and a ball", "One dog in the snow"] * 10
CATS = ["The cat sits on a sofa", "a cat looks at the ball", "Black cat", "One cat in the garden"] * 10


def test_a_group_is_told_by_the_words_that_the_others_lack() -> None:
    dogs, cats, empty = telling_words(DOGS + CATS, [0] * 40 + [1] * 40, 3, top=4)
    assert (dogs[0].word, dogs[0].here, dogs[0].elsewhere) == ("dog", 1.0, 0.0)
    assert cats[0].word == "cat"
    assert empty == []
    # as frequent in both
    assert not {"the", "a", "one", "ball", "in"} & {word.word for group in (dogs, cats) for word in group}


def test_one_caption_is_no_evidence() -> None:
    assert telling_words(["a zebra", *DOGS], [0] + [1] * 40, 2, top=9)[0] == []


def test_one_group_of_all_captions_has_no_telling_word() -> None:
    assert telling_words(DOGS, [0] * 40, 1, top=9) == [[]]
    assert telling_words([], [], 2, top=9) == [[], []]
