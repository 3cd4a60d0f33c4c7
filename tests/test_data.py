"""Reading, labelling and splitting data sets."""

from __future__ import annotations

import csv
import gzip
import io
import json
import lzma
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ms_gpt.data import Dataset, check_labels, class_weights, encode_labels, load_dataset, split
from ms_gpt.errors import UserError

ROWS = [("a fine film, really", 1), ('he said "no"', 0), ("two\nlines", 1)]


def refuses(*words: str):
    """Expect a UserError of one line that holds the words in this order."""
    return pytest.raises(UserError, match=r"\A(?=[^\n]*\Z).*" + ".*".join(words))


def test_dataset_gives_columns_rows_and_slices():
    ds = Dataset({"text": ["a", "b", "c"], "label": [0, 1, 1]}, ["no", "yes"])
    assert (len(ds), ds.num_rows, ds.column_names) == (3, 3, ["text", "label"])
    assert ds["text"] == ["a", "b", "c"]
    assert ds[-1] == {"text": "c", "label": 1}
    assert ds[1:] == {"text": ["b", "c"], "label": [1, 1]}
    assert ds[[2, 0]] == {"text": ["c", "a"], "label": [1, 0]}
    assert [row["text"] for row in ds] == ["a", "b", "c"]
    assert ds.select([2, 2])["text"] == ["c", "c"]
    assert ds.select([0]).label_names == ["no", "yes"]
    with pytest.raises(IndexError, match="row 3"):
        ds[3]


def test_dataset_names_a_missing_column_and_unequal_lengths():
    with refuses("no column 'txt'", "text", "Did you mean 'text'"):
        Dataset({"text": []})["txt"]
    with refuses("text 1, label 0"):
        Dataset({"text": ["a"], "label": []})


def test_dataset_shuffle_is_a_seeded_permutation():
    ds = Dataset({"n": list(range(50))})
    assert ds.shuffle(1)["n"] == ds.shuffle(1)["n"] != ds.shuffle(2)["n"]
    assert sorted(ds.shuffle(1)["n"]) == list(range(50))


def test_dataset_map_row_by_row_equals_batched():
    ds = Dataset({"text": ["a b", "c", "d e f"], "label": [0, 1, 0]}, ["x", "y"])
    rows = ds.map(lambda row: {"text": row["text"].upper(), "n": len(row["text"].split())})
    batched = ds.map(
        lambda rows: {"text": [t.upper() for t in rows["text"]], "n": [len(t.split()) for t in rows["text"]]},
        batched=True,
        batch_size=2,
    )
    assert rows[:] == batched[:] == {"text": ["A B", "C", "D E F"], "label": [0, 1, 0], "n": [2, 1, 3]}
    assert rows.label_names == ["x", "y"]
    assert ds["text"] == ["a b", "c", "d e f"]


def test_dataset_rename_and_remove_columns():
    ds = Dataset({"a": [1], "b": [2]})
    assert ds.rename_column("a", "c")[0] == {"c": 1, "b": 2}
    assert ds.remove_columns("a").column_names == ["b"]
    with refuses("'a' to 'b'"):
        ds.rename_column("a", "b")


def write_table(path: Path, rows=ROWS, names=("text", "label")) -> Path:
    buffer = io.StringIO(newline="")
    extension = path.name.split(".")[1]
    objects = [dict(zip(names, row, strict=True)) for row in rows]
    if extension == "csv":
        csv.writer(buffer).writerows([names, *rows])
    elif extension == "tsv":
        csv.writer(buffer, delimiter="\t").writerows([names, *rows])
    elif extension == "json":
        json.dump(objects, buffer)
    else:
        buffer.write("".join(json.dumps(row) + "\r\n" for row in objects))
    pack = {".gz": gzip.compress, ".xz": lzma.compress}.get(path.suffix, bytes)
    path.write_bytes(pack(buffer.getvalue().encode("utf-8-sig")))
    return path


@pytest.mark.parametrize("packing", ["", ".gz", ".xz"])
@pytest.mark.parametrize("extension", [".csv", ".tsv", ".json", ".jsonl"])
def test_every_format_gives_the_same_rows(tmp_path, extension, packing):
    rows = ROWS[:2] if extension == ".tsv" else ROWS
    parts = load_dataset(write_table(tmp_path / f"reviews{extension}{packing}", rows))
    assert list(parts) == ["train"]
    assert parts["train"]["text"] == [text for text, _ in rows]
    assert parts["train"]["label"] == [label for _, label in rows]
    assert parts["train"].label_names is None


def test_tsv_keeps_quotes_that_do_not_enclose_a_field(tmp_path):
    path = tmp_path / "x.tsv"
    path.write_text('text\tlabel\n" unbalanced\t1\nsay "x"\t0\nline\u2028separator\t0\n', encoding="utf-8")
    assert load_dataset(path)["train"]["text"] == ['" unbalanced', 'say "x"', "line\u2028separator"]


