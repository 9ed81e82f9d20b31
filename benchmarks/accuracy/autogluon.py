"""AutoGluon MultiModal with a time limit, as its quick start of image classification has it.

https://auto.gluon.ai/stable/tutorials/multimodal/image_prediction/beginner_image_cls.html: a table of paths and labels,
``MultiModalPredictor(label="label").fit(train_data, time_limit=…)``, ``predict_proba``. The backbone is chosen by
``model.timm_image.checkpoint_name``, which may be a folder; the validation images are ``tuning_data``. All else is its
default: AdamW with layer-wise rates, TrivialAugment, a greedy soup of the 3 best, at most 20 epochs.
"""

import pandas as pd
from autogluon.multimodal import MultiModalPredictor

from benchmarks.accuracy.job import Answers, Job, names


def fit(job: Job) -> Answers:
    """Train within the time limit, answer with ``predict_proba``."""
    predictor = MultiModalPredictor(label="label", problem_type="multiclass", path=f"{job.work}/predictor")
    predictor.fit(
        _table(job, "train"),
        tuning_data=_table(job, "val"),
        time_limit=job.amount,
        seed=job.seed,
        hyperparameters={
            "model.names": ["timm_image"],
            "model.timm_image.checkpoint_name": job.weights,
            "model.timm_image.image_size": job.size,
        },
    )
    found = predictor.predict_proba(_table(job, "test").drop(columns="label"))
    return Answers(names(job.files("test")), [str(name) for name in found.columns], found.to_numpy())


def _table(job: Job, split: str) -> pd.DataFrame:
    files = job.files(split)
    return pd.DataFrame({"image": [str(path) for path in files], "label": [path.parent.name for path in files]})
