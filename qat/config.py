"""What a user can set: one typed dataclass per group of `conf/`, checked once when a configuration is composed.

The dataclasses hold names, types and ranges; the values are in `conf/`, and `qat.compose` brings both together.
A key that is misspelt, mistyped, missing or out of range is refused with its name before any work starts.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field

from hwmodel.board import Board
from hwmodel.errors import BoardError
from hwmodel.precision import Granularity
from qat.checks import require, require_all, require_columns, require_number
from qat.errors import ConfigError
from qat.image_settings import DetectionSettings, FolderSettings

LARGEST_SEED = 2**32 - 1
"""Numpy's generator, which Lightning seeds, takes no larger one."""


@dataclass(kw_only=True)
class NetworkSettings:
    """A network.

    Args:
        name: What reports call it.
        factory: `module:callable` that returns the float network, called with `num_classes` (see `qat.models.build`).
        path: Folder below which the module of a network of your own lies; null for the current folder.
        num_classes: Number of logits.
        input_shape: Channels, rows, columns of an image.
        weights: Checkpoint of trained weights; null to train from scratch.
    """

    name: str
    factory: str
    path: str | None
    num_classes: int
    input_shape: list[int]
    weights: str | None

    def __post_init__(self) -> None:
        require(bool(self.name), "network.name", self.name, "a word for reports")
        require(self.num_classes >= 2, "network.num_classes", self.num_classes, "an integer >= 2")
        ok = len(self.input_shape) == 3 and all(size >= 1 for size in self.input_shape)
        require(ok, "network.input_shape", self.input_shape, "[channels, rows, columns], each >= 1")


@dataclass(kw_only=True)
class DataSettings:
    """Images and how they are delivered.

    Args:
        name: digits or cifar10; with `detection` or `folder` any name for reports.
        source: bundled (ships with scikit-learn); for cifar10 archive (the two .npz files), torchvision (its own
            download), or auto: archive if `root` holds one of its files, else torchvision.  With `detection`: bundled
            (scenes), or files; with `folder` files.
        root: Folder of the files; null where none are needed.
        download: Whether torchvision may download what is missing, into a folder that is there, or `data` here.
        batch_size: Images per step, of all devices together.
        val_images: Images held out of the training images for selection; `detection.val` goes before it.
        test_images: Images held out for the final number, where the data set has no test set of its own; else null.
        split_seed: Decides which images are held out; separate from `seed`, so that runs share their test images.
        crop_padding: Augmentation: shift by up to this many pixels in each direction; 0 for none.  With `detection` or
            `folder` 0: there `detection.shift`, or the crop of a random size, is in its place.
        horizontal_flip: Augmentation: mirror half of the images.
        mean: Mean of each channel, in units of the 8-bit range.
        std: Standard deviation of each channel, same units.
        detection: What images with boxes need; null for images with one class each.
        folder: What images in a folder for each class need; else null.
    """

    name: str
    source: str
    root: str | None
    download: bool
    batch_size: int
    val_images: int
    test_images: int | None
    split_seed: int
    crop_padding: int
    horizontal_flip: bool
    mean: list[float]
    std: list[float]
    detection: DetectionSettings | None = None
    folder: FolderSettings | None = None

    def __post_init__(self) -> None:
        sources: dict[str, tuple[str, ...]] = {"digits": ("bundled",), "cifar10": ("auto", "archive", "torchvision")}
        if self.detection is not None:
            require(self.folder is None, "data.folder", self.folder, "null beside data.detection")
            sources = {self.name: ("bundled" if self.detection.format == "scenes" else "files",)}
        elif self.folder is not None:
            sources = {self.name: ("files",)}
        require(self.name in sources, "data.name", self.name, f"one of {list(sources)}")
        require(self.source in sources[self.name], "data.source", self.source, f"one of {list(sources[self.name])}")
        require(self.source == "bundled" or bool(self.root), "data.root", self.root, f"a folder for {self.name}")
        for name, low in (("batch_size", 1), ("val_images", 1), ("split_seed", 0), ("crop_padding", 0)):
            require_number(f"data.{name}", getattr(self, name), low)
        if self.detection is not None or self.folder is not None:
            instead = (
                "data.detection.shift shifts" if self.detection is not None else "a folder's images are cut at random"
            )
            require(self.crop_padding == 0, "data.crop_padding", self.crop_padding, f"0: {instead}")
        if self.source == "bundled":
            held_out = self.test_images
            require(held_out is not None and held_out >= 1, "data.test_images", held_out, "an integer >= 1")
        else:
            require(self.test_images is None, "data.test_images", self.test_images, "null: it has its own test set")
        ok = len(self.mean) == len(self.std) >= 1 and all(value > 0 for value in self.std)
        require(ok, "data.std", self.std, f"a value > 0 for each channel of data.mean={self.mean}")


