"""What the workers around research code share: stand-ins for packages that only training needs, and safe loading.

The official repositories import packages (mmcv, mmsegmentation, timm, torchvision ...) in versions that can hardly
be installed today, but inference uses only a function or two of them. A stand-in is a module with just these functions.
"""

import argparse
import importlib.machinery
import importlib.util
import json
import os
import sys
import types

import numpy as np
import torch
from PIL import Image
from torch import nn

MEAN, SPREAD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SAM_MEAN, SAM_SPREAD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def add_repository(config, url, needed):
    """Put the checkout `-o repo=FOLDER` on the path, if it holds the file `needed`."""
    folder = os.path.abspath(os.path.expanduser(config.get("repo", "")))
    if not config.get("repo") or not os.path.exists(os.path.join(folder, needed)):
        raise ValueError(
            "give a checkout of %s with -o repo=FOLDER (%s is not in %r)" % (url, needed, config.get("repo", ""))
        )
    sys.path.insert(0, folder)
    return folder


def need(config, name, what):
    """An option that must be there, as a path."""
    path = os.path.abspath(os.path.expanduser(config.get(name, "")))
    if not config.get(name) or not os.path.exists(path):
        raise ValueError("give %s with -o %s=PATH (%r does not exist)" % (what, name, config.get(name, "")))
    return path


def choice(config, name, what, known, default=None):
    """An option that is one of a few words."""
    given = config.get(name, default)
    if given not in known:
        told = "%r is not allowed" % given if given else "there is no default"
        raise ValueError("give %s with -o %s=%s (%s)" % (what, name, "|".join(known), told))
    return given


def stand_in(name, **attributes):
    """An empty module of that name, with parents, unless the real one is there already."""
    if name in sys.modules:
        return sys.modules[name]
    parent, _, child = name.rpartition(".")
    if parent:
        stand_in(parent)
    made = types.ModuleType(name)
    # A package, with a spec: others probe for both.
    made.__path__ = []
    made.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
    made.__dict__.update(attributes)
    sys.modules[name] = made
    if parent:
        setattr(sys.modules[parent], child, made)
    return made


class NoDropPath(nn.Module):
    """timm's DropPath at inference: nothing is dropped."""

    def __init__(self, drop_prob=0.0):
        super().__init__()

    def forward(self, x):
        if self.training:
            raise RuntimeError("this stand-in is for inference")
        return x


def not_here(*_, **__):
    raise RuntimeError("this stand-in is for inference; training needs the real package")


class _Chain(object):
    def __init__(self, steps):
        self.steps = steps

    def __call__(self, x):
        for step in self.steps:
            x = step(x)
        return x


class _Convert(object):
    def __init__(self, function):
        self.function = function

    def __call__(self, x):
        return self.function(x)


class _Resize(object):
    def __init__(self, size, interpolation=Image.BILINEAR):
        self.size, self.interpolation = size, interpolation

    def __call__(self, x):
        return x.resize((self.size[1], self.size[0]), self.interpolation)


class _Tensor(object):
    def __call__(self, x):
        return torch.from_numpy(np.array(x)).permute(2, 0, 1).contiguous().float().div(255)


class _Normal(object):
    def __init__(self, mean, std):
        self.mean, self.spread = (torch.tensor(v).view(-1, 1, 1) for v in (mean, std))

    def __call__(self, x):
        return x.sub(self.mean).div(self.spread)


class _Interpolation(object):
    BICUBIC, BILINEAR = Image.BICUBIC, Image.BILINEAR


def installed(name):
    """Whether there is a package of that name that is no stand-in."""
    there = sys.modules.get(name)
    return hasattr(there, "__file__") if there else importlib.util.find_spec(name) is not None


def check_torchvision():
    """Check that torchvision, if installed, fits torch. Call it before transformers is imported, which hides this."""
    if not installed("torchvision"):
        return
    try:
        import torchvision  # noqa: F401
    except Exception as error:
        raise ValueError(
            "torchvision does not fit torch %s (%s): install both from one place, both for CUDA or both for the CPU"
            % (torch.__version__, error)
        )


def for_torchvision():
    """Bit-identical stand-ins for the torchvision functions that repositories apply to PIL images, if it is missing.

    Call it after importing transformers and other packages that look for torchvision: they must not find a stand-in.
    """
    if installed("torchvision"):
        return
    stand_in(
        "torchvision.transforms", Compose=_Chain, Lambda=_Convert, Resize=_Resize, ToTensor=_Tensor, Normalize=_Normal
    )
    stand_in(
        "torchvision.transforms.functional",
        InterpolationMode=_Interpolation,
        # Pillow always smooths, whatever `antialias` says.
        resize=lambda image, size, antialias=None: image.resize((size[1], size[0]), Image.BILINEAR),
        to_pil_image=Image.fromarray,
    )
    stand_in("torchvision.ops.boxes", box_area=not_here, batched_nms=not_here)


def cuda_is(device):
    """From now on `.cuda()` in official code means `device`: any GPU, or the CPU."""
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    torch.Tensor.cuda = lambda self, *_, **__: self.to(device)
    return device


