"""Networks that torchvision lacks, and the one door to any network."""

from qat.models.build import build_network
from qat.models.darknet import Darknet
from qat.models.darknet_tables import (
    blood_yolo,
    board_yolo,
    darknet19,
    digits_yolo,
    sim_yolo_v2_fpga,
    yolov2_tiny_voc,
    yolov2_voc,
    yolov3,
    yolov3_tiny,
)
from qat.models.fastestdet import FastestDet, fastestdet
from qat.models.pyramid import (
    Pyramid,
    blood_fcos,
    faster_rcnn_r50,
    fcos_r50,
    fcos_r50_bn,
    retinanet_r50,
    with_batch_norm,
)
from qat.models.resnet_cifar import ResNetCifar, digits_resnet, resnet20, resnet56
from qat.models.ssd import Ssd, blood_ssdlite320, ssd300, ssdlite320

__all__ = [
    "Darknet",
    "FastestDet",
    "Pyramid",
    "ResNetCifar",
    "Ssd",
    "blood_fcos",
    "blood_ssdlite320",
    "blood_yolo",
    "board_yolo",
    "build_network",
    "darknet19",
    "digits_resnet",
    "digits_yolo",
    "faster_rcnn_r50",
    "fastestdet",
    "fcos_r50",
    "fcos_r50_bn",
    "resnet20",
    "resnet56",
    "retinanet_r50",
    "sim_yolo_v2_fpga",
    "ssd300",
    "ssdlite320",
    "yolov2_tiny_voc",
    "yolov2_voc",
    "yolov3",
    "yolov3_tiny",
    "with_batch_norm",
]
