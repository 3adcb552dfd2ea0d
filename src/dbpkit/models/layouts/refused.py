"""Layouts that are recognised to say what to do: networks of other libraries, and those of latents."""

from typing import Any

from dbpkit.models.layouts.contents import Weights
from dbpkit.models.layouts.layout import Layout, layouts


@layouts.register("dit")
class DiT(Layout):
    """Diffusion transformers, which work on the latents of an autoencoder."""

    title = "a diffusion transformer (DiT)"
    marks = ("x_embedder.proj.weight", "t_embedder.mlp.0.weight", "blocks.0.adaLN_modulation.1.weight")
    refusal = (
        "works on the latents of an autoencoder, not on pixels: write a purifier of your own around both, and"
        " name it as purifier = { name = 'module:factory' }."
    )


@layouts.register("text_unet")
class TextUNet(Layout):
    """U-Nets that attend to a text, which work on latents."""

    title = "a U-Net that attends to text"
    marks = ("time_embedding.linear_1.weight", "conv_in.weight", "down_blocks.*.attn2.to_k.weight")
    refusal = (
        "works on the latents of an autoencoder and needs a text: write a purifier of your own around both,"
        " and name it as purifier = { name = 'module:factory' }."
    )


@layouts.register("timm")
class Timm(Layout):
    """Vision transformers under timm's names."""

    title = "a timm vision transformer"
    kind = "classifier"
    marks = ("patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "blocks.0.norm1.weight")
    refusal = (
        "timm builds: classifier = { name = 'timm', options = { model = 'NAME', weights = 'FILE' } }, with"
        " the name of its model."
    )


@layouts.register("transformers")
class Transformers(Layout):
    """Vision transformers under the names of Hugging Face transformers."""

    title = "a transformers vision transformer"
    kind = "classifier"
    marks = (
        "*encoder.layer.0.attention.attention.query.weight",
        "*embeddings.patch_embeddings.projection.weight",
    )
    refusal = (
        "the library transformers builds: classifier = { name = 'transformers', options = { model ="
        " 'DIRECTORY' } }, with the directory that holds it and its config.json."
    )


@layouts.register("imagenet_resnet")
class ImageNetResNet(Layout):
    """Residual networks with a 7 x 7 stem, as torchvision and timm name them."""

    title = "an ImageNet ResNet"
    kind = "classifier"
    marks = ("conv1.weight", "bn1.weight", "layer1.0.conv1.weight", "fc.weight")
    refusal = (
        "timm builds: classifier = { name = 'timm', options = { model = 'resnet50', weights = 'FILE' } },"
        " with the name of its model."
    )

    def accepts(self, weights: Weights, content: Any) -> bool:
        """Those whose first convolution is 7 x 7."""
        return weights.shapes["conv1.weight"][-1] == 7
