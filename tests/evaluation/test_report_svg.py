"""What the drawings share: marks are round, labels keep off each other."""

from hypothesis import given
from hypothesis import strategies as st

from evaluation.report_svg import LETTER, Frame, padded, placed, tick_texts, ticks


@given(low=st.floats(-1e6, 1e6), width=st.floats(1e-6, 1e6), most=st.integers(5, 9))
def test_ticks_are_few_round_and_inside(low, width, most):
    marks = ticks(low, low + width, most)
    assert (most - 1) // 3 <= len(marks) <= most
    slack = 1e-6 * max(width, 1e-6) + 1e-9 * abs(low)
    assert all(low - slack <= mark <= low + width + slack for mark in marks)


def test_the_marks_of_an_axis_have_equal_decimals():
    assert tick_texts([-0.5, 0.0, 0.25]) == ["−0.50", "0.00", "0.25"]


@given(st.lists(st.floats(-1e6, 1e6), min_size=1))
def test_a_range_is_never_empty(values):
    low, high = padded(values)
    assert low < min(values) <= max(values) < high


def test_labels_of_neighbours_do_not_overlap():
    frame = Frame(width=400, height=300, left=50, bottom=40, x_range=(0.0, 1.0), y_range=(0.0, 1.0))
    spots, labels = [(100.0, 100.0), (112.0, 103.0), (104.0, 110.0)], ["merged/soup", "merged/slerp", "linear"]
    boxes = [
        (x, y - 11, x + LETTER * len(label), y + 3)
        for (x, y), label in zip(placed(spots, labels, frame), labels, strict=True)
    ]
    for i, (left, top, right, bottom) in enumerate(boxes):
        for other in boxes[:i]:
            assert right <= other[0] or other[2] <= left or bottom <= other[1] or other[3] <= top


def test_a_label_stays_inside_at_the_right_edge():
    frame = Frame(width=400, height=300, left=50, bottom=40, x_range=(0.0, 1.0), y_range=(0.0, 1.0))
    [(x, _)] = placed([(380.0, 100.0)], ["a name of some length"], frame)
    assert x + LETTER * 21 < 400
