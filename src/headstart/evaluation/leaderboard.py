"""The leaderboard: every model's figures with their intervals, the comparisons with fine-tuning, and a verdict."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from headstart.core.text import text_table
from headstart.evaluation.bootstrap import (
    LEVEL,
    REPLICATES,
    Units,
    fraction_interval,
    interval,
    replicate_figures,
)
from headstart.evaluation.significance import compare, correct_p_values, verdict
from headstart.targets.classes import Classes
from headstart.targets.kinds import describe, described
from headstart.targets.target import Figures, Target, Values, best_first, rounded

if TYPE_CHECKING:  # it imports torch, which printing the leaderboard does not need
    from collections.abc import Mapping

    from headstart.evaluation.predictions import ModelPredictions

LEADERBOARD_COLUMNS = {name: measure.title for name, measure in Classes.measures.items()}
NOT_DEFINED = "\N{EN DASH}"


def compute_leaderboard(
    models: "Mapping[str, ModelPredictions]",
    values: Values,
    target: Target,
    fitted: "Mapping[str, Mapping[str, Any]]",
    units: Units,
) -> dict[str, Any]:
    """Compute the content of ``reports/evaluate.json`` from the predictions for the test images.

    ``values`` are those of the test images, ``fitted`` has what each model's target fitted on validation. The model
    ``finetune`` is compared with each other one.
    """
    grouped, everything = units.groups is not None, np.ones((1, len(units.stratum)), np.float32)
    figures, replicates, scores = dict[str, Any](), dict[str, Figures](), dict[str, NDArray[Any]]()
    for name, model in models.items():
        arguments = model.outputs["test"], values
        tally = model.target.tally(*arguments, units.of_image, fitted[name])
        replicates[name] = replicate_figures(tally, units)
        scores[name] = model.target.scores(*arguments, fitted[name])
        figures[name] = {
            **{key: rounded(each[0]) for key, each in tally.figures(everything).items()},
            **tally.fixed,
            "per_class": [{"class": part, **row} for part, row in zip(target.names, tally.per_part(), strict=True)],
            "fit_seconds": model.fit_seconds,
            "seconds": model.seconds,
            "intervals": {
                key: fraction_interval(each, units.independent()) if key in tally.fractions else interval(each)
                for key, each in replicates[name].items()
            },
        }
    others = [name for name in models if name != "finetune"]
    comparisons = correct_p_values(
        [compare(("finetune", name), target, scores, figures, replicates, grouped=grouped) for name in others]
    )
    # The rival is chosen on validation: the best of several on test would owe some of its lead to luck there.
    primary, measure = next(iter(target.measures.items()))
    rivals = [i for i, name in enumerate(others) if not models[name].remark]
    on_validation = {i: models[others[i]].val_figure for i in rivals}
    rival = max(rivals, key=lambda i: measure.sign * on_validation[i] if np.isfinite(on_validation[i]) else -np.inf)
    remarks = [model.remark for model in models.values() if model.remark]
    return {
        "pictures": len(values),
        "classes": [*target.names],
        **describe(target),
        "verdict": " ".join([verdict(comparisons[rival], figures, len(values), primary, measure), *remarks]),
        "models": figures,
        "comparisons": comparisons,
        "bootstrap": {"replicates": REPLICATES, "level": LEVEL, "units": "groups" if grouped else "pictures"},
    }


def format_leaderboard(report: dict[str, Any]) -> str:
    """Format the content of ``reports/evaluate.json`` as an aligned table, the best model first.

    Beside the measure that decides stands its interval; the last column is the time in seconds that training took, with
    the choice of the settings.
    """
    measures = described(report, report["classes"]).measures
    (primary, deciding), *others = measures.items()
    table = [["model", deciding.title, "95 % interval", *(measure.title for _, measure in others), "fitted in"]]

    def cell(figure: float | None) -> str:
        return NOT_DEFINED if figure is None else f"{figure:.4f}"

    for name, figures in best_first(report["models"], primary, deciding.sign):
        ends = figures["intervals"][primary]
        interval_cell = f"{ends[0]:.3f}{'-' if ends[0] >= 0 else ' to '}{ends[1]:.3f}" if ends else NOT_DEFINED
        first, *cells = (cell(figures[key]) for key in measures)
        table.append([name, first, interval_cell, *cells, f"{figures['fit_seconds']:.1f} s"])
    return text_table(table)
