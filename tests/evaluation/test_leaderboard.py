from typing import Any

from headstart.evaluation.leaderboard import format_leaderboard


def test_leaderboard_is_aligned_and_sorted() -> None:
    figures: dict[str, Any] = {"accuracy": 0.5, "balanced_accuracy": 0.25, "macro_f1": 0.125, "nll": 12.3, "ece": 0.25}
    figures |= {"fit_seconds": 0.04, "intervals": {"accuracy": [0.25, 0.75]}}
    report = {
        "classes": ["cat", "dog"],
        "models": {"probe": figures, "finetune": {**figures, "accuracy": 0.75, "fit_seconds": 1234.56}},
    }
    assert format_leaderboard(report).splitlines() == [
        "model     accuracy  95 % interval  balanced accuracy  macro F1      NLL     ECE  fitted in",
        "finetune    0.7500    0.250-0.750             0.2500    0.1250  12.3000  0.2500   1234.6 s",
        "probe       0.5000    0.250-0.750             0.2500    0.1250  12.3000  0.2500      0.0 s",
    ]
