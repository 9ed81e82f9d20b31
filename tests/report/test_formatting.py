import pytest
from markupsafe import Markup

from headstart.report import formatting

S = formatting.NO_BREAK


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (formatting.percent(0.98765), f"98.8{S}%"),
        (formatting.percent(None), formatting.NOTHING),
        (formatting.percent_range((0.9, 1.0)), f"90.0 to 100.0{S}%"),
        (formatting.points(-0.0123), "−1.2"),
        (formatting.points(0.0123), "+1.2"),
        (formatting.signed(-0.5), "−0.500"),
        (formatting.figure(None), formatting.NOTHING),
        (formatting.strength(1e-3), "1e-3"),
        (formatting.strength(0.0551), "5.5e-2"),
        (formatting.strength(0), "0"),
        (formatting.strength(None), formatting.NOTHING),
        (formatting.small_percent(0.000123), f"0.012{S}%"),
        (formatting.p_value(0.0009), "< 0.001"),
        (formatting.p_value(0.001), "0.001"),
        (formatting.p_value(None), formatting.NOTHING),
        (formatting.duration(12.34), f"12.3{S}s"),
        (formatting.duration(600), f"10{S}min"),
        (formatting.duration(7200), f"2.0{S}h"),
        (formatting.count(1234), "1,234"),
        (formatting.count(1, "image"), f"1{S}image"),
        (formatting.count(2, "image"), f"2{S}images"),
    ],
)
def test_numbers_are_written_as_people_read_them(written: str, expected: str) -> None:
    assert written == expected


def test_what_cannot_be_seen_is_written_out() -> None:
    assert formatting.visible("a\x00b\nc\u202ed\u200be") == "a\\x00b\\nc\\u202ed\\u200be"
    assert formatting.visible(f"é 数 \U0001f98a{S}x") == f"é 数 \U0001f98a{S}x"
    assert formatting.visible(Markup("<b>\n</b>")) == "<b>\n</b>"
    assert formatting.visible(3) == 3


def test_params_are_listed_by_dotted_key() -> None:
    params = {"finetune": {"l2": {"kind": "l2", "head": 0.001}, "groups": [{"name": "head"}]}, "export": {}}
    assert formatting.flat(params) == [
        ("finetune.l2.kind", '"l2"'),
        ("finetune.l2.head", "0.001"),
        ("finetune.groups", '[{"name": "head"}]'),
        ("export", "{}"),
    ]
