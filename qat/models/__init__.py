"""Networks that torchvision lacks, and the one door to any network."""

from qat.models.build import build_network
from qat.models.resnet_cifar import ResNetCifar, digits_resnet, resnet20, resnet56

__all__ = ["ResNetCifar", "build_network", "digits_resnet", "resnet20", "resnet56"]
