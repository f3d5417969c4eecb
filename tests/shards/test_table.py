import csv
import json
import pickle
import re
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shards.errors import DataError
from shards.sources.record import Record, Source
from shards.sources.table import read_table
from shards.sources.table_samples import Columns
from shards.sources.text_rows import TextLayout
from tests.shards.sourced import jpeg, left_out, records

Told = list[tuple[str, int | None, tuple[str, ...]]]


def told(source: Source, split: str = "train") -> Told:
    return [(record.key, record.image_id, record.captions) for record in records(source, split)]


def refused(phrase: str, *arguments: Any, **options: Any) -> None:
    with pytest.raises(DataError) as raised:
        read_table(*arguments, **options)
    assert phrase in str(raised.value)
    assert "\n" not in str(raised.value)


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_consecutive_rows_of_one_image_are_one_sample(tmp_path: Path) -> None:
    path = write(
        tmp_path / "t.csv", 'image,caption\na.jpg,"One, ""two"" ."\na.jpg,Three .\nb.jpg,Four .\na.jpg,Again .\n'
    )
    (tmp_path / "b.jpg").write_bytes(b"b")
    source = read_table([path])
    assert told(source) == [
        ("000000000", None, ('One, "two" .', "Three .")),
        ("000000002", None, ("Four .",)),
        ("000000003", None, ("Again .",)),
    ]
    assert source.dataset == "t"
    assert source.splits[0].count is None
    load = pickle.loads(pickle.dumps(records(source)[1].load))
    assert load() == b"b"


def test_a_split_is_the_same_each_time_that_it_is_read(tmp_path: Path) -> None:
    source = read_table([write(tmp_path / "t.csv", "image,caption\na,1\nb,\nc,3\n")])
    first, again = ([pickle.dumps(item) for item in source.splits[0].items] for _ in range(2))
    assert first == again
    assert len(first) == 4, "two samples, an empty caption, and an image without any"


def test_columns_of_ids_keys_splits_and_several_captions(tmp_path: Path) -> None:
    text = "part\tid\tname\tpath\ten\tde\n"
    text += (
        "val\t7\tx/y.z\tp.jpg\tA dog .\tEin Hund .\ntrain\t7\tq\tp.jpg\tA cat .\t\ntrain\t-8\tr s\to.jpg\tX\tY\n"
    )
    columns = Columns("path", ("en", "de"), "id", "name", "part")
    source = read_table([write(tmp_path / "t.tsv", text)], tmp_path, columns)
    assert told(source, "val") == [("x_y_z", 7, ("A dog .", "Ein Hund ."))]
    assert told(source) == [("q", 7, ("A cat .",)), ("r_s", -8, ("X", "Y"))]
    assert [(split.name, split.count) for split in source.splits] == [("val", 1), ("train", 2)]
    assert [item.reason for item in left_out(source)] == ["the caption is empty"]


