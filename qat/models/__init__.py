"""Networks that torchvision lacks."""

from qat.models.resnet_cifar import ResNetCifar, digits_resnet, resnet20, resnet56

__all__ = ["ResNetCifar", "digits_resnet", "resnet20", "resnet56"]