@dataclass(kw_only=True)
class BoardSettings:
    """A board; the fields are those of `hwmodel.Board`."""

    name: str
    family: str
    bram18: int
    uram: int
    dsp: int
    lut: int
    ff: int
    dram_bytes_per_s: int
    clock_hz: int
    source: str

    def __post_init__(self) -> None:
        try:
            self.to_board()
        except BoardError as error:
            raise ConfigError(str(error)) from error

    def to_board(self) -> Board:
        """The board as the hardware model takes it.

        Raises:
            BoardError: A field is out of range.
        """
        return Board(**asdict(self))


@dataclass(kw_only=True)
class LayerActivations:
    """Activation bits of some layers.

    Args:
        pattern: Name of a layer, or a pattern of names (`layer3.*`).
        act_bit_width: 1..8 or 16.
    """

    pattern: str
    act_bit_width: int


@dataclass(kw_only=True)
class QuantSettings:
    """What is given about quantization, not searched.

    Args:
        act_bit_width: Of the codes that a layer reads: 1..8 or 16.
        sum_bit_width: Of the operands of additions, gates, `scale` and normalisations: 1..8 or 16.
        end_bit_width: Activations of first and last layer (in execution order, also of several results), and weights in
            uniform configurations; null: as the others.
        layers: Activation bits of single layers; the last pattern that matches counts.
        one_shot_rounding: How the weights of trials without training (search.train_steps=0) become codes: nearest,
            or layerwise (so that each layer's result changes least).
    """

    act_bit_width: int
    sum_bit_width: int
    end_bit_width: int | None
    layers: list[LayerActivations]
    one_shot_rounding: str = "nearest"  # run folders of before have no such key

    def __post_init__(self) -> None:
        widths: dict[str, int | None] = {name: getattr(self, name) for name in ("act_bit_width", "sum_bit_width")}
        if self.end_bit_width is not None:
            widths["end_bit_width"] = self.end_bit_width
        widths.update({f"layers[{layer.pattern}].act_bit_width": layer.act_bit_width for layer in self.layers})
        for name, bits in widths.items():
            require(bits in (*range(1, 9), 16), f"quant.{name}", bits, "1..8 or 16")
        roundings = ("nearest", "layerwise")
        rounding = self.one_shot_rounding
        require(rounding in roundings, "quant.one_shot_rounding", rounding, f"one of {list(roundings)}")


@dataclass(kw_only=True)
class LayerChoices:
    """Restricts what some layers may become; null leaves the choices of `search` as they are.

    Args:
        pattern: Name of a layer, or a pattern of names (`layer3.*`).
        weight_bit_widths: Dense precisions, each 1..8.
        significant_densities: Shares of 8-bit weights beside binary ones, each in (0, 1].
        sparse_densities: Shares of weights kept where the others are zero, each in (0, 1].
        granularities: Which weights may be kept or dropped together: element, kernel, channel_vector, filter.
        act_bit_widths: Bits of the codes that they may read, each 1..8 or 16.
    """

    pattern: str
    weight_bit_widths: list[int] | None = None
    significant_densities: list[float] | None = None
    sparse_densities: list[float] | None = None
    granularities: list[str] | None = None
    act_bit_widths: list[int] | None = None


@dataclass(kw_only=True)
class CostBound:
    """Values of a cost column that are allowed.

    Args:
        column: One of `hwmodel.table.COLUMNS`.
        low: Lowest value; null for no bound on this side.
        high: Highest value; null for no bound on this side.
    """

    column: str
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        require_columns("search.bounds", [self.column])
        name = f"search.bounds[{self.column}]"
        require(self.low is not None or self.high is not None, name, None, "low, high, or both")
        low, high = -math.inf if self.low is None else self.low, math.inf if self.high is None else self.high
        require(low <= high, name, [low, high], "low <= high")  # refuses NaN too