def test_json_may_hold_an_object_of_lists(tmp_path):
    (tmp_path / "x.json").write_text('{"text": ["a", "b"], "label": [1, 0]}')
    assert load_dataset(tmp_path / "x.json")["train"]["label"] == [1, 0]


def test_a_file_named_test_is_the_test_part(tmp_path):
    assert list(load_dataset(write_table(tmp_path / "test_5k.jsonl"))) == ["test"]


def test_folder_of_files_shares_label_names(tmp_path):
    write_table(tmp_path / "train.csv", [("a", "good"), ("b", "bad")], ("Review", "Sentiment"))
    write_table(tmp_path / "dev.csv", [("c", "good")], ("Review", "Sentiment"))
    write_table(tmp_path / "test.jsonl", [("d", "bad"), ("e", "awful")])
    (tmp_path / "README.md").write_text("not data")
    parts = load_dataset(tmp_path)
    assert list(parts) == ["train", "validation", "test"]
    assert {tuple(part.label_names) for part in parts.values()} == {("awful", "bad", "good")}
    assert [part["label"] for part in parts.values()] == [[2, 1], [2], [1, 0]]


def test_columns_can_be_named(tmp_path):
    path = write_table(tmp_path / "x.csv", [("a", "9", "1")], ("body", "id", "stars"))
    assert load_dataset(path, "body", "stars")["train"][0] == {"text": "a", "label": 1}
    with refuses("no text column", "body, id, stars", "text_column"):
        load_dataset(path)
    with refuses("no label column", "body, id, stars", "label_column"):
        load_dataset(path, text_column="body")
    with refuses("no column 'star'", "body, id, stars", "Did you mean 'stars'"):
        load_dataset(path, "body", "star")


