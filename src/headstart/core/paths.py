"""The path of every file and folder through which the stages and the commands meet.

Paths are relative to the project's folder, in which every stage runs. Their readers and writers are with the code that
they belong to.
"""

from pathlib import Path

# Written by the stages; dvc.yaml lists them.
PREPARED = Path("data/prepared")
FEATURES = Path("data/features")
PROBE = Path("models/probe")
BASELINES = Path("models/baselines")
FINETUNE = Path("models/finetune")
OOD_REFERENCE = Path("models/reference")
EXPORT = Path("export")

# Files within them.
DATASET = PREPARED / "dataset.json"
FEATURE_ROWS = FEATURES / "features.npy"
FEATURES_INFO = FEATURES / "features.json"
CHANGED_FEATURES = FEATURES / "changed.safetensors"
PRETRAINED_HEAD = FEATURES / "classifier.safetensors"
PRETRAINED_CLASSES = FEATURES / "classifier.json"
HEADS = PROBE / "heads.safetensors"
HEADS_INFO = PROBE / "heads.json"
AUGMENTATION = PROBE / "augmentation.json"
RAW_MODEL = FINETUNE / "raw"
TRACKED_RUN = FINETUNE / "tracking.json"

# A model in timm's `local-dir` format, and so a bundle too, has these names.
MODEL_CONFIG = "config.json"
MODEL_WEIGHTS = "model.safetensors"

# Reports: `<stage>.json` has a stage's figures, the folder `<stage>` its tables.
REPORTS = Path("reports")
HTML_REPORT = REPORTS / "index.html"
DASHBOARD = REPORTS / "dashboard.json"
STUDY = REPORTS / "study"
TUNING_REPORT = REPORTS / "tune.json"
TUNING_TABLE = REPORTS / "tune.csv"
ODD_IMAGES = REPORTS / "prepare" / "odd_pictures.csv"
DUPLICATES = REPORTS / "features" / "duplicates.csv"
FEATURE_LABEL_ERRORS = REPORTS / "features" / "suspicious_labels.csv"
L2_PATH = REPORTS / "probe" / "l2_path.csv"
HISTORY = REPORTS / "finetune" / "history.csv"
CURVES = REPORTS / "finetune" / "curves.csv"
LEDGER = REPORTS / "finetune" / "ledger.csv"
PREDICTIONS = REPORTS / "evaluate" / "predictions.csv"
CONFUSION = {name: REPORTS / "evaluate" / f"confusion_{name}.csv" for name in ("probe", "finetune")}
TRUST = REPORTS / "evaluate" / "trust.json"
SLICES = REPORTS / "evaluate" / "slices.csv"
TEST_LABEL_ERRORS = REPORTS / "evaluate" / "suspicious_labels.csv"
RUN_INFO = REPORTS / "evaluate" / "run.json"

# What running the project needs beside what DVC tracks.
STATE = Path(".headstart")
LOCK = STATE / "repro"
STOPPED = STATE / "stopped.json"
REQUEUES = STATE / "requeues.json"
HEARTBEATS = STATE / "ranks"
CLAIMS = STATE / "claims"
BATCH_HEARTBEAT = HEARTBEATS / "batch.json"
PROBLEMS = STATE / "problems.txt"
TUNING = STATE / "tune"
EVALUATED = STATE / "evaluate"
LAUNCH_SCRIPT = Path("slurm/launch.sh")
DVC_RWLOCK = Path(".dvc/tmp/rwlock")


def report_of(stage: str) -> Path:
    """Return the path of a stage's figures, ``reports/<stage>.json``."""
    return REPORTS / f"{stage}.json"


def cache_folder(cache: str | None) -> Path:
    """Return the folder that outlives a stage's outputs and is shared by clones: ``run.cache``, or the user's own."""
    if cache is not None:
        return Path(cache).expanduser()
    from platformdirs import user_cache_path  # noqa: PLC0415  (only training installs it)

    return user_cache_path("headstart")
