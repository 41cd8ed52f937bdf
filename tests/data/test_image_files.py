"""What files, folders and patterns on a command line mean."""

from __future__ import annotations

import os
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


def names_of(*inputs: str | Path, **options: str) -> list[str]:
    files, failures = find_files(inputs, **options)
    assert failures == []
    return [file.name for file in files]


def test_folders_are_searched_for_images_and_videos(tree: Path) -> None:
    files, failures = find_files(["a"])
    assert failures == []
    assert [(f.name, f.is_video) for f in files] == [
        ("clip.MP4", True),
        ("x.jpg", False),
        ("y.PNG", False),
        ("deep/er/z.tif", False),
    ]
    assert [os.path.normpath(f.path) for f in files] == [os.path.join("a", *f.name.split("/")) for f in files]


def test_names_start_at_the_folder_in_common(tree: Path) -> None:
    assert names_of("a/x.jpg") == ["x.jpg"]
    assert names_of("a/x.jpg", "b/x.jpg") == ["a/x.jpg", "b/x.jpg"]
    assert names_of("a/deep", tree / "b") == ["a/deep/er/z.tif", "b/x.jpg"]
    assert names_of("a/deep/er", "a") == ["deep/er/z.tif", "clip.MP4", "x.jpg", "y.PNG"]  # each once


def test_what_is_named_is_taken_whatever_its_suffix(tree: Path) -> None:
    assert names_of("a/notes.txt") == ["notes.txt"]
    assert names_of("a/.hidden.jpg", "odd[1].jpg") == [
        "a/.hidden.jpg",
        "odd[1].jpg",
    ]  # no pattern: there is such a file


def test_patterns(tree: Path) -> None:
    assert names_of("*/x.jpg") == ["a/x.jpg", "b/x.jpg"]
    assert names_of("**/*.tif") == ["z.tif"]
    assert names_of("a/d*") == ["er/z.tif"]  # a folder


def test_what_comes_to_nothing_is_said(tree: Path) -> None:
    files, failures = find_files(["absent.jpg", "b", "*.gif", "c"])
    assert [file.name for file in files] == ["x.jpg"]
    assert [name for name, _ in failures] == ["absent.jpg", "*.gif", "c"]
    assert "no such file or folder" in failures[0][1] and "no image or video in this folder" in failures[2][1]


def test_the_folder_of_results_is_not_searched(tree: Path) -> None:
    assert names_of("a", exclude="a/deep") == ["clip.MP4", "x.jpg", "y.PNG"]
    assert len(names_of("a", exclude="a")) == 4


def test_links_are_followed_once(tree: Path) -> None:
    (tree / "b" / "loop").symlink_to(tree / "b", target_is_directory=True)
    (tree / "b" / "more").symlink_to(tree / "a" / "deep", target_is_directory=True)
    (tree / "b" / "gone.jpg").symlink_to(tree / "nowhere")
    assert names_of("b") == ["gone.jpg", "x.jpg", "more/er/z.tif"]  # the first cannot be read, which is not passed over