def test_rows_that_cannot_be_used_are_listed_by_line(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    rows = [b"id,image,caption", b"1,a.jpg,Good .", b"2,b.jpg", b"3,c.jpg,One,too many", b"4,,No image ."]
    rows += [b"x,e.jpg,No id .", b"99999999999999999999,f.jpg,Wide id .", b"6,g.jpg,caf\xe9", b"7,h\xe9.jpg,Name ."]
    rows += [b'8,i.jpg,"two\nlines"', b"9,http://host/j.jpg,URL .", b"", b"10,k.jpg,Good ."]
    path.write_bytes(b"\n".join(rows))
    source = read_table([path], columns=Columns(image_id="id"))
    assert told(source) == [
        ("000000000", 1, ("Good .",)),
        ("000000008", 8, ("two lines",)),
        ("000000010", 10, ("Good .",)),
    ]
    faults = {item.name.removeprefix(f"{path}: "): item.reason for item in left_out(source)}
    assert set(faults) == {f"line {n}" for n in (3, 4, 5, 6, 7, 8, 9, 12)} | {"line 8 caption 0"}
    assert faults["line 3"] == "2 fields, but the table has 3 columns"
    assert faults["line 5"] == "the path of an image is expected, found nothing"
    assert faults["line 6"] == "the image id 'x' is not an integer of 64 bits"
    assert faults["line 7"] == "the image id '99999999999999999999' is not an integer of 64 bits"
    assert faults["line 9"] == "the image's path is not valid UTF-8"
    assert "URL" in faults["line 12"]


def test_an_unclosed_quote_is_listed_and_the_rest_is_read(tmp_path: Path) -> None:
    rows = "".join(f"{n}.jpg,{'word ' * 30}\n" for n in range(2000))
    path = write(tmp_path / "t.csv", f'image,caption\na.jpg,"open\n{rows}')
    source = read_table([path])
    assert "line 2" in left_out(source)[0].name
    reason = left_out(source)[0].reason
    assert re.fullmatch(
        r"not a row of CSV \(.*131072\)\); lines 2 to 8\d\d were read as one row: is a quote.*", reason
    )
    assert records(source)[-1].key.endswith(str(len(list(source.splits[0].items)) - 1))
    assert len(records(source)) > 1000, "the loss is bounded by the limit of a field"


def test_quotes_may_be_characters_like_any_other(tmp_path: Path) -> None:
    path = write(tmp_path / "t.tsv", '"What" he said\ta.jpg\n"open\tb.jpg\n')
    layout = TextLayout(columns=("caption", "image"), quotes=False)
    assert [one.captions for one in records(read_table([path], layout=layout))] == [('"What" he said',), ('"open',)]


def test_json_lines(tmp_path: Path) -> None:
    rows = ['{"image": "a.jpg", "caption": ["One .", "Two ."], "id": 5}', '{"image": "b.jpg", "caption": "Three ."']
    rows += ["", '["a.jpg", "x"]', '{"image": "c.jpg"}', '{"image": "d.jpg", "caption": ["x", 3], "id": 1}']
    rows += ['{"image": 4, "caption": "x", "id": 1}', '{"image": "e.jpg", "caption": "Four .", "id": "6"}']
    rows += ['{"image": "f.jpg", "caption": "\\ud83d", "id": 7}', '{"image": "g.jpg", "caption": "x", "id": true}']
    path = write(tmp_path / "t.jsonl", "\n".join(rows))
    source = read_table([path], columns=Columns(image_id="id"))
    assert told(source) == [("000000000", 5, ("One .", "Two .")), ("000000006", 6, ("Four .",))]
    faults = {item.name.removeprefix(f"{path}: "): item.reason for item in left_out(source)}
    assert faults["line 2"].startswith("not JSON at column 40: ")
    assert faults["line 4"] == "an object is expected, found a list"
    assert faults["line 5"] == "the image id None is not an integer of 64 bits"
    assert faults["line 6"] == "'caption' holds a int, not a text"
    assert faults["line 7"] == "the path of an image is expected, found a int"
    assert faults["line 9 caption 0"] == "the caption is not valid UTF-8"
    assert faults["line 10"] == "the image id True is not an integer of 64 bits"


@pytest.mark.parametrize("cell", ["1" * 5000, "[" * 100_000], ids=["digits", "brackets"])
def test_a_line_of_json_beyond_all_limits_is_listed(tmp_path: Path, cell: str) -> None:
    good = '{"image": "a.jpg", "caption": "One ."}'
    path = write(tmp_path / "t.jsonl", f'{good}\n{{"image": "b.jpg", "caption": "Two .", "x": {cell}}}\n')
    source = read_table([path])
    assert [one.captions for one in records(source)] == [("One .",)]
    assert left_out(source)[0].name == f"{path}: line 2"
    assert left_out(source)[0].reason.startswith("not JSON at column 1: ")


@pytest.mark.parametrize("struct", [True, False])
@pytest.mark.parametrize("group", [3, 100])
def test_bytes_in_parquet_are_read_when_asked_for_in_any_order(tmp_path: Path, struct: bool, group: int) -> None:
    images = [jpeg(number) for number in range(80)]
    cells: list[Any] = [{"bytes": one, "path": "same.jpg"} for one in images] if struct else images
    table = pa.table({"image": cells, "caption": [[f"{n} .", f"again {n} ."] for n in range(80)]})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=group)
    source = read_table([tmp_path / "t.parquet"])
    assert source.splits[0].count == 80
    found = records(source)
    assert [one.captions for one in found] == [(f"{n} .", f"again {n} .") for n in range(80)]
    for place in [*range(80), 79, 3, 40, 2, 2, 41]:
        load = pickle.loads(pickle.dumps(found[place].load))
        assert load() == images[place]


