"""Published rows: sums recomputed, sources named."""

import pytest

from trainer.evaluation.published import Published, published

ROWS = [(key, row) for key, rows in published().items() for row in rows]
PRINTED = {"flickr30k_1k": 548.1, "coco_1k": 540.8, "coco_5k": 463.4}


@pytest.mark.parametrize(("key", "row"), ROWS, ids=lambda value: getattr(value, "name", value))
def test_a_row_is_whole_and_its_sum_is_recomputed(key: str, row: Published) -> None:
    assert row.source
    parts = (*row.i2t, *row.t2i)
    assert len(row.i2t) == len(row.t2i) == 3
    assert all(part is None or 0 < part < 100 for part in parts)
    if None not in parts and key != "eccv_caption":
        hundredths = sum(round(100 * part) for part in parts if part is not None)
        assert row.rsum == pytest.approx(hundredths / 100, abs=0.051)
        assert row.rsum == round(row.rsum, 1)
        assert bool(row.remark) == (row.printed_rsum is not None and abs(row.printed_rsum - row.rsum) > 0.05)
    else:
        assert not row.remark


def test_the_sums_that_aahr_prints() -> None:
    rows = {key: next(row for row in rows if row.name == "AAHR") for key, rows in published().items() if rows}
    assert {key: row.printed_rsum for key, row in rows.items() if row.printed_rsum} == PRINTED
    assert {key: rows[key].rsum for key in PRINTED} == {"flickr30k_1k": 548.1, "coco_1k": 540.9, "coco_5k": 463.6}
    assert not rows["flickr30k_1k"].remark
    assert rows["coco_5k"].remark == ("AAHR: the source prints rSum 463.4, its recalls add up to 463.6 (rounding)")


def test_a_sum_that_rounding_cannot_explain_is_named() -> None:
    row = Published("X", "somewhere", (90.0, 95.0, 99.0), (70.0, 90.0, 95.0), 540.0)
    assert row.remark == "X: the source prints rSum 540.0, its recalls add up to 539.0 (more than rounding)"