@dataclass(kw_only=True)
class ExecutorSettings:
    """Where trials run.

    Args:
        kind: `in_process`, one after another; `processes` on this machine; `ray` on a Ray cluster.
        workers: Trials under way at once, >= 1; 1 for `in_process`.
        threads: Threads of each process; null shares the machine's cores out.
        address: Of a Ray cluster, `host:port` or `auto`; null starts one here.
        cpus: Processor cores of each trial on a Ray cluster.
        gpus: GPUs of each trial on a Ray cluster; a fraction shares one.
        time_limit_s: Seconds that a trial may take; null for no limit.
    """

    # Defaults, because they decide nothing about results: run folders of before have no such keys.
    kind: str = "in_process"
    workers: int = 1
    threads: int | None = None
    address: str | None = None
    cpus: float = 1.0
    gpus: float = 0.0
    time_limit_s: float | None = None

    def __post_init__(self) -> None:
        kinds = ("in_process", "processes", "ray")
        require(self.kind in kinds, "search.executor.kind", self.kind, f"one of {list(kinds)}")
        require_number("search.executor.workers", self.workers, 1)
        alone = self.kind != "in_process" or self.workers == 1
        require(alone, "search.executor.workers", self.workers, "1, or search.executor.kind=processes")
        require(self.threads is None or self.threads >= 1, "search.executor.threads", self.threads, "null or >= 1")
        require(self.cpus > 0, "search.executor.cpus", self.cpus, "> 0")
        require_number("search.executor.gpus", self.gpus, 0)
        limit = self.time_limit_s
        require(limit is None or limit > 0, "search.executor.time_limit_s", limit, "null or > 0")


