"""Writing files and folders."""

import pytest

from students.files import make_folder


@pytest.mark.parametrize("inside", ["file", "file/a", "file/a/b"])
def test_a_file_in_the_way_of_a_folder_is_named(inside, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError) as caught:
        make_folder(tmp_path / inside)
    assert caught.value.strerror == f"{tmp_path / 'file'} is no folder"