def test_a_quote_that_takes_in_the_next_rows_is_listed_with_them(tmp_path: Path) -> None:
    source = read_table([write(tmp_path / "t.csv", 'image,caption\na.jpg,"x\nb.jpg,y\nc.jpg,z",w\nd.jpg,Good\n')])
    assert [one.captions for one in records(source)] == [("Good",)]
    assert left_out(source)[0].reason == (
        "3 fields, but the table has 2 columns; lines 2 to 4 were read as one row: is a quote left open?"
    )


def test_damage_within_a_file_of_parquet_is_named(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"image": [f"{n}.jpg" for n in range(999)], "caption": ["One"] * 999}), path)
    data = path.read_bytes()
    source = read_table([path])
    for place in range(20, 4000, 199):
        path.write_bytes(data[:place] + bytes(150) + data[place + 150 :])
        try:
            assert len(list(source.splits[0].items)) == 999
        except DataError as error:
            assert str(error).startswith(f"--table {path}: cannot be read")


def test_parquet_of_paths_and_ids(tmp_path: Path) -> None:
    table = pa.table({"image": ["a.jpg", "a.jpg", None], "caption": ["One", "Two", "x"], "n": [2**40, 2**40, 3]})
    pq.write_table(table, tmp_path / "t.parquet")
    source = read_table([tmp_path / "t.parquet"], columns=Columns(image_id="n"))
    assert told(source) == [("000000000", 2**40, ("One", "Two"))]
    assert [item.name for item in left_out(source)] == [f"{tmp_path / 't.parquet'}: row 2"]


def test_a_row_of_parquet_without_bytes_fails_when_it_is_loaded(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [b"x", None], "caption": ["One", "Two"]}), tmp_path / "t.parquet")
    good, bad = records(read_table([tmp_path / "t.parquet"]))
    assert good.load is not None
    assert bad.load is not None
    assert good.load() == b"x"
    with pytest.raises(ValueError, match="holds no bytes"):
        bad.load()


