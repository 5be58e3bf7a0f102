import pytest
import torch

from unimask.errors import ConfigError
from unimask.structures import Categories
from unimask.training.category_rows import NOT_KNOWN, rows_for, take_rows


def named(*names: str) -> Categories:
    count = len(names)
    return Categories(
        names=names, is_thing=(True,) * count, file_ids=tuple(range(count)), colors=((0, 0, 0),) * count
    )


THEIRS = named("person", "car", "dog", "traffic light")


def test_categories_are_kept_renamed_new_or_dropped() -> None:
    found = rows_for(named("dog", "walker", "Traffic-Light", "car"), THEIRS, {"person": "walker"})
    assert found.kept == ("dog", "car")
    assert found.renamed == (("person", "walker"),)
    assert found.new == ("Traffic-Light",)
    assert found.dropped == ("traffic light",)
    assert found.rows == (2, 0, NOT_KNOWN, 1)
    assert found.known == 3
    assert "--map 'traffic light=Traffic-Light'" in found.table()


def test_a_stated_row_comes_before_that_of_the_same_name() -> None:
    """Two categories change places; a row that goes elsewhere is not taken twice."""
    found = rows_for(named("car", "dog"), THEIRS, {"car": "dog", "dog": "car"})
    assert found.rows == (2, 1)
    found = rows_for(named("car", "dog"), THEIRS, {"car": "dog"})
    assert (found.rows, found.new, found.dropped) == (
        (NOT_KNOWN, 1),
        ("car",),
        ("person", "dog", "traffic light"),
    )


@pytest.mark.parametrize(
    ("renamed", "message"),
    [
        (
            {"cat": "dog"},
            r"the model has no category 'cat'; is it car\? there are: person, car, dog, traffic light",
        ),
        ({"car": "cat"}, "the data have no category 'cat'; there are: dog, bus"),
        ({"car": "dog", "person": "dog"}, "a category of the data is named twice"),
    ],
)
def test_names_that_lead_nowhere(renamed: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        rows_for(named("dog", "bus"), THEIRS, renamed)


def test_rows_are_put_in_place_and_no_object_is_last() -> None:
    own, theirs = torch.zeros(4, 2), torch.arange(10.0).reshape(5, 2)
    assert take_rows(own, theirs, (2, NOT_KNOWN, 0)).tolist() == [[4, 5], [0, 0], [0, 1], [8, 9]]
    assert own.sum() == 0  # it is not changed
    assert take_rows(own[:3], theirs[:4], (3, NOT_KNOWN, 0)).tolist() == [[6, 7], [0, 0], [0, 1]]
    assert take_rows(own, theirs[:, :1], (2, NOT_KNOWN, 0)) is not own  # of another width: it will not fit
