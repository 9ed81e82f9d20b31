import pytest
from markupsafe import Markup

from headstart.assembly.report import wording

S = wording.NO_BREAK


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (wording.percent(0.98765), f"98.8{S}%"),
        (wording.percent(None), wording.NOTHING),
        (wording.percent_range((0.9, 1.0)), f"90.0 to 100.0{S}%"),
        (wording.points(-0.0123), "−1.2"),
        (wording.points(0.0123), "+1.2"),
        (wording.signed(-0.5), "−0.500"),
        (wording.figure(None), wording.NOTHING),
        (wording.strength(1e-3), "1e-3"),
        (wording.strength(0.0551), "5.5e-2"),
        (wording.strength(0), "0"),
        (wording.strength(None), wording.NOTHING),
        (wording.small_percent(0.000123), f"0.012{S}%"),
        (wording.p_value(0.0009), "< 0.001"),
        (wording.p_value(0.001), "0.001"),
        (wording.p_value(None), wording.NOTHING),
        (wording.duration(12.34), f"12.3{S}s"),
        (wording.duration(600), f"10{S}min"),
        (wording.duration(7200), f"2.0{S}h"),
        (wording.count(1234), "1,234"),
        (wording.count(1, "picture"), f"1{S}picture"),
        (wording.count(2, "picture"), f"2{S}pictures"),
    ],
)
def test_numbers_are_written_as_people_read_them(written: str, expected: str) -> None:
    assert written == expected


def test_what_cannot_be_seen_is_written_out() -> None:
    assert wording.visible("a\x00b\nc\u202ed\u200be") == "a\\x00b\\nc\\u202ed\\u200be"
    assert wording.visible(f"é 数 \U0001f98a{S}x") == f"é 数 \U0001f98a{S}x"
    assert wording.visible(Markup("<b>\n</b>")) == "<b>\n</b>"
    assert wording.visible(3) == 3


def test_params_are_listed_by_dotted_key() -> None:
    params = {"finetune": {"l2": {"kind": "l2", "head": 0.001}, "groups": [{"name": "head"}]}, "export": {}}
    assert wording.flat(params) == [
        ("finetune.l2.kind", '"l2"'),
        ("finetune.l2.head", "0.001"),
        ("finetune.groups", '[{"name": "head"}]'),
        ("export", "{}"),
    ]
