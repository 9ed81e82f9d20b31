"""What the stages leave for the report, invented: figures that fit together for any number of classes and images."""

from typing import Any

import numpy as np

from headstart.core.io import read_json, write_json, write_report, write_table
from headstart.core.paths import REPORTS, report_of
from headstart.data.dataset import SPLITS, PreparedDataset, read_values
from headstart.data.manifest import manifest_rows
from helpers.images import write_prepared

EVALUATE = REPORTS / "evaluate"
MODELS = ("probe", "knn", "finetune")
LABEL_ERROR_COLUMNS = ("row", "source", "split", "label", "suggested", "label_probability", "suggested_probability")
GROUPS = ("backbone", "backbone_free", "head", "head_free")
BEST, LAST = 4, 7
MANY = 40
"""Lines of a table of which the page shows some."""


def write_reported(classes: tuple[str, ...], images: int, prepared: PreparedDataset | None = None) -> PreparedDataset:
    """data/prepared, unless it is there, and all files under reports; about a fifth of the images is mistaken.

    Args:
        classes: names, each of which is taken for the one that it is beside.
        images: of test; train has twice as many, validation ten.
        prepared: images that are there already, with these classes and at least so many of test.
    """
    prepared = prepared or write_prepared({"train": 2 * images, "validation": 10, "test": images}, classes)
    generator = np.random.default_rng(0)
    manifest = [{**row, "row": row_number} for row_number, row in enumerate(manifest_rows())]
    test = [row for row in manifest if row["split"] == "test"]
    write_stages(prepared)
    _write_predictions(generator, classes, test)
    _write_evaluation(classes, test)
    _write_trust(generator, classes, test)
    _write_checks(classes, manifest)
    return prepared


