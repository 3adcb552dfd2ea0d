"""Networks with random weights: U-Nets that denoise and classifiers, one file each.

A network is a class or function of its options that returns an ``nn.Module``. A classifier's maps images
(B, C, H, W) in [0, 1] to logits (B, K). A denoiser's maps scaled images and noise labels (B,) to images, and
an adapter of `dbpkit.models.denoisers` adds schedule and preconditioning.
"""

from dbpkit.foundation.registry import import_siblings
from dbpkit.models.networks.diffusers import diffusers_unet
from dbpkit.models.networks.registry import networks
from dbpkit.models.networks.resnet9 import ResNet9
from dbpkit.models.networks.unet import UNet
from dbpkit.models.networks.vgg import VGG

import_siblings(__name__, __path__)

__all__ = ["VGG", "ResNet9", "UNet", "diffusers_unet", "networks"]
