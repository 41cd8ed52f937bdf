"""Files that command-line arguments refer to."""

from __future__ import annotations

from pathlib import Path

import pytest

from lift_det.data.image_files import find_files


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    names = ("a/x.jpg", "a/y.PNG", "a/deep/er/z.tif", "a/clip.MP4", "a/notes.txt", "a/.hidden.jpg", "a/.git/q.jpg")
    for name in (*names, "b/x.jpg", "b/labels.json", "c/only.txt", "odd[1].jpg"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("inputs", "names"),
    [
        (["a"], ["clip.MP4", "x.jpg", "y.PNG", "deep/er/z.tif"]),
        (["a/x.jpg"], ["x.jpg"]),
        (["a/x.jpg", "b/x.jpg"], ["a/x.jpg", "b/x.jpg"]),
        (["a/deep/er", "a"], ["deep/er/z.tif", "clip.MP4", "x.jpg", "y.PNG"]),  # each file once
        (["a/notes.txt"], ["notes.txt"]),
        (["a/.hidden.jpg", "odd[1].jpg"], ["a/.hidden.jpg", "odd[1].jpg"]),
        (["*/x.jpg"], ["a/x.jpg", "b/x.jpg"]),
        (["**/*.tif"], ["z.tif"]),
        (["a/d*"], ["er/z.tif"]),
    ],
)
def test_inputs(tree: Path, inputs: list[str], names: list[str]) -> None:
    files, failures = find_files(inputs)
    assert failures == [] and [file.name for file in files] == names
    assert all(Path(file.path).is_file() and file.is_video == (file.name == "clip.MP4") for file in files)


def test_inputs_without_files_are_reported(tree: Path) -> None:
    files, failures = find_files(["absent.jpg", "b", "*.gif", "c"])
    assert [file.name for file in files] == ["x.jpg"]
    assert [name for name, _ in failures] == ["absent.jpg", "*.gif", "c"] and all(reason for _, reason in failures)


def test_an_excluded_folder_is_not_searched(tree: Path) -> None:
    assert [file.name for file in find_files(["a"], exclude="a/deep")[0]] == ["clip.MP4", "x.jpg", "y.PNG"]
    assert len(find_files(["a"], exclude="a")[0]) == 4


def test_links_are_followed_once(tree: Path) -> None:
    (tree / "b" / "loop").symlink_to(tree / "b", target_is_directory=True)
    (tree / "b" / "more").symlink_to(tree / "a" / "deep", target_is_directory=True)
    (tree / "b" / "gone.jpg").symlink_to(tree / "nowhere")  # unreadable, but not ignored
    assert [file.name for file in find_files(["b"])[0]] == ["gone.jpg", "x.jpg", "more/er/z.tif"]