def as_words(expression, tokenizer):
    """The expression with a blank inserted into each special token, and whether it held any.

    "<image>" in it would mean a second image, "[SEG]" a second mask, also for the other expressions of the batch.
    """
    marks = {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab(), "<image>"}
    plain = expression
    for mark in sorted(marks, key=len, reverse=True):
        if len(mark) > 1:
            plain = plain.replace(mark, mark[0] + " " + mark[1:])
    return plain, plain != expression


def all_weights(loaded, weights, what, spare=(), computed=()):
    """The network of `from_pretrained(..., output_loading_info=True)`, with no weight missing, left over or misshapen.

    `spare`: name prefixes of surplus weights that a released file may hold. `computed`: name suffixes of tensors that
    may be missing, because they are computed.
    """
    network, found = loaded
    over = [k for k in found["unexpected_keys"] if not k.startswith(tuple(spare))]
    missing = [k for k in found["missing_keys"] if not k.endswith(tuple(computed))]
    wrong = missing + over + [str(k) for k in found["mismatched_keys"]]
    if wrong:
        raise ValueError("%s does not fit %s: %d weights, e.g. %s" % (weights, what, len(wrong), wrong[0]))
    return network


def sam_pixels(image, longest_side, side=1024):
    """float (3, side, side) for SAM, and the (H, W) of the picture in it: normalised, padded at the right and below.

    `longest_side` is the repository's own class for resizing.
    """
    resized = longest_side(side).apply_image(np.array(image))
    pixels = torch.from_numpy(resized).permute(2, 0, 1).contiguous()
    mean, spread = (torch.tensor(v).view(-1, 1, 1) for v in (SAM_MEAN, SAM_SPREAD))
    pixels = (pixels - mean) / spread
    height, width = pixels.shape[-2:]
    return nn.functional.pad(pixels, (0, side - width, 0, side - height)), (height, width)


class OfLast(object):
    """A function that caches its last result and returns it for the same argument object, e.g. the same image."""

    def __init__(self, function):
        self.function = function
        self.argument = self.result = None

    def __call__(self, argument):
        if argument is not self.argument:
            self.argument, self.result = argument, self.function(argument)
        return self.result


def by_picture(images):
    """Positions of a batch, grouped by image: [(image, [position, ...]), ...]."""
    groups = []
    for place, image in enumerate(images):
        if not groups or groups[-1][0] is not image:
            groups.append((image, []))
        groups[-1][1].append(place)
    return groups


def for_swin():
    """timm's layers and mmsegmentation's logger, as the Swin backbones of LAVT and MagNet import them."""
    stand_in(
        "timm.models.layers",
        DropPath=NoDropPath,
        to_2tuple=lambda x: tuple(x) if isinstance(x, (tuple, list)) else (x, x),
        trunc_normal_=nn.init.trunc_normal_,
    )
    stand_in("mmseg.utils", get_root_logger=not_here)


def load_checkpoint(path):
    """A checkpoint of training: tensors and an argparse.Namespace, and nothing that could run."""
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, map_location="cpu", weights_only=True)


def load_strictly(network, state, what):
    """Weights by name, with none missing and none left over."""
    # Saved from a wrapper for several GPUs.
    state = {k[len("module.") :] if k.startswith("module.") else k: v for k, v in state.items()}
    try:
        network.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise ValueError("the checkpoint does not fit %s: %s" % (what, str(error)[:600]))
    return network


def image_tensor(image, side):
    """float (3, side, side): both sides brought to one length (Pillow's bilinear), ImageNet's normalisation."""
    squeezed = image.resize((side, side), Image.BILINEAR)
    pixels = torch.from_numpy(np.array(squeezed)).permute(2, 0, 1).contiguous().float().div(255)
    mean, spread = (torch.tensor(v).view(-1, 1, 1) for v in (MEAN, SPREAD))
    return pixels.sub(mean).div(spread)


def bert_tokens(tokenizer, expressions, length):
    """Ids and attention mask, int64 (B, length): cut (closing token too) and padded with zeros; and which were cut."""
    ids = torch.zeros(len(expressions), length, dtype=torch.int64)
    attention = torch.zeros_like(ids)
    cut = []
    for row, expression in enumerate(expressions):
        found = tokenizer.encode(text=expression, add_special_tokens=True)
        cut.append(len(found) > length)
        found = found[:length]
        ids[row, : len(found)] = torch.tensor(found)
        attention[row, : len(found)] = 1
    return ids, attention, cut


def architecture(config, standard):
    """The hyperparameters of the published network, overridden by `-o architecture={...}`."""
    given = json.loads(config.get("architecture") or "{}")
    unknown = sorted(set(given) - set(standard))
    if unknown:
        raise ValueError("unknown in architecture: %s; known: %s" % (", ".join(unknown), ", ".join(sorted(standard))))
    return dict(standard, **given)


class Namespace(object):
    """Arguments, as the official scripts hand them to their networks."""

    def __init__(self, **values):
        self.__dict__.update(values)
