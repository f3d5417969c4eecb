from trainer.evaluate import table
from trainer.metrics import Retrieval


def test_the_table_has_a_row_a_result_with_its_numbers_below_their_heads() -> None:
    perfect = Retrieval(dict.fromkeys(("r1", "r5", "r10"), 100.0), dict.fromkeys(("r1", "r5", "r10"), 100.0), 1, 1)
    model = Retrieval({"r1": 1.0, "r5": 2.04, "r10": 3.06}, {"r1": 4.0, "r5": 5.0, "r10": 6.0}, 1, 1)
    directions, heads, *rows = table({"perfect": perfect, "a longer name": model}).splitlines()
    assert directions.split() == ["image", "to", "text", "text", "to", "image"]
    assert heads.split() == ["R@1", "R@5", "R@10", "R@1", "R@5", "R@10", "rSum"]
    assert rows[0].split() == ["perfect", *["100.0"] * 6, "600.0"]
    assert rows[1].removeprefix("a longer name").split() == ["1.0", "2.0", "3.1", "4.0", "5.0", "6.0", "21.1"]
    assert len({len(row) for row in [heads, *rows]}) == 1
