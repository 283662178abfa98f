"""Data modules: photographs that need no download, torchvision's data sets, and folders of images."""

from lit_viz.data.base import UNLABELLED, ImageDataModule
from lit_viz.data.image_folder import ImageFolderData
from lit_viz.data.photographs import Photographs
from lit_viz.data.torchvision_data import TorchvisionData

__all__ = ["UNLABELLED", "ImageDataModule", "ImageFolderData", "Photographs", "TorchvisionData"]