def test_acl_imdb_folder(tmp_path):
    for part in ("train", "test"):
        for name in ("neg", "pos"):
            (tmp_path / part / name).mkdir(parents=True)
            for index in range(2):
                (tmp_path / part / name / f"{index}_7.txt").write_text(f"{part} {name} {index}")
    parts = load_dataset(tmp_path)
    assert list(parts) == ["train", "test"]
    assert parts["train"][:] == {
        "text": ["train neg 0", "train neg 1", "train pos 0", "train pos 1"], "label": [0, 0, 1, 1]
    }
    assert parts["test"].label_names == ["negative", "positive"]
    for path in (tmp_path / "test" / "pos").iterdir():
        path.unlink()
    with refuses("pos holds no .txt files"):
        load_dataset(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.csv", b"", ["x.csv is empty"]),
        ("x.csv", b"\xef\xbb\xbf\r\n", ["x.csv is empty"]),
        ("x.csv", b"text,label\n", ["no rows"]),
        ("x.csv", b"text,label\na,1\nb,c,0\n", ["line 3", "3 fields", "2 columns", "text, label"]),
        ("x.csv", b'text,label\n"a,1\n', ["line 2", "bad CSV"]),
        ("x.csv", b"text,text\na,b\n", ["twice"]),
        ("x.csv", b"text\tlabel\na\t1\n", ["no text column", "Then name it .tsv"]),
        ("x.csv", b"text;label\na;1\n", ["no text column", "Save it with commas, or with tabs"]),
        ("x.csv", b"text\tlabel\na, b\t1\n", ["line 2", "2 fields", "name it .tsv"]),
        ("x.tsv", b"text,label\na, b,1\n", ["no text column", "Then name it .csv"]),
        ("x.csv", b"text,label\na,1\nb,\n", ["1 of 2 rows have no label, the first is row 1"]),
        ("x.csv", "text,label\ncaf\u00e9,1\n".encode("latin-1"), ["not UTF-8", "byte 14"]),
        ("x.csv", "text,label\na,1\n".encode("utf-16-be"), ["not UTF-8", "zero bytes"]),
        ("x.csv.gz", b"text,label\na,1\n", ["not a whole .gz file"]),
        ("x.csv.gz", gzip.compress(b"text,label\na,1\n", mtime=0)[:-9], ["not a whole .gz file"]),
        ("x.csv.xz", lzma.compress(b"text,label\na,1\n")[:-9], ["not a whole .xz file"]),
        ("x.jsonl", b'{"text": "a", "label": 1}\n\n{"text": "b" "label": 0}\n', ["line 3", "bad JSON"]),
        ("x.jsonl", b'{"text": "a", "label": 1}\n[1]\n', ["line 2", "a list where an object"]),
        ("x.jsonl", b'{"text": "a", "label": 1}\n{"text": "b"}\n', ["1 of 2 rows have no label"]),
        ("x.jsonl", b'{"text": "a", "label": 1}\n{"label": 1}\n', ["text of row 1 is None"]),
        ("x.jsonl", b'{"text": "a", "label": 1}\n{"text": "b", "label": "x"}\n', ["several kinds", "int, str"]),
        ("x.json", b'{"a": 1}', ["neither a list of objects"]),
        ("x.json", b'{"text": ["a"], "label": []}', ["differ in length"]),
        ("x.json", b"[" * 100_000, ["bad JSON"]),
        ("x.txt", b"words", ["no known extension", ".csv"]),
    ],
)
def test_bad_files_are_refused_in_one_line(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with refuses(*words):
        load_dataset(tmp_path / name)


def test_missing_paths_are_refused(tmp_path):
    with refuses("no data set", "nothing.csv", "sample, imdb, sst2"):
        load_dataset(tmp_path / "nothing.csv")
    with refuses("no data set './imbd'"):
        load_dataset("./imbd")
    with refuses("holds no data"):
        load_dataset(tmp_path)
    write_table(tmp_path / "train.csv")
    write_table(tmp_path / "train_2.json")
    with refuses("two files for 'train'", "train.csv", "train_2.json"):
        load_dataset(tmp_path)


def test_a_misspelt_name_gets_a_suggestion(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with refuses("no data set 'imbd'", "pip install datasets", "Did you mean 'imdb'"):
        load_dataset("imbd")


def test_sample_by_name():
    parts = load_dataset("sample", seed=1)
    assert list(parts) == ["train", "validation", "test"]
    assert parts["train"][0] != load_dataset("sample", seed=2)["train"][0]


def test_real_imdb_and_sst2(data_dir):
    imdb = load_dataset(data_dir / "imdb")
    assert {name: len(part) for name, part in imdb.items()} == {"train": 25_000, "test": 5_000}
    assert Counter(imdb["test"]["label"]) == {0: 2_500, 1: 2_500}
    sst2 = load_dataset(data_dir / "sst2")
    assert {name: len(part) for name, part in sst2.items()} == {"train": 67_349, "validation": 872, "test": 1_821}
    assert sst2["train"]["text"][0].strip() == "hide new secretions from the parental units"


class HubRows:
    """A stand-in for the part of Hugging Face's data sets that is used."""

    def __init__(self, columns: dict, names: list[str] | None = None) -> None:
        self.columns = columns
        self.column_names = list(columns)
        self.features = {name: SimpleNamespace(names=names) if name == "label" else object() for name in columns}

    def __getitem__(self, name: str) -> list:
        return self.columns[name]


@pytest.fixture
def hub(monkeypatch):
    library = SimpleNamespace()
    monkeypatch.setitem(sys.modules, "datasets", library)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    return library


def test_hub_data_sets_keep_label_names_and_drop_hidden_labels(hub):
    names = ["negative", "positive"]
    loaded = {
        "train": HubRows({"sentence": ["a", "b"], "label": [1, 0], "idx": [0, 1]}, names),
        "validation": HubRows({"sentence": ["c"], "label": [0], "idx": [0]}, names),
        "test": HubRows({"sentence": ["d"], "label": [-1], "idx": [0]}, names),
        "unsupervised": HubRows({"sentence": ["e"], "label": [-1], "idx": [0]}, names),
    }
    hub.load_dataset = {"owner/name": loaded}.__getitem__
    parts = load_dataset("owner/name")
    assert list(parts) == ["train", "validation"]
    assert parts["train"].label_names == names
    assert parts["train"][:] == {"text": ["a", "b"], "label": [1, 0]}


def test_saved_hub_data_set_without_parts_is_training_data(hub, tmp_path):
    (tmp_path / "dataset_info.json").write_text("{}")
    hub.load_from_disk = {str(tmp_path): HubRows({"text": ["a"], "label": [1]})}.__getitem__
    assert load_dataset(tmp_path)["train"][0] == {"text": "a", "label": 1}


def test_hub_errors_become_one_line(hub):
    def fail(name: str) -> None:
        raise RuntimeError("no such data set\nand a long story")

    hub.load_dataset = fail
    with refuses("datasets cannot load 'owner/nothing': no such data set"):
        load_dataset("owner/nothing")


@pytest.mark.parametrize(
    ("labels", "encoded", "names"),
    [
        (["neg", "pos", "neg"], [0, 1, 0], ["neg", "pos"]),
        (["1", " 0"], [1, 0], None),
        ([True, False], [1, 0], None),
        (["0.5", "2"], [0.5, 2.0], None),
        ([1, 0.5], [1.0, 0.5], None),
        ([[0, 1], [1, 1]], [[0.0, 1.0], [1.0, 1.0]], None),
        (["[0, 1]", "[1, 1]"], [[0.0, 1.0], [1.0, 1.0]], None),
        ([["b", "a"], [], ["a"]], [[1.0, 1.0], [0.0, 0.0], [1.0, 0.0]], ["a", "b"]),
    ],
)
def test_encode_labels(labels, encoded, names):
    assert encode_labels(labels) == (encoded, names)
    assert [type(label) for label in encode_labels(labels)[0]] == [type(label) for label in encoded]


def test_encode_labels_with_given_names():
    assert encode_labels(["pos", "neg"], ["pos", "neg"]) == ([0, 1], ["pos", "neg"])
    assert encode_labels(["1", "0"], ["negative", "positive"]) == ([1, 0], ["negative", "positive"])
    with refuses("'meh' is not one of pos, neg"):
        encode_labels(["pos", "meh"], ["pos", "neg"])
    with refuses("one length", r"\[1, 2\]"):
        encode_labels([[1], [0, 1]])
    with refuses("row 1 has no label"):
        encode_labels([1, None])


@pytest.mark.parametrize(
    ("labels", "problem_type", "words"),
    [
        ([0, 1, 2], "single_label_classification", ["label 2 in row 2", "outside 0..1", "num_labels=2"]),
        ([0, -1], "single_label_classification", ["label -1 in row 1", "outside"]),
        ([0, 0.5], "single_label_classification", ["0.5 in row 1", "not an integer"]),
        ([0, "a"], "single_label_classification", ["'a' in row 1", "encode_labels"]),
        ([0, None], "single_label_classification", ["None in row 1"]),
        ([1, 1], "single_label_classification", ["all 2 training texts have the same label", "two classes"]),
        ([[0, 1], [1]], "multi_label_classification", [r"\[1\] in row 1", "num_labels=2"]),
        ([[0, 1], [0.5, 1]], "multi_label_classification", ["row 1", "other than 0 and 1"]),
        ([0, 1], "multi_label_classification", ["label 0 in row 0", "not a list"]),
        ([[0.0, float("nan")]], "regression", ["row 0", "finite"]),
        ([0.5], "regression", ["0.5 in row 0", "2 finite"]),
        ([0], "single_label", ["problem_type='single_label'", "Did you mean"]),
    ],
)
def test_check_labels_names_value_row_and_rule(labels, problem_type, words):
    with refuses(*words):
        check_labels(labels, 2, problem_type, training=True)


def test_check_labels_accepts_what_fits():
    check_labels([0, 1, 1], 2, "single_label_classification", training=True)
    check_labels([1, 1], 2, "single_label_classification")
    check_labels([[0, 1], [1.0, 1.0]], 2, "multi_label_classification", training=True)
    check_labels([0.5, 2], 1, "regression", training=True)


def test_class_weights_are_inverse_frequencies_of_mean_one():
    assert class_weights([0, 0, 0, 1], 2) == pytest.approx([0.5, 1.5])
    assert class_weights([0, 2, 2], 3) == pytest.approx([4 / 3, 0, 2 / 3])
    with refuses("label 2 in row 1"):
        class_weights([0, 2], 2)


@given(
    texts=st.lists(st.sampled_from([str(n) for n in range(40)]), min_size=60, max_size=120),
    seed=st.integers(0, 5),
)
def test_split_is_a_partition_that_keeps_equal_texts_together(texts, seed):
    rows = Dataset({"text": texts, "label": [int(text) % 2 for text in texts], "row": list(range(len(texts)))})
    try:
        parts = split(rows, {"train": 0.6, "validation": 0.2, "test": 0.2}, seed)
    except UserError:
        # One text may fill so much that a part gets nothing.
        assert len(texts) / Counter(texts).most_common(1)[0][1] < 6
        return
    assert sorted(row for part in parts.values() for row in part["row"]) == rows["row"]
    shown = [set(part["text"]) for part in parts.values()]
    assert sum(map(len, shown)) == len(set().union(*shown))


def test_split_is_stratified_seeded_and_of_the_right_size():
    rows = Dataset({"text": [str(n) for n in range(1000)], "label": [int(n < 900) for n in range(1000)]}, ["a", "b"])
    parts = split(rows, seed=3)
    assert {name: len(part) for name, part in parts.items()} == {"train": 800, "validation": 100, "test": 100}
    assert {name: part["label"].count(0) for name, part in parts.items()} == {"train": 80, "validation": 10, "test": 10}
    assert parts["test"].label_names == ["a", "b"]
    assert parts["test"]["text"] == split(rows, seed=3)["test"]["text"]
    assert parts["test"]["text"] != split(rows, seed=4)["test"]["text"]


def test_split_refuses_bad_fractions_and_too_few_rows():
    rows = Dataset({"text": ["a", "b", "b"], "label": [0, 1, 1]})
    with refuses("sum to 1"):
        split(rows, {"train": 0.8, "test": 0.1})
    with refuses("3 rows", "2 different texts", "'validation'"):
        split(rows)
