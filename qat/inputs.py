"""What a run needs: files that it reads, a GPU.  Whether it is there is seen before anything is made or computed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qat.config import Config, DataSettings, TrainerSettings
from qat.errors import CheckpointError, ConfigError, DataError

FLOAT = "float.ckpt"
"""Weights of the float model in the run folder."""

DOWNLOAD_FOLDER = Path("data")
"""The one folder that a download makes itself; another has to be there, so that a slip in its name is seen."""


SHAPES = {"digits": (1, 8, 8), "cifar10": (3, 32, 32)}
"""Channels, rows, columns of the images of data sets that have one size."""


def check_shape(cfg: Config, shape: Sequence[int]) -> None:
    """Refuses a network for images of another shape.

    Raises:
        ConfigError: `network.input_shape` is not `shape`.
    """
    own = list(cfg.network.input_shape)
    if own != list(shape):
        raise ConfigError(
            f"network.input_shape={own}, expected {list(shape)}, the shape of the images of {cfg.data.name}"
        )


def check_root(settings: DataSettings) -> None:
    """Refuses a folder of images that is not there and that nothing is to be downloaded into.

    Raises:
        DataError: There is no `data.root`.
    """
    root = Path(settings.root or ".")
    if settings.source == "bundled" or root.exists():
        return
    if not (settings.download and settings.source != "archive"):
        can_download = settings.name == "cifar10" or (settings.detection and settings.detection.format == "voc")
        hint = ", or set data.download=true" if can_download and settings.source != "archive" else ""
        raise DataError(f"data.root={str(root)!r} does not exist, expected the images of {settings.name}{hint}")
    folder = root if settings.detection is None else root.parent  # torchvision makes VOCdevkit itself
    if not folder.is_dir() and folder.resolve() != DOWNLOAD_FOLDER.resolve():
        raise DataError(
            f"data.root={str(root)!r} does not exist; check the name, or make the folder {folder} first if "
            f"{settings.name} shall be downloaded into it"
        )


def check_devices(trainer: TrainerSettings) -> None:
    """Refuses GPUs that are not there.

    Raises:
        ConfigError: A GPU is asked for and there is none, or more than there are.
    """
    if trainer.accelerator != "gpu" and trainer.devices == 1:
        return
    import torch  # here, because it takes seconds and other settings do without

    has_cuda = torch.cuda.is_available()
    has_gpu = has_cuda or torch.backends.mps.is_available()
    if trainer.accelerator == "gpu" and not has_gpu:
        raise ConfigError("trainer.accelerator='gpu', expected auto or cpu: torch finds no GPU here")
    count = torch.cuda.device_count()
    if trainer.accelerator != "cpu" and has_cuda and trainer.devices > count:
        raise ConfigError(f"trainer.devices={trainer.devices}, expected at most {count}, the GPUs that are here")


def check_inputs(cfg: Config) -> None:
    """Refuses missing weights, images and GPUs, and images of another shape, before anything that takes time.

    Raises:
        CheckpointError: The weights that the configuration names are not there.
        ConfigError: The network is for images of another shape, or a GPU is not there.
        DataError: The images are not there.
    """
    check_devices(cfg.trainer)
    if cfg.data.detection is None and cfg.data.folder is None and cfg.data.name in SHAPES:
        check_shape(cfg, SHAPES[cfg.data.name])
    check_root(cfg.data)
    weights = cfg.network.weights
    if weights and not Path(cfg.run_dir, FLOAT).is_file() and not Path(weights).is_file():
        raise CheckpointError(
            f"network.weights={weights!r} does not exist, expected a checkpoint of {cfg.network.name}; null trains "
            "the network from scratch"
        )
