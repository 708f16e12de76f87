"""Reading files that may come from anybody: what cannot be read is one kind of error, and not a model's."""

import os

import pytest

from tinystory.errors import CheckpointError, TinystoryError, UnreadableFile
from tinystory.safe.reading import parse_json_object, read_json_object, regular_file_size


@pytest.fixture(params=["missing", "folder", "pipe", "no JSON", "a list", "too large", "too deep"])
def bad_file(request, tmp_path):
    path = tmp_path / "a.json"
    contents = {"no JSON": "{", "a list": "[]", "too large": '{"a": "' + "b" * 99_999 + '"}', "too deep": "[" * 90_000}
    if request.param == "folder":
        path.mkdir()
    elif request.param == "pipe":
        os.mkfifo(path)
    elif request.param != "missing":
        path.write_text(contents[request.param])
    return path


def test_a_file_that_cannot_be_read_is_no_fault_of_a_model(bad_file):
    with pytest.raises(UnreadableFile) as caught:
        read_json_object(bad_file, 99_990)
    assert caught.value.exit_code == 3
    assert not isinstance(caught.value, CheckpointError)
    assert len(str(caught.value).splitlines()) == 1


def test_a_reader_may_name_the_class_of_the_error_and_the_text_stays(bad_file):
    with pytest.raises(UnreadableFile) as general:
        read_json_object(bad_file, 99_990)
    with pytest.raises(CheckpointError) as own:
        read_json_object(bad_file, 99_990, raises=CheckpointError)
    assert str(own.value) == str(general.value)
    assert own.value.exit_code == general.value.exit_code


def test_parts_of_the_reading_raise_the_same(tmp_path):
    for raises in (UnreadableFile, CheckpointError, TinystoryError):
        with pytest.raises(raises, match="No such file"):
            regular_file_size(tmp_path / "nothing", raises=raises)
        with pytest.raises(raises, match="the key 'a' stands twice"):
            parse_json_object('{"a": 1, "a": 2}', "the header", unique_keys=True, raises=raises)