@dataclass(kw_only=True)
class SearchSettings:
    """The search.

    Args:
        trials: Configurations to evaluate, the first designs included; 0 trains the baselines alone.
        initial_trials: First designs, from the sensitivity profile.
        weight_bit_widths: Dense precisions that a layer may take, each 1..8.
        significant_densities: Shares of 8-bit weights beside binary ones (`binary_plus_sparse`), each in (0, 1].
        sparse_densities: Shares of weights kept where the others are zero (`sparse`), each in (0, 1].
        layers: Narrower choices of single layers; the last pattern that matches counts.
        granularities: Which weights may be kept or dropped together: element, kernel, channel_vector, filter; at each
            density each of them is a choice of its own.
        density_levels: Fills each of the lists of densities, those of `layers` too, up from its lowest to its highest
            value to about so many, in equal ratios, >= 2: a density between bounds; null for the listed ones.
        act_bit_widths: Bits of the codes that a layer may read, each 1..8 or 16, except where `quant` gives them: in
            the first layer, by `end_bit_width` in the last, and by `quant.layers`.  Empty for `quant.act_bit_width`.
        groups: Lists of patterns of layer names; the layers of a list are tied, they take the same choice.
        min_compression: Compression to reach, one winner each: 32 bits per weight over everything stored.
            Not used with `front`.
        front: One or two cost columns: seeks the best accuracy at every cost inside the bounds; empty for none.
        front_networks: Networks of a front that are trained in full, spread by what they add to its hypervolume.
        bounds: Of other cost columns, beside `min_compression` and `bram18`.
        bram18: Block RAMs that the network may use; null for all of the board.
        max_failed_share: The search gives up as soon as more than this share of `trials` has failed.
        retry_failed: Whether trials that failed are run again when a search goes on.
        train_steps: Optimizer steps that a trial trains.
        eval_images: Validation images that score a trial; null for all.
        sensitivity_images: Fit images of the sensitivity profile.
        seed: Of everything random in the search.
        executor: Where trials run.
        screening_share: Share of its training after which a bad trial is stopped, in [0, 1): 0 before it; null: never.
    """

    trials: int
    initial_trials: int
    weight_bit_widths: list[int]
    significant_densities: list[float]
    sparse_densities: list[float]
    layers: list[LayerChoices]
    min_compression: list[float]
    bram18: int | None
    max_failed_share: float
    train_steps: int
    eval_images: int | None
    sensitivity_images: int
    seed: int
    executor: ExecutorSettings = field(default_factory=ExecutorSettings)
    # Run folders of before have none of these keys.
    granularities: list[str] = field(default_factory=lambda: ["element"])  # once `granularity`: `qat.compose`
    density_levels: int | None = None
    act_bit_widths: list[int] = field(default_factory=list)
    groups: list[list[str]] = field(default_factory=list)
    front: list[str] = field(default_factory=list)
    front_networks: int = 4
    bounds: list[CostBound] = field(default_factory=list)
    screening_share: float | None = None
    retry_failed: bool = False

    def __post_init__(self) -> None:
        counts = (("trials", 0), ("initial_trials", 1), ("train_steps", 0), ("sensitivity_images", 1))
        for name, low in (*counts, ("front_networks", 1)):
            require_number(f"search.{name}", getattr(self, name), low)
        bound = f"at most search.trials={self.trials}"
        ok = not self.trials or self.initial_trials <= self.trials
        require(ok, "search.initial_trials", self.initial_trials, bound)
        levels = self.density_levels
        require(levels is None or levels >= 2, "search.density_levels", levels, "null or an integer >= 2")
        for name in ("bram18", "eval_images"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"search.{name}", value, "null or an integer >= 1")
        require_number("search.max_failed_share", self.max_failed_share, 0, 1)
        share = self.screening_share
        require(share is None or 0 <= share < 1, "search.screening_share", share, "null or a share in [0, 1)")
        self._require_targets()
        self._require_choices("search", self)
        for choices in self.layers:
            self._require_choices(f"search.layers[{choices.pattern}]", choices)

    def _require_targets(self) -> None:
        enough = bool(self.min_compression or self.front or self.bounds)
        require(enough, "search.min_compression", [], "at least one value, or search.front, or search.bounds")
        require_all("search.min_compression", self.min_compression, 1, math.inf)
        require_columns("search.front", self.front)
        ok = len(self.front) <= 2 and len(set(self.front)) == len(self.front) and "fits" not in self.front
        require(ok, "search.front", list(self.front), "one or two different cost columns that are numbers")
        bounded = [bound.column for bound in self.bounds]
        require(len(set(bounded)) == len(bounded), "search.bounds", bounded, "each column once")
        twice = {"bram18": self.bram18 is not None, "compression": not self.front and bool(self.min_compression)}
        for column, is_set in twice.items():
            own = "search.bram18" if column == "bram18" else "search.min_compression"
            ok = column not in bounded or not is_set
            require(ok, "search.bounds", bounded, f"no {column} beside {own}, which bounds it")

    @staticmethod
    def _require_choices(where: str, choices: SearchSettings | LayerChoices) -> None:
        given = [choices.weight_bit_widths, choices.significant_densities, choices.sparse_densities]
        require(given != [[], [], []], f"{where}.weight_bit_widths", [], "at least one choice")
        require_all(f"{where}.weight_bit_widths", choices.weight_bit_widths or (), 1, 8)
        for name in ("significant_densities", "sparse_densities"):
            require_all(f"{where}.{name}", getattr(choices, name) or (), 0, 1, low_open=True)
        widths = choices.act_bit_widths
        ok = widths != [] or isinstance(choices, SearchSettings)
        require(ok, f"{where}.act_bit_widths", widths, "at least one width, or null")
        for bits in widths or ():
            require(bits in (*range(1, 9), 16), f"{where}.act_bit_widths", bits, "1..8 or 16")
        words = [str(granularity) for granularity in Granularity]
        names = choices.granularities
        ok = names is None or (names != [] and set(names) <= set(words))
        require(ok, f"{where}.granularities", names, f"at least one of {words}")


