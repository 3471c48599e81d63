"""What the records of a student's stages say together."""

import pytest

from students.samplers.record import training_cost


def record(**changes) -> dict:
    plain = {
        "before": {"evaluations": 0, "seconds": 0.0}, "teacher": {"evaluations": 100}, "evaluations": {"student": 50},
        "quality_curve": [], "seconds": 1.0,
    }  # fmt: skip
    return plain | changes


@pytest.mark.parametrize("spaces", [[], ["lpips"]])
def test_feature_spaces_are_those_of_all_stages(spaces):
    stages = [record(feature_spaces=["teacher", "encoder"]), record(feature_spaces=spaces), record()]
    assert training_cost(stages)["feature_spaces"] == ["encoder", *spaces, "teacher"]


def test_a_record_that_names_no_feature_space_has_none():
    assert training_cost([record()])["feature_spaces"] == []
