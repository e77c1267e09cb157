"""Heat maps: colours, labels, files, and what is refused."""

import builtins
import sys

import numpy as np
import pytest

from blenderbot_jax.plotting import check_picture, plot_attribution

SOURCE, REPLY = ["Hello", "$x$", "</s>"], ["Hi", "</s>"]
SIGNED = np.array([[0.5, -1.0, 0.0], [0.25, 0.0, 0.1]])


@pytest.fixture
def axes():
    figure = pytest.importorskip("matplotlib.figure", reason="pictures are drawn with matplotlib")
    return figure.Figure().add_subplot()


def drawn(axes):
    """The picture of the weights, and the colours of its cells."""
    [image] = axes.get_images()
    return image, image.to_rgba(image.get_array())


def test_signed_weights_are_white_at_zero_red_above_and_blue_below(axes):
    assert plot_attribution(SIGNED, SOURCE, REPLY, axes) is axes
    image, colours = drawn(axes)
    assert image.get_clim() == (-1.0, 1.0)
    red, blue = colours[..., 0], colours[..., 2]
    assert np.abs(colours[SIGNED == 0] - [0.97, 0.97, 0.97, 1]).max() < 0.01
    assert ((red - blue > 0.01) == (SIGNED > 0)).all()
    assert ((blue - red > 0.01) == (SIGNED < 0)).all()


def test_weights_of_one_sign_go_from_white_to_dark(axes):
    plot_attribution(np.abs(SIGNED), SOURCE, REPLY, axes, label="share")
    image, colours = drawn(axes)
    assert image.get_clim() == (0.0, 1.0)
    brightness = colours[..., :3].sum(-1).ravel()
    order = np.argsort(-brightness, kind="stable")
    assert (np.diff(np.abs(SIGNED).ravel()[order]) >= 0).all()
    assert axes.figure.axes[1].get_ylabel() == "share"


def test_tokens_label_the_cells_as_they_are(axes):
    plot_attribution(np.zeros((2, 3)), SOURCE, ["a\nb", "</s>"], axes)
    assert [label.get_text() for label in axes.get_xticklabels()] == SOURCE
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a\\nb", "</s>"]
    assert not any(label.get_parse_math() for label in axes.get_xticklabels())


@pytest.mark.parametrize(("ending", "begins"), [(".png", b"\x89PNG"), (".PDF", b"%PDF"), (".svg", b"<?xml")])
def test_a_file_is_written_whole_in_the_format_of_its_ending(axes, tmp_path, ending, begins):
    path = tmp_path / "new" / f"weights{ending}"
    pyplot_before = "matplotlib.pyplot" in sys.modules
    # A character that the font lacks is no reason to fail, and warnings are errors here.
    plot_attribution(SIGNED, ["狗", *SOURCE[1:]], REPLY, path)
    assert path.read_bytes().startswith(begins)
    assert [found.name for found in path.parent.iterdir()] == [path.name]
    assert ("matplotlib.pyplot" in sys.modules) == pyplot_before


def test_a_failure_leaves_the_old_file(axes, tmp_path, monkeypatch):
    path = tmp_path / "weights.png"
    path.write_text("old")

    def fail(figure, *args, **options):
        raise OSError("no space left")

    monkeypatch.setattr(type(axes.figure), "savefig", fail)
    with pytest.raises(OSError, match="no space left"):
        plot_attribution(SIGNED, SOURCE, REPLY, path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        (SIGNED.T, r"weights must have shape \[T, S\] = \[2, 3\].*not \[3, 2\]"),
        (SIGNED[None], "pass one row"),
        (np.where(SIGNED == 0.5, np.nan, SIGNED), "must be finite.*1 are not"),
    ],
)
def test_weights_that_have_no_picture_are_refused(tmp_path, weights, says):
    with pytest.raises(ValueError, match=says):
        plot_attribution(weights, SOURCE, REPLY, tmp_path / "weights.png")


@pytest.mark.parametrize("name", ["weights", "weights.xyz", "weights.npz.txt"])
def test_an_unknown_ending_is_refused_before_the_work(axes, tmp_path, name):
    with pytest.raises(ValueError, match=r"one of .*\.pdf.*\.png.*has none of these"):
        check_picture(tmp_path / name)


def test_without_matplotlib_the_message_says_how_to_get_it(monkeypatch, tmp_path):
    find = builtins.__import__

    def without(name, *args, **options):
        if name.startswith("matplotlib"):
            raise ModuleNotFoundError(f"No module named {name!r}")
        return find(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'blenderbot-jax\[plot\]'"):
        plot_attribution(SIGNED, SOURCE, REPLY, tmp_path / "weights.png")