@dataclass(kw_only=True)
class TrainerSettings:
    """Training.

    Args:
        float_epochs: Passes over the fit images when the float network is trained from scratch.
        float_learning_rate: Peak of its learning rate.
        epochs: Passes of the final fine-tune of a quantized network.
        learning_rate: Peak of its learning rate.
        weight_decay: AdamW's, on weights only.
        warmup_share: Share of the steps with rising learning rate, in [0, 1).
        distillation_weight: Share of the loss that comes from the float network's logits, in [0, 1].
        temperature: Softens these logits.
        gradient_clip: Largest gradient norm; 0 for none.
        mask_update_share: Share of the steps in which the kept weights are chosen anew, in [0, 1].
        mask_update_steps: Steps between two choices.
        mask_saliency: What decides the choice: magnitude (error of the weights) or taylor (change of the loss).
        mask_schedule: immediate (densities exact at once) or gradual (they fall from 1 until the last choice).
        exact_share: Last share of the steps of training in full that compute forward with the very integers that are
            exported, batch-norm statistics fixed, in [0, 1]; 0 for none.
        precision: 32-true or bf16-mixed.
        accelerator: auto, cpu or gpu.
        devices: Number of devices.
        strategy: auto or ddp.
        num_threads: CPU threads; null for torch's choice.  Workers of `search.executor` have those that it gives them.
        progress_bar: Whether progress is shown live.
        compile: Whether training in full compiles the network (torch.compile; needs a C++ compiler and some minutes).
        epochs_per_validation: Epochs between two measurements on validation images; they select nothing.
        integer_forward: Whether `compile` has quantized convolutions compute their forward pass in 8-bit integers,
            exactly and faster, on CPUs with AVX-512; without effect elsewhere.
    """

    float_epochs: int
    float_learning_rate: float
    epochs: int
    learning_rate: float
    weight_decay: float
    warmup_share: float
    distillation_weight: float
    temperature: float
    gradient_clip: float
    mask_update_share: float
    mask_update_steps: int
    precision: str
    accelerator: str
    devices: int
    strategy: str
    num_threads: int | None
    progress_bar: bool
    mask_saliency: str = "magnitude"  # run folders of before have none of these keys
    mask_schedule: str = "immediate"
    compile: bool = False
    epochs_per_validation: int = 1
    integer_forward: bool = True
    exact_share: float = 0.0  # what folders of before had; runs of now begin with conf/trainer/default.yaml's

    def __post_init__(self) -> None:
        for name in ("float_epochs", "epochs", "mask_update_steps", "devices", "epochs_per_validation"):
            require_number(f"trainer.{name}", getattr(self, name), 1)
        for name in ("float_learning_rate", "learning_rate", "temperature"):
            require_number(f"trainer.{name}", getattr(self, name), 0, low_open=True)
        for name in ("weight_decay", "gradient_clip"):
            require_number(f"trainer.{name}", getattr(self, name), 0)
        for name in ("warmup_share", "distillation_weight", "mask_update_share", "exact_share"):
            require_number(f"trainer.{name}", getattr(self, name), 0, 1)
        require(self.warmup_share < 1, "trainer.warmup_share", self.warmup_share, "a number >= 0 and < 1")
        for name, words in (
            ("precision", ("32-true", "bf16-mixed")),
            ("accelerator", ("auto", "cpu", "gpu")),
            ("strategy", ("auto", "ddp")),
            ("mask_saliency", ("magnitude", "taylor")),
            ("mask_schedule", ("immediate", "gradual")),
        ):
            require(getattr(self, name) in words, f"trainer.{name}", getattr(self, name), f"one of {list(words)}")
        threads = self.num_threads
        require(threads is None or threads >= 1, "trainer.num_threads", threads, "null or an integer >= 1")


@dataclass(kw_only=True)
class Config:
    """Everything that decides a run.

    Args:
        name: Name of the run.
        run_dir: Folder that receives all results.
        run: Folder of an earlier run: its configuration is used in place of the composed one; null for none.
        seed: Of training; the same seed gives the same result on the same machine.
        baselines: Weight bits of uniform configurations that are trained like the found mix, each 1..8.
        network: What is quantized.
        data: Images.
        board: The budget.
        quant: Bit widths that are given.
        search: The search.
        trainer: Training.
    """

    name: str
    run_dir: str
    run: str | None = None
    seed: int
    baselines: list[int]
    network: NetworkSettings
    data: DataSettings
    board: BoardSettings
    quant: QuantSettings
    search: SearchSettings
    trainer: TrainerSettings

    def __post_init__(self) -> None:
        require(bool(self.name), "name", self.name, "a name for the run")
        require(bool(self.run_dir), "run_dir", self.run_dir, "a folder")
        for name, seed in (("seed", self.seed), ("search.seed", self.search.seed)):
            require(0 <= seed <= LARGEST_SEED, name, seed, f"an integer >= 0 and <= {LARGEST_SEED}")
        require_all("baselines", self.baselines, 1, 8)
        require(bool(self.baselines or self.search.trials), "baselines", [], "at least one, or search.trials >= 1")
        devices, batch = self.trainer.devices, self.data.batch_size
        require(batch % devices == 0, "data.batch_size", batch, f"a multiple of trainer.devices={devices}")
        channels = self.network.input_shape[0]
        expected = f"{channels} values, one for each channel of network.input_shape"
        require(len(self.data.mean) == channels, "data.mean", self.data.mean, expected)
        for name in ("detection", "folder"):
            images = getattr(self.data, name)
            size, own = images and list(images.image_size), list(self.network.input_shape[1:])
            expected = f"{own}, the rows and columns of network.input_shape"
            require(images is None or size == own, f"data.{name}.image_size", size, expected)
