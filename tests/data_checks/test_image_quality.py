import numpy as np

from headstart.data_checks.tables import find_image_problems


def test_tiny_is_far_below_what_the_model_sees_and_below_the_others() -> None:
    contrasts = np.full(5, 50.0)
    found = find_image_problems(np.array([300.0, 400, 111, 112, 500]), contrasts, 224)
    assert [(each.row, each.problem, each.value) for each in found] == [(2, "tiny", 111)]
    assert find_image_problems(np.full(5, 8.0), contrasts, 64) == []  # all of them: that is how the data are
    assert [each.row for each in find_image_problems(np.array([8.0, 8, 8, 3, 8]), contrasts, 64)] == [3]


def test_blank_has_no_contrast() -> None:
    found = find_image_problems(np.full(3, 64.0), np.array([0.0, 2.9, 3.1]), 64)
    assert [(each.row, each.problem, each.value) for each in found] == [(0, "blank", 0.0), (1, "blank", 2.9)]