def write_stages(prepared: PreparedDataset) -> None:
    """What the stages before evaluate report of any target's training, but the tables of the data checks."""
    target, values = prepared.target, np.concatenate([read_values(split) for split in SPLITS])
    splits = {str(split): len(prepared.rows(split)) for split in SPLITS}
    of_image, strata = np.repeat(list(SPLITS), list(splits.values())), target.strata(values)
    per_class = {
        name: {str(split): int((of_image[strata.images[strata.groups == i]] == split).sum()) for split in SPLITS}
        for i, name in enumerate(strata.names)
    }
    primary = next(iter(target.measures))
    report = {"pictures": len(values), "splits": splits, "per_class": per_class, "class_imbalance": 1.5}
    write_report(
        "prepare",
        report
        | {"side_range": [32, 4000], "odd_pictures": {"tiny": MANY // 2, "blank": MANY // 2}, "bad": []}
        | {"chosen": [{"key": "backbone.image_size", "value": 32, "reason": "the backbone's own"}]},
    )
    duplicates = {"exact": MANY // 2, "near": MANY // 2}
    found = {
        "duplicates_across_splits": duplicates,
        "near_duplicate_cosine": 0.97,
        "near_duplicates_among": "all pairs",
    }
    found |= {
        "suspicious_labels": MANY,
        "labels_learned_from": splits["train"],
        "check_seconds": {"duplicates": 1.2, "labels": 90},
    }
    write_report("features", found)
    verdict = {primary: 0.8, f"changed_{primary}": 0.79, "loss": 0.5, "rise": -0.01, "interval": [-0.02, 0.003]}
    changes = {"hflip": {"kept": True, "reason": "with the changed image's answer the loss is -2.0%", **verdict}}
    known = read_json(report_of("probe")) if report_of("probe").exists() else {}
    write_report("probe", known | {"augmentation": {"images": 256, "reason": None, "changes": changes}})
    write_table(REPORTS / "probe" / "l2_path.csv", ("log10_l2", "val_loss"), [(-x, (x - 2) ** 2 / 9) for x in range(6)])
    losses = ((i, 3 / i, 0.2 + (i - BEST) ** 2 / 20) for i in range(1, LAST + 1))
    history: list[tuple[Any, ...]] = [
        (0, "", 1.2, 0.5, 0.5),
        *((i, train, loss, 0.8, 0.9 * loss) for i, train, loss in losses),
    ]
    figures = ("epoch", "train_loss", "val_loss", f"val_{primary}", "val_refined_loss")
    columns = slice(None if target.kind == "class" else -1)
    write_table(REPORTS / "finetune" / "history.csv", figures[columns], [row[columns] for row in history])
    measured = ("norm", "distance", "penalty_share", "shrink", "total_shrink", "data_movement", "equivalent_l2")
    ledger = [
        {
            "epoch": epoch,
            "group": name,
            **dict(zip(measured, (9.0, epoch / 3, 0.2, penalised, epoch * penalised, 0.03, 0.5 / epoch), strict=True)),
        }
        for epoch in range(1, LAST + 1)
        for name in GROUPS
        for penalised in [0.0 if name.endswith("_free") else 1e-4]
    ]
    write_table(REPORTS / "finetune" / "ledger.csv", tuple(ledger[0]), [tuple(row.values()) for row in ledger])
    groups = [
        {"group": name, "parameters": 1848, "l2": 0.0 if name.endswith("_free") else 1e-3, "decay": 0.0}
        for name in GROUPS
    ]
    about = {"best_epoch": BEST, "epochs": LAST, "stopped_early": True, "precision": "32-true", "groups": groups}
    about["chosen"] = [{"key": "finetune.epochs", "value": LAST, "reason": "of 40 images"}]
    write_report("finetune", about | {"ledger": [row for row in ledger if row["epoch"] == BEST]})


def _write_predictions(generator: np.random.Generator, classes: tuple[str, ...], test: list[dict[str, Any]]) -> None:
    def said(row: dict[str, Any]) -> list[str]:
        wrong = classes[(classes.index(row["label"]) ^ 1) % len(classes)]
        return [wrong if generator.random() < 0.2 else row["label"], f"{generator.uniform(0.4, 1):.6f}"]

    columns = [f"{name}{suffix}" for name in MODELS for suffix in ("", "_probability")]
    lines = [[row["id"], row["source"], row["label"], *(x for _ in MODELS for x in said(row))] for row in test]
    write_table(EVALUATE / "predictions.csv", ("id", "source", "label", *columns), lines)


def _write_evaluation(classes: tuple[str, ...], test: list[dict[str, Any]]) -> None:
    models: dict[str, Any] = {}
    for i, name in enumerate(MODELS):
        figures = {
            "accuracy": 0.7 + i / 20, "balanced_accuracy": 0.7, "macro_f1": 0.69, "top_3_accuracy": 0.9, "nll": 0.8,
            "brier": 0.3, "ece": 0.04, "auroc": None, "fit_seconds": 3.0 * i, "seconds": 0.02,
        }  # fmt: skip
        per_class = [
            {
                "class": c,
                "precision": 0.5 + j / len(classes) / 2,
                "recall": 0.6,
                "f1": None if j == 1 else 0.55,
                "support": 9,
            }
            for j, c in enumerate(classes)
        ]
        intervals = {"accuracy": [0.65 + i / 20, 0.75 + i / 20]}
        models[name] = {**figures, "intervals": intervals, "per_class": per_class}
    comparisons = [
        {
            "model": "finetune", "against": name, "accuracy_difference": 0.05, "accuracy_interval": [-0.01, 0.11],
            "nll_difference": -0.1, "nll_interval": [-0.3, 0.1], "only_model_right": 12, "only_other_right": 4,
            "mcnemar_p": 0.04, "bootstrap_p": 0.03, "mcnemar_corrected_p": None, "bootstrap_corrected_p": 0.0002,
        }
        for name in MODELS[:-1]
    ]  # fmt: skip
    report = {"pictures": len(test), "classes": list(classes), "models": models, "comparisons": comparisons}
    report["verdict"] = "Not shown to be worth it: finetune has 80.0% right and probe 70.0%."
    report["bootstrap"] = {"replicates": 1000, "level": 0.95, "units": "pictures"}
    write_report("evaluate", report)
    run = {
        "params": {"finetune": {"l2": {"kind": "l2"}, "lr": {"head": 0.01}}}, "headstart": "0.1.0", "python": "3.12.1",
        "versions": {"torch": "2.15.0"}, "machine": "AMD EPYC, 2 cores", "gpu": None, "data_sha256": "ab" * 32,
        "git": {"commit": "c0ffee" * 6, "dirty": True}, "weights_sha256": "cd" * 32,
    }  # fmt: skip
    write_json(EVALUATE / "run.json", run)


def _write_trust(generator: np.random.Generator, classes: tuple[str, ...], test: list[dict[str, Any]]) -> None:
    def reliability(bend: float) -> dict[str, Any]:
        lows = np.arange(15) / 15
        bins = [
            {
                "low": low,
                "high": low + 1 / 15,
                "pictures": 9,
                "confidence": low + 0.03,
                "accuracy": (low + 0.03) ** bend,
            }
            for low in lows.tolist()
        ]
        return {"nll": 0.3, "ece": 0.1 / bend, "bins": bins}

    calibration = {name: {"temperature": 1.3, "before": reliability(1.5), "after": reliability(1.1)} for name in MODELS}
    conformal = []
    for method in ("LAC", "APS"):
        for level in (0.9, 0.95):
            sizes = np.bincount(generator.poisson(1, len(test)).clip(0, len(classes)))
            per_class = [{"class": c, "pictures": 9, "coverage": None, "mean_size": None} for c in classes]
            entry: dict[str, Any] = {
                "method": method,
                "level": level,
                "threshold": 0.9,
                "coverage": level,
                "empty": 0.01,
            }
            entry |= {"coverage_interval": [level - 0.02, level + 0.02], "mean_size": 1.2, "per_class": per_class}
            conformal.append(entry | {"sizes": {str(i): n for i, n in enumerate(sizes.tolist()) if n}})
    ood = {"score": "1 - cosine", "thresholds": {"0.95": 0.3, "0.99": 0.5}, "flagged": {"0.95": 0.04, "0.99": 0.01}}
    trust = {"calibration": calibration, "ece_bins": 15, "conformal": conformal, "out_of_distribution": ood}
    write_json(EVALUATE / "trust.json", trust)


def _write_checks(classes: tuple[str, ...], manifest: list[dict[str, Any]]) -> None:
    """More of everything than the page shows, where there are images enough; all of different images."""
    train, test = ([row for row in manifest if row["split"] == split] for split in ("train", "test"))
    some = slice(MANY)
    problems = [
        (row["row"], row["source"], row["split"], ("tiny", "blank")[i % 2], 12) for i, row in enumerate(train[some])
    ]
    write_table(REPORTS / "prepare" / "odd_pictures.csv", ("row", "source", "split", "problem", "value"), problems)
    columns = ("kind", "row", "source", "split", "other_row", "other_source", "other_split", "cosine", "hash_distance")
    duplicates = [
        (("exact", "near")[i % 2], a["row"], a["source"], "train", b["row"], b["source"], "test", 0.99, i % 2)
        for i, (a, b) in enumerate(zip(train[MANY:][some], test[some], strict=False))
    ]
    write_table(REPORTS / "features" / "duplicates.csv", columns, duplicates)
    for stage, rows in (("features", train[2 * MANY :][some]), ("evaluate", test[MANY:][some])):
        lines = [(r["row"], r["source"], r["split"], r["label"], classes[0], 0.01, 0.9) for r in rows]
        write_table(REPORTS / stage / "suspicious_labels.csv", LABEL_ERROR_COLUMNS, lines)
    slices = [("camera", "old", 12, 0.5, 0.3, 0.7), ("camera", "new", 40, 0.9, 0.8, 0.95)]
    write_table(EVALUATE / "slices.csv", ("column", "value", "pictures", "accuracy", "low", "high"), slices)