def test_several_files_and_folders_are_one_table_in_order(tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    folder.mkdir()
    for number in (2, 0, 1):
        write(folder / f"{number}.csv", f"image,caption\n{number}.jpg,{number} .\n")
    (folder / "notes.md").write_text("none")
    more = write(tmp_path / "more.jsonl", '{"caption": "3 .", "image": "3.jpg"}\n')
    source = read_table([folder, more])
    assert told(source) == [(f"{n:09d}", None, (f"{n} .",)) for n in range(4)]
    (folder / "0.jpg").write_bytes(b"zero")
    load = records(source)[0].load
    assert load is not None
    assert load() == b"zero"


def test_mistakes_are_told_up_front(tmp_path: Path) -> None:
    good = write(tmp_path / "good.csv", "image,caption,name\na,1,k\nb,2,l\na,3,k\n")
    refused("no column 'img'; its columns are 'image', 'caption', 'name'", [good], columns=Columns("img"))
    other = write(tmp_path / "other.csv", "image,text\na,1\n")
    refused("other.csv: no column 'caption'", [good, other])
    refused("none.csv: no such file", [tmp_path / "none.csv"])
    (tmp_path / "empty").mkdir()
    refused("no file of .csv, .tsv", [tmp_path / "empty"])
    refused("JSON lines are read, not JSON", [write(tmp_path / "t.json", "[]")])
    refused("must end in one of", [write(tmp_path / "t.txt", "")])
    refused("the file is empty", [write(tmp_path / "e.csv", "")])
    refused("h.csv: no row, only the names of", [write(tmp_path / "h.csv", "image,caption\n")])
    pq.write_table(
        pa.table({"image": pa.array([], pa.string()), "caption": pa.array([], pa.string())}), tmp_path / "h.parquet"
    )
    refused("h.parquet: no row, only the names of", [tmp_path / "h.parquet"])
    refused("2 columns named 'image'", [write(tmp_path / "d.csv", "image,image,caption\n")])
    refused("not JSON lines: the first line is a list", [write(tmp_path / "l.jsonl", "[1]\n")])
    refused("l.jsonl: the file is empty", [write(tmp_path / "l.jsonl", "\n\n")])
    refused(
        "the first line is not JSON at column 13: Extra data;", [write(tmp_path / "l.jsonl", '{"image": 1}]\n')]
    )
    refused("cannot be read as Parquet", [write(tmp_path / "p.parquet", "image,caption\n")])
    refused("--images", [good], tmp_path / "nowhere")
    refused("--delimiter 'ab': one character", [good], layout=TextLayout("ab"))
    refused("--split 'a b'", [good], split="a b")
    (tmp_path / "u.csv").write_bytes("image,caption\na,b\n".encode("utf-16"))
    refused("line 1 is not UTF-8", [tmp_path / "u.csv"])
    refused("two samples of split train have the key k", [good], columns=Columns(key="name"))
    many = write(tmp_path / "m.csv", "image,caption\n" + "".join(f"a,{n}x\n" for n in range(60)))
    refused("more than 50 different splits", [many], columns=Columns(split="caption"))
    without = write(tmp_path / "n.csv", "image,caption,s\n,1,x\n")
    refused("no usable row; the first left out", [without], columns=Columns(split="s"))


def test_a_column_that_is_no_image_is_told_before_memory_ends(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "image,caption\n" + "train,word\n" * 10_001)
    with pytest.raises(DataError, match=r"line 10002: more than 10,000 rows with one 'image'; is it the"):
        list(read_table([path]).splits[0].items)


def test_the_same_key_may_stand_in_two_splits(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "image,caption,k,s\na,1,x,train\nb,2,x,val\n,9,y,\n")
    source = read_table([path], columns=Columns(key="k", split="s"))
    assert [told(source, split)[0][0] for split in ("train", "val")] == ["x", "x"]
    assert [item.reason for item in left_out(source, "train")] == ["'' cannot name a split"]
    assert left_out(source, "val") == []


def test_memory_is_flat(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "image,caption\n" + "".join(f"{n}.jpg,caption {n}\n" for n in range(20_000)))
    source = read_table([path])
    tracemalloc.start()
    assert sum(isinstance(item, Record) for item in source.splits[0].items) == 20_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2e6, "20,000 records take ten megabytes and more where they are held"


texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1).filter(lambda text: text.strip())
paths = st.sampled_from(["a.jpg", "b/c.jpg", 'quo"te, .png', "東京.jpg"])


@given(st.lists(st.tuples(paths, texts), min_size=1, max_size=30))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
def test_csv_json_lines_and_parquet_give_the_same_samples(tmp_path: Path, rows: list[tuple[str, str]]) -> None:
    with (tmp_path / "t.csv").open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([("image", "caption"), *rows])
    write(tmp_path / "t.jsonl", "".join(json.dumps({"image": i, "caption": c}) + "\n" for i, c in rows))
    images, captions = zip(*rows, strict=True)
    pq.write_table(pa.table({"image": images, "caption": captions}), tmp_path / "t.parquet")
    found = [told(read_table([tmp_path / f"t.{kind}"])) for kind in ("csv", "jsonl", "parquet")]
    assert found[0] == found[1] == found[2]
    assert sum(len(one[2]) for one in found[0]) == len(rows)
