"""Where files can be written, said before the work is done; links and permissions stay."""

import pytest

from persim_gym import errors, files


def test_where_no_file_can_be_written(tmp_path):
    """Said before the work is done: a folder, a file for a folder; a folder that is missing will be made."""
    (tmp_path / "file").write_text("")
    files.check_target(tmp_path / "new" / "one.st")
    for target, message in (
        (tmp_path, "is a folder: give the name of a file"),
        (tmp_path / "file" / "one.st", "file is not a folder"),
    ):
        for call in (files.check_target, lambda path: files.write_text(path, "text")):
            with pytest.raises(errors.FileWriteError, match=message):
                call(target)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr(files.os, "access", lambda folder, mode: False)
    with pytest.raises(errors.FileWriteError, match="is read-only; choose another"):
        files.check_target(tmp_path / "one.st")


def test_links_are_followed_and_permissions_kept(tmp_path):
    """A file only its owner may read stays so; a link stays a link."""
    (tmp_path / "real").mkdir()
    files.write_text(tmp_path / "real" / "one.json", "old")
    (tmp_path / "real" / "one.json").chmod(0o600)
    (tmp_path / "link.json").symlink_to(tmp_path / "real" / "one.json")
    files.write_text(tmp_path / "link.json", "new")
    assert (tmp_path / "link.json").is_symlink() and (tmp_path / "real" / "one.json").read_text() == "new"
    assert (tmp_path / "real" / "one.json").stat().st_mode & 0o777 == 0o600
