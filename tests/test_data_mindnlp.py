"""``mindnlp:NAME``, with a stand-in for MindNLP: what its loader gives comes through, and what fails says so.

The loader itself is run by the tests that need MindNLP, in test_mindnlp.py.
"""

import json
import sys

import pytest

from ms_gpt.data import from_mindnlp, load_dataset
from ms_gpt.errors import UserError

# What MindNLP gives: dictionaries of MindSpore data sets, of which only the iterator is used.
STAND_IN = """
import json, numpy, os

class Rows:
    def __init__(self, rows):
        self.rows = rows

    def create_dict_iterator(self, num_epochs, output_numpy):
        assert num_epochs == 1 and output_numpy
        for row in self.rows:
            yield {name: numpy.array(value) for name, value in row.items()}

def load_dataset(name, shuffle):
    assert shuffle is False
    if name == "none":
        raise FileNotFoundError("the hub has no\\ndata set of this name")
    found = json.loads(os.environ["STAND_IN_ROWS"])
    if isinstance(found, dict):
        return {part: Rows(rows) for part, rows in found.items()}
    return tuple(Rows(rows) for rows in found) if len(found) > 1 else Rows(found[0])
"""
GOOD, BAD = {"text": "good \u2028 \"film\"\n, it is", "label": 1}, {"text": "b\u00e4d", "label": 0}


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    def rows(found):
        monkeypatch.setenv("STAND_IN_ROWS", json.dumps(found))

    (tmp_path / "mindnlp").mkdir()
    (tmp_path / "mindnlp" / "__init__.py").touch()
    (tmp_path / "mindnlp" / "dataset.py").write_text(STAND_IN)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv(from_mindnlp.PYTHON, sys.executable)
    return rows


def test_parts_texts_and_labels_come_through(stand_in):
    stand_in({"train": [GOOD, BAD], "test": [BAD], "unsupervised": [{"text": "", "label": -1}]})
    parts = load_dataset("mindnlp:imdb")
    assert list(parts) == ["train", "test"]
    assert parts["train"]["text"] == [GOOD["text"], BAD["text"]]
    assert parts["train"]["label"] == [1, 0]
    assert parts["test"].label_names == load_dataset("sample")["test"].label_names


@pytest.mark.parametrize(("found", "parts"), [([[GOOD, BAD], [BAD]], ["train", "test"]), ([[GOOD, BAD]], ["train"])])
def test_the_older_forms(stand_in, found, parts):
    stand_in(found)
    assert list(load_dataset("mindnlp:imdb")) == parts


def test_columns_are_chosen_as_of_any_table(stand_in):
    stand_in({"train": [{"review": "a", "stars": 2.5}, {"review": "b", "stars": 1.0}]})
    parts = load_dataset("mindnlp:some/reviews", label_column="stars")
    assert parts["train"]["label"] == [2.5, 1.0]
    with pytest.raises(UserError, match=r"mindnlp:some/reviews \(train\) has no label column"):
        load_dataset("mindnlp:some/reviews")


@pytest.mark.parametrize(("found", "name", "message"), [
    ({}, "none", "MindNLP cannot load 'none': data set of this name"),
    ({"train": []}, "empty", "MindNLP finds no rows in 'empty'"),
    ({"pictures": [GOOD]}, "imdb", "mindnlp:imdb has no part named train, validation or test"),
])
def test_what_fails_says_so(stand_in, found, name, message):
    stand_in(found)
    with pytest.raises(UserError) as error:
        load_dataset(f"mindnlp:{name}")
    assert str(error.value) == message


def test_without_mindnlp_the_line_says_what_to_install(monkeypatch):
    def missing(_):
        raise from_mindnlp.metadata.PackageNotFoundError

    monkeypatch.delenv(from_mindnlp.PYTHON, raising=False)
    monkeypatch.setattr(from_mindnlp.metadata, "version", missing)
    with pytest.raises(UserError) as error:
        load_dataset("mindnlp:imdb")
    assert "pip install --no-deps -r requirements-mindnlp.txt" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_python_that_is_none(monkeypatch):
    monkeypatch.setenv(from_mindnlp.PYTHON, "/no/python")
    with pytest.raises(UserError, match="MS_GPT_MINDNLP_PYTHON=/no/python cannot be run: No such file"):
        load_dataset("mindnlp:imdb")
